// Snapshots as the seed has it: an origin, two or three snapshots of it with chunks of their own, writes to all of them,
// the other side in between, and a merge at the end.
import type { Draw } from '../draw.ts';
import { PAYLOAD_SECTOR_COUNT } from '../noise.ts';
import type { CaseText } from './target.ts';

/** One of so many drawn cases is of snapshots. */
const SHARE = 28;

function drawCase(draw: Draw, index: number): CaseText {
  const size = draw.integer(20, 120);
  const lines = draw.times(2, 3, (number) => {
    const chunk = 2 ** draw.integer(0, 5);
    const store = 'bcd'[number]!;
    const room = 3 * size + draw.integer(4, 8) * chunk;
    const word = number === 0 ? draw.item(['P', 'PO']) : draw.item(['P', 'PO', 'N']);
    return {
      name: `s${number}`,
      store,
      chunk,
      room,
      words: `@a @${store} ${word} ${chunk}`,
      isTransient: word === 'N',
    };
  });
  const write = (on: string): string => {
    const sector = draw.integer(0, size - 1);
    const count = draw.integer(1, draw.chance(0.8) ? Math.min(12, size - sector) : size - sector);
    return `write ${on} ${sector}+${count} from=${draw.integer(0, PAYLOAD_SECTOR_COUNT - size)}`;
  };
  const requests = (names: readonly string[]): string[] =>
    draw.times(4, 8, () => {
      const on = draw.item(names);
      return draw.chance(0.8) ? write(on) : draw.item([`status ${on}`, `read ${on} 0+${size}`, `flush ${on}`]);
    });
  const begin = (living: typeof lines): string[] => [
    `create o :: 0 ${size} snapshot-origin @a`,
    'suspend o',
    ...living.map(({ name, words }) => `create ${name} :: 0 ${size} snapshot ${words}`),
    'resume o',
  ];
  const kept = lines.filter((line) => !line.isTransient);
  const merged = kept[0]!;
  const names = (living: typeof lines): string[] => ['o', ...living.map(({ name }) => name)];
  return {
    name: `drawn ${index}`,
    disks: [`a ${size} seed=1`, ...lines.map(({ store, room }) => `${store} ${room} zero`)],
    steps: [
      ...begin(lines),
      ...requests(names(lines)),
      'handover',
      ...begin(kept),
      ...requests(names(kept)),
      `remove ${merged.name}`,
      'handover',
      ...begin(kept.slice(1)),
      `load o :: 0 ${size} snapshot-merge ${merged.words}`,
      'resume o',
      `until o :: merge ${2 * merged.chunk}/${merged.room} ${2 * merged.chunk}`,
      ...requests(names(kept.slice(1))),
    ],
  };
}

export function drawSnapshotCases(draw: (index: number) => Draw, count: number): CaseText[] {
  return Array.from({ length: Math.ceil(count / SHARE) }, (_, index) => drawCase(draw(index), index));
}
