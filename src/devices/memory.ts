// A device in memory, sparse, for tests, scratch space and small overlays. Every request ends inside submit().
import {
  type Bio,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
} from '../block/bio.ts';
import { type BlockDevice, EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, type ExtentCallback } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits, UNLIMITED_SECTOR_COUNT } from '../block/limits.ts';
import { isSector, SECTOR_SIZE } from '../block/sector.ts';
import { enterSubmit, leaveSubmit } from '../engine/nesting.ts';

const CHUNK_SECTOR_COUNT = 128;
const CHUNK_BYTE_LENGTH = CHUNK_SECTOR_COUNT * SECTOR_SIZE;

export interface MemoryDeviceOptions {
  readOnly?: boolean;
  /** What differs from the defaults: logical blocks of 512, discard and write-zeroes without bound, no write cache. */
  limits?: Partial<QueueLimits>;
}

/** A memory device: reads of what was never written give zeroes, discarded ranges too. */
export class MemoryDevice implements BlockDevice {
  readonly name: string;
  readonly sectorCount: number;
  readonly readOnly: boolean;
  readonly limits: QueueLimits;
  /** Chunk number to its bytes; a chunk that is missing is zeroes. */
  readonly #chunks = new Map<number, Uint8Array>();

  /**
   * @param name as tables print it
   * @throws DmError EINVAL for a size that no device has
   */
  constructor(name: string, sectorCount: number, options: MemoryDeviceOptions = {}) {
    if (!isSector(sectorCount)) throw new DmError(Errno.EINVAL, `${name}: ${sectorCount} is no number of sectors`);
    this.name = name;
    this.sectorCount = sectorCount;
    this.readOnly = options.readOnly ?? false;
    this.limits = {
      ...defaultLimits(),
      maxDiscardSectorCount: UNLIMITED_SECTOR_COUNT,
      discardGranularity: SECTOR_SIZE,
      maxWriteZeroesSectorCount: UNLIMITED_SECTOR_COUNT,
      ...options.limits,
    };
  }

  /** Bytes of memory behind the device: grows with writes, shrinks with discards of whole 64 KiB. */
  get allocatedByteLength(): number {
    return this.#chunks.size * CHUNK_BYTE_LENGTH;
  }

  submit(bio: Bio): void {
    if (!enterSubmit(bio)) return;
    try {
      const errno = this.#perform(bio);
      if (errno === 0) bio.endIo(0);
      else bio.fail(errno, this);
    } finally {
      leaveSubmit();
    }
  }

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    const chunk = Math.floor(sector / CHUNK_SECTOR_COUNT);
    const lastChunk = Math.floor((sector + sectorCount - 1) / CHUNK_SECTOR_COUNT);
    const allocated = this.#chunks.has(chunk);
    const end = allocated ? this.#endOfData(chunk, lastChunk) : this.#endOfHole(chunk, lastChunk);
    const count = Math.min(sectorCount, end * CHUNK_SECTOR_COUNT - sector);
    done(0, count, allocated ? EXTENT_DATA : EXTENT_HOLE | EXTENT_ZERO);
  }

  /** What is stored, bypassing requests: for tests and for filling a device. */
  peek(sector: number, sectorCount: number): Uint8Array {
    const bytes = new Uint8Array(sectorCount * SECTOR_SIZE);
    this.#read(sector, bytes);
    return bytes;
  }

  /** Stores `bytes` from `sector` on, bypassing requests (and the read-only mark): for tests and for filling a device. */
  poke(sector: number, bytes: Uint8Array): void {
    this.#write(sector, bytes);
  }

  #perform(bio: Bio): number {
    switch (bio.op) {
      case REQ_OP_READ:
      case REQ_OP_WRITE:
        return this.#transfer(bio);
      case REQ_OP_FLUSH:
        return 0;
      case REQ_OP_DISCARD:
        return this.#zero(bio.sector, bio.sectorCount, true);
      case REQ_OP_WRITE_ZEROES:
        return this.#zero(bio.sector, bio.sectorCount, (bio.flags & REQ_NOUNMAP) === 0);
      default:
        return Errno.EOPNOTSUPP;
    }
  }

  #transfer(bio: Bio): number {
    let left = bio.byteLength;
    let index = bio.vecIndex;
    let offset = bio.vecOffset;
    let done = 0;
    while (left > 0) {
      const vec = bio.vecs[index];
      if (vec === undefined) return Errno.EFAULT;
      const length = Math.min(left, vec.byteLength - offset);
      if (length > 0) {
        const start = vec.offset + offset;
        // Memory that was transferred away since has no bytes: not to be taken for a success.
        if (start + length > vec.page.byteLength) return Errno.EFAULT;
        const piece = vec.page.subarray(start, start + length);
        const errno =
          bio.op === REQ_OP_READ ? this.#read(bio.sector, piece, done) : this.#write(bio.sector, piece, done);
        if (errno !== 0) return errno;
        done += length;
        left -= length;
      }
      index++;
      offset = 0;
    }
    return 0;
  }

  /** Pieces of memory need not be whole sectors: `skip` is the byte count from `sector` on. */
  #read(sector: number, piece: Uint8Array, skip = 0): number {
    let chunk = Math.floor(sector / CHUNK_SECTOR_COUNT);
    let offset = (sector % CHUNK_SECTOR_COUNT) * SECTOR_SIZE + skip;
    chunk += Math.floor(offset / CHUNK_BYTE_LENGTH);
    offset %= CHUNK_BYTE_LENGTH;
    for (let done = 0; done < piece.byteLength; chunk++, offset = 0) {
      const length = Math.min(piece.byteLength - done, CHUNK_BYTE_LENGTH - offset);
      const bytes = this.#chunks.get(chunk);
      if (bytes === undefined) piece.fill(0, done, done + length);
      else piece.set(bytes.subarray(offset, offset + length), done);
      done += length;
    }
    return 0;
  }

  #write(sector: number, piece: Uint8Array, skip = 0): number {
    let chunk = Math.floor(sector / CHUNK_SECTOR_COUNT);
    let offset = (sector % CHUNK_SECTOR_COUNT) * SECTOR_SIZE + skip;
    chunk += Math.floor(offset / CHUNK_BYTE_LENGTH);
    offset %= CHUNK_BYTE_LENGTH;
    for (let done = 0; done < piece.byteLength; chunk++, offset = 0) {
      const length = Math.min(piece.byteLength - done, CHUNK_BYTE_LENGTH - offset);
      const bytes = this.#chunkForWriting(chunk);
      if (bytes === null) return Errno.ENOMEM;
      bytes.set(length === piece.byteLength ? piece : piece.subarray(done, done + length), offset);
      done += length;
    }
    return 0;
  }

  #chunkForWriting(chunk: number): Uint8Array | null {
    const present = this.#chunks.get(chunk);
    if (present !== undefined) return present;
    try {
      const bytes = new Uint8Array(CHUNK_BYTE_LENGTH);
      this.#chunks.set(chunk, bytes);
      return bytes;
    } catch {
      // A RangeError: no memory, or no room in the map.
      return null;
    }
  }

  /** Zeroes a range. With `unmap` whole chunks are let go and missing ones stay missing; else all is allocated. */
  #zero(sector: number, sectorCount: number, unmap: boolean): number {
    const end = sector + sectorCount;
    const lastChunk = Math.floor((end - 1) / CHUNK_SECTOR_COUNT);
    const firstChunk = Math.floor(sector / CHUNK_SECTOR_COUNT);
    // A huge range over few chunks: walk the chunks, not the range.
    if (unmap && lastChunk - firstChunk > this.#chunks.size) {
      for (const chunk of this.#chunks.keys()) {
        if (chunk >= firstChunk && chunk <= lastChunk) this.#zeroChunk(chunk, sector, end, true);
      }
      return 0;
    }
    for (let chunk = firstChunk; chunk <= lastChunk; chunk++) {
      const errno = this.#zeroChunk(chunk, sector, end, unmap);
      if (errno !== 0) return errno;
    }
    return 0;
  }

  #zeroChunk(chunk: number, sector: number, end: number, unmap: boolean): number {
    const chunkStart = chunk * CHUNK_SECTOR_COUNT;
    const from = Math.max(sector, chunkStart) - chunkStart;
    // The device may end inside its last chunk: up to there is all of it.
    const chunkEnd = Math.min(CHUNK_SECTOR_COUNT, this.sectorCount - chunkStart);
    const to = Math.min(end - chunkStart, chunkEnd);
    if (unmap && from === 0 && to === chunkEnd) {
      this.#chunks.delete(chunk);
      return 0;
    }
    const bytes = unmap ? this.#chunks.get(chunk) : this.#chunkForWriting(chunk);
    if (bytes === null) return Errno.ENOMEM;
    bytes?.fill(0, from * SECTOR_SIZE, to * SECTOR_SIZE);
    return 0;
  }

  #endOfData(chunk: number, lastChunk: number): number {
    let end = chunk + 1;
    while (end <= lastChunk && this.#chunks.has(end)) end++;
    return end;
  }

  #endOfHole(chunk: number, lastChunk: number): number {
    if (lastChunk - chunk > this.#chunks.size) {
      let end = lastChunk + 1;
      for (const other of this.#chunks.keys()) if (other > chunk && other < end) end = other;
      return end;
    }
    let end = chunk + 1;
    while (end <= lastChunk && !this.#chunks.has(end)) end++;
    return end;
  }
}
