// Replies as they arrive, simple ones and chunks, in any portions. Everything here was written by a server that may be
// hostile or broken: each length is compared with what was asked for before anything is made of it, and nothing is taken
// for success that does not say all it has to say.
import { Errno } from '../../block/errno.ts';
import {
  CHUNK_BLOCK_STATUS,
  CHUNK_BYTE_LENGTH,
  CHUNK_ERROR,
  CHUNK_ERROR_BIT,
  CHUNK_ERROR_OFFSET,
  CHUNK_FLAG_DONE,
  CHUNK_MAGIC,
  CHUNK_NONE,
  CHUNK_OFFSET_DATA,
  CHUNK_OFFSET_HOLE,
  CMD_BLOCK_STATUS,
  CMD_READ,
  SIMPLE_REPLY_BYTE_LENGTH,
  SIMPLE_REPLY_MAGIC,
} from '../protocol/constants.ts';
import { errnoFromWireError } from '../protocol/errors.ts';
import { MalformedError } from '../protocol/info.ts';
import { getUint64 } from '../protocol/wire.ts';
import { MAX_CHUNK_PAYLOAD_BYTE_LENGTH } from './bounds.ts';
import type { PendingRequest } from './pending.ts';

const OFFSET_BYTE_LENGTH = 8;

export interface ReplyEvents {
  /** The request with this cookie; undefined when there is none. */
  find(cookieHigh: number, cookieLow: number): PendingRequest | undefined;
  /** Everything of it has arrived. It may be found no more. */
  end(request: PendingRequest): void;
}

/** What the next bytes are. */
const HEADER = 0;
const PAYLOAD = 1;
const DATA = 2;

export class ReplyReader {
  readonly #events: ReplyEvents;
  /** Structured replies were negotiated. */
  readonly #hasChunks: boolean;
  /** The number of base:allocation; -1 where it was not selected. */
  readonly #contextId: number;
  #state: number = HEADER;
  readonly #header = new Uint8Array(CHUNK_BYTE_LENGTH);
  readonly #headerView = new DataView(this.#header.buffer);
  /** Bytes of the header or the payload that are there. */
  #have = 0;
  /** The payload of a chunk, or what of it comes before the data. */
  #payload = new Uint8Array(0);
  #request: PendingRequest | null = null;
  #type = 0;
  #isDone = false;
  #chunkByteLength = 0;
  /** Where in the request's memory the data goes, and how much of it is still to come. */
  #dataAt = 0;
  #dataLeft = 0;

  constructor(events: ReplyEvents, hasChunks: boolean, contextId: number) {
    this.#events = events;
    this.#hasChunks = hasChunks;
    this.#contextId = contextId;
  }

  /**
   * Takes bytes from `offset` on, at least one.
   *
   * @returns how many
   * @throws MalformedError
   */
  take(chunk: Uint8Array, offset: number): number {
    if (this.#state === DATA) return this.#takeData(chunk, offset);
    const target = this.#state === HEADER ? this.#header : this.#payload;
    const need = this.#state === HEADER ? this.#headerByteLength() : target.byteLength;
    const count = Math.min(need - this.#have, chunk.byteLength - offset);
    target.set(chunk.subarray(offset, offset + count), this.#have);
    this.#have += count;
    if (this.#have < need) return count;
    if (this.#state === PAYLOAD) this.#onPayload();
    else if (this.#have === this.#headerByteLength()) this.#onHeader();
    return count;
  }

  /** The magic tells how much more there is. */
  #headerByteLength(): number {
    if (this.#have < 4) return 4;
    const magic = this.#headerView.getUint32(0);
    if (magic === SIMPLE_REPLY_MAGIC) return SIMPLE_REPLY_BYTE_LENGTH;
    if (magic === CHUNK_MAGIC && this.#hasChunks) return CHUNK_BYTE_LENGTH;
    throw new MalformedError('a reply without its magic');
  }

  #onHeader(): void {
    const view = this.#headerView;
    this.#have = 0;
    const request = this.#events.find(view.getUint32(8), view.getUint32(12));
    if (request === undefined) throw new MalformedError('a reply to a request that was not sent');
    this.#request = request;
    if (view.getUint32(0) === SIMPLE_REPLY_MAGIC) this.#onSimpleReply(request, view.getUint32(4));
    else this.#onChunk(request);
  }

  #onSimpleReply(request: PendingRequest, error: number): void {
    if (this.#hasChunks && (request.command === CMD_READ || request.command === CMD_BLOCK_STATUS)) {
      throw new MalformedError('a simple reply to a request that wants chunks');
    }
    this.#isDone = true;
    if (error !== 0) request.fail(errnoFromWireError(error), -1);
    if (error === 0 && request.command === CMD_READ) this.#expectData(request, request.offset, request.byteLength);
    else this.#endChunk();
  }

  #onChunk(request: PendingRequest): void {
    const view = this.#headerView;
    this.#isDone = (view.getUint16(4) & CHUNK_FLAG_DONE) !== 0;
    this.#type = view.getUint16(6);
    this.#chunkByteLength = view.getUint32(16);
    const isData = this.#type === CHUNK_OFFSET_DATA;
    const most = isData ? OFFSET_BYTE_LENGTH + request.byteLength : MAX_CHUNK_PAYLOAD_BYTE_LENGTH;
    if (this.#chunkByteLength > most) throw new MalformedError(`a chunk of ${this.#chunkByteLength} bytes`);
    if ((isData || this.#type === CHUNK_OFFSET_HOLE) && request.command !== CMD_READ) {
      throw new MalformedError('data for a request that is no READ');
    }
    const byteLength = isData ? Math.min(this.#chunkByteLength, OFFSET_BYTE_LENGTH) : this.#chunkByteLength;
    this.#payload = new Uint8Array(byteLength);
    this.#state = PAYLOAD;
    if (byteLength === 0) this.#onPayload();
  }

  #onPayload(): void {
    const request = this.#request!;
    this.#have = 0;
    const payload = this.#payload;
    const view = new DataView(payload.buffer);
    const byteLength = this.#chunkByteLength;
    switch (this.#type) {
      case CHUNK_NONE:
        if (byteLength !== 0 || !this.#isDone) throw new MalformedError('an empty chunk that is not the last');
        break;
      case CHUNK_OFFSET_DATA:
        if (byteLength <= OFFSET_BYTE_LENGTH) throw new MalformedError('a data chunk without data');
        this.#expectData(request, getUint64(view, 0), byteLength - OFFSET_BYTE_LENGTH);
        return;
      case CHUNK_OFFSET_HOLE:
        if (byteLength !== 12) throw new MalformedError('a hole has 12 bytes');
        this.#onHole(request, getUint64(view, 0), view.getUint32(8));
        break;
      case CHUNK_BLOCK_STATUS:
        this.#onBlockStatus(request, view);
        break;
      default:
        this.#onErrorChunk(request, view);
    }
    this.#endChunk();
  }

  #expectData(request: PendingRequest, offset: number, byteLength: number): void {
    if (byteLength > 0) request.addPiece(offset, byteLength);
    this.#dataAt = offset - request.offset;
    this.#dataLeft = byteLength;
    this.#state = DATA;
    if (byteLength === 0) this.#endChunk();
  }

  #onHole(request: PendingRequest, offset: number, byteLength: number): void {
    request.addPiece(offset, byteLength);
    const start = offset - request.offset;
    if (this.#hasMemory(request)) request.data.fill(0, start, start + byteLength);
  }

  /** False for a READ whose memory was transferred away meanwhile: it fails, and its data is dropped. */
  #hasMemory(request: PendingRequest): boolean {
    if (request.data.byteLength === request.byteLength) return true;
    request.fail(Errno.EFAULT, -1);
    return false;
  }

  #takeData(chunk: Uint8Array, offset: number): number {
    const count = Math.min(this.#dataLeft, chunk.byteLength - offset);
    const request = this.#request!;
    if (this.#hasMemory(request)) request.data.set(chunk.subarray(offset, offset + count), this.#dataAt);
    this.#dataAt += count;
    this.#dataLeft -= count;
    if (this.#dataLeft === 0) this.#endChunk();
    return count;
  }

  #onBlockStatus(request: PendingRequest, view: DataView): void {
    const { byteLength } = view;
    if (request.command !== CMD_BLOCK_STATUS || request.extents.length > 0) {
      throw new MalformedError('a block status that was not asked for');
    }
    if (byteLength < 12 || (byteLength - 4) % 8 !== 0)
      throw new MalformedError(`a block status of ${byteLength} bytes`);
    if (view.getUint32(0) !== this.#contextId) throw new MalformedError('the block status of an unknown context');
    let covered = 0;
    for (let at = 4; at < byteLength; at += 8) {
      const length = view.getUint32(at);
      if (length === 0 || covered >= request.byteLength) throw new MalformedError('an extent that is none');
      // The last one may tell more than was asked.
      request.extents.push(Math.min(length, request.byteLength - covered), view.getUint32(at + 4));
      covered += length;
    }
  }

  #onErrorChunk(request: PendingRequest, view: DataView): void {
    if ((this.#type & CHUNK_ERROR_BIT) === 0) throw new MalformedError(`a chunk of the unknown type ${this.#type}`);
    const { byteLength } = view;
    if (byteLength < 6) throw new MalformedError('an error chunk that is too short');
    const textByteLength = view.getUint16(4);
    const expected = 6 + textByteLength + (this.#type === CHUNK_ERROR_OFFSET ? OFFSET_BYTE_LENGTH : 0);
    const isKnown = this.#type === CHUNK_ERROR || this.#type === CHUNK_ERROR_OFFSET;
    if (isKnown && byteLength !== expected) throw new MalformedError('an error chunk whose length is wrong');
    const offset = this.#type === CHUNK_ERROR_OFFSET ? getUint64(view, 6 + textByteLength) : -1;
    if (offset !== -1 && !(offset >= request.offset && offset - request.offset < request.byteLength)) {
      throw new MalformedError('an error outside of the request');
    }
    // An error that says it is none is an error all the same.
    request.fail(errnoFromWireError(view.getUint32(0)) || Errno.EIO, offset);
  }

  #endChunk(): void {
    const request = this.#request!;
    this.#state = HEADER;
    this.#request = null;
    if (!this.#isDone) return;
    if (request.errno === 0 && request.command === CMD_READ && !request.isWhole) {
      throw new MalformedError('a READ that succeeded without all of its data');
    }
    if (request.errno === 0 && request.command === CMD_BLOCK_STATUS && request.extents.length === 0) {
      throw new MalformedError('a block status without extents');
    }
    this.#events.end(request);
  }
}
