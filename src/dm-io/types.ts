// What a dm-io request is made of (include/linux/dm-io.h).
import type { Bio, BioVec } from '../block/bio.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { DmIoClient } from './client.ts';
import type { DmIoError } from './error.ts';

/** A range of one device (struct dm_io_region). Read when the request is made: it may be changed after the call. */
export interface DmIoRegion {
  bdev: BlockDevice;
  /** First sector. */
  sector: number;
  /** Sectors. 0: nothing to do, unless the request has REQ_PREFLUSH; then the device is flushed. */
  count: number;
}

/** A linked list of pages (struct page_list). A page is a whole number of sectors; the kernel's are all of 4096 bytes. */
export interface PageList {
  next: PageList | null;
  page: Uint8Array;
}

/**
 * Where the data is. Every region gets (or, a read's one, fills) it from its start. Longer memory than the largest
 * region is fine; the rest is left alone. It belongs to the request until that ends: not a byte may be changed,
 * transferred or, for a read, looked at.
 */
export type DmIoMemory =
  /** From byte `offset` of the first page on (a multiple of 512, 0 unless given); the other pages are used from 0. */
  | { type: 'page-list'; pages: PageList; offset?: number }
  /** Pieces of memory in order. */
  | { type: 'bvec'; vecs: readonly BioVec[] }
  /**
   * A bio's memory from where its iterator stands, and from byte `byteOffset` of that on (0 unless given). The bio is
   * not changed. Somebody else's request may be under way with it: so a target sends one bio to several devices.
   */
  | { type: 'bio'; bio: Bio; byteOffset?: number }
  /** One contiguous buffer (the kernel's VMA and KMEM). */
  | { type: 'buffer'; buffer: Uint8Array };

/**
 * Told how a request ended. `errorBits` has bit i set where a part of region i failed; 0n says that all went well.
 * `error` is null then, and else says what failed where.
 */
export type DmIoNotifyFunction<Context = unknown> = (
  errorBits: bigint,
  context: Context,
  error: DmIoError | null,
) => void;

export interface DmIoNotify<Context = unknown> {
  /** Called exactly once, by the reactor: never inside the call that made the request. */
  fn: DmIoNotifyFunction<Context>;
  /** Handed to `fn`. */
  context?: Context;
  /**
   * `fn` is called by whoever ends the last bio instead: inside the call that made the request, or inside somebody's
   * synchronous call. For code that is itself a layer of the stack (a target, kcopyd) and must get on while a
   * synchronous call waits above. It must not make synchronous calls.
   */
  immediate?: boolean;
}

/** One request (struct dm_io_request). */
export interface DmIoRequest<Context = unknown> {
  /** REQ_OP_READ, REQ_OP_WRITE, REQ_OP_DISCARD, REQ_OP_WRITE_ZEROES or REQ_OP_FLUSH. */
  op: number;
  /** REQ_PREFLUSH, REQ_FUA and others of block/bio.ts; every bio of the request has them. */
  flags?: number;
  /** Needed by reads and writes alone. */
  memory?: DmIoMemory;
  /** With it the request is asynchronous, without it the call returns when the request has ended. */
  notify?: DmIoNotify<Context>;
  client: DmIoClient;
}

/** Filled in by a synchronous call. Left alone where the call is refused: a read of several regions, an exception. */
export interface DmIoResult {
  /** Bit i: a part of region i failed. */
  errorBits: bigint;
  /** What failed where; null where nothing did. */
  error: DmIoError | null;
}

/** What a synchronous call needs of the engines below: an EngineSet has it. */
export interface SyncEngines {
  /** While true every request ends inside submit(). */
  blocking: boolean;
  /** Gets on with what is under way, without waiting for the event loop. @returns false where nothing moved */
  poll(): boolean;
}
