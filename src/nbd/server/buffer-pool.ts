// The memory of requests and replies: buffers in sizes of powers of two, used again, and counted twice: for the server
// and, by each connection's account, for that connection.
import { ownMemory } from '../../engine/address.ts';
import { MAX_FREE_BYTE_LENGTH } from './bounds.ts';

/** Added to each power of two, so that the data of a request and its reply header fit together. */
const SLACK_BYTE_LENGTH = 8192;
const SMALLEST_SHIFT = 12;

export interface PooledBuffer {
  readonly bytes: Buffer;
  readonly view: DataView;
  /** Regions of it that are in use or on their way out. */
  regionCount: number;
  /** Where the next region begins. */
  used: number;
}

function shiftFor(byteLength: number): number {
  return Math.max(SMALLEST_SHIFT, 32 - Math.clz32(Math.max(0, byteLength - SLACK_BYTE_LENGTH - 1)));
}

function makeBuffer(byteLength: number): PooledBuffer {
  const bytes = ownMemory(Buffer.allocUnsafeSlow(byteLength));
  return { bytes, view: new DataView(bytes.buffer, bytes.byteOffset, byteLength), regionCount: 0, used: 0 };
}

/** A server's buffers. */
export class BufferPool {
  readonly maxByteLength: number;
  readonly #free: PooledBuffer[][] = Array.from({ length: 33 }, () => []);
  #freeByteLength = 0;
  #usedByteLength = 0;
  #waiters: (() => void)[] = [];

  constructor(maxByteLength: number) {
    this.maxByteLength = maxByteLength;
  }

  /** Bytes that connections hold: buffers taken, and received memory that waits for a device. */
  get usedByteLength(): number {
    return this.#usedByteLength;
  }

  get hasRoom(): boolean {
    return this.#usedByteLength < this.maxByteLength;
  }

  /** Calls back once, when there is room. The callback must only note it. */
  waitForRoom(callback: () => void): void {
    this.#waiters.push(callback);
  }

  take(byteLength: number): PooledBuffer {
    const shift = shiftFor(byteLength);
    const buffer = this.#free[shift]!.pop();
    if (buffer === undefined) return makeBuffer(2 ** shift + SLACK_BYTE_LENGTH);
    this.#freeByteLength -= buffer.bytes.byteLength;
    return buffer;
  }

  give(buffer: PooledBuffer): void {
    const { byteLength } = buffer.bytes;
    if (this.#freeByteLength + byteLength > MAX_FREE_BYTE_LENGTH) return;
    buffer.used = 0;
    buffer.regionCount = 0;
    this.#freeByteLength += byteLength;
    this.#free[shiftFor(byteLength)]!.push(buffer);
  }

  /** Adds to (or, below zero, takes from) what is in use. */
  charge(byteLength: number): void {
    this.#usedByteLength += byteLength;
    if (byteLength >= 0 || this.#waiters.length === 0 || !this.hasRoom) return;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter();
  }
}

/** What one connection holds of its server's memory. */
export class MemoryAccount {
  readonly #pool: BufferPool;
  readonly #maxByteLength: number;
  #usedByteLength = 0;

  constructor(pool: BufferPool, maxByteLength: number) {
    this.#pool = pool;
    this.#maxByteLength = maxByteLength;
  }

  get usedByteLength(): number {
    return this.#usedByteLength;
  }

  /** Whether another request may begin, as far as this connection goes; `idleByteLength` of it are nobody's data. */
  hasRoom(idleByteLength: number): boolean {
    return this.#usedByteLength - idleByteLength < this.#maxByteLength;
  }

  /** Whether it may begin as far as the server goes: one that holds no data always may, so that everybody gets on. */
  serverHasRoom(idleByteLength: number): boolean {
    return this.#usedByteLength === idleByteLength || this.#pool.hasRoom;
  }

  waitForServer(callback: () => void): void {
    this.#pool.waitForRoom(callback);
  }

  /** A buffer of at least `byteLength` bytes; what it holds is left over from earlier. */
  take(byteLength: number): PooledBuffer {
    const buffer = this.#pool.take(byteLength);
    this.charge(buffer.bytes.byteLength);
    return buffer;
  }

  give(buffer: PooledBuffer): void {
    this.charge(-buffer.bytes.byteLength);
    this.#pool.give(buffer);
  }

  /** Counts a taken buffer as gone for good: somebody may still write into it, so it is never used again. */
  abandon(buffer: PooledBuffer): void {
    this.charge(-buffer.bytes.byteLength);
  }

  /** Counts memory that is not the pool's. */
  charge(byteLength: number): void {
    this.#usedByteLength += byteLength;
    this.#pool.charge(byteLength);
  }
}
