// Walks the memory of one bio in chunks that one system call can take: as an iovec for libc, as views for node:fs.
import type { Bio, BioVec } from '../block/bio.ts';
import { MAX_IOVEC_COUNT, MAX_TRANSFER_BYTE_LENGTH } from '../block/bounds.ts';
import { type MemoryRegion, pinMemory, rangeIsInside, regionOf } from './address.ts';
import type { Libc } from './libc.ts';

/** Room for one iovec array, and its address. */
export interface IovecArray {
  readonly words: Uint32Array;
  readonly address: number;
}

const IOVEC_WORD_COUNT = 4;
const WORD = 4294967296;

/** An iovec array of MAX_IOVEC_COUNT entries. The engine holds on to it, so it stays where it is. */
export function makeIovecArray(libc: Libc): IovecArray {
  const words = new Uint32Array(MAX_IOVEC_COUNT * IOVEC_WORD_COUNT);
  return { words, address: libc.addressOf(words.buffer) };
}

/** Sets entry `index`: struct iovec is {void *base; size_t length}, little-endian on every machine koffi knows here. */
export function setIovec(words: Uint32Array, index: number, address: number, byteLength: number): void {
  const at = index * IOVEC_WORD_COUNT;
  words[at] = address;
  words[at + 1] = address / WORD;
  words[at + 2] = byteLength;
  words[at + 3] = byteLength / WORD;
}

function addressIn(region: MemoryRegion, libc: Libc, buffer: ArrayBufferLike): number {
  if (region.address === 0) region.address = libc.addressOf(buffer);
  return region.address;
}

/**
 * Address of `byteLength` bytes of `vec` from `offset` on.
 *
 * @returns 0 for memory that can't be used (see checkMemory)
 */
export function addressOfPiece(libc: Libc, vec: BioVec, offset: number, byteLength: number): number {
  const page = vec.page;
  const start = vec.offset + offset;
  if (!rangeIsInside(page, start, byteLength)) return 0;
  const buffer = page.buffer;
  try {
    return addressIn(regionOf(buffer), libc, buffer) + page.byteOffset + start;
  } catch {
    return 0;
  }
}

/** Bounds of one system call; smaller ones let tests run the code that splits. */
export interface TransferBounds {
  readonly maxIovecCount: number;
  readonly maxTransferByteLength: number;
}

export const SYSTEM_TRANSFER_BOUNDS: TransferBounds = {
  maxIovecCount: MAX_IOVEC_COUNT,
  maxTransferByteLength: MAX_TRANSFER_BYTE_LENGTH,
};

/** A position in a bio's memory. Reused: start() sets it to a bio. */
export class MemoryCursor {
  /** Bytes of the bio behind the position. */
  doneByteLength = 0;
  /** Bytes of the bio from the position on. */
  leftByteLength = 0;
  /** Bytes in the chunk that fillIovec() or views() gave last. */
  chunkByteLength = 0;
  readonly #bounds: TransferBounds;
  #vecs: readonly BioVec[] = [];
  #index = 0;
  #offset = 0;

  constructor(bounds: TransferBounds) {
    this.#bounds = bounds;
  }

  start(bio: Bio, doneByteLength: number): void {
    this.#vecs = bio.vecs;
    this.#index = bio.vecIndex;
    this.#offset = bio.vecOffset;
    this.doneByteLength = 0;
    this.leftByteLength = bio.byteLength;
    if (doneByteLength > 0) this.advance(doneByteLength);
  }

  /** Lets go of the bio's memory. */
  release(): void {
    this.#vecs = [];
  }

  advance(byteLength: number): void {
    this.doneByteLength += byteLength;
    this.leftByteLength -= byteLength;
    let rest = byteLength + this.#offset;
    while (this.#index < this.#vecs.length && rest >= this.#vecs[this.#index]!.byteLength) {
      rest -= this.#vecs[this.#index]!.byteLength;
      this.#index++;
    }
    this.#offset = rest;
  }

  /** True when one chunk takes all that is left. Cheap, and may say false where it does not matter. */
  get fitsOneChunk(): boolean {
    return (
      this.#vecs.length - this.#index <= this.#bounds.maxIovecCount &&
      this.leftByteLength <= this.#bounds.maxTransferByteLength
    );
  }

  /**
   * Describes the next chunk in `array`.
   *
   * @returns the number of entries; 0 for memory that can't be used or is too short
   */
  fillIovec(libc: Libc, array: IovecArray): number {
    let left = Math.min(this.leftByteLength, this.#bounds.maxTransferByteLength);
    let index = this.#index;
    let offset = this.#offset;
    let count = 0;
    this.chunkByteLength = 0;
    for (; left > 0 && count < this.#bounds.maxIovecCount; index++, offset = 0) {
      const vec = this.#vecs[index];
      if (vec === undefined) return 0;
      const length = Math.min(left, vec.byteLength - offset);
      if (length <= 0) continue;
      const address = addressOfPiece(libc, vec, offset, length);
      if (address === 0) return 0;
      setIovec(array.words, count++, address, length);
      this.chunkByteLength += length;
      left -= length;
    }
    return count;
  }

  /** The next chunk as views. The memory was checked by {@link pin}. */
  views(): Uint8Array[] {
    let left = Math.min(this.leftByteLength, this.#bounds.maxTransferByteLength);
    let index = this.#index;
    let offset = this.#offset;
    const views: Uint8Array[] = [];
    this.chunkByteLength = 0;
    for (; left > 0 && views.length < this.#bounds.maxIovecCount; index++, offset = 0) {
      const vec = this.#vecs[index]!;
      const length = Math.min(left, vec.byteLength - offset);
      if (length <= 0) continue;
      const start = vec.offset + offset;
      views.push(vec.page.subarray(start, start + length));
      this.chunkByteLength += length;
      left -= length;
    }
    return views;
  }

  /**
   * Checks all memory from the position on, and with `pinned` keeps it in this thread.
   *
   * @returns false for memory that can't be used or is too short
   */
  check(pinned: boolean): boolean {
    let left = this.leftByteLength;
    let offset = this.#offset;
    for (let index = this.#index; left > 0; index++, offset = 0) {
      const vec = this.#vecs[index];
      if (vec === undefined) return false;
      const length = Math.min(left, vec.byteLength - offset);
      if (length <= 0) continue;
      if (!rangeIsInside(vec.page, vec.offset + offset, length)) return false;
      try {
        if (pinned) pinMemory(vec.page.buffer);
        else regionOf(vec.page.buffer);
      } catch {
        return false;
      }
      left -= length;
    }
    return true;
  }
}
