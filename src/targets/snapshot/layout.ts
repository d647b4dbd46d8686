// What a persistent store looks like on its device, byte for byte the kernel's (drivers/md/dm-snap-persistent.c).
//
//   chunk    0        1        2 … e+1        e+2      e+3 … 2e+2     2e+3
//          +--------+--------+--------------+--------+--------------+--------+---
//          | header | area 0 | e data chunks| area 1 | e data chunks| area 2 | …
//          +--------+--------+--------------+--------+--------------+--------+---
//
//   header   0      4       8         12           16
//          +------+-------+---------+------------+------- - -
//          | SnAp | valid | version | chunk size | zeroes            four little-endian words of 32 bits
//          +------+-------+---------+------------+------- - -
//
//   area     e records of 16 bytes, e = chunk size in bytes / 16; the first whose new chunk is 0 ends the list
//          +----------------+----------------+----------------+--
//          | old    | new   | old    | new   | 0      | 0     |    little-endian words of 64 bits
//          +----------------+----------------+----------------+--
//
// 1. Everything is counted in chunks: chunk n is sectors n * C to n * C + C - 1. The size in the header is the one that
//    counts, whatever a table says.
// 2. Area a is chunk 1 + a * (e + 1). Every other chunk from 2 on holds data.
// 3. Data chunks are given out in ascending order. A chunk that was given out in vain (its data or its record found no
//    room) is given out again before any other, but not before it is certain that no record on the device names it.
// 4. Records are in the order in which their chunks were given out, so that their chunks need not ascend. Linux takes them in
//    any order, and every chunk behind the largest one that a record names as free.
// 5. A record is written only when the data of its chunk is durable (the write of a record flushes first), and whoever
//    waits for the exception goes on only when the record is durable.
// 6. What follows the last record reads as zeroes before that record is written: the rest of its area, and where it fills
//    the area, all of the next one.
// 7. The first word decides what a device is: 0, a new store; "SnAp", a store; anything else, neither.
// 8. valid = 0 is for ever.
import type { BlockDevice } from '../../block/block-device.ts';
import { PAGE_SIZE, SECTOR_SIZE } from '../../block/sector.ts';

/** `SnAp`, little-endian. */
export const SNAP_MAGIC = 0x70416e53;
export const SNAPSHOT_DISK_VERSION = 1;
export const RECORD_BYTE_LENGTH = 16;
/** Chunks of 16 KiB where nothing says otherwise. */
export const DEFAULT_CHUNK_SECTOR_COUNT = 32;
/** A 32-bit byte count must hold a chunk. */
export const MAX_CHUNK_SECTOR_COUNT = Math.floor(0x7fffffff / SECTOR_SIZE);

const WORD = 2 ** 32;

export interface Header {
  magic: number;
  valid: boolean;
  version: number;
  chunkSectorCount: number;
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export function readHeader(bytes: Uint8Array): Header {
  const view = viewOf(bytes);
  return {
    magic: view.getUint32(0, true),
    valid: view.getUint32(4, true) !== 0,
    version: view.getUint32(8, true),
    chunkSectorCount: view.getUint32(12, true),
  };
}

/** Fills `bytes`: the header, and zeroes behind it. */
export function writeHeader(bytes: Uint8Array, valid: boolean, chunkSectorCount: number): void {
  bytes.fill(0);
  const view = viewOf(bytes);
  view.setUint32(0, SNAP_MAGIC, true);
  view.setUint32(4, valid ? 1 : 0, true);
  view.setUint32(8, SNAPSHOT_DISK_VERSION, true);
  view.setUint32(12, chunkSectorCount, true);
}

/** Records in a piece of an area. */
export class Records {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = viewOf(bytes);
  }

  /** How many there is room for. */
  get count(): number {
    return this.bytes.byteLength / RECORD_BYTE_LENGTH;
  }

  // Past 2^53 a chunk number is rounded: it stays larger than every chunk that a device here can have.

  oldChunk(index: number): number {
    const at = index * RECORD_BYTE_LENGTH;
    return this.#view.getUint32(at + 4, true) * WORD + this.#view.getUint32(at, true);
  }

  /** 0: the list ends here. */
  newChunk(index: number): number {
    const at = index * RECORD_BYTE_LENGTH + 8;
    return this.#view.getUint32(at + 4, true) * WORD + this.#view.getUint32(at, true);
  }

  set(index: number, oldChunk: number, newChunk: number): void {
    const at = index * RECORD_BYTE_LENGTH;
    this.#view.setUint32(at, oldChunk % WORD, true);
    this.#view.setUint32(at + 4, Math.floor(oldChunk / WORD), true);
    this.#view.setUint32(at + 8, newChunk % WORD, true);
    this.#view.setUint32(at + 12, Math.floor(newChunk / WORD), true);
  }

  /** Takes the records from `index` on out. */
  clearFrom(index: number): void {
    this.bytes.fill(0, index * RECORD_BYTE_LENGTH);
  }

  /** True where nothing but zeroes stands from `index` on. */
  isClearFrom(index: number): boolean {
    for (let at = index * RECORD_BYTE_LENGTH; at < this.bytes.byteLength; at++) if (this.bytes[at] !== 0) return false;
    return true;
  }
}

/** Nothing but zeroes: the first byte is one, and each is like the one before. */
export function isBlank(bytes: Uint8Array): boolean {
  if (bytes.byteLength === 0) return true;
  return bytes[0] === 0 && Buffer.compare(bytes.subarray(0, -1), bytes.subarray(1)) === 0;
}

/** Records in one area. */
export function recordsPerArea(chunkSectorCount: number): number {
  return (chunkSectorCount * SECTOR_SIZE) / RECORD_BYTE_LENGTH;
}

/** The chunk that is area `area`. */
export function areaChunk(area: number, perArea: number): number {
  return 1 + area * (perArea + 1);
}

/** True for the header and every area. */
export function isMetadataChunk(chunk: number, perArea: number): boolean {
  return chunk === 0 || chunk % (perArea + 1) === 1;
}

/** Data chunk number `index`, counted without metadata. */
export function dataChunk(index: number, perArea: number): number {
  return areaChunk(Math.floor(index / perArea), perArea) + 1 + (index % perArea);
}

/** How many data chunks lie before the data chunk `chunk`. */
export function dataChunkIndex(chunk: number, perArea: number): number {
  const area = Math.floor((chunk - 1) / (perArea + 1));
  return area * perArea + (chunk - areaChunk(area, perArea) - 1);
}

/**
 * The unit in which metadata is read and written: a page, which is 256 records, but never less than a logical block nor
 * more than a chunk. Behind the header's first one there is nothing.
 */
export function windowByteLength(device: BlockDevice, chunkSectorCount: number): number {
  return Math.min(chunkSectorCount * SECTOR_SIZE, Math.max(PAGE_SIZE, device.limits.logicalBlockSize));
}

/** Why a chunk can't have that size, in the kernel's words; null where it can. */
export function chunkSizeObjection(chunkSectorCount: number, devices: readonly BlockDevice[]): string | null {
  if (chunkSectorCount === 0 || (chunkSectorCount & (chunkSectorCount - 1)) !== 0) {
    return 'Chunk size is not a power of 2';
  }
  const unfit = devices.some((device) => (chunkSectorCount * SECTOR_SIZE) % device.limits.logicalBlockSize !== 0);
  if (unfit) return 'Chunk size is not a multiple of device blocksize';
  return chunkSectorCount > MAX_CHUNK_SECTOR_COUNT ? 'Chunk size is too high' : null;
}
