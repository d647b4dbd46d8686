// Range maps against an array, and mapfiles there and back.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { formatMapfile, parseMapfile, saveMapfile } from '../../src/copy/mapfile.ts';
import { BAD, DONE, FAILED, RangeMap, type Status, UNTRIED } from '../../src/copy/ranges.ts';
import { itPeer, peer, run } from '../support/peers.ts';
import '../support/seed.ts';
import { tempDir } from '../support/tmp.ts';

const SIZE = 60;
const status = fc.constantFrom<Status>(UNTRIED, FAILED, BAD, DONE);
const change = fc.record({ start: fc.nat(SIZE), length: fc.nat(20), status });

function build(changes: { start: number; length: number; status: Status }[]): { map: RangeMap; model: Status[] } {
  const map = new RangeMap(SIZE);
  const model = new Array<Status>(SIZE).fill(UNTRIED);
  for (const { start, length, status: to } of changes) {
    const end = Math.min(SIZE, start + length);
    map.set(start, end, to);
    for (let at = start; at < end; at++) model[at] = to;
  }
  return { map, model };
}

function flat(map: RangeMap): Status[] {
  return map.entries.flatMap(({ start, end, status: is }) => new Array<Status>(end - start).fill(is));
}

describe('a range map', () => {
  it('is what an array of sectors is, with neighbours joined', () => {
    fc.assert(
      fc.property(fc.array(change, { maxLength: 30 }), fc.nat(SIZE - 1), fc.nat(SIZE), (changes, start, end) => {
        const { map, model } = build(changes);
        expect(flat(map)).toEqual(model);
        for (const [i, entry] of map.entries.entries()) {
          expect(entry.start).toBe(map.entries[i - 1]?.end ?? 0);
          if (i > 0) expect(entry.status).not.toBe(map.entries[i - 1]!.status);
        }
        const found = [...map.ranges([BAD, FAILED], { start, end })].flatMap((range) =>
          Array.from({ length: range.end - range.start }, (_, i) => range.start + i),
        );
        const wanted = model.flatMap((is, at) =>
          at >= start && at < end && (is === BAD || is === FAILED) ? [at] : [],
        );
        expect(found).toEqual(wanted);
        expect(map.count(DONE)).toBe(model.filter((is) => is === DONE).length);
      }),
      { numRuns: 500 },
    );
  });
});

describe('a mapfile', () => {
  it('reads back as it was written, wherever the copy begins', () => {
    fc.assert(
      fc.property(fc.array(change, { maxLength: 12 }), fc.nat(2 ** 40), (changes, first) => {
        const { map } = build(changes);
        const back = parseMapfile(formatMapfile(map, first, SIZE * 512, ['a comment']), 'map', first, SIZE * 512);
        expect(back.entries).toEqual(map.entries);
      }),
    );
  });

  it('of ddrescue is understood: other sizes, sectors in part, unknown places', () => {
    const text = [
      '# Mapfile. Created by GNU ddrescue version 1.27',
      '# Command line: ddrescue a b map',
      '# current_pos  current_status  current_pass',
      '0x00000C00     ?               1',
      '#      pos        size  status',
      '0x00000000  0x00000500  +',
      '0x00000500  0x00000100  -',
      '0x00000600  0x00000A00  /',
      '0x00001000  0x00001000  *',
      '0x00002000  0x00100000  +',
    ].join('\n');
    const map = parseMapfile(text, 'map', 0, 20 * 512);
    // Sector 2 is done in part and bad in part.
    expect(map.entries.map(({ start, end, status: is }) => `${start}-${end}${is}`)).toEqual([
      '0-2+',
      '2-3-',
      '3-16*',
      '16-20+',
    ]);
    expect(parseMapfile(text, 'map', 4, 3 * 512).entries).toEqual([{ start: 0, end: 3, status: FAILED }]);
    expect(parseMapfile(text, 'map', 1_000_000, 3 * 512).entries).toEqual([{ start: 0, end: 3, status: UNTRIED }]);
  });

  it.each([
    ['', /not a mapfile/],
    ['0x0 ? 1\n0x0 0x200', /line 2/],
    ['0x0 ? 1\n0x0 0x200 x', /line 2/],
    ['0x0 0x200 +', /line 1/],
    ['0x0 ? 1\n0x0 0x200 +\n0x400 0x200 +', /line 3: a gap/],
    ['0x0 ? 1\n0x0 0x400 +\n0x200 0x200 +', /line 3/],
  ])('%j is refused', (text, message) => {
    expect(() => parseMapfile(text, 'map', 0, 8 * 512)).toThrow(message);
  });

  it('that can not be written is an error', () => {
    const folder = tempDir();
    expect(() => saveMapfile(join(folder, 'no', 'folder'), '')).toThrow(/cannot write the mapfile/);
  });

  itPeer(['ddrescuelog'], 'is what ddrescuelog accepts, with the same counts', async () => {
    const map = new RangeMap(1 << 20);
    map.set(0, 1000, DONE);
    map.set(1000, 1001, BAD);
    map.set(2000, 2048, FAILED);
    map.set(4096, 1 << 20, DONE);
    for (const first of [0, 4096]) {
      const path = join(tempDir(), 'map');
      writeFileSync(path, formatMapfile(map, first, 2 ** 29, ['of a test']));
      const bad = await run(peer('ddrescuelog'), ['-l', '-', path]);
      expect([bad.code, bad.stdout.trim()]).toEqual([0, String(first + 1000)]);
      const open = await run(peer('ddrescuelog'), ['-D', path]);
      expect(open.code).toBe(1);
    }
    map.set(0, 1 << 20, DONE);
    const path = join(tempDir(), 'map');
    writeFileSync(path, formatMapfile(map, 0, 2 ** 29, []));
    expect((await run(peer('ddrescuelog'), ['-D', path])).code).toBe(0);
  });
});
