// Where a request failed: the failing sector that the error names is tried by itself, down to a logical block of the
// device, and what lies around it is done again. Where the error names no sector of use, halves are tried.
import type { IoError } from '../block/errors.ts';
import type { Range } from './ranges.ts';

export interface FailedRange extends Range {
  cause: IoError;
}

/** The part of a device that a request is about. */
export interface NarrowedRegion {
  /** Of the device, where the copy begins: errors count from the device's start. */
  readonly firstSector: number;
  /** Of a logical block. */
  readonly blockSectorCount: number;
}

/** `run` moves the sectors from `start` to `end`. @returns those it could not move, neighbours joined */
export async function narrow(
  start: number,
  end: number,
  { firstSector, blockSectorCount }: NarrowedRegion,
  run: (start: number, end: number) => Promise<IoError | null>,
  shouldStop: () => boolean = () => false,
): Promise<FailedRange[]> {
  const failed: FailedRange[] = [];
  const add = (range: FailedRange): void => {
    const last = failed.at(-1);
    if (last !== undefined && last.end === range.start) last.end = range.end;
    else failed.push(range);
  };
  const halfOf = (from: number, to: number): number =>
    from + Math.ceil((to - from) / 2 / blockSectorCount) * blockSectorCount;
  const visit = async (start: number, to: number): Promise<void> => {
    for (let from = start; from < to; ) {
      const cause = await run(from, to);
      if (cause === null) return;
      if (to - from <= blockSectorCount || shouldStop()) {
        add({ start: from, end: to, cause });
        return;
      }
      const bad = blockOf(cause.sector, from, to);
      if (bad === null) {
        const half = halfOf(from, to);
        await visit(from, half);
        from = half;
        continue;
      }
      // Errors name the first failing sector as far as it is known: nothing is believed that was not tried.
      if (bad.start > from) await visit(from, bad.start);
      const alone = await run(bad.start, bad.end);
      if (alone !== null) add({ ...bad, cause: alone });
      from = bad.end;
      if (alone === null && from < to) {
        const half = halfOf(from, to);
        await visit(from, half);
        from = half;
      }
    }
  };
  const blockOf = (sector: number, from: number, to: number): Range | null => {
    const at = sector - firstSector;
    if (!(at >= from && at < to)) return null;
    const first = sector - (sector % blockSectorCount) - firstSector;
    return { start: Math.max(from, first), end: Math.min(to, first + blockSectorCount) };
  };
  await visit(start, end);
  return failed;
}
