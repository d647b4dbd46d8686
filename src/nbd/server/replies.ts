// Replies, in whatever form was negotiated ("Simple reply message", "Structured reply chunk message", "Extended
// headers"). One chunk says all of a request that succeeded; of a READ that failed, a second one says where.
import { Errno } from '../../block/errno.ts';
import { SECTOR_SHIFT, SECTOR_SIZE } from '../../block/sector.ts';
import {
  CHUNK_BLOCK_STATUS,
  CHUNK_BLOCK_STATUS_EXT,
  CHUNK_BYTE_LENGTH,
  CHUNK_ERROR,
  CHUNK_ERROR_OFFSET,
  CHUNK_FLAG_DONE,
  CHUNK_NONE,
  CHUNK_OFFSET_DATA,
  CHUNK_OFFSET_HOLE,
  CMD_BLOCK_STATUS,
  CMD_FLAG_DF,
  CMD_FLAG_FAST_ZERO,
  CMD_FLUSH,
  CMD_READ,
  CMD_WRITE_ZEROES,
  EXTENDED_REPLY_BYTE_LENGTH,
  SIMPLE_REPLY_BYTE_LENGTH,
} from '../protocol/constants.ts';
import { wireErrorFromErrno } from '../protocol/errors.ts';
import {
  type ChunkHeader,
  encodeChunk,
  encodeExtendedChunk,
  encodeSimpleReply,
  type RequestHeader,
  setUint64,
} from '../protocol/wire.ts';
import { MIN_HOLE_BYTE_LENGTH } from './bounds.ts';
import type { PooledBuffer } from './buffer-pool.ts';
import type { StatusList } from './extents.ts';
import { EXTENDED_HEADERS, SIMPLE_REPLIES, STRUCTURED_REPLIES } from './negotiation.ts';
import type { Output } from './output.ts';
import type { Request } from './request.ts';

const SECTORS_PER_HIGH = 2 ** (32 - SECTOR_SHIFT);
const OFFSET_BYTE_LENGTH = 8;
const HOLE_BYTE_LENGTH = OFFSET_BYTE_LENGTH + 4;
/** The number and a text's length; there is no text, for it could tell of things that are not the client's business. */
const ERROR_BYTE_LENGTH = 6;

/** The number that a reply carries. */
function wireError(errno: number, command: number, flags: number): number {
  const isFastZero = command === CMD_WRITE_ZEROES && (flags & CMD_FLAG_FAST_ZERO) !== 0;
  return isFastZero && errno === Errno.EOPNOTSUPP ? errno : wireErrorFromErrno(errno);
}

export class Replies {
  /** Bytes that stand before a READ's data. */
  readonly dataHeaderByteLength: number;
  readonly #output: Output;
  readonly #kind: number;
  readonly #chunkByteLength: number;
  readonly #chunk: ChunkHeader = {
    flags: 0,
    type: 0,
    cookieHigh: 0,
    cookieLow: 0,
    offsetHigh: 0,
    offsetLow: 0,
    byteLength: 0,
  };

  constructor(output: Output, kind: number) {
    this.#output = output;
    this.#kind = kind;
    this.#chunkByteLength = kind === EXTENDED_HEADERS ? EXTENDED_REPLY_BYTE_LENGTH : CHUNK_BYTE_LENGTH;
    this.dataHeaderByteLength =
      kind === SIMPLE_REPLIES ? SIMPLE_REPLY_BYTE_LENGTH : this.#chunkByteLength + OFFSET_BYTE_LENGTH;
  }

  /** Refuses a request that no device has seen. */
  refuse(errno: number, header: RequestHeader): void {
    const error = wireError(errno, header.type, header.flags);
    if (this.#kind === SIMPLE_REPLIES) this.#simple(error, header.cookieHigh, header.cookieLow);
    else this.#error(header, error);
  }

  /** Refuses a request that was read, and that no device has seen. */
  refuseRequest(errno: number, request: Request): void {
    request.errno = errno;
    this.#answerError(request);
  }

  /** Answers a request that has ended. A READ's region goes out, or comes back. */
  answer(request: Request): void {
    const { command } = request;
    if (command === CMD_READ) {
      this.#answerRead(request);
    } else if (request.errno !== 0) {
      this.#answerError(request);
    } else if (command === CMD_BLOCK_STATUS) {
      this.#answerStatus(request);
    } else if (this.#kind === EXTENDED_HEADERS) {
      this.#none(request);
    } else {
      this.#simple(0, request.cookieHigh, request.cookieLow);
    }
  }

  #answerRead(request: Request): void {
    const isHole = this.#isHole(request);
    if (request.errno === 0 && !isHole && (request.byteLength > 0 || this.#kind === SIMPLE_REPLIES)) {
      this.#sendData(request, request.byteLength, CHUNK_FLAG_DONE);
      return;
    }
    if (request.goodByteLength > 0) {
      this.#sendData(request, request.goodByteLength, 0);
      this.#answerError(request);
      return;
    }
    // The region is empty. It is given back before the reply, which then takes its place.
    const { buffer, start, end } = request;
    if (buffer!.used === end) buffer!.used = start;
    if (request.errno !== 0) this.#answerError(request);
    else if (isHole) this.#hole(request);
    else this.#none(request);
    this.#output.release(buffer!);
  }

  #isHole({ errno, byteLength, flags, buffer, dataStart }: Request): boolean {
    if (byteLength < MIN_HOLE_BYTE_LENGTH || this.#kind === SIMPLE_REPLIES) return false;
    if (errno !== 0 || (flags & CMD_FLAG_DF) !== 0) return false;
    const { bytes } = buffer!;
    const end = dataStart + byteLength;
    // All bytes are like the one before, and the first is zero.
    return bytes[dataStart] === 0 && bytes.compare(bytes, dataStart, end - 1, dataStart + 1, end) === 0;
  }

  /** The header goes right before the data, over bytes of the region that nobody asked for. */
  #sendData(request: Request, byteLength: number, flags: number): void {
    const { buffer, dataStart, end } = request;
    const start = dataStart - this.dataHeaderByteLength;
    if (this.#kind === SIMPLE_REPLIES) {
      encodeSimpleReply(buffer!.view, start, 0, request.cookieHigh, request.cookieLow);
    } else {
      this.#encode(buffer!.view, start, request, CHUNK_OFFSET_DATA, flags, OFFSET_BYTE_LENGTH + byteLength);
      const offset = start + this.#chunkByteLength;
      buffer!.view.setUint32(offset, request.offsetHigh);
      buffer!.view.setUint32(offset + 4, request.offsetLow);
    }
    this.#output.ready(buffer!, start, dataStart + byteLength, end);
  }

  #answerError(request: Request): void {
    const error = wireError(request.errno, request.command, request.flags);
    if (this.#kind === SIMPLE_REPLIES) this.#simple(error, request.cookieHigh, request.cookieLow);
    else if (request.errorSector < 0 || request.command === CMD_FLUSH) this.#error(request, error);
    else this.#errorAt(request, error);
  }

  #simple(error: number, cookieHigh: number, cookieLow: number): void {
    const buffer = this.#output.reserve(SIMPLE_REPLY_BYTE_LENGTH);
    const start = buffer.used - SIMPLE_REPLY_BYTE_LENGTH;
    encodeSimpleReply(buffer.view, start, error, cookieHigh, cookieLow);
    this.#output.ready(buffer, start, buffer.used, buffer.used);
  }

  #encode(
    view: DataView,
    start: number,
    request: RequestHeader | Request,
    type: number,
    flags: number,
    byteLength: number,
  ): void {
    const chunk = this.#chunk;
    chunk.flags = flags;
    chunk.type = type;
    chunk.cookieHigh = request.cookieHigh;
    chunk.cookieLow = request.cookieLow;
    chunk.offsetHigh = request.offsetHigh;
    chunk.offsetLow = request.offsetLow;
    chunk.byteLength = byteLength;
    if (this.#kind === STRUCTURED_REPLIES) encodeChunk(view, start, chunk);
    else encodeExtendedChunk(view, start, chunk);
  }

  /** The header of a chunk, and room for its payload. @returns the buffer, whose `used` is the payload's end */
  #newChunk(
    request: RequestHeader | Request,
    type: number,
    byteLength: number,
    flags: number = CHUNK_FLAG_DONE,
  ): PooledBuffer {
    const whole = this.#chunkByteLength + byteLength;
    const buffer = this.#output.reserve(whole);
    const start = buffer.used - whole;
    this.#encode(buffer.view, start, request, type, flags, byteLength);
    return buffer;
  }

  #sendChunk(buffer: PooledBuffer, byteLength: number): void {
    const start = buffer.used - this.#chunkByteLength - byteLength;
    this.#output.ready(buffer, start, buffer.used, buffer.used);
  }

  #none(request: Request): void {
    this.#sendChunk(this.#newChunk(request, CHUNK_NONE, 0), 0);
  }

  #hole(request: Request): void {
    const buffer = this.#newChunk(request, CHUNK_OFFSET_HOLE, HOLE_BYTE_LENGTH);
    const start = buffer.used - HOLE_BYTE_LENGTH;
    buffer.view.setUint32(start, request.offsetHigh);
    buffer.view.setUint32(start + 4, request.offsetLow);
    buffer.view.setUint32(start + 8, request.byteLength);
    this.#sendChunk(buffer, HOLE_BYTE_LENGTH);
  }

  /** "Something is wrong", with nothing said about where: none of the data is good. */
  #error(request: RequestHeader | Request, error: number): void {
    const buffer = this.#newChunk(request, CHUNK_ERROR, ERROR_BYTE_LENGTH);
    const start = buffer.used - ERROR_BYTE_LENGTH;
    buffer.view.setUint32(start, error);
    buffer.view.setUint16(start + 4, 0);
    this.#sendChunk(buffer, ERROR_BYTE_LENGTH);
  }

  /** The failing byte: the first of its sector, or of the request where that begins later. */
  #errorAt(request: Request, error: number): void {
    const byteLength = ERROR_BYTE_LENGTH + OFFSET_BYTE_LENGTH;
    const buffer = this.#newChunk(request, CHUNK_ERROR_OFFSET, byteLength);
    const start = buffer.used - byteLength;
    const { view } = buffer;
    view.setUint32(start, error);
    view.setUint16(start + 4, 0);
    const { errorSector, sector, head } = request;
    const isInside = errorSector >= sector && (errorSector - sector) * SECTOR_SIZE < head + request.byteLength;
    const high = Math.floor(errorSector / SECTORS_PER_HIGH);
    const low = (errorSector % SECTORS_PER_HIGH) * SECTOR_SIZE;
    const isBehind = high > request.offsetHigh || (high === request.offsetHigh && low > request.offsetLow);
    view.setUint32(start + 6, isInside && isBehind ? high : request.offsetHigh);
    view.setUint32(start + 10, isInside && isBehind ? low : request.offsetLow);
    this.#sendChunk(buffer, byteLength);
  }

  /** A chunk for each context that was selected. */
  #answerStatus(request: Request): void {
    const { lists } = request.extents!;
    for (const [index, list] of lists.entries()) {
      this.#status(request, list, index === lists.length - 1 ? CHUNK_FLAG_DONE : 0);
    }
  }

  #status(request: Request, { contextId, pairs, count }: StatusList, flags: number): void {
    const isExtended = this.#kind === EXTENDED_HEADERS;
    const byteLength = isExtended ? 8 + 16 * count : 4 + 8 * count;
    const type = isExtended ? CHUNK_BLOCK_STATUS_EXT : CHUNK_BLOCK_STATUS;
    const buffer = this.#newChunk(request, type, byteLength, flags);
    const { view } = buffer;
    let at = buffer.used - byteLength;
    view.setUint32(at, contextId);
    at += 4;
    if (isExtended) {
      view.setUint32(at, count);
      at += 4;
    }
    for (const value of pairs) {
      if (isExtended) setUint64(view, at, value);
      else view.setUint32(at, value);
      at += isExtended ? 8 : 4;
    }
    this.#sendChunk(buffer, byteLength);
  }
}
