// Narrowing a failed request: every good sector is moved, no bad one is called moved, and few requests meet bad sectors.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { IoError } from '../../src/block/errors.ts';
import { narrow } from '../../src/copy/narrow.ts';
import { runs } from '../support/seed.ts';

type Told = 'first' | 'start' | 'wrong' | 'outside';

async function narrowed(start: number, end: number, firstSector: number, block: number, bad: Set<number>, told: Told) {
  const moved = new Set<number>();
  let count = 0;
  let failedCount = 0;
  const failed = await narrow(start, end, { firstSector, blockSectorCount: block }, async (from, to) => {
    count++;
    const range = Array.from({ length: to - from }, (_, i) => from + i);
    const first = range.find((sector) => bad.has(sector));
    if (first === undefined) {
      for (const sector of range) moved.add(sector);
      return null;
    }
    failedCount++;
    const sector = { first, start: from, wrong: Math.floor((from + to) / 2), outside: -1 - firstSector }[told];
    return new IoError(5, 'read', 'disk', firstSector + sector);
  });
  return { failed, moved, count, failedCount };
}

describe('narrowing', () => {
  it('is right whichever sector the error names, true or not', async () => {
    const cases = fc.record({
      start: fc.nat(40),
      length: fc.integer({ min: 1, max: 100 }),
      firstSector: fc.nat(20),
      bad: fc.array(fc.nat(140), { maxLength: 6 }),
      block: fc.constantFrom(1, 2, 8),
      told: fc.constantFrom<Told>('first', 'start', 'wrong', 'outside'),
    });
    await fc.assert(
      fc.asyncProperty(cases, async ({ start, length, firstSector, bad, block, told }) => {
        const end = start + length;
        const wrong = new Set(bad);
        const { failed, moved } = await narrowed(start, end, firstSector, block, wrong, told);
        for (let sector = start; sector < end; sector++) {
          const isFailed = failed.some((range) => sector >= range.start && sector < range.end);
          // Both ways of a sector at one time would be a lie; none of them would be a loss.
          if (wrong.has(sector)) expect([sector, isFailed]).toEqual([sector, true]);
          expect(isFailed || moved.has(sector)).toBe(true);
          const near = [...wrong].some((other) => Math.abs(other - sector) < block);
          if (!near) expect([sector, isFailed]).toEqual([sector, false]);
        }
        for (const [index, range] of failed.entries())
          expect(range.start).toBeGreaterThanOrEqual(failed[index - 1]?.end ?? 0);
      }),
      { numRuns: runs(500) },
    );
  });

  it('takes four requests for one bad sector of many that is named, two of which meet it', async () => {
    const { count, failedCount, failed } = await narrowed(0, 2048, 0, 1, new Set([1000]), 'first');
    expect([count, failedCount, failed.length]).toEqual([4, 2, 1]);
  });
});
