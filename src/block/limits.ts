// What a device asks of its requests and offers (struct queue_limits), and how limits stack.

/** Byte lengths unless the name says sectors. */
export interface QueueLimits {
  logicalBlockSize: number;
  physicalBlockSize: number;
  /** Preferred smallest request; 0 for none. */
  ioMin: number;
  /** Preferred request; 0 for none. */
  ioOpt: number;
  /** 0: discard is not supported. */
  maxDiscardSectorCount: number;
  discardGranularity: number;
  /** 0: write-zeroes is not supported. */
  maxWriteZeroesSectorCount: number;
  /** A write is durable only after a flush. */
  hasWriteCache: boolean;
  /** REQ_FUA costs less here than a flush of everything. */
  hasFua: boolean;
}

/** No bound: as large as a request can be. */
export const UNLIMITED_SECTOR_COUNT = Number.MAX_SAFE_INTEGER;

/** What a device without any wish has. */
export function defaultLimits(): QueueLimits {
  return {
    logicalBlockSize: 512,
    physicalBlockSize: 512,
    ioMin: 512,
    ioOpt: 0,
    maxDiscardSectorCount: 0,
    discardGranularity: 0,
    maxWriteZeroesSectorCount: 0,
    hasWriteCache: false,
    hasFua: false,
  };
}

function greatestCommonDivisor(a: number, b: number): number {
  let x = a;
  let y = b;
  while (y !== 0) [x, y] = [y, x % y];
  return x;
}

/** Least common multiple that takes 0 for "no wish", as blk_stack_limits does. */
export function leastCommonMultipleNotZero(a: number, b: number): number {
  if (a === 0) return b;
  if (b === 0) return a;
  return (a / greatestCommonDivisor(a, b)) * b;
}

/** Folds `lower` into `upper`: sizes take the larger, io_opt the least common multiple, bounds the smaller. */
export function stackLimits(upper: QueueLimits, lower: QueueLimits): void {
  upper.logicalBlockSize = Math.max(upper.logicalBlockSize, lower.logicalBlockSize);
  upper.physicalBlockSize = Math.max(upper.physicalBlockSize, lower.physicalBlockSize);
  upper.ioMin = Math.max(upper.ioMin, lower.ioMin);
  upper.ioOpt = leastCommonMultipleNotZero(upper.ioOpt, lower.ioOpt);
  upper.discardGranularity = Math.max(upper.discardGranularity, lower.discardGranularity);
  upper.hasWriteCache ||= lower.hasWriteCache;
  upper.hasFua ||= lower.hasFua;
}
