// What a job may not be, and in which order its parts must go.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { isSector } from '../block/sector.ts';
import type { DmIoRegion } from '../dm-io/index.ts';
import { MAX_KCOPYD_REGION_COUNT } from './bounds.ts';
import { KCOPYD_IGNORE_ERROR, KCOPYD_WRITE_SEQ } from './types.ts';

const KNOWN_FLAGS = (1 << KCOPYD_IGNORE_ERROR) | (1 << KCOPYD_WRITE_SEQ);

function refused(text: string): DmError {
  return new DmError(Errno.EINVAL, `kcopyd: ${text}`);
}

function checkRegion(region: DmIoRegion, what: string): void {
  const { bdev, sector, count } = region;
  if (typeof bdev?.submit !== 'function') throw refused(`${what} has no block device`);
  if (!isSector(sector) || !isSector(count) || !isSector(sector + count)) {
    throw refused(`${what}: sector ${sector}, count ${count} is no range of sectors`);
  }
}

/** @throws DmError EINVAL */
export function checkRequest(from: DmIoRegion | null, dests: readonly DmIoRegion[], flags: number): void {
  if ((flags & ~KNOWN_FLAGS) !== 0 || !Number.isInteger(flags)) {
    throw refused(`flags ${flags}: KCOPYD_IGNORE_ERROR and KCOPYD_WRITE_SEQ are bit numbers, 1 << each`);
  }
  if (dests.length < 1 || dests.length > MAX_KCOPYD_REGION_COUNT) {
    throw refused(`${dests.length} destinations; a job has 1 to ${MAX_KCOPYD_REGION_COUNT}`);
  }
  if (from !== null) checkRegion(from, 'the source');
  const count = from?.count ?? dests[0]!.count;
  for (let index = 0; index < dests.length; index++) {
    const dest = dests[index]!;
    checkRegion(dest, `destination ${index}`);
    if (dest.count !== count) {
      throw refused(
        `destination ${index} has ${dest.count} sectors, and ${count} are to be written: they must be equal`,
      );
    }
  }
}

/**
 * `any`: sub-jobs side by side. `ascending`, `descending`: one after the other from this end, because a destination
 * overlaps the source and what is written must have been read before.
 */
export type SubJobOrder = 'any' | 'ascending' | 'descending';

/** @throws DmError EINVAL where no order gives memmove's result */
export function orderOf(from: DmIoRegion | null, dests: readonly DmIoRegion[], flags: number): SubJobOrder {
  if (from === null) return 'any';
  let order: SubJobOrder = 'any';
  for (const { bdev, sector, count } of dests) {
    const isApart = bdev !== from.bdev || sector >= from.sector + count || from.sector >= sector + count;
    if (isApart || sector === from.sector) continue;
    const wanted = sector < from.sector ? 'ascending' : 'descending';
    if (order !== 'any' && order !== wanted) {
      throw refused('destinations overlap the source on both of its sides; copy to one after the other');
    }
    order = wanted;
  }
  if (order === 'descending' && (flags & (1 << KCOPYD_WRITE_SEQ)) !== 0) {
    throw refused(
      'a destination that overlaps the end of the source is written backwards, and KCOPYD_WRITE_SEQ forbids it',
    );
  }
  return order;
}
