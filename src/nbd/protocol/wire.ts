// Encoders and decoders of the fixed-size messages. They read and write a DataView in place: nothing is allocated for a
// request. 64-bit numbers are read and written as two halves; as a Number they are exact up to 2^53 and, for multiples
// of 512, up to 2^62.
import {
  CHUNK_MAGIC,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  OPTION_MAGIC_HIGH,
  OPTION_MAGIC_LOW,
  OPTION_REPLY_MAGIC_HIGH,
  OPTION_REPLY_MAGIC_LOW,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
} from './constants.ts';

const TWO_TO_THE_32 = 0x1_0000_0000;

/** Writes a whole number from 0 to 2^64 - 1, as exact as the Number is. */
export function setUint64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, Math.floor(value / TWO_TO_THE_32));
  view.setUint32(offset + 4, value % TWO_TO_THE_32);
}

/** Reads a 64-bit number; above 2^53 the nearest Number, which is above 2^53 too. */
export function getUint64(view: DataView, offset: number): number {
  return view.getUint32(offset) * TWO_TO_THE_32 + view.getUint32(offset + 4);
}

/** A request of the transmission phase. Cookies stay two 32-bit halves: they only ever go back as they came. */
export interface RequestHeader {
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  offsetHigh: number;
  offsetLow: number;
  byteLength: number;
}

export function emptyRequestHeader(): RequestHeader {
  return { flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offsetHigh: 0, offsetLow: 0, byteLength: 0 };
}

/**
 * Reads the 28 bytes at `offset` into `header` ("Request message").
 *
 * @returns false when the magic is wrong; the header is then unchanged
 */
export function decodeRequest(view: DataView, offset: number, header: RequestHeader): boolean {
  if (view.getUint32(offset) !== REQUEST_MAGIC) return false;
  header.flags = view.getUint16(offset + 4);
  header.type = view.getUint16(offset + 6);
  header.cookieHigh = view.getUint32(offset + 8);
  header.cookieLow = view.getUint32(offset + 12);
  header.offsetHigh = view.getUint32(offset + 16);
  header.offsetLow = view.getUint32(offset + 20);
  header.byteLength = view.getUint32(offset + 24);
  return true;
}

/**
 * Reads the 32 bytes at `offset` into `header` ("Extended headers"). A length above 2^53 is the nearest Number.
 *
 * @returns false when the magic is wrong; the header is then unchanged
 */
export function decodeExtendedRequest(view: DataView, offset: number, header: RequestHeader): boolean {
  if (view.getUint32(offset) !== EXTENDED_REQUEST_MAGIC) return false;
  header.flags = view.getUint16(offset + 4);
  header.type = view.getUint16(offset + 6);
  header.cookieHigh = view.getUint32(offset + 8);
  header.cookieLow = view.getUint32(offset + 12);
  header.offsetHigh = view.getUint32(offset + 16);
  header.offsetLow = view.getUint32(offset + 20);
  header.byteLength = getUint64(view, offset + 24);
  return true;
}

/** Writes `header` as 32 bytes at `offset` ("Extended headers"). */
export function encodeExtendedRequest(view: DataView, offset: number, header: RequestHeader): void {
  encodeRequest(view, offset, header);
  view.setUint32(offset, EXTENDED_REQUEST_MAGIC);
  setUint64(view, offset + 24, header.byteLength);
}

/** Writes `header` as 28 bytes at `offset`. */
export function encodeRequest(view: DataView, offset: number, header: RequestHeader): void {
  view.setUint32(offset, REQUEST_MAGIC);
  view.setUint16(offset + 4, header.flags);
  view.setUint16(offset + 6, header.type);
  view.setUint32(offset + 8, header.cookieHigh);
  view.setUint32(offset + 12, header.cookieLow);
  view.setUint32(offset + 16, header.offsetHigh);
  view.setUint32(offset + 20, header.offsetLow);
  view.setUint32(offset + 24, header.byteLength);
}

/** Writes the 16 bytes of a simple reply ("Simple reply message"); `error` is NBD's number, 0 for success. */
export function encodeSimpleReply(
  view: DataView,
  offset: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): void {
  view.setUint32(offset, SIMPLE_REPLY_MAGIC);
  view.setUint32(offset + 4, error);
  view.setUint32(offset + 8, cookieHigh);
  view.setUint32(offset + 12, cookieLow);
}

/** What stands before the payload of a chunk, in either kind of header. */
export interface ChunkHeader {
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  /** The request's; extended headers alone have it. */
  offsetHigh: number;
  offsetLow: number;
  /** Of the payload. */
  byteLength: number;
}

/** Writes the 20 bytes before a chunk's payload ("Structured reply chunk message"). */
export function encodeChunk(view: DataView, offset: number, header: ChunkHeader): void {
  view.setUint32(offset, CHUNK_MAGIC);
  view.setUint16(offset + 4, header.flags);
  view.setUint16(offset + 6, header.type);
  view.setUint32(offset + 8, header.cookieHigh);
  view.setUint32(offset + 12, header.cookieLow);
  view.setUint32(offset + 16, header.byteLength);
}

/** Writes the 32 bytes before a chunk's payload ("Extended headers"). */
export function encodeExtendedChunk(view: DataView, offset: number, header: ChunkHeader): void {
  encodeChunk(view, offset, header);
  view.setUint32(offset, EXTENDED_REPLY_MAGIC);
  view.setUint32(offset + 16, header.offsetHigh);
  view.setUint32(offset + 20, header.offsetLow);
  setUint64(view, offset + 24, header.byteLength);
}

/** Writes the 16 bytes before an option's data ("Fixed newstyle negotiation"). */
export function encodeOptionHeader(view: DataView, offset: number, option: number, byteLength: number): void {
  view.setUint32(offset, OPTION_MAGIC_HIGH);
  view.setUint32(offset + 4, OPTION_MAGIC_LOW);
  view.setUint32(offset + 8, option);
  view.setUint32(offset + 12, byteLength);
}

/** True when an option header stands at `offset`; its option is the u32 at +8, its length the u32 at +12. */
export function isOptionHeader(view: DataView, offset: number): boolean {
  return view.getUint32(offset) === OPTION_MAGIC_HIGH && view.getUint32(offset + 4) === OPTION_MAGIC_LOW;
}

/** One reply to an option, as a message of its own. */
export function encodeOptionReply(option: number, type: number, data: Uint8Array): Uint8Array {
  const message = new Uint8Array(20 + data.byteLength);
  const view = new DataView(message.buffer);
  view.setUint32(0, OPTION_REPLY_MAGIC_HIGH);
  view.setUint32(4, OPTION_REPLY_MAGIC_LOW);
  view.setUint32(8, option);
  view.setUint32(12, type);
  view.setUint32(16, data.byteLength);
  message.set(data, 20);
  return message;
}

/** True when an option reply stands at `offset`: option at +8, type at +12, length at +16. */
export function isOptionReply(view: DataView, offset: number): boolean {
  return view.getUint32(offset) === OPTION_REPLY_MAGIC_HIGH && view.getUint32(offset + 4) === OPTION_REPLY_MAGIC_LOW;
}
