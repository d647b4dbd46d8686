// Room for the chunks that come next. They are given out one behind the other, so that the file below a store can take its
// blocks ahead of use, off the way of the requests: a full file system then shows before the data is written, and a commit
// finds the file's blocks in place. A growing step at a time, never past the device's end.
//
//   |======================|-------------|......................|
//   0                   used       allocated            end of the device
//
// Nothing depends on it: where the room can't be had, writes go on until one of them fails.
import type { BlockDevice } from '../../block/block-device.ts';
import { MAX_ALLOCATED_AHEAD_BYTE_LENGTH, MIN_ALLOCATED_AHEAD_BYTE_LENGTH } from '../../block/bounds.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import type { HoldDevices } from './store.ts';

const MIN_STEP = MIN_ALLOCATED_AHEAD_BYTE_LENGTH / SECTOR_SIZE;
const MAX_STEP = MAX_ALLOCATED_AHEAD_BYTE_LENGTH / SECTOR_SIZE;
/** A step is at least this part of what is used. */
const STEP_DIVISOR = 4;

/** A device whose size is asked for again on demand, as that of a file, which may have grown. */
interface Growing {
  refreshSize(): number;
}

/** Tells whether `device` has the sectors before `end`. Looks at its size again before it says no. */
export function hasSectors(device: BlockDevice & Partial<Growing>, end: number): boolean {
  if (end <= device.sectorCount) return true;
  device.refreshSize?.();
  return end <= device.sectorCount;
}

export class AllocationAhead {
  readonly #device: BlockDevice;
  /** Asked for up to here, in sectors; -1 before the first time. */
  #end = -1;
  /** Use that passes it asks for the next step. */
  #askFrom = 0;

  constructor(device: BlockDevice) {
    this.#device = device;
    if (device.allocate === undefined) this.#askFrom = Number.POSITIVE_INFINITY;
  }

  /** The sectors from `sector` to `end` are about to be written for the first time. */
  use(sector: number, end: number, holdDevices: HoldDevices): void {
    if (end <= this.#askFrom) return;
    const step = Math.min(Math.max(MIN_STEP, Math.ceil(end / STEP_DIVISOR)), MAX_STEP);
    const from = Math.max(this.#end, sector);
    const to = Math.min(end + step, this.#device.sectorCount);
    this.#end = to;
    // Halfway through what is left, so that the next step is there in time. A device may grow.
    this.#askFrom = to < this.#device.sectorCount ? end + Math.floor((to - end) / 2) : to;
    if (to > from) this.#ask(from, to - from, holdDevices);
  }

  #ask(sector: number, sectorCount: number, holdDevices: HoldDevices): void {
    const held = holdDevices();
    this.#device.allocate!(sector, sectorCount, (errno) => {
      // Any other failure may be gone when the next step is due.
      if (errno === Errno.EOPNOTSUPP || errno === Errno.ENOSYS) this.#askFrom = Number.POSITIVE_INFINITY;
      held.release();
    });
  }
}
