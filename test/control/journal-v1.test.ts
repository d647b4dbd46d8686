// The journal of version 0.1 is read as its own reader did, and on after damage.
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { readJournalV1 } from '../../src/control/journal-v1.ts';
import { tempDir } from '../support/tmp.ts';

const table = (params: string) => ({ readOnly: false, lines: [{ sector: 0, sectorCount: 8, type: 'linear', params }] });
const device = (id: number, name: string, minor = id) => ({
  id,
  name,
  uuid: '',
  minor,
  suspended: false,
  live: table(`253:${id} 0`),
  inactive: null,
});
/** As version 0.1 wrote it: two devices at first; one more, one gone, one changed, a minor number taken again. */
const LINES = [
  { format: 1, major: 253, devices: [device(1, 'a'), device(2, 'b')] },
  { device: device(3, 'c') },
  { removed: { id: 1, minor: 1 } },
  { device: { ...device(2, 'renamed'), suspended: true } },
  { device: device(4, 'd', 1) },
  { removed: { id: 1, minor: 1 } },
];

function journal(text = LINES.map((line) => `${JSON.stringify(line)}\n`).join('')) {
  const path = join(tempDir('v1'), 'journal.json');
  writeFileSync(path, text);
  return path;
}

const namesIn = (path: string) => readJournalV1(path)?.devices.map(({ name }) => name);

describe('a journal of version 0.1', () => {
  test('gives the devices as they were last', () => {
    const state = readJournalV1(journal());
    expect(state).toEqual({
      major: 253,
      devices: [device(3, 'c'), device(4, 'd', 1), { ...device(2, 'renamed'), suspended: true }],
      damage: [],
    });
    expect(readJournalV1(join(tempDir(), 'none'))).toBe(null);
  });

  test('without the end of its last line has not got it', () => {
    const path = journal();
    appendFileSync(path, JSON.stringify({ device: device(9, 'torn') }));
    expect([namesIn(path), readJournalV1(path)?.damage]).toEqual([['c', 'd', 'renamed'], []]);
  });

  test('damaged at any byte of any line gives what the other lines say, and names the line', () => {
    const path = journal();
    const whole = readFileSync(path);
    const lines = LINES.map((line) => `${JSON.stringify(line)}\n`);
    let start = 0;
    for (const [index, line] of lines.entries()) {
      const end = start + line.length;
      for (let at = start; at < end - 1; at++) {
        const bytes = Buffer.from(whole);
        bytes[at] = 0;
        writeFileSync(path, bytes);
        const without = journal(lines.filter((_, other) => other !== index).join(''));
        if (at === start) expect(namesIn(path)).toEqual(namesIn(without));
        const { damage, devices } = readJournalV1(path)!;
        expect(damage).toMatchObject([{ start, end }]);
        expect(devices.length).toBeGreaterThan(1);
      }
      start = end;
    }
    const bytes = Buffer.from(whole);
    bytes[lines[0]!.length + lines[1]!.length - 4] = 0x0a;
    writeFileSync(path, bytes);
    expect(readJournalV1(path)?.damage.flatMap(({ names }) => names)).toEqual(['c']);
  });

  test('whose first line is damaged gives the changes behind it, and no major number', () => {
    const state = readJournalV1(journal(`x${LINES.map((line) => JSON.stringify(line)).join('\n')}\n`));
    expect([state?.major, state?.devices.map(({ name }) => name)]).toEqual([null, ['c', 'd', 'renamed']]);
    expect(state?.damage).toMatchObject([{ start: 0, names: ['a', 'b'] }]);
  });

  test('is refused where the file is another one', () => {
    const path = journal('{"some":"thing"}\n');
    expect(() => readJournalV1(path)).toThrow(
      expect.objectContaining({ errno: Errno.EINVAL, message: `${path} is not a journal of dmkit 0.1. Move it away.` }),
    );
  });
});
