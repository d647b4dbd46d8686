// A store's mark: dmkit's own facts about a store, in the second half of its header's sector. The header itself takes 16
// bytes (layout.ts). Linux reads nothing behind them, and writes the header's chunk only when it makes a store and when it
// marks one as invalid; both clear the mark.
//
//   sector 0
//   0        16                      256                               512
//   +--------+-----------------------+---------------------------------+
//   | header | zeroes                | mark                            |
//   +--------+-----------------------+---------------------------------+
//
//   mark, offsets from its start; numbers little-endian
//   0      4         8       12      13     14    15      16         32        40        48     56    152     232    256
//   +------+---------+-------+-------+------+-----+-------+----------+---------+---------+------+-----+-------+------+
//   | dmkM | version | crc32 | flags | kind | key | label | store id | sectors | origin  | kind | key | label | 0    |
//   |      | 1       |       |       | lengths in bytes   | 16 bytes |         | version |      |     |       |      |
//   +------+---------+-------+-------+--------------------+----------+---------+---------+------+-----+-------+------+
//
// 1. The CRC-32 (that of zlib and Ethernet) covers all 256 bytes, with its own four taken as zeroes.
// 2. Flag 1: the origin version counts. Without it the field is 0: the store is attached, or was when its user crashed.
// 3. The origin version is a signed number of 64 bits; sectors is the origin's length.
// 4. Texts are UTF-8, with zeroes behind them.
// 5. All zeroes: no mark. Anything else that breaks a rule is damage, also a magic number that is not dmkM: a bit that
//    flipped there must not make a marked store an unmarked one.
import { crc32 } from 'node:zlib';
import { SECTOR_SIZE } from '../../block/sector.ts';
import { isBlank, writeHeader } from './layout.ts';

/** Where the mark begins in sector 0. */
export const MARK_BYTE_OFFSET = 256;
export const MARK_BYTE_LENGTH = 256;

/** `dmkM`, little-endian. */
const MAGIC = 0x4d6b6d64;
const VERSION = 1;
const FLAG_HAS_ORIGIN_VERSION = 1;

const AT_VERSION = 4;
const AT_CRC = 8;
const AT_FLAGS = 12;
const AT_KIND_LENGTH = 13;
const AT_KEY_LENGTH = 14;
const AT_LABEL_LENGTH = 15;
const AT_STORE_ID = 16;
const AT_SECTOR_COUNT = 32;
const AT_ORIGIN_VERSION = 40;
const AT_KIND = 48;
const AT_KEY = 56;
const AT_LABEL = 152;
const AT_END = 232;

const STORE_ID_BYTE_LENGTH = 16;
/** Most bytes of an origin's kind, in UTF-8. */
export const MAX_MARK_KIND_BYTE_LENGTH = AT_KEY - AT_KIND;
/** Most bytes of an origin's key, in UTF-8. */
export const MAX_MARK_KEY_BYTE_LENGTH = AT_LABEL - AT_KEY;
/** Most bytes of an origin's label, in UTF-8; a longer one is cut. */
export const MAX_MARK_LABEL_BYTE_LENGTH = AT_END - AT_LABEL;

/** dmkit's own facts about a store. */
export interface StoreMark {
  /** This store: 16 random bytes in hexadecimal digits. */
  storeId: string;
  /** The identity of the origin that the store belongs to; compared as a whole, but for the label. */
  origin: {
    /** What sort of origin it is: up to 8 bytes. */
    kind: string;
    /** What the identity is made of: up to 96 bytes. */
    key: string;
    /** For messages: the origin's path. A long one loses its beginning when it is encoded. */
    label: string;
    sectorCount: number;
  };
  /**
   * How the origin's content is known (its mtime in nanoseconds, or a counter) as a decimal number: written at a clean
   * detach. Null while the store is attached, and after a crash.
   */
  originVersion: string | null;
}

/** Encodes a mark in its 256 bytes. @throws RangeError where a field does not fit */
export function encodeMark(mark: StoreMark): Uint8Array {
  const bytes = Buffer.alloc(MARK_BYTE_LENGTH);
  const { origin, originVersion } = mark;
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeUInt32LE(VERSION, AT_VERSION);
  if (!/^[0-9a-f]{32}$/.test(mark.storeId)) {
    throw new RangeError(`a store's id is 32 hexadecimal digits, not "${mark.storeId}"`);
  }
  bytes.write(mark.storeId, AT_STORE_ID, 'hex');
  if (!Number.isSafeInteger(origin.sectorCount) || origin.sectorCount < 0) {
    throw new RangeError(`an origin can't have ${origin.sectorCount} sectors`);
  }
  bytes.writeBigUInt64LE(BigInt(origin.sectorCount), AT_SECTOR_COUNT);
  if (originVersion !== null) {
    bytes[AT_FLAGS] = FLAG_HAS_ORIGIN_VERSION;
    bytes.writeBigInt64LE(parseOriginVersion(originVersion), AT_ORIGIN_VERSION);
  }
  bytes[AT_KIND_LENGTH] = writeText(bytes, AT_KIND, MAX_MARK_KIND_BYTE_LENGTH, 'kind', origin.kind);
  bytes[AT_KEY_LENGTH] = writeText(bytes, AT_KEY, MAX_MARK_KEY_BYTE_LENGTH, 'key', origin.key);
  bytes[AT_LABEL_LENGTH] = writeText(bytes, AT_LABEL, MAX_MARK_LABEL_BYTE_LENGTH, 'label', fitLabel(origin.label));
  bytes.writeUInt32LE(crc32(bytes), AT_CRC);
  return bytes;
}

function parseOriginVersion(text: string): bigint {
  const value = /^-?[0-9]{1,19}$/.test(text) ? BigInt(text) : null;
  if (value === null || String(value) !== text || BigInt.asIntN(64, value) !== value) {
    throw new RangeError(`an origin's version is a decimal number of 64 bits, not "${text}"`);
  }
  return value;
}

/** @returns the text's length in bytes */
function writeText(bytes: Buffer, at: number, maxByteLength: number, field: string, text: string): number {
  const encoded = Buffer.from(text, 'utf8');
  if (encoded.byteLength > maxByteLength) {
    throw new RangeError(
      `the origin's ${field} takes ${encoded.byteLength} bytes; a mark has room for ${maxByteLength}`,
    );
  }
  bytes.set(encoded, at);
  return encoded.byteLength;
}

/** The label as a mark can hold it: the end of a path says more than its beginning. */
function fitLabel(label: string): string {
  if (Buffer.byteLength(label) <= MAX_MARK_LABEL_BYTE_LENGTH) return label;
  const characters = [...label];
  let byteLength = Buffer.byteLength('…');
  let from = characters.length;
  while (from > 0) {
    byteLength += Buffer.byteLength(characters[from - 1]!);
    if (byteLength > MAX_MARK_LABEL_BYTE_LENGTH) break;
    from--;
  }
  return `…${characters.slice(from).join('')}`;
}

/**
 * Decodes the mark in sector 0 of a store, or in the mark's own 256 bytes.
 *
 * @returns null where there is none; 'damaged' where the bytes are neither a mark of a version that this dmkit knows nor
 * all zeroes
 */
export function decodeMark(bytes: Uint8Array): StoreMark | null | 'damaged' {
  const start = bytes.byteLength === MARK_BYTE_LENGTH ? 0 : MARK_BYTE_OFFSET;
  if (bytes.byteLength < start + MARK_BYTE_LENGTH) {
    throw new RangeError(`${bytes.byteLength} bytes can't hold a mark: pass sector 0, or its second half`);
  }
  const mark = Buffer.from(bytes.subarray(start, start + MARK_BYTE_LENGTH));
  if (isBlank(mark)) return null;
  const crc = mark.readUInt32LE(AT_CRC);
  mark.writeUInt32LE(0, AT_CRC);
  const isWhole =
    mark.readUInt32LE(0) === MAGIC && mark.readUInt32LE(AT_VERSION) === VERSION && crc === crc32(mark) && fits(mark);
  return isWhole ? readFields(mark) : 'damaged';
}

function fits(mark: Buffer): boolean {
  return (
    mark[AT_KIND_LENGTH]! <= MAX_MARK_KIND_BYTE_LENGTH &&
    mark[AT_KEY_LENGTH]! <= MAX_MARK_KEY_BYTE_LENGTH &&
    mark[AT_LABEL_LENGTH]! <= MAX_MARK_LABEL_BYTE_LENGTH &&
    mark.readBigUInt64LE(AT_SECTOR_COUNT) <= BigInt(Number.MAX_SAFE_INTEGER)
  );
}

function readFields(mark: Buffer): StoreMark {
  const text = (at: number, length: number): string => mark.toString('utf8', at, at + length);
  const hasVersion = (mark[AT_FLAGS]! & FLAG_HAS_ORIGIN_VERSION) !== 0;
  return {
    storeId: mark.toString('hex', AT_STORE_ID, AT_STORE_ID + STORE_ID_BYTE_LENGTH),
    origin: {
      kind: text(AT_KIND, mark[AT_KIND_LENGTH]!),
      key: text(AT_KEY, mark[AT_KEY_LENGTH]!),
      label: text(AT_LABEL, mark[AT_LABEL_LENGTH]!),
      sectorCount: Number(mark.readBigUInt64LE(AT_SECTOR_COUNT)),
    },
    originVersion: hasVersion ? String(mark.readBigInt64LE(AT_ORIGIN_VERSION)) : null,
  };
}

/**
 * The beginning of a new, empty store: its header, and its mark where it has one. All else of a new store reads as zeroes,
 * so that a sparse file with these bytes at 0, at least two chunks long, is a store as the snapshot target makes it.
 *
 * @param byteLength of the answer, which is zeroes behind the first sector
 */
export function makeStoreHeader(
  mark: StoreMark | null,
  chunkSectorCount: number,
  byteLength: number = SECTOR_SIZE,
): Uint8Array {
  const bytes = new Uint8Array(byteLength);
  writeHeader(bytes, true, chunkSectorCount);
  if (mark !== null) bytes.set(encodeMark(mark), MARK_BYTE_OFFSET);
  return bytes;
}
