// dmkit's mark in the sector of a store's header: Linux leaves it there, until it marks the store as invalid.
import { encodeMark } from '../../src/targets/snapshot/mark.ts';
import { header } from './store-bytes.ts';
import type { CaseText } from './target.ts';

const MARK = Buffer.from(
  encodeMark({
    storeId: '00112233445566778899aabbccddeeff',
    origin: { kind: 'file', key: 'a', label: 'a', sectorCount: 64 },
    originVersion: '1764244800000000000',
  }),
).toString('hex');

const marked = (chunk: number): string[] => [`poke c 0 :: ${header({ chunk })}`, `poke c 256 :: ${MARK}`];

/** Written by one side, by the other, and merged. */
function survivalCase(chunk: number): CaseText {
  const size = 40 * chunk;
  const store = 50 * chunk;
  const line = (type: string) => `0 ${size} ${type} @a @c P ${chunk}`;
  return {
    name: `a mark outlives writes and a merge, chunks of ${chunk}`,
    disks: [`a ${size} seed=1`, `c ${store} zero`],
    steps: [
      ...marked(chunk),
      `create o :: 0 ${size} snapshot-origin @a`,
      `create s :: ${line('snapshot')}`,
      'status s',
      `write s 0+${33 * chunk} from=0`,
      `write o ${35 * chunk}+1 from=12000`,
      'status s',
      'handover',
      `create s :: ${line('snapshot')}`,
      `write s ${36 * chunk}+${chunk} from=14000`,
      `read s 0+${size}`,
      'status s',
      'remove s',
      'handover',
      `create m :: ${line('snapshot-merge')}`,
      `until m :: merge ${2 * chunk}/${store} ${2 * chunk}`,
      'remove m',
      'handover',
      `create s :: ${line('snapshot')}`,
      'write s 0+1 from=7',
      'status s',
    ],
  };
}

export const snapshotMarkCases: readonly CaseText[] = [
  survivalCase(1),
  survivalCase(8),
  survivalCase(32),
  {
    name: 'a mark is cleared when its store becomes invalid',
    disks: ['a 64 seed=1', 'c 24 zero'],
    steps: [
      ...marked(8),
      'create s :: 0 64 snapshot @a @c P 8',
      'write s 0+8 from=0',
      'write s 8+8 from=10',
      'status s',
      'handover',
      'create s :: 0 64 snapshot @a @c P 8',
      'status s',
    ],
  },
];
