// Where a request failed: the same again in halves, down to logical blocks of the device.
import type { IoError } from '../block/errors.ts';
import type { Range } from './ranges.ts';

export interface FailedRange extends Range {
  cause: IoError;
}

/** `run` moves the sectors from `start` to `end`. @returns what it could not move, neighbours joined */
export async function narrow(
  start: number,
  end: number,
  blockSectorCount: number,
  run: (start: number, end: number) => Promise<IoError | null>,
  shouldStop: () => boolean = () => false,
): Promise<FailedRange[]> {
  const failed: FailedRange[] = [];
  const add = (range: FailedRange): void => {
    const last = failed.at(-1);
    if (last !== undefined && last.end === range.start) last.end = range.end;
    else failed.push(range);
  };
  const visit = async (from: number, to: number): Promise<void> => {
    const cause = await run(from, to);
    if (cause === null) return;
    if (to - from <= blockSectorCount || shouldStop()) {
      add({ start: from, end: to, cause });
      return;
    }
    const half = Math.ceil((to - from) / 2 / blockSectorCount) * blockSectorCount;
    await visit(from, from + half);
    await visit(from + half, to);
  };
  await visit(start, end);
  return failed;
}
