// Memory for copies of chunks: so many buffers and no more; who finds none waits in line.

import { COPY_OUT_BUFFER_BYTE_LENGTH, MAX_COPY_OUT_BYTE_LENGTH } from '../../block/bounds.ts';
import { ownMemory } from '../../engine/address.ts';

/** Kept for reuse; the rest goes back to the garbage collector. */
const MAX_KEPT_BYTE_LENGTH = 1 << 20;

export class CopyBuffers {
  /** A chunk, or a part of a large one. */
  readonly byteLength: number;
  readonly #maxCount: number;
  readonly #maxKeptCount: number;
  readonly #free: Uint8Array[] = [];
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];
  #waitingFrom = 0;
  #takenCount = 0;

  constructor(chunkByteLength: number) {
    this.byteLength = Math.min(chunkByteLength, COPY_OUT_BUFFER_BYTE_LENGTH);
    this.#maxCount = Math.max(1, Math.floor(MAX_COPY_OUT_BYTE_LENGTH / this.byteLength));
    this.#maxKeptCount = Math.max(1, Math.floor(MAX_KEPT_BYTE_LENGTH / this.byteLength));
  }

  /** Calls back with a buffer, now or when one is given back. */
  take(use: (buffer: Uint8Array) => void): void {
    if (this.#takenCount === this.#maxCount) {
      this.#waiting.push(use);
      return;
    }
    this.#takenCount++;
    use(this.#free.pop() ?? ownMemory(Buffer.allocUnsafeSlow(this.byteLength)));
  }

  give(buffer: Uint8Array): void {
    const next = this.#waiting[this.#waitingFrom];
    if (next === undefined) {
      this.#takenCount--;
      if (this.#free.length < this.#maxKeptCount) this.#free.push(buffer);
      return;
    }
    this.#waitingFrom++;
    if (this.#waitingFrom === this.#waiting.length) {
      this.#waiting.length = 0;
      this.#waitingFrom = 0;
    }
    next(buffer);
  }
}
