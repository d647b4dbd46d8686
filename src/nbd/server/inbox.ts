// Where a connection's bytes arrive when it fetches them itself. The data of WRITEs stays where it arrived until the
// device has taken it; memory that nobody holds is filled again from its beginning, so that it stays in the processor's
// cache. A connection that has nothing to read has no memory for it.
import { INBOX_BYTE_LENGTH } from './bounds.ts';
import type { MemoryAccount, PooledBuffer } from './buffer-pool.ts';

/** With less room than this left, other memory is taken. */
const MIN_ROOM_BYTE_LENGTH = 64 * 1024;

export class Inbox {
  /** What was received and not read: `buffer` from `head` to `tail`. */
  buffer: PooledBuffer | null = null;
  head = 0;
  tail = 0;
  readonly #account: MemoryAccount;
  /** Nothing is being read: the memory goes with the last one who uses data in it. */
  #isResting = false;

  constructor(account: MemoryAccount) {
    this.#account = account;
  }

  get isEmpty(): boolean {
    return this.head === this.tail;
  }

  /**
   * Memory in which no request has data. Nobody waits for it: a connection that has nothing else must get on, however
   * little it (or the server) may hold.
   */
  get idleByteLength(): number {
    const { buffer } = this;
    return buffer !== null && buffer.regionCount === 1 ? buffer.bytes.byteLength : 0;
  }

  /** Memory with room behind `tail`; nothing may be unread. */
  open(): PooledBuffer {
    let { buffer } = this;
    this.#isResting = false;
    if (buffer !== null && buffer.regionCount === 1) {
      this.head = 0;
      this.tail = 0;
    } else if (buffer === null || buffer.bytes.byteLength - this.tail < MIN_ROOM_BYTE_LENGTH) {
      this.close();
      buffer = this.#account.take(INBOX_BYTE_LENGTH);
      // The inbox's own hold on it.
      buffer.regionCount = 1;
      this.buffer = buffer;
    }
    return buffer;
  }

  /** Keeps the memory for one who uses data in it. */
  hold(): PooledBuffer {
    const buffer = this.buffer!;
    buffer.regionCount++;
    return buffer;
  }

  release(buffer: PooledBuffer): void {
    buffer.regionCount--;
    if (buffer.regionCount === 0) this.#account.give(buffer);
    else if (this.#isResting && buffer === this.buffer && buffer.regionCount === 1) this.close();
  }

  /**
   * Everything was read. Memory that is in use all the same is kept for what comes next, so that small WRITEs that come
   * one by one don't hold the whole of a buffer each.
   */
  rest(): void {
    if (this.buffer?.regionCount === 1) this.close();
    else this.#isResting = true;
  }

  /** Memory that somebody may still read: it is never used again. */
  abandon(buffer: PooledBuffer): void {
    if (buffer.regionCount === Number.POSITIVE_INFINITY) return;
    if (this.buffer === buffer) {
      this.buffer = null;
      this.head = 0;
      this.tail = 0;
    }
    // Keeps the count from ever coming down to zero again.
    buffer.regionCount = Number.POSITIVE_INFINITY;
    this.#account.abandon(buffer);
  }

  /** Lets go of the memory. */
  close(): void {
    const { buffer } = this;
    this.#isResting = false;
    this.buffer = null;
    this.head = 0;
    this.tail = 0;
    if (buffer !== null) this.release(buffer);
  }
}
