// What a copy is told and tells (include/linux/dm-kcopyd.h).
import type { KcopydError } from './error.ts';

/** Flags are bit numbers, as in the kernel: `1 << KCOPYD_IGNORE_ERROR`. */
export const KCOPYD_IGNORE_ERROR = 1;
/** Each destination is written from its first sector to its last, one write after the other. */
export const KCOPYD_WRITE_SEQ = 2;

/**
 * Told how a job ended. `readErr` is 1 where a part of the source could not be read; bit i of `writeErr` says that a
 * part of destination i was not written. `error` has the causes; null where both are 0.
 */
export type KcopydNotifyFunction<Context = unknown> = (
  readErr: number,
  writeErr: number,
  context: Context,
  error: KcopydError | null,
) => void;

/** Filled in by a synchronous copy. */
export interface KcopydResult {
  readErr: number;
  writeErr: number;
  error: KcopydError | null;
}

/** A job under way. */
export interface KcopydJobHandle {
  /** Sectors whose sub-jobs have ended, failed ones included. */
  readonly finishedSectorCount: number;
  /**
   * Starts no more sub-jobs. Those under way run to their end; then the callback comes, with every bit of `writeErr` set
   * and an error of code ECANCELED, unless all was started already.
   */
  cancel(): void;
}
