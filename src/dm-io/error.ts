// The exception that says which regions of a request failed, and why each did.
import { operationName } from '../block/bio.ts';
import { Errno, errnoMessage } from '../block/errno.ts';
import { DmError, type IoError } from '../block/errors.ts';
import type { DmIoRegion } from './types.ts';

/** A region that failed. */
export interface FailedRegion {
  /** Its place in the request, and the number of its bit. */
  readonly index: number;
  readonly region: Readonly<DmIoRegion>;
  /** The failure at the region's lowest sector: errno, device, sector, and the same for the device at the bottom. */
  readonly cause: IoError;
}

const MAX_TOLD_REGION_COUNT = 4;

function describe({ index, cause }: FailedRegion): string {
  const where = cause.operation === 'flush' ? cause.device : `${cause.device}, sector ${cause.sector}`;
  return `region ${index} (${where}: ${errnoMessage(cause.errno)})`;
}

/**
 * A dm-io request that failed in some regions, or in all. Its own code is EIO whatever the causes are, as in the kernel.
 *
 * @example
 * ```ts
 * import { DmIoClient, DmIoError, dmIoPromise, MemoryDevice, NodeLoop, REQ_OP_WRITE } from 'dmkit';
 *
 * const client = new DmIoClient({ reactor: new NodeLoop() });
 * const small = new MemoryDevice('small', 4);
 * try {
 *   const memory = { type: 'buffer', buffer: Buffer.alloc(4096) };
 *   await dmIoPromise({ op: REQ_OP_WRITE, memory, client }, [{ bdev: small, sector: 0, count: 8 }]);
 * } catch (error) {
 *   if (!(error instanceof DmIoError)) throw error;
 *   for (const { index, cause } of error.failedRegions) console.log(index, cause.code, cause.device, cause.sector);
 *   // 0 EIO small 4
 * }
 * ```
 */
export class DmIoError extends DmError {
  /** `read`, `write`, `flush`, `discard` or `write-zeroes`. */
  readonly operation: string;
  /** Bit i: region i failed. */
  readonly errorBits: bigint;
  /** In the order of their bits. Empty where the request as a whole was refused. */
  readonly failedRegions: readonly FailedRegion[];

  constructor(message: string, op: number, errorBits: bigint, failedRegions: readonly FailedRegion[]) {
    super(
      Errno.EIO,
      message,
      undefined,
      failedRegions[0] === undefined ? undefined : { cause: failedRegions[0].cause },
    );
    this.name = 'DmIoError';
    this.operation = operationName(op);
    this.errorBits = errorBits;
    this.failedRegions = failedRegions;
  }
}

export function failedRegionsError(op: number, regionCount: number, bits: bigint, failed: FailedRegion[]): DmIoError {
  const told = failed.slice(0, MAX_TOLD_REGION_COUNT).map(describe).join(', ');
  const more = failed.length - MAX_TOLD_REGION_COUNT;
  const message = `${operationName(op)} failed in ${failed.length} of ${regionCount} regions: ${told}`;
  return new DmIoError(more > 0 ? `${message} and ${more} more` : message, op, bits, failed);
}

/** For a read (or flush) of several regions: the kernel's answer is bit 0, and nothing is read. */
export function severalRegionsError(op: number, regionCount: number): DmIoError {
  const name = operationName(op);
  return new DmIoError(`a ${name} takes one region, not ${regionCount}: nothing was done`, op, 1n, []);
}

/** A synchronous call that nothing inside it could end. */
export function wouldDeadlock(reason: string): DmError {
  return new DmError(0, `this synchronous call could not end: ${reason}; make it asynchronous`, 'DM_WOULD_DEADLOCK');
}
