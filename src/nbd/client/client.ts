// An NBD client on any transport, with callbacks: many requests at one time, each ended once with an errno. When the
// server dies, everything that waits for it ends at once.
import { Errno, errnoName } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import type { Reactor, Timer, Transport, TransportHandler, TransportSecurity } from '../../block/reactor.ts';
import {
  CMD_DISC,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  DEFAULT_MAX_PAYLOAD_BYTE_LENGTH,
  REQUEST_BYTE_LENGTH,
  SIMPLE_REPLY_BYTE_LENGTH,
  SIMPLE_REPLY_MAGIC,
  TRANSMISSION_READ_ONLY,
  TRANSMISSION_SEND_FLUSH,
  TRANSMISSION_SEND_FUA,
  TRANSMISSION_SEND_TRIM,
  TRANSMISSION_SEND_WRITE_ZEROES,
} from '../protocol/constants.ts';
import { errnoFromWireError } from '../protocol/errors.ts';
import { type ExportDescription, MalformedError } from '../protocol/info.ts';
import { emptyRequestHeader, encodeRequest, type RequestHeader } from '../protocol/wire.ts';
import { HANDSHAKE_TIMEOUT_MILLISECONDS, MAX_REQUEST_COUNT, MAX_UNSENT_BYTE_LENGTH } from './bounds.ts';
import { ClientHandshake, type HandshakeGoal, type NbdExportDetails } from './handshake.ts';

/** Called once when a request has ended: 0, or the errno that the server (or the loss of it) gave. */
export type RequestCallback = (errno: number) => void;

const NO_DATA = new Uint8Array(0);
const TWO_TO_THE_32 = 0x1_0000_0000;

class PendingRequest {
  command = 0;
  flags = 0;
  offset = 0;
  byteLength = 0;
  /** A READ's destination or a WRITE's data. */
  data: Uint8Array = NO_DATA;
  done: RequestCallback = () => {};
}

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

  readonly #replyHeader = new Uint8Array(SIMPLE_REPLY_BYTE_LENGTH);
  readonly #replyView = new DataView(this.#replyHeader.buffer);
  #replyHeaderLength = 0;
  /** The READ whose data is arriving, and how much of it is there. */
  #reading: PendingRequest | null = null;
  #readingLength = 0;

  /** @param security given: everything goes by TLS, and without it nowhere */
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
      onExport: (details) => {
        this.#details = details;
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
    if (this.#details !== null && !this.#has(TRANSMISSION_SEND_FLUSH)) this.#reactor.wake(() => done(0));
    else this.#request(CMD_FLUSH, 0, 0, 0, NO_DATA, done);
  }

  /** Discards a range: what it holds afterwards is not defined. EOPNOTSUPP where the server has no TRIM. */
  trim(offset: number, byteLength: number, fua: boolean, done: RequestCallback): void {
    this.#optional(TRANSMISSION_SEND_TRIM, CMD_TRIM, fua ? CMD_FLAG_FUA : 0, offset, byteLength, done);
  }

  /** Zeroes a range; with `noHole` it stays provisioned. EOPNOTSUPP where the server has no WRITE_ZEROES. */
  writeZeroes(offset: number, byteLength: number, noHole: boolean, fua: boolean, done: RequestCallback): void {
    const flags = (fua ? CMD_FLAG_FUA : 0) | (noHole ? CMD_FLAG_NO_HOLE : 0);
    this.#optional(TRANSMISSION_SEND_WRITE_ZEROES, CMD_WRITE_ZEROES, flags, offset, byteLength, done);
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
      this.#reactor.wake(() => done(Errno.EOPNOTSUPP));
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
  ): void {
    const errno = this.#refusal(command, flags, offset, byteLength);
    if (errno !== 0) {
      this.#reactor.wake(() => done(errno));
      return;
    }
    const request = new PendingRequest();
    request.command = command;
    request.flags = flags;
    request.offset = offset;
    request.byteLength = byteLength;
    request.data = data;
    request.done = done;
    this.#waiting.push(request);
    this.#wake();
  }

  /** What need not be asked of the server. */
  #refusal(command: number, flags: number, offset: number, byteLength: number): number {
    if (this.#closed || this.#closing || this.#details === null) return Errno.ESHUTDOWN;
    if (command !== CMD_READ && command !== CMD_FLUSH && this.#has(TRANSMISSION_READ_ONLY)) return Errno.EPERM;
    if (!(offset >= 0 && byteLength >= 0 && byteLength < TWO_TO_THE_32)) return Errno.EINVAL;
    if (offset + byteLength > this.#details.byteLength) return command === CMD_READ ? Errno.EINVAL : Errno.ENOSPC;
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
      while (offset < chunk.byteLength && !this.#closed) offset += this.#takeReply(chunk, offset);
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

  #takeReply(chunk: Uint8Array, offset: number): number {
    if (this.#reading !== null) return this.#takeData(this.#reading, chunk, offset);
    const count = Math.min(SIMPLE_REPLY_BYTE_LENGTH - this.#replyHeaderLength, chunk.byteLength - offset);
    this.#replyHeader.set(chunk.subarray(offset, offset + count), this.#replyHeaderLength);
    this.#replyHeaderLength += count;
    if (this.#replyHeaderLength === SIMPLE_REPLY_BYTE_LENGTH) {
      this.#replyHeaderLength = 0;
      this.#onReplyHeader();
    }
    return count;
  }

  #onReplyHeader(): void {
    const view = this.#replyView;
    if (view.getUint32(0) !== SIMPLE_REPLY_MAGIC) throw new MalformedError('a reply without its magic');
    const cookie = view.getUint32(12);
    const request = view.getUint32(8) === 0 ? this.#slots[cookie] : undefined;
    if (request === undefined || request === null) throw new MalformedError('a reply to a request that was not sent');
    this.#slots[cookie] = null;
    this.#freeCookies.push(cookie);
    const errno = errnoFromWireError(view.getUint32(4));
    if (errno === 0 && request.command === CMD_READ && request.byteLength > 0) {
      this.#reading = request;
      this.#readingLength = 0;
    } else {
      this.#end(request, errno);
    }
  }

  #takeData(request: PendingRequest, chunk: Uint8Array, offset: number): number {
    const count = Math.min(request.byteLength - this.#readingLength, chunk.byteLength - offset);
    request.data.set(chunk.subarray(offset, offset + count), this.#readingLength);
    this.#readingLength += count;
    if (this.#readingLength === request.byteLength) {
      this.#reading = null;
      this.#end(request, 0);
    }
    return count;
  }

  #end(request: PendingRequest, errno: number): void {
    this.#requestCount--;
    if (this.#waiting.length > 0) this.#wake();
    request.done(errno);
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
    const requests = [...this.#slots, this.#reading, ...this.#waiting];
    this.#slots.length = 0;
    this.#reading = null;
    this.#waiting = [];
    this.#requestCount = 0;
    const errno = error instanceof DmError && error.errno === Errno.ESHUTDOWN ? Errno.ESHUTDOWN : Errno.EIO;
    this.#endHandshake(error);
    for (const request of requests) request?.done(errno);
  }
}

/** `read at 4096 failed: EIO`, for the promise at the edge. */
export function requestError(errno: number, what: string): DmError {
  return new DmError(errno, `${what} failed: ${errnoName(errno)}`);
}
