// What a snapshot needs of the place where its exceptions are kept, whatever that place is.
import type { BlockDevice } from '../../block/block-device.ts';
import type { TargetSetup } from '../../block/target.ts';

/** An exception on its way into the store. */
export interface Committable {
  readonly oldChunk: number;
  readonly newChunk: number;
  /** For the store's queue. */
  nextToCommit: Committable | null;
  /**
   * Told once, when the exception is as durable as the store makes it (0), or can't be: EIO, and the store is invalid;
   * ENOSPC, and it is as it was.
   */
  committed(errno: number): void;
  /**
   * Told before that, with lazy commit, each time the record finds no room: the store keeps the exception, and tries again
   * when it writes next. A write that waits for the record fails.
   *
   * @returns the exception that takes this one's place in the store, or this one
   */
  postponed(): Committable;
}

/** Keeps the devices open for requests of the store's own that nobody above waits for, until `release` of what it returns. */
export type HoldDevices = () => Pick<TargetSetup, 'release'>;

export interface StoreUsage {
  allocatedSectorCount: number;
  totalSectorCount: number;
  metadataSectorCount: number;
}

export interface ExceptionStore {
  /** As a table prints it. */
  readonly word: 'P' | 'PO' | 'N';
  readonly device: BlockDevice;
  /** 0 as long as nothing says. */
  chunkSectorCount: number;
  /** A write that finds no room leaves the snapshot readable. */
  overflowAware: boolean;
  /** Writes of records that were done, each for one exception or many. */
  readonly commitCount: number;
  /** Set by who has the store, before anything is allocated: from table to table it is another's devices that are held. */
  holdDevices: HoldDevices;

  /**
   * Reads what there is, or makes a new store. Ends before it returns.
   *
   * @param add takes an exception; false where its old chunk has one already
   * @returns false where the store says that it is invalid
   * @throws StoreError
   */
  load(add: (oldChunk: number, newChunk: number) => boolean): boolean;
  /**
   * A free chunk, which is the caller's until commit or abandon; -1 where there is none: see reclaim.
   *
   * @param isHole the chunk will take no room: none is allocated ahead for it
   */
  allocate(isHole: boolean): number;
  /** The data of an allocated chunk is in place. To be called in the order of the allocations. */
  commit(exception: Committable): void;
  /** An allocated chunk will not be used: nothing writes to it any more, and it may be given out again. */
  abandon(newChunk: number): void;
  /** Chunks will be free if reclaim succeeds. */
  readonly isReclaimable: boolean;
  /**
   * Frees the chunks that records name whose write found no room: those may be on the device. Calls back once, with 0 when the
   * chunks can be allocated, or the errno of another failure.
   */
  reclaim(done: (errno: number) => void): void;
  /** Somebody waits in a synchronous call: goes on with what was put off to a later turn. */
  hurry(): void;
  /** Marks the store as invalid, for ever where it is persistent; calls back once, when that is durable or has failed. */
  invalidate(done: () => void): void;
  usage(): StoreUsage;
}

/** As long as nobody has a store. */
export const holdNothing: HoldDevices = () => ({ release: () => {} });

/** Why a store can't be opened. */
export class StoreError extends Error {
  readonly errno: number;

  constructor(errno: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'StoreError';
    this.errno = errno;
  }
}
