// The replies of one connection on their way out. A reply's place is reserved before its data is there, header and data
// side by side; replies that become ready one after the other in neighbouring places leave as one piece of memory.
import type { Transport } from '../../block/reactor.ts';
import { ARENA_BYTE_LENGTH } from './bounds.ts';
import type { MemoryAccount, PooledBuffer } from './buffer-pool.ts';

/** Neighbouring regions that are ready to leave. */
interface Stretch {
  buffer: PooledBuffer;
  start: number;
  end: number;
  regionCount: number;
}

export class Output {
  readonly #account: MemoryAccount;
  readonly #transport: Pick<Transport, 'send' | 'sendNow'>;
  readonly #onSent: () => void;
  #arena: PooledBuffer | null = null;
  #ready: Stretch[] = [];
  #readyByteLength = 0;
  #unsentCount = 0;

  /** `onSent` is called after memory came back. */
  constructor(account: MemoryAccount, transport: Pick<Transport, 'send' | 'sendNow'>, onSent: () => void) {
    this.#account = account;
    this.#transport = transport;
    this.#onSent = onSent;
  }

  /** Bytes that wait for {@link flush}. */
  get readyByteLength(): number {
    return this.#readyByteLength;
  }

  /** Replies, or parts of them, that the transport has and could not send yet. */
  get unsentCount(): number {
    return this.#unsentCount;
  }

  /** The buffer whose bytes from its `used` on (before this call) are now one region of `byteLength` bytes. */
  reserve(byteLength: number): PooledBuffer {
    let buffer = this.#arena;
    if (byteLength > ARENA_BYTE_LENGTH) {
      buffer = this.#account.take(byteLength);
    } else if (buffer === null || buffer.bytes.byteLength - buffer.used < byteLength) {
      buffer = this.#account.take(ARENA_BYTE_LENGTH);
      this.#arena = buffer;
    }
    buffer.used += byteLength;
    buffer.regionCount++;
    return buffer;
  }

  /** Bytes `start` to `end` of a region are to be sent; the rest behind, up to `reservedEnd`, goes back where it can. */
  ready(buffer: PooledBuffer, start: number, end: number, reservedEnd: number): void {
    if (end !== reservedEnd && buffer.used === reservedEnd) buffer.used = end;
    this.#readyByteLength += end - start;
    const last = this.#ready[this.#ready.length - 1];
    if (last !== undefined && last.buffer === buffer && last.end === start) {
      last.end = end;
      last.regionCount++;
    } else {
      this.#ready.push({ buffer, start, end, regionCount: 1 });
    }
  }

  /** Sends what is ready, in one go. */
  flush(): void {
    if (this.#readyByteLength === 0) return;
    this.#readyByteLength = 0;
    if (this.#sendNow()) return;
    const stretches = this.#ready;
    this.#ready = [];
    const chunks: Uint8Array[] = [];
    let count = 0;
    for (const { buffer, start, end, regionCount } of stretches) {
      chunks.push(buffer.bytes.subarray(start, end));
      count += regionCount;
    }
    this.#unsentCount += count;
    this.#transport.send(chunks, () => {
      this.#unsentCount -= count;
      this.#releaseAll(stretches);
      this.#onSent();
    });
  }

  /** @returns false when something is left, because it has to wait */
  #sendNow(): boolean {
    const stretches = this.#ready;
    const transport = this.#transport;
    if (transport.sendNow === undefined) return false;
    let count = 0;
    for (const stretch of stretches) {
      const byteLength = stretch.end - stretch.start;
      const sent = transport.sendNow(stretch.buffer.bytes, stretch.start, byteLength);
      if (sent < byteLength) {
        stretch.start += sent;
        break;
      }
      this.release(stretch.buffer, stretch.regionCount);
      count++;
    }
    if (count > 0) this.#onSent();
    if (count < stretches.length) {
      stretches.splice(0, count);
      return false;
    }
    stretches.length = 0;
    return true;
  }

  #releaseAll(stretches: readonly Stretch[]): void {
    for (const { buffer, regionCount } of stretches) this.release(buffer, regionCount);
  }

  /** Gives up regions. A buffer goes back when its last region does. */
  release(buffer: PooledBuffer, regionCount = 1): void {
    buffer.regionCount -= regionCount;
    if (buffer.regionCount > 0) return;
    this.#forget(buffer);
    this.#account.give(buffer);
  }

  /** Gives up a region that somebody may still write into: its buffer is lost, together with what else is in it. */
  abandon(buffer: PooledBuffer): void {
    if (buffer.regionCount === Number.POSITIVE_INFINITY) return;
    this.#forget(buffer);
    // Keeps the count from ever coming down to zero again.
    buffer.regionCount = Number.POSITIVE_INFINITY;
    this.#account.abandon(buffer);
  }

  #forget(buffer: PooledBuffer): void {
    if (this.#arena === buffer) this.#arena = null;
  }

  /** Throws away what is ready and was not sent. */
  discard(): void {
    const stretches = this.#ready;
    this.#ready = [];
    this.#readyByteLength = 0;
    this.#releaseAll(stretches);
  }
}
