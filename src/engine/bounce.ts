// O_DIRECT takes memory at addresses that the device can reach, and JavaScript's is anywhere: what does not fit goes
// through a buffer that does; so does memory that could be taken away under a call. Copies cost, so they are counted.
import { BOUNCE_BUFFER_BYTE_LENGTH, MAX_BOUNCE_BUFFER_COUNT } from '../block/bounds.ts';

import { ownMemory } from './address.ts';

export const PAGE_BYTE_LENGTH = 4096;

/** What O_DIRECT asks of requests to one file. */
export interface DirectIo {
  /** Offset and length of a request are multiples of it: the logical block. */
  readonly blockByteLength: number;
  /** Addresses are multiples of it. May turn out to be more. */
  memoryAlignment: number;
}

/** `byteLength` bytes of zeroes that begin with a page. */
export function allocatePages(addressOf: (buffer: ArrayBufferLike) => number, byteLength: number): Uint8Array {
  const buffer = new ArrayBuffer(byteLength + PAGE_BYTE_LENGTH);
  const past = addressOf(buffer) % PAGE_BYTE_LENGTH;
  return ownMemory(new Uint8Array(buffer, past === 0 ? 0 : PAGE_BYTE_LENGTH - past, byteLength));
}

/** A fixed number of page-aligned buffers. Its memory is touched only where it is used. */
export class BounceBuffers {
  /** For synchronous calls, of which there is one at a time: it never waits for the others. */
  readonly synchronous: Uint8Array;
  readonly #free: Uint8Array[] = [];

  constructor(addressOf: (buffer: ArrayBufferLike) => number) {
    const pages = allocatePages(addressOf, (MAX_BOUNCE_BUFFER_COUNT + 1) * BOUNCE_BUFFER_BYTE_LENGTH);
    for (let i = 0; i <= MAX_BOUNCE_BUFFER_COUNT; i++) {
      this.#free.push(pages.subarray(i * BOUNCE_BUFFER_BYTE_LENGTH, (i + 1) * BOUNCE_BUFFER_BYTE_LENGTH));
    }
    this.synchronous = this.#free.pop()!;
  }

  /** Null when all are in use. */
  take(): Uint8Array | null {
    return this.#free.pop() ?? null;
  }

  give(buffer: Uint8Array): void {
    if (buffer !== this.synchronous) this.#free.push(buffer);
  }
}
