// An NBD client on any transport, with callbacks: many requests at one time, each ended once with an errno. When the
// server dies, everything that waits for it ends at once.

import { EXTENT_DATA } from '../../block/block-device.ts';
import { Errno, errnoName } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import type { Reactor, Timer, Transport, TransportHandler, TransportSecurity } from '../../block/reactor.ts';
import { canHold, ownMemory } from '../../engine/address.ts';
import {
  CMD_BLOCK_STATUS,
  CMD_CACHE,
  CMD_DISC,
  CMD_FLAG_FAST_ZERO,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_FLAG_REQ_ONE,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  DEFAULT_MAX_PAYLOAD_BYTE_LENGTH,
  REQUEST_BYTE_LENGTH,
  TRANSMISSION_READ_ONLY,
  TRANSMISSION_SEND_CACHE,
  TRANSMISSION_SEND_FAST_ZERO,
  TRANSMISSION_SEND_FLUSH,
  TRANSMISSION_SEND_FUA,
  TRANSMISSION_SEND_TRIM,
  TRANSMISSION_SEND_WRITE_ZEROES,
} from '../protocol/constants.ts';
import { type ExportDescription, MalformedError } from '../protocol/info.ts';
import { emptyRequestHeader, encodeRequest, type RequestHeader } from '../protocol/wire.ts';
import {
  HANDSHAKE_TIMEOUT_MILLISECONDS,
  MAX_PAYLOAD_BYTE_LENGTH,
  MAX_REQUEST_COUNT,
  MAX_UNSENT_BYTE_LENGTH,
} from './bounds.ts';
import { ClientHandshake, type HandshakeGoal, type NbdExportDetails } from './handshake.ts';
import { PendingRequest, type RequestCallback } from './pending.ts';
import { ReplyReader } from './replies.ts';

const NO_DATA = new Uint8Array(0);
const TWO_TO_THE_32 = 0x1_0000_0000;

/** Extents of a range: lengths in bytes and flags (EXTENT_HOLE, EXTENT_ZERO), one after the other; none after an error. */
export type ExtentsCallback = (errno: number, pairs: readonly number[]) => void;

type Opened = (error: Error | null, details: NbdExportDetails | null) => void;
type Listed = (error: Error | null, exports: ExportDescription[] | null) => void;

export class NbdClient implements TransportHandler {
  readonly #reactor: Reactor;
  readonly #transport: Transport;
  readonly #security: TransportSecurity | null;
  #handshake: ClientHandshake | null = null;
  #timer: Timer | null = null;
  #onHandshakeEnd: ((error: Error | null) => void) | null = null;
  #details: NbdExportDetails | null = null;
  #closed = false;
  #closing = false;
  #onClosed: ((error: Error | null) => void)[] = [];
  #error: Error | null = null;

  /** By cookie; the ones that are free are in `#freeCookies`. */
  readonly #slots: (PendingRequest | null)[] = [];
  readonly #freeCookies: number[] = [];
  #requestCount = 0;
  /** Requests that wait for room, in order. */
  #waiting: PendingRequest[] = [];
  #chunks: Uint8Array[] = [];
  #unsentByteLength = 0;
  #wakes = false;
  readonly #requestHeader: RequestHeader = emptyRequestHeader();

  /** There once the handshake is over. */
  #replies: ReplyReader | null = null;

  constructor(reactor: Reactor, transport: Transport, security: TransportSecurity | null = null) {
    this.#reactor = reactor;
    this.#security = security;
    this.#transport = transport;
  }

  /** What the server said about the export; null before it did. */
  get details(): NbdExportDetails | null {
    return this.#details;
  }

  /** Requests that the server has or that wait to be sent. */
  get requestCount(): number {
    return this.#requestCount + this.#waiting.length;
  }

  /** The longest READ or WRITE that the server takes, in bytes. */
  get maxPayloadByteLength(): number {
    return this.#details?.blockSizes?.maximumPayload ?? DEFAULT_MAX_PAYLOAD_BYTE_LENGTH;
  }

  /** The longest that is given to it: a server without bound still has a memory, and so have we. A multiple of its blocks. */
  get bestPayloadByteLength(): number {
    const most = Math.min(this.maxPayloadByteLength, MAX_PAYLOAD_BYTE_LENGTH);
    return most - (most % (this.#details?.blockSizes?.minimum ?? 1));
  }

  /** The connection is there and will take requests. */
  get isOpen(): boolean {
    return this.#details !== null && !this.#closed && !this.#closing;
  }

  /** Negotiates `exportName`. `done` is called once; on an error the connection is closed. */
  open(exportName: string, done: Opened): void {
    this.#begin({ kind: 'go', exportName }, (error) => done(error, this.#details));
  }

  /** Asks for the exports and closes. `done` is called once. */
  list(done: Listed): void {
    let list: ExportDescription[] | null = null;
    this.#begin(
      { kind: 'list' },
      (error) => done(error, list),
      (exports) => {
        list = exports;
      },
    );
  }

  #begin(
    goal: HandshakeGoal,
    onEnd: (error: Error | null) => void,
    onList: (exports: ExportDescription[]) => void = () => {},
  ): void {
    this.#onHandshakeEnd = onEnd;
    this.#timer = this.#reactor.after(HANDSHAKE_TIMEOUT_MILLISECONDS, () => {
      this.#fail(new DmError(Errno.ETIMEDOUT, `${this.#transport.peer}: the handshake took too long`));
    });
    this.#handshake = new ClientHandshake(goal, this.#security !== null, {
      send: (message) => this.#transport.send([message], () => {}),
      onStartTls: () => this.#startTls(),
      onExport: (details, contextId) => {
        this.#details = details;
        const find = (high: number, low: number) => (high === 0 ? (this.#slots[low] ?? undefined) : undefined);
        const end = (request: PendingRequest): void => this.#end(request);
        this.#replies = new ReplyReader({ find, end }, details.hasStructuredReplies, contextId);
        this.#endHandshake(null);
      },
      onList: (exports) => {
        onList(exports);
        this.#closing = true;
        this.#endHandshake(null);
        this.#transport.end();
      },
    });
    this.#transport.setHandler(this);
  }

  #startTls(): void {
    const transport = this.#transport;
    const security = this.#security;
    if (security === null || transport.startTls === undefined) {
      throw new DmError(Errno.EOPNOTSUPP, `${transport.peer} is no transport for TLS`);
    }
    transport.startTls(security, NO_DATA, (error) => {
      if (error === null) this.#handshake?.onSecure();
      else
        this.#fail(new DmError(Errno.EACCES, `${transport.peer}: TLS: ${error.message}`, undefined, { cause: error }));
    });
  }

  #endHandshake(error: Error | null): void {
    this.#timer?.cancel();
    this.#timer = null;
    const onEnd = this.#onHandshakeEnd;
    this.#onHandshakeEnd = null;
    onEnd?.(error);
  }

  /** Reads as many bytes as `destination` has, from byte `offset` on. Not to be touched until `done`. */
  read(offset: number, destination: Uint8Array, done: RequestCallback): void {
    this.#request(CMD_READ, 0, offset, destination.byteLength, destination, done);
  }

  /** Writes `data` at byte `offset`; with `fua` it is durable when `done` is called. Not to be changed until then. */
  write(offset: number, data: Uint8Array, fua: boolean, done: RequestCallback): void {
    this.#request(CMD_WRITE, fua ? CMD_FLAG_FUA : 0, offset, data.byteLength, data, done);
  }

  /** Makes durable what was answered before. A server without FLUSH has nothing to make durable. */
  flush(done: RequestCallback): void {
    if (this.#details !== null && !this.#has(TRANSMISSION_SEND_FLUSH)) this.#reactor.wake(() => done(0, -1));
    else this.#request(CMD_FLUSH, 0, 0, 0, NO_DATA, done);
  }

  /** Discards a range: what it holds afterwards is not defined. EOPNOTSUPP where the server has no TRIM. */
  trim(offset: number, byteLength: number, fua: boolean, done: RequestCallback): void {
    this.#optional(TRANSMISSION_SEND_TRIM, CMD_TRIM, fua ? CMD_FLAG_FUA : 0, offset, byteLength, done);
  }

  /**
   * Zeroes a range; with `noHole` it stays provisioned, with `fast` it fails with EOPNOTSUPP rather than take as long as a
   * write. EOPNOTSUPP where the server has no WRITE_ZEROES, or does not know `fast`.
   */
  writeZeroes(
    offset: number,
    byteLength: number,
    options: { noHole: boolean; fua: boolean; fast: boolean },
    done: RequestCallback,
  ): void {
    const { noHole, fua, fast } = options;
    const flags = (fua ? CMD_FLAG_FUA : 0) | (noHole ? CMD_FLAG_NO_HOLE : 0) | (fast ? CMD_FLAG_FAST_ZERO : 0);
    const needed = fast ? TRANSMISSION_SEND_FAST_ZERO : TRANSMISSION_SEND_WRITE_ZEROES;
    this.#optional(needed, CMD_WRITE_ZEROES, flags, offset, byteLength, done);
  }

  /** Says that a range will soon be read. A server that does not know it ignores it. */
  cache(offset: number, byteLength: number, done: RequestCallback): void {
    if (this.#details !== null && !this.#has(TRANSMISSION_SEND_CACHE)) this.#reactor.wake(() => done(0, -1));
    else this.#request(CMD_CACHE, 0, offset, byteLength, NO_DATA, done);
  }

  /**
   * Asks what is allocated of a range: at least one extent, maybe not all of the range; with `onlyOne` just the first. A
   * server that does not tell has data everywhere.
   */
  blockStatus(offset: number, byteLength: number, onlyOne: boolean, done: ExtentsCallback): void {
    if (this.#details !== null && !this.#details.hasBlockStatus) {
      this.#reactor.wake(() => done(0, [byteLength, EXTENT_DATA]));
      return;
    }
    const flags = onlyOne ? CMD_FLAG_REQ_ONE : 0;
    const request = this.#request(CMD_BLOCK_STATUS, flags, offset, byteLength, NO_DATA, (errno) => {
      done(errno, errno === 0 ? request!.extents : []);
    });
  }

  #has(transmissionFlag: number): boolean {
    return ((this.#details?.transmissionFlags ?? 0) & transmissionFlag) !== 0;
  }

  #optional(
    needed: number,
    command: number,
    flags: number,
    offset: number,
    byteLength: number,
    done: RequestCallback,
  ): void {
    if (this.#details !== null && !this.#has(needed) && !this.#has(TRANSMISSION_READ_ONLY)) {
      this.#reactor.wake(() => done(Errno.EOPNOTSUPP, -1));
    } else {
      this.#request(command, flags, offset, byteLength, NO_DATA, done);
    }
  }

  #request(
    command: number,
    flags: number,
    offset: number,
    byteLength: number,
    data: Uint8Array,
    done: RequestCallback,
  ): PendingRequest | null {
    const errno = this.#refusal(command, flags, offset, byteLength);
    if (errno !== 0) {
      this.#reactor.wake(() => done(errno, -1));
      return null;
    }
    const request = new PendingRequest();
    request.command = command;
    request.flags = flags;
    request.offset = offset;
    request.byteLength = byteLength;
    // What waits for the socket must not be transferred away: it would send memory that is another's by then.
    request.data = command === CMD_WRITE && byteLength > 0 && !canHold(data) ? ownMemory(data.slice()) : data;
    request.done = done;
    this.#waiting.push(request);
    this.#wake();
    return request;
  }

  /** What need not be asked of the server. */
  #refusal(command: number, flags: number, offset: number, byteLength: number): number {
    if (this.#closed || this.#closing || this.#details === null) return Errno.ESHUTDOWN;
    const changes = command === CMD_WRITE || command === CMD_TRIM || command === CMD_WRITE_ZEROES;
    if (changes && this.#has(TRANSMISSION_READ_ONLY)) return Errno.EPERM;
    if (!(offset >= 0 && byteLength >= 0 && byteLength < TWO_TO_THE_32)) return Errno.EINVAL;
    if (offset + byteLength > this.#details.byteLength) return changes ? Errno.ENOSPC : Errno.EINVAL;
    if ((command === CMD_READ || command === CMD_WRITE) && byteLength > this.maxPayloadByteLength) return Errno.EINVAL;
    return (flags & CMD_FLAG_FUA) !== 0 && !this.#has(TRANSMISSION_SEND_FUA) ? Errno.EOPNOTSUPP : 0;
  }

  #wake(): void {
    if (this.#wakes) return;
    this.#wakes = true;
    this.#reactor.wake(() => {
      this.#wakes = false;
      this.#sendWaiting();
    });
  }

  /** Sends what waits, as far as the bounds go, in one batch. */
  #sendWaiting(): void {
    if (this.#closed) return;
    const waiting = this.#waiting;
    let count = 0;
    while (count < waiting.length && this.#requestCount < MAX_REQUEST_COUNT) {
      if (this.#unsentByteLength > MAX_UNSENT_BYTE_LENGTH) break;
      this.#put(waiting[count]!);
      count++;
    }
    if (count === 0) return;
    this.#waiting = waiting.slice(count);
    const chunks = this.#chunks;
    this.#chunks = [];
    let byteLength = 0;
    for (const chunk of chunks) byteLength += chunk.byteLength;
    this.#transport.send(chunks, () => {
      this.#unsentByteLength -= byteLength;
      if (this.#waiting.length > 0) this.#wake();
    });
  }

  #put(request: PendingRequest): void {
    const cookie = this.#freeCookies.pop() ?? this.#slots.push(null) - 1;
    request.cookie = cookie;
    this.#slots[cookie] = request;
    this.#requestCount++;
    const message = new Uint8Array(REQUEST_BYTE_LENGTH);
    const header = this.#requestHeader;
    header.type = request.command;
    header.flags = request.flags;
    header.cookieLow = cookie;
    header.offsetHigh = Math.floor(request.offset / TWO_TO_THE_32);
    header.offsetLow = request.offset % TWO_TO_THE_32;
    header.byteLength = request.byteLength;
    encodeRequest(new DataView(message.buffer), 0, header);
    this.#chunks.push(message);
    this.#unsentByteLength += REQUEST_BYTE_LENGTH;
    if (request.command !== CMD_WRITE || request.byteLength === 0) return;
    this.#chunks.push(request.data);
    this.#unsentByteLength += request.byteLength;
  }

  /** Says goodbye when the server has answered everything, and closes. `done` is called once, when it is closed. */
  disconnect(done: (error: Error | null) => void): void {
    if (this.#closed) {
      this.#reactor.wake(() => done(null));
      return;
    }
    this.#onClosed.push(done);
    this.#closing = true;
    this.#checkGoodbye();
  }

  /** Closes now; everything in flight ends with ESHUTDOWN. */
  destroy(): void {
    this.#fail(new DmError(Errno.ESHUTDOWN, `${this.#transport.peer}: the connection was closed`));
  }

  #checkGoodbye(): void {
    if (!this.#closing || this.requestCount > 0 || this.#closed || this.#onClosed.length === 0) return;
    const message = new Uint8Array(REQUEST_BYTE_LENGTH);
    const header = emptyRequestHeader();
    header.type = CMD_DISC;
    encodeRequest(new DataView(message.buffer), 0, header);
    if (this.#details !== null) this.#transport.send([message], () => {});
    this.#transport.end();
  }

  onData(chunk: Uint8Array): void {
    let offset = 0;
    if (this.#closed) return;
    try {
      if (this.#handshake !== null) {
        offset = this.#handshake.consume(chunk, 0);
        if (!this.#handshake.isOver) return;
        this.#handshake = null;
      }
      while (offset < chunk.byteLength && !this.#closed) offset += this.#replies!.take(chunk, offset);
    } catch (error) {
      if (error instanceof DmError) this.#fail(error);
      else if (error instanceof MalformedError) this.#fail(this.#broken(error));
      else throw error;
    }
  }

  #broken(error: MalformedError): DmError {
    const message = `${this.#transport.peer} breaks the protocol: ${error.message}`;
    return new DmError(Errno.EIO, message, 'EPROTO', { cause: error });
  }

  #end(request: PendingRequest): void {
    this.#slots[request.cookie] = null;
    this.#freeCookies.push(request.cookie);
    this.#requestCount--;
    if (this.#waiting.length > 0) this.#wake();
    request.done(request.errno, request.errorOffset);
    this.#checkGoodbye();
  }

  onEnd(): void {
    this.#fail(new DmError(Errno.ECONNRESET, `${this.#transport.peer} closed the connection`));
  }

  onDrain(): void {}

  onClose(error: Error | null): void {
    const why = error ?? new DmError(Errno.ECONNRESET, `${this.#transport.peer} closed the connection`);
    this.#fail(why);
    for (const done of this.#onClosed.splice(0)) done(this.#error);
  }

  /** The end of this connection: whoever waits is told now. */
  #fail(error: Error): void {
    if (this.#closed) return;
    this.#closed = true;
    if (!this.#closing || this.requestCount > 0) this.#error = error;
    this.#transport.destroy();
    const requests = [...this.#slots, ...this.#waiting];
    this.#slots.length = 0;
    this.#waiting = [];
    this.#requestCount = 0;
    const errno = error instanceof DmError && error.errno === Errno.ESHUTDOWN ? Errno.ESHUTDOWN : Errno.EIO;
    this.#endHandshake(error);
    for (const request of requests) request?.done(errno, -1);
  }
}

/** `read at 4096 failed: EIO (at byte 8192)`, for the promise at the edge. */
export function requestError(errno: number, what: string, errorOffset = -1): DmError {
  return new DmError(errno, `${what} failed: ${errnoName(errno)}${errorOffset < 0 ? '' : ` (at byte ${errorOffset})`}`);
}
