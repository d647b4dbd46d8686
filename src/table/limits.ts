// What a table's devices allow together, and whether its lines fit them (dm_calculate_queue_limits).
// The kernel makes these checks at a device's first load, and at the resume for every later one: the mapper decides when.
import type { BlockDevice } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { TableError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits, stackLimits, UNLIMITED_SECTOR_COUNT } from '../block/limits.ts';
import { SECTOR_SHIFT } from '../block/sector.ts';
import type { AnyTarget } from '../block/target.ts';
import type { Table } from './table.ts';

/** `value mod powerOfTwo` for a sector of any size. */
function remainder(value: number, powerOfTwo: number): number {
  return value % powerOfTwo;
}

function checkArea(
  index: number,
  logicalBlockSize: number,
  device: BlockDevice,
  sector: number,
  sectorCount: number,
): void {
  const size = device.sectorCount;
  // A device of size zero passes, in the kernel too.
  if (size === 0) return;
  if (sector >= size || sectorCount > size - sector) {
    throw new TableError(
      Errno.EINVAL,
      `${device.name} too small for target: start=${sector}, len=${sectorCount}, dev_size=${size}`,
      index,
    );
  }
  const blockSectorCount = logicalBlockSize >> SECTOR_SHIFT;
  if (blockSectorCount <= 1) return;
  for (const [word, value] of [
    ['start', sector],
    ['len', sectorCount],
  ] as const) {
    if (remainder(value, blockSectorCount) !== 0) {
      throw new TableError(
        Errno.EINVAL,
        `${word}=${value} not aligned to h/w logical block size ${logicalBlockSize} of ${device.name}`,
        index,
      );
    }
  }
}

/** Which of the optional operations every line supports. */
interface Support {
  discard: boolean;
  maxDiscardSectorCount: number;
  writeZeroes: boolean;
  maxWriteZeroesSectorCount: number;
  hasWriteCache: boolean;
  hasFua: boolean;
}

function addSupport(support: Support, target: AnyTarget): void {
  // A line without devices supports only what it says it does itself.
  let devicesDiscard = target.type.iterateDevices !== undefined;
  let devicesZero = devicesDiscard;
  let cache = false;
  let fua = false;
  target.type.iterateDevices?.(target, (device) => {
    const limits = device.limits;
    devicesDiscard &&= limits.maxDiscardSectorCount > 0;
    devicesZero &&= limits.maxWriteZeroesSectorCount > 0;
    cache ||= limits.hasWriteCache;
    fua ||= limits.hasFua;
    if (devicesDiscard && !target.discardsSupported) {
      support.maxDiscardSectorCount = Math.min(support.maxDiscardSectorCount, limits.maxDiscardSectorCount);
    }
    support.maxWriteZeroesSectorCount = Math.min(support.maxWriteZeroesSectorCount, limits.maxWriteZeroesSectorCount);
  });
  support.discard &&= target.discardBioCount > 0 && (target.discardsSupported || devicesDiscard);
  support.writeZeroes &&= target.writeZeroesBioCount > 0 && devicesZero;
  if (target.flushBioCount > 0) {
    support.hasWriteCache ||= target.flushSupported || cache;
    support.hasFua ||= fua;
  }
}

/** The limits of one target alone, before they are folded into the table's. */
function targetLimits(target: AnyTarget): QueueLimits {
  const limits = defaultLimits();
  target.type.iterateDevices?.(target, (device) => stackLimits(limits, device.limits));
  target.type.ioHints?.(target, limits);
  return limits;
}

/** Each boundary that cuts a block of the whole device's size must suit the target behind it. */
function checkBoundaries(targets: readonly AnyTarget[], blockSizes: Uint32Array, logicalBlockSize: number): void {
  const deviceBlockSectorCount = logicalBlockSize >> SECTOR_SHIFT;
  let remaining = 0;
  let index = 0;
  for (; index < targets.length; index++) {
    const target = targets[index]!;
    const targetBlockSectorCount = blockSizes[index]! >> SECTOR_SHIFT;
    if (remaining < target.sectorCount && remainder(remaining, targetBlockSectorCount) !== 0) break;
    const tail = remainder(target.begin + target.sectorCount, deviceBlockSectorCount);
    remaining = tail === 0 ? 0 : deviceBlockSectorCount - tail;
  }
  if (remaining === 0) return;
  const target = targets[Math.min(index, targets.length - 1)]!;
  throw new TableError(
    Errno.EINVAL,
    `table line ${index} (start sect ${target.begin} len ${target.sectorCount}) not aligned to h/w logical block size ${logicalBlockSize}`,
    index,
  );
}

/**
 * The limits of the device that `table` makes.
 *
 * @throws TableError EINVAL with the kernel's words where a line does not fit its devices
 */
export function calculateLimits(table: Table): QueueLimits {
  const limits = defaultLimits();
  const blockSizes = new Uint32Array(table.targets.length);
  const support: Support = {
    discard: true,
    maxDiscardSectorCount: UNLIMITED_SECTOR_COUNT,
    writeZeroes: true,
    maxWriteZeroesSectorCount: UNLIMITED_SECTOR_COUNT,
    hasWriteCache: false,
    hasFua: false,
  };
  table.targets.forEach((target, index) => {
    const own = targetLimits(target);
    blockSizes[index] = own.logicalBlockSize;
    target.type.iterateDevices?.(target, (device, sector, sectorCount) =>
      checkArea(index, own.logicalBlockSize, device, sector, sectorCount),
    );
    stackLimits(limits, own);
    addSupport(support, target);
  });
  checkBoundaries(table.targets, blockSizes, limits.logicalBlockSize);
  limits.maxDiscardSectorCount = support.discard ? support.maxDiscardSectorCount : 0;
  limits.maxWriteZeroesSectorCount = support.writeZeroes ? support.maxWriteZeroesSectorCount : 0;
  limits.hasWriteCache = support.hasWriteCache;
  limits.hasFua = support.hasFua;
  return limits;
}
