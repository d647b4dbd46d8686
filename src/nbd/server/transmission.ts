// The second phase of a connection ("Transmission phase"): requests in, bios down, replies out.
//
// One turn takes every complete request out of what has arrived. A device may end a bio inside submitBio; the reply then
// stands in memory right behind the one before, and the whole turn leaves as one piece. What ends later leaves in the
// next turn, together with whatever else has ended by then.
import { REQ_FUA, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE } from '../../block/bio.ts';
import { submitBio } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SHIFT } from '../../block/sector.ts';
import { RangeRequest } from '../../block/zeroout.ts';
import {
  CMD_DISC,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  REQUEST_BYTE_LENGTH,
  SIMPLE_REPLY_BYTE_LENGTH,
} from '../protocol/constants.ts';
import { wireErrorFromErrno } from '../protocol/errors.ts';
import { decodeRequest, emptyRequestHeader, encodeSimpleReply, type RequestHeader } from '../protocol/wire.ts';
import { MAX_BATCH_BYTE_LENGTH, MAX_PAYLOAD_BYTE_LENGTH, MAX_TURN_BYTE_LENGTH } from './bounds.ts';
import type { MemoryAccount, PooledBuffer } from './buffer-pool.ts';
import { checkRequest, type RequestLimits, requestLimits } from './check.ts';
import type { Connection, Phase } from './connection.ts';
import type { NbdExport } from './exports.ts';
import { Output } from './output.ts';
import { Request } from './request.ts';

/** Offsets come as two 32-bit halves; this many sectors are in one unit of the upper one. */
const SECTORS_PER_HIGH = 2 ** (32 - SECTOR_SHIFT);

export class Transmission implements Phase {
  readonly #connection: Connection;
  readonly #entry: NbdExport;
  readonly #limits: RequestLimits;
  readonly #account: MemoryAccount;
  readonly #output: Output;
  readonly #maxRequestCount: number;
  readonly #free: Request[] = [];
  #requestCount = 0;
  #turnByteLength = 0;
  #waitsForServer = false;
  #closed = false;

  readonly #header: RequestHeader = emptyRequestHeader();
  /** A header that came in parts. */
  readonly #partial = new Uint8Array(REQUEST_BYTE_LENGTH);
  readonly #partialView = new DataView(this.#partial.buffer);
  #partialByteLength = 0;
  /** The WRITE whose data is being gathered in its buffer; null where `#payloadLeft` bytes are to be thrown away. */
  #gathering: Request | null = null;
  #payloadLeft = 0;
  /** The view on the chunk being consumed. */
  #chunk: Uint8Array | null = null;
  #view: DataView = this.#partialView;

  constructor(connection: Connection, entry: NbdExport) {
    this.#connection = connection;
    this.#entry = entry;
    this.#limits = requestLimits(entry);
    this.#account = connection.host.newAccount();
    this.#maxRequestCount = connection.host.maxConnectionRequestCount;
    this.#output = new Output(
      this.#account,
      (chunks, onSent) => connection.transport.send(chunks, onSent),
      connection.schedule,
    );
  }

  get requestCount(): number {
    return this.#requestCount;
  }

  consume(chunk: Uint8Array, start: number): number {
    if (this.#chunk !== chunk) {
      this.#chunk = chunk;
      this.#view = new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    }
    let offset = start;
    while (offset < chunk.byteLength) {
      if (this.#payloadLeft > 0) {
        offset += this.#takePayload(chunk, offset);
        continue;
      }
      if (this.#mustWait()) break;
      const next = this.#takeRequest(chunk, offset);
      if (next < 0) return chunk.byteLength;
      offset = next;
      if (this.#output.readyByteLength >= MAX_BATCH_BYTE_LENGTH) this.#output.flush();
    }
    if (offset === chunk.byteLength) this.#chunk = null;
    return offset;
  }

  afterTurn(): void {
    this.#turnByteLength = 0;
    this.#output.flush();
  }

  onDrain(): void {}

  /** Whether the next request has to wait. Whatever it waits for calls schedule() when it comes. */
  #mustWait(): boolean {
    if (this.#requestCount >= this.#maxRequestCount || !this.#account.hasRoom) return true;
    if (!this.#account.serverHasRoom) {
      this.#waitForServer();
      return true;
    }
    if (this.#turnByteLength < MAX_TURN_BYTE_LENGTH) return false;
    this.#connection.schedule();
    return true;
  }

  #waitForServer(): void {
    if (this.#waitsForServer) return;
    this.#waitsForServer = true;
    this.#account.waitForServer(() => {
      this.#waitsForServer = false;
      this.#connection.schedule();
    });
  }

  /** @returns the offset behind the request and as much of its data as there is; -1 when nothing more is to be read */
  #takeRequest(chunk: Uint8Array, offset: number): number {
    if (this.#partialByteLength === 0 && chunk.byteLength - offset >= REQUEST_BYTE_LENGTH) {
      const known = decodeRequest(this.#view, offset, this.#header);
      return this.#onHeader(known, chunk, offset + REQUEST_BYTE_LENGTH);
    }
    const count = Math.min(REQUEST_BYTE_LENGTH - this.#partialByteLength, chunk.byteLength - offset);
    this.#partial.set(chunk.subarray(offset, offset + count), this.#partialByteLength);
    this.#partialByteLength += count;
    if (this.#partialByteLength < REQUEST_BYTE_LENGTH) return offset + count;
    this.#partialByteLength = 0;
    const known = decodeRequest(this.#partialView, 0, this.#header);
    return this.#onHeader(known, chunk, offset + count);
  }

  #onHeader(isKnown: boolean, chunk: Uint8Array, offset: number): number {
    const header = this.#header;
    if (!isKnown) {
      this.#connection.violation('a request without its magic');
      return -1;
    }
    if (header.type === CMD_DISC) {
      this.#connection.finish();
      return -1;
    }
    const errno = this.#connection.host.isShuttingDown ? Errno.ESHUTDOWN : checkRequest(header, this.#limits);
    if (header.type === CMD_WRITE) return this.#onWrite(errno, chunk, offset);
    if (errno === 0) this.#start(this.#newRequest());
    else this.#output.reply(errno, header.cookieHigh, header.cookieLow);
    return offset;
  }

  #onWrite(errno: number, chunk: Uint8Array, offset: number): number {
    const { byteLength, cookieHigh, cookieLow } = this.#header;
    if (errno !== 0) {
      this.#output.reply(errno, cookieHigh, cookieLow);
      if (byteLength > MAX_PAYLOAD_BYTE_LENGTH) {
        // Reading gigabytes only to throw them away is what an attacker would like.
        this.#connection.finish();
        return -1;
      }
      this.#payloadLeft = byteLength;
      return offset;
    }
    const request = this.#newRequest();
    if (chunk.byteLength - offset >= byteLength) {
      request.chargedByteLength = byteLength;
      this.#account.charge(byteLength);
      request.setMemory(chunk, offset, byteLength);
      this.#start(request);
      return offset + byteLength;
    }
    request.buffer = this.#account.take(byteLength);
    request.setMemory(request.buffer.bytes, 0, byteLength);
    this.#gathering = request;
    this.#payloadLeft = byteLength;
    return offset;
  }

  #takePayload(chunk: Uint8Array, offset: number): number {
    const count = Math.min(this.#payloadLeft, chunk.byteLength - offset);
    const request = this.#gathering;
    if (request !== null) {
      const at = request.byteLength - this.#payloadLeft;
      request.buffer!.bytes.set(chunk.subarray(offset, offset + count), at);
    }
    this.#payloadLeft -= count;
    if (this.#payloadLeft === 0 && request !== null) {
      this.#gathering = null;
      this.#start(request);
    }
    return count;
  }

  /** A request with the header that was just read. */
  #newRequest(): Request {
    const request = this.#free.pop() ?? new Request(this.#onBioEnd);
    const { type, flags, cookieHigh, cookieLow, offsetHigh, offsetLow, byteLength } = this.#header;
    request.command = type;
    request.flags = flags;
    request.cookieHigh = cookieHigh;
    request.cookieLow = cookieLow;
    request.byteLength = byteLength;
    request.bio.reset(
      type === CMD_READ ? REQ_OP_READ : type === CMD_WRITE ? REQ_OP_WRITE : REQ_OP_FLUSH,
      (flags & CMD_FLAG_FUA) !== 0 && type === CMD_WRITE ? REQ_FUA : 0,
      this.#entry.device,
      offsetHigh * SECTORS_PER_HIGH + (offsetLow >>> SECTOR_SHIFT),
      byteLength / (1 << SECTOR_SHIFT),
    );
    return request;
  }

  #start(request: Request): void {
    this.#requestCount++;
    this.#turnByteLength += request.byteLength;
    if (request.command === CMD_READ) {
      const reserved = SIMPLE_REPLY_BYTE_LENGTH + request.byteLength;
      const buffer = this.#output.reserve(reserved);
      request.buffer = buffer;
      request.start = buffer.used - reserved;
      request.setMemory(buffer.bytes, request.start + SIMPLE_REPLY_BYTE_LENGTH, request.byteLength);
    }
    request.isSubmitted = true;
    try {
      this.#submit(request);
    } catch (error) {
      if (request.isSubmitted) this.#lose(request);
      throw error;
    }
  }

  #submit(request: Request): void {
    if (request.command !== CMD_TRIM && request.command !== CMD_WRITE_ZEROES) {
      submitBio(request.bio);
      return;
    }
    const { bio, flags } = request;
    const { sector, sectorCount } = bio;
    const { device } = this.#entry;
    const fua = (flags & CMD_FLAG_FUA) !== 0;
    // A device that answers at once does the work of megabytes here; it counts as one page in this turn.
    this.#turnByteLength -= request.byteLength;
    request.range ??= new RangeRequest(this.#connection.host.reactor);
    if (request.command === CMD_TRIM) {
      request.range.discard(device, sector, sectorCount, fua, (errno) => this.#onRangeEnd(request, errno));
    } else {
      const options = { fua, noUnmap: (flags & CMD_FLAG_NO_HOLE) !== 0 };
      request.range.zeroOut(device, sector, sectorCount, options, (errno) => this.#onRangeEnd(request, errno));
    }
  }

  #onRangeEnd(request: Request, errno: number): void {
    // Trimming is a wish: a device that has lost the ability since the handshake has fulfilled it as it is.
    const granted = request.command === CMD_TRIM && errno === Errno.EOPNOTSUPP;
    this.#onEnd(request, granted ? 0 : errno);
  }

  readonly #onBioEnd = (request: Request): void => {
    this.#onEnd(request, request.bio.status);
  };

  /** Comes from inside a device: nothing may be thrown into it. */
  #onEnd(request: Request, errno: number): void {
    if (request.isLost) return;
    try {
      request.isSubmitted = false;
      this.#requestCount--;
      if (this.#closed) this.#drop(request);
      else this.#answer(request, errno);
      this.#recycle(request);
      if (this.#closed) this.#connection.checkGone();
      else if (!this.#connection.isProcessing) this.#connection.schedule();
    } catch (error) {
      this.#connection.crash(error);
    }
  }

  #answer(request: Request, errno: number): void {
    const { buffer, cookieHigh, cookieLow } = request;
    const error = wireErrorFromErrno(errno);
    if (request.command !== CMD_READ) {
      this.#output.reply(error, cookieHigh, cookieLow);
      this.#returnPayload(request);
      return;
    }
    const { start } = request;
    const reservedEnd = start + SIMPLE_REPLY_BYTE_LENGTH + request.byteLength;
    encodeSimpleReply(buffer!.view, start, error, cookieHigh, cookieLow);
    // A failed READ has no data ("Simple reply message").
    const end = error === 0 ? reservedEnd : start + SIMPLE_REPLY_BYTE_LENGTH;
    this.#output.ready(buffer!, start, end, reservedEnd);
  }

  #drop(request: Request): void {
    if (request.command === CMD_READ) this.#output.release(request.buffer!);
    else this.#returnPayload(request);
  }

  #returnPayload(request: Request): void {
    if (request.buffer !== null) this.#account.give(request.buffer);
    this.#account.charge(-request.chargedByteLength);
  }

  #recycle(request: Request): void {
    request.buffer = null;
    request.chargedByteLength = 0;
    request.forgetMemory();
    this.#free.push(request);
  }

  /** Gives up a request whose device threw. Its memory may still be written to, so that is never used again. */
  #lose(request: Request): void {
    request.isLost = true;
    this.#requestCount--;
    if (request.buffer !== null) this.#abandon(request.command, request.buffer);
    this.#account.charge(-request.chargedByteLength);
  }

  #abandon(command: number, buffer: PooledBuffer): void {
    if (command === CMD_READ) this.#output.abandon(buffer);
    else this.#account.abandon(buffer);
  }

  close(): void {
    this.#closed = true;
    this.#chunk = null;
    this.#output.discard();
    const request = this.#gathering;
    this.#gathering = null;
    if (request !== null) this.#returnPayload(request);
  }
}
