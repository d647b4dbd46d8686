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

/** Address of memory of the engine's own. */
export function addressOfView(libc: Libc, view: Uint8Array): number {
  return addressIn(regionOf(view.buffer), libc, view.buffer) + view.byteOffset;
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
  /** All memory that {@link check} pinned last stays where it is, also where a mark does not hold. */
  isKept = false;
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

  /** The most pieces that the next chunk can have. */
  get maxChunkPieceCount(): number {
    return Math.min(this.#vecs.length - this.#index, this.#bounds.maxIovecCount);
  }

  /** The next chunk's first piece, whole; for a chunk of one. The memory was checked by {@link check}. */
  addressOfFirst(libc: Libc): number {
    const vec = this.#vecs[this.#index]!;
    this.chunkByteLength = Math.min(this.leftByteLength, vec.byteLength - this.#offset);
    return addressOfPiece(libc, vec, this.#offset, this.chunkByteLength);
  }

  /** True when all that is left is in one piece that one call can take. */
  get isOnePiece(): boolean {
    const vec = this.#vecs[this.#index];
    return (
      vec !== undefined &&
      vec.byteLength - this.#offset >= this.leftByteLength &&
      this.leftByteLength <= this.#bounds.maxTransferByteLength
    );
  }

  /** True when every piece of what is left begins at a multiple of `alignment` and has whole blocks. */
  isAligned(libc: Libc, alignment: number, blockByteLength: number): boolean {
    let left = this.leftByteLength;
    let offset = this.#offset;
    for (let index = this.#index; left > 0; index++, offset = 0) {
      const vec = this.#vecs[index]!;
      const length = Math.min(left, vec.byteLength - offset);
      if (length <= 0) continue;
      if (length % blockByteLength !== 0) return false;
      if (addressOfPiece(libc, vec, offset, length) % alignment !== 0) return false;
      left -= length;
    }
    // A chunk that ends with its last iovec or byte ends with a block too.
    return this.#bounds.maxTransferByteLength % blockByteLength === 0;
  }

  /** Copies the next bytes into `target`, which may be longer than what is left. @returns how many; 0: memory has gone */
  copyTo(target: Uint8Array): number {
    return this.#copy(Math.min(target.byteLength, this.leftByteLength), (piece, done) => target.set(piece, done));
  }

  /** Copies `source` over the next bytes. @returns false for memory that has gone */
  copyFrom(source: Uint8Array): boolean {
    return (
      this.#copy(source.byteLength, (piece, done) => piece.set(source.subarray(done, done + piece.byteLength))) > 0
    );
  }

  /** @returns 0 where a piece has been transferred away */
  #copy(byteLength: number, copyPiece: (piece: Uint8Array, done: number) => void): number {
    let offset = this.#offset;
    let done = 0;
    for (let index = this.#index; done < byteLength; index++, offset = 0) {
      const vec = this.#vecs[index]!;
      const length = Math.min(byteLength - done, vec.byteLength - offset);
      if (length <= 0) continue;
      const start = vec.offset + offset;
      if (!rangeIsInside(vec.page, start, length)) return 0;
      copyPiece(vec.page.subarray(start, start + length), done);
      done += length;
    }
    return done;
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
    this.isKept = pinned;
    for (let index = this.#index; left > 0; index++, offset = 0) {
      const vec = this.#vecs[index];
      if (vec === undefined) return false;
      const length = Math.min(left, vec.byteLength - offset);
      if (length <= 0) continue;
      if (!rangeIsInside(vec.page, vec.offset + offset, length)) return false;
      try {
        if (pinned) this.isKept = pinMemory(vec.page.buffer) && this.isKept;
        else regionOf(vec.page.buffer);
      } catch {
        return false;
      }
      left -= length;
    }
    return true;
  }
}
