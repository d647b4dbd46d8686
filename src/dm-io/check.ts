// What a request may not be, whoever made it: told by an exception, before anything is sent.
import { REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../block/bio.ts';
import { MAX_DM_IO_REGION_COUNT } from '../block/bounds.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { isSector } from '../block/sector.ts';
import type { DmIoRegion } from './types.ts';

const OPERATIONS: readonly number[] = [REQ_OP_READ, REQ_OP_WRITE, REQ_OP_FLUSH, REQ_OP_DISCARD, REQ_OP_WRITE_ZEROES];

function refused(text: string): DmError {
  return new DmError(Errno.EINVAL, `dm-io: ${text}`);
}

/** @throws DmError EINVAL */
export function checkOperation(op: number, flags: number): void {
  if (!OPERATIONS.includes(op))
    throw refused(`operation ${op} is not one of read, write, flush, discard, write-zeroes`);
  if (!Number.isInteger(flags)) throw refused(`flags ${flags} are no whole number`);
}

/**
 * A region past its device's end passes: that is an error of this region, found by its device.
 *
 * @returns the sector count of the largest region
 * @throws DmError EINVAL for more than 64 regions, and for what is no range of sectors
 */
export function checkRegions(regions: readonly DmIoRegion[]): number {
  if (regions.length > MAX_DM_IO_REGION_COUNT) {
    throw refused(`${regions.length} regions, and a request has at most ${MAX_DM_IO_REGION_COUNT}`);
  }
  let largest = 0;
  for (let index = 0; index < regions.length; index++) {
    const { bdev, sector, count } = regions[index]!;
    if (typeof bdev?.submit !== 'function') throw refused(`region ${index} has no block device`);
    if (!isSector(sector) || !isSector(count) || !isSector(sector + count)) {
      throw refused(`region ${index}: sector ${sector}, count ${count} is no range of sectors`);
    }
    if (count > largest) largest = count;
  }
  return largest;
}

/** Write-ness as the kernel sees it: the odd operations change the device, and those alone take several regions. */
export function takesSeveralRegions(op: number): boolean {
  return (op & 1) === 1;
}
