// An exception that is not complete: its chunk is being filled, or its record is on its way into the store.
import type { Bio } from '../../block/bio.ts';
import { ChunkCopy } from './chunk-copy.ts';
import type { Committable } from './store.ts';

/** What a pending exception tells. */
export interface PendingOwner {
  /** The chunk is filled, or could not be. */
  chunkFilled(pending: PendingException, errno: number, writing: boolean): void;
  /** The store has the record, or could not take it. */
  recordCommitted(pending: PendingException, errno: number): void;
  /** The store has no room for the record, and keeps it for later. @returns the exception that the store is to tell then */
  recordPostponed(pending: PendingException): Committable;
}

export class PendingException implements Committable {
  owner!: PendingOwner;
  oldChunk = 0;
  newChunk = 0;
  nextToCommit: Committable | null = null;
  /** The one that was allocated after it. */
  nextAllocated: PendingException | null = null;
  readonly copy = new ChunkCopy();
  started = false;
  /** The chunk is filled, with this result. */
  filled = false;
  errno = 0;
  /** It was the writing that failed. */
  failedWriting = false;
  /** The write that the chunk was filled with. */
  writer: Bio | null = null;
  /** Requests for the new chunk. */
  #head: Bio | null = null;
  #tail: Bio | null = null;
  /** Writes to the origin that wait for the copy. */
  originWaiters: (() => void)[] | null = null;

  /** Makes one that is done with (or new) ready for another use. */
  reset(owner: PendingOwner, oldChunk: number, newChunk: number): void {
    this.owner = owner;
    this.oldChunk = oldChunk;
    this.newChunk = newChunk;
    this.nextToCommit = null;
    this.nextAllocated = null;
    this.started = false;
    this.filled = false;
    this.errno = 0;
    this.failedWriting = false;
    this.writer = null;
    this.originWaiters = null;
  }

  queue(bio: Bio): void {
    bio.next = null;
    if (this.#tail === null) this.#head = bio;
    else this.#tail.next = bio;
    this.#tail = bio;
  }

  /** The oldest request that waits, taken out. */
  shift(): Bio | null {
    const bio = this.#head;
    if (bio === null) return null;
    this.#head = bio.next;
    if (this.#head === null) this.#tail = null;
    bio.next = null;
    return bio;
  }

  readonly onFilled = (errno: number, writing: boolean): void => this.owner.chunkFilled(this, errno, writing);

  committed(errno: number): void {
    this.owner.recordCommitted(this, errno);
  }

  postponed(): Committable {
    return this.owner.recordPostponed(this);
  }
}
