// What a table's devices allow together, and whether its lines fit them (dm_calculate_queue_limits).
// The kernel makes these checks at a device's first load, and at the resume for every later one: the mapper decides when.
import type { BlockDevice } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { TableError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits, stackLimits, UNLIMITED_SECTOR_COUNT } from '../block/limits.ts';
import { SECTOR_SHIFT, SECTOR_SIZE } from '../block/sector.ts';
import type { AnyTarget } from '../block/target.ts';
import { DeviceFacts, KnownLimits } from './known-limits.ts';
import { beginsStep, runSteps, type Steps } from './steps.ts';
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

const DEFAULTS: Readonly<QueueLimits> = defaultLimits();

/** Member by member: Object.assign takes several times as long, and there may be a million lines. */
function setDefaults(limits: QueueLimits): void {
  limits.logicalBlockSize = DEFAULTS.logicalBlockSize;
  limits.physicalBlockSize = DEFAULTS.physicalBlockSize;
  limits.ioMin = DEFAULTS.ioMin;
  limits.ioOpt = DEFAULTS.ioOpt;
  limits.maxDiscardSectorCount = DEFAULTS.maxDiscardSectorCount;
  limits.discardGranularity = DEFAULTS.discardGranularity;
  limits.maxWriteZeroesSectorCount = DEFAULTS.maxWriteZeroesSectorCount;
  limits.hasWriteCache = DEFAULTS.hasWriteCache;
  limits.hasFua = DEFAULTS.hasFua;
}

/** A table's limits, one line after another. Nothing is allocated for a line: a table may have a million. */
class LimitsCalculation {
  readonly #limits = defaultLimits();
  readonly #blockSizes: Uint32Array;
  // Which of the optional operations every line supports.
  #discards = true;
  #maxDiscardSectorCount = UNLIMITED_SECTOR_COUNT;
  #writesZeroes = true;
  #maxWriteZeroesSectorCount = UNLIMITED_SECTOR_COUNT;
  #hasWriteCache = false;
  #hasFua = false;
  // The line that is being added: its limits alone, and what its devices support.
  readonly #own = defaultLimits();
  #index = 0;
  #devicesDiscard = false;
  #devicesZero = false;
  #devicesCache = false;
  #devicesFua = false;
  #discardBound = UNLIMITED_SECTOR_COUNT;

  constructor(lineCount: number) {
    this.#blockSizes = new Uint32Array(lineCount);
  }

  /** @throws TableError where a range of a device does not fit */
  add(target: AnyTarget, index: number): void {
    const { type } = target;
    this.#index = index;
    setDefaults(this.#own);
    type.iterateDevices?.(target, this.#stack);
    type.ioHints?.(target, this.#own);
    this.#blockSizes[index] = this.#own.logicalBlockSize;
    type.iterateDevices?.(target, this.#check);
    stackLimits(this.#limits, this.#own);
    this.#addSupport(target);
  }

  readonly #stack = (device: BlockDevice): void => stackLimits(this.#own, device.limits);

  readonly #check = (device: BlockDevice, sector: number, sectorCount: number): void =>
    checkArea(this.#index, this.#own.logicalBlockSize, device, sector, sectorCount);

  #addSupport(target: AnyTarget): void {
    // A line without devices supports only what it says it does itself.
    const hasDevices = target.type.iterateDevices !== undefined;
    this.#devicesDiscard = hasDevices;
    this.#devicesZero = hasDevices;
    this.#devicesCache = false;
    this.#devicesFua = false;
    this.#discardBound = UNLIMITED_SECTOR_COUNT;
    target.type.iterateDevices?.(target, this.#support);
    if (!target.discardsSupported) {
      this.#maxDiscardSectorCount = Math.min(this.#maxDiscardSectorCount, this.#discardBound);
    }
    this.#discards &&= target.discardBioCount > 0 && (target.discardsSupported || this.#devicesDiscard);
    this.#writesZeroes &&= target.writeZeroesBioCount > 0 && this.#devicesZero;
    if (target.flushBioCount > 0) {
      this.#hasWriteCache ||= target.flushSupported || this.#devicesCache;
      this.#hasFua ||= this.#devicesFua;
    }
  }

  readonly #support = (device: BlockDevice): void => {
    const limits = device.limits;
    this.#devicesDiscard &&= limits.maxDiscardSectorCount > 0;
    this.#devicesZero &&= limits.maxWriteZeroesSectorCount > 0;
    this.#devicesCache ||= limits.hasWriteCache;
    this.#devicesFua ||= limits.hasFua;
    if (this.#devicesDiscard) this.#discardBound = Math.min(this.#discardBound, limits.maxDiscardSectorCount);
    this.#maxWriteZeroesSectorCount = Math.min(this.#maxWriteZeroesSectorCount, limits.maxWriteZeroesSectorCount);
  };

  /** @throws TableError where a boundary between two lines cuts a block */
  *finish(targets: readonly AnyTarget[]): Steps<QueueLimits> {
    const limits = this.#limits;
    // No boundary can cut a block of one sector.
    if (limits.logicalBlockSize > SECTOR_SIZE) {
      yield* checkBoundaries(targets, this.#blockSizes, limits.logicalBlockSize);
    }
    limits.maxDiscardSectorCount = this.#discards ? this.#maxDiscardSectorCount : 0;
    limits.maxWriteZeroesSectorCount = this.#writesZeroes ? this.#maxWriteZeroesSectorCount : 0;
    limits.hasWriteCache = this.#hasWriteCache;
    limits.hasFua = this.#hasFua;
    return limits;
  }
}

/** Each boundary that cuts a block of the whole device's size must suit the target behind it. */
function* checkBoundaries(targets: readonly AnyTarget[], blockSizes: Uint32Array, logicalBlockSize: number): Steps {
  const deviceBlockSectorCount = logicalBlockSize >> SECTOR_SHIFT;
  let remaining = 0;
  let index = 0;
  for (; index < targets.length; index++) {
    if (beginsStep(index)) yield;
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
 * {@link calculateLimits} in steps.
 *
 * @throws what calculateLimits throws
 */
export function* limitSteps(table: Table): Steps<QueueLimits> {
  const known = table.knownLimits?.whileUnchanged() ?? null;
  if (known !== null) return known;
  const { targets } = table;
  const facts = new DeviceFacts(table.devices);
  const calculation = new LimitsCalculation(targets.length);
  for (let index = 0; index < targets.length; index++) {
    if (beginsStep(index)) yield;
    calculation.add(targets[index]!, index);
  }
  const limits = yield* calculation.finish(targets);
  // A device that changed between two steps makes it useless for later: kept, it is found out of date then.
  if (table.isStateless) table.knownLimits = new KnownLimits(limits, facts);
  return limits;
}

/**
 * The limits of the device that `table` makes. Where they are known from an earlier call, and no device of the table has
 * changed its limits or its size since, no line is looked at again.
 *
 * @throws TableError EINVAL with the kernel's words where a line does not fit its devices
 */
export function calculateLimits(table: Table): QueueLimits {
  return runSteps(limitSteps(table));
}
