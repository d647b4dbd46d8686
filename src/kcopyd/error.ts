// What a copy could not do: the causes behind its two results.
import { Errno, errnoMessage } from '../block/errno.ts';
import { DmError, type IoError } from '../block/errors.ts';
import type { FailedRegion } from '../dm-io/index.ts';

function describe(readCause: IoError | null, failed: readonly FailedRegion[]): string {
  const parts: string[] = [];
  if (readCause !== null) {
    parts.push(`read of ${readCause.device}, sector ${readCause.sector}: ${errnoMessage(readCause.errno)}`);
  }
  for (const { index, cause } of failed) {
    parts.push(`destination ${index} (${cause.device}, sector ${cause.sector}: ${errnoMessage(cause.errno)})`);
  }
  return parts.join(', ');
}

/**
 * A job of kcopyd that failed: its code is EIO, or ECANCELED where it was cancelled before it was done.
 *
 * @example
 * ```ts
 * import { DeviceMapper, KcopydClient, KcopydError, kcopydCopy, MemoryDevice } from 'dmkit';
 *
 * const dm = new DeviceMapper();
 * const client = new KcopydClient({ reactor: dm.loop });
 * const from = { bdev: new MemoryDevice('source', 2048), sector: 0, count: 2048 };
 * const dests = [{ bdev: new MemoryDevice('short', 100), sector: 0, count: 2048 }];
 * try {
 *   await kcopydCopy(client, from, dests);
 * } catch (error) {
 *   if (!(error instanceof KcopydError)) throw error;
 *   console.log(error.writeErr, error.failedDestinations[0].cause.sector); // 1 100
 * }
 * await dm.close();
 * ```
 */
export class KcopydError extends DmError {
  /** 1 where a part of the source could not be read. */
  readonly readErr: number;
  /** Bit i: a part of destination i failed, or was given up. */
  readonly writeErr: number;
  /** The read that failed at the lowest sector; null where none did. */
  readonly readCause: IoError | null;
  /** Of each destination whose write failed: the failure at its lowest sector. */
  readonly failedDestinations: readonly FailedRegion[];

  constructor(
    readErr: number,
    writeErr: number,
    readCause: IoError | null,
    failed: readonly FailedRegion[],
    cancelled: boolean,
  ) {
    const what = describe(readCause, failed);
    const text = cancelled
      ? `the copy was cancelled${what === '' ? '' : `; before that: ${what}`}`
      : `copy failed: ${what}`;
    const cause = readCause ?? failed[0]?.cause;
    super(cancelled ? Errno.ECANCELED : Errno.EIO, text, undefined, cause === undefined ? undefined : { cause });
    this.name = 'KcopydError';
    this.readErr = readErr;
    this.writeErr = writeErr;
    this.readCause = readCause;
    this.failedDestinations = failed;
  }
}
