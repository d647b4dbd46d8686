// The second phase of a connection ("Transmission phase"): requests in, bios down, replies out.
//
// One turn takes every complete request out of what has arrived. A device may end a bio inside submitBio; the reply then
// stands in memory right behind the one before, and the whole turn leaves as one piece. What ends later leaves in the
// next turn, together with whatever else has ended by then.
import { Errno } from '../../block/errno.ts';
import type { Reactor } from '../../block/reactor.ts';
import { SECTOR_SHIFT } from '../../block/sector.ts';
import {
  CMD_DISC,
  CMD_FLAG_PAYLOAD_LEN,
  CMD_READ,
  CMD_WRITE,
  EXTENDED_REQUEST_BYTE_LENGTH,
  REQUEST_BYTE_LENGTH,
} from '../protocol/constants.ts';
import { decodeExtendedRequest, decodeRequest, emptyRequestHeader, type RequestHeader } from '../protocol/wire.ts';
import {
  HEADER_AHEAD_BYTE_LENGTH,
  LONG_WRITE_BYTE_LENGTH,
  MAX_AHEAD_REQUEST_COUNT,
  MAX_BATCH_BYTE_LENGTH,
  MAX_PAYLOAD_BYTE_LENGTH,
  MAX_SEGMENT_COUNT,
  MAX_TURN_BYTE_LENGTH,
  MAX_UNSENT_BYTE_LENGTH,
  MAX_WAITING_REQUEST_COUNT,
  SEGMENT_BYTE_LENGTH,
  TURN_MILLISECOND_BYTE_LENGTH,
  TURN_REQUEST_BYTE_LENGTH,
} from './bounds.ts';
import type { MemoryAccount, PooledBuffer } from './buffer-pool.ts';
import { checkRequest, hasChanged, type RequestLimits, requestLimits } from './check.ts';
import { type CommandHost, Commands } from './commands.ts';
import type { Connection, Phase } from './connection.ts';
import type { NbdExport } from './exports.ts';
import { Inbox } from './inbox.ts';
import { EXTENDED_HEADERS, type Negotiation } from './negotiation.ts';
import { Output } from './output.ts';
import { Replies } from './replies.ts';
import { Request } from './request.ts';

/** Offsets come as two 32-bit halves; this many sectors are in one unit of the upper one. */
const SECTORS_PER_HIGH = 2 ** (32 - SECTOR_SHIFT);

/** Payload of no request, that is to be thrown away: more is read only to be polite. */
const MAX_DISCARDED_BYTE_LENGTH = MAX_PAYLOAD_BYTE_LENGTH;

export class Transmission implements Phase, CommandHost {
  readonly account: MemoryAccount;
  readonly hasChunks: boolean;
  readonly #connection: Connection;
  readonly #limits: RequestLimits;
  readonly #commands: Commands;
  readonly #output: Output;
  readonly #replies: Replies;
  readonly #maxRequestCount: number;
  readonly #free: Request[] = [];
  #requestCount = 0;
  /** READs without memory: they begin, in this order, when the client has taken replies. */
  readonly #parked: Request[] = [];
  #isCrowded = false;
  #turnByteLength = 0;
  #waitsForServer = false;
  #closed = false;

  readonly #isExtended: boolean;
  readonly #headerByteLength: number;
  readonly #header: RequestHeader = emptyRequestHeader();
  /** A header that came in parts. */
  readonly #partial: Uint8Array;
  readonly #partialView: DataView;
  #partialByteLength = 0;
  /** The WRITE, or the part of a long one, whose data is arriving; null where `#payloadLeft` bytes are to be thrown away. */
  #gathering: Request | null = null;
  /** Bytes that `#gathering` still wants. */
  #gatheringLeft = 0;
  /** The long WRITE whose parts are arriving. */
  #long: Request | null = null;
  /** Of the whole request. */
  #payloadLeft = 0;
  /** The chunk being consumed, a view on it, and where it ends. */
  #chunk: Uint8Array | null = null;
  #view: DataView;
  #end = 0;
  /** What the connection fetched by itself, and whether that is what is being consumed. */
  readonly #inbox: Inbox;
  #consumesInbox = false;
  /** The last WRITE was long, and so will be the next. */
  #expectsLongWrite = false;

  constructor(connection: Connection, entry: NbdExport, negotiation: Negotiation) {
    this.#connection = connection;
    this.#limits = requestLimits(entry, negotiation);
    this.account = connection.host.newAccount();
    this.hasChunks = negotiation.hasChunks;
    this.#maxRequestCount = connection.host.maxConnectionRequestCount;
    this.#isExtended = negotiation.replyKind === EXTENDED_HEADERS;
    this.#headerByteLength = this.#isExtended ? EXTENDED_REQUEST_BYTE_LENGTH : REQUEST_BYTE_LENGTH;
    this.#partial = new Uint8Array(this.#headerByteLength);
    this.#partialView = new DataView(this.#partial.buffer);
    this.#view = this.#partialView;
    this.#inbox = new Inbox(this.account);
    this.#output = new Output(this.account, connection.transport, () => {
      if (connection.hasBacklog || this.#parked.length > 0) connection.schedule();
    });
    this.#replies = new Replies(this.#output, negotiation.replyKind);
    this.#commands = new Commands(this, this.#limits);
  }

  get reactor(): Reactor {
    return this.#connection.host.reactor;
  }

  get isAbandoned(): boolean {
    return this.#closed;
  }

  get isHurried(): boolean {
    return this.#closed || this.#connection.host.isShuttingDown;
  }

  get requestCount(): number {
    // A shutdown waits for no request that has not begun.
    return this.#requestCount + (this.#connection.host.isShuttingDown ? 0 : this.#parked.length);
  }

  consume(chunk: Uint8Array, start: number): number {
    if (this.#chunk !== chunk) {
      this.#chunk = chunk;
      this.#view = new DataView(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    }
    this.#end = chunk.byteLength;
    const offset = this.#consume(chunk, start);
    if (offset === chunk.byteLength) this.#chunk = null;
    return offset;
  }

  /** Takes requests out of `chunk` up to `#end`. @returns where it stopped */
  #consume(chunk: Uint8Array, start: number): number {
    let offset = start;
    while (offset < this.#end) {
      if (this.#payloadLeft > 0) {
        const count = this.#takePayload(chunk, offset);
        if (count === 0) break;
        offset += count;
        continue;
      }
      if (this.#mustWait()) break;
      const next = this.#takeRequest(chunk, offset);
      if (next < 0) return this.#end;
      offset = next;
      if (this.#output.readyByteLength >= MAX_BATCH_BYTE_LENGTH) this.#output.flush();
    }
    return offset;
  }

  pull(): boolean {
    const inbox = this.#inbox;
    let isAll = false;
    for (;;) {
      if (!inbox.isEmpty && !this.#consumeInbox()) return true;
      if (isAll || this.#connection.isClosed || this.#connection.isInputEnded) break;
      // The rest stays in the socket, and others have their turn: the event loop tells of it again.
      if (this.#turnByteLength >= MAX_TURN_BYTE_LENGTH) break;
      if (this.#long !== null && this.#gathering === null && !this.#beginSegment(this.#long)) return true;
      isAll = this.#gathering === null ? this.#fetch() : this.#fetchPayload(this.#gathering);
    }
    inbox.rest();
    return false;
  }

  /** @returns false when something is left */
  #consumeInbox(): boolean {
    const inbox = this.#inbox;
    const { bytes, view } = inbox.buffer!;
    this.#view = view;
    this.#end = inbox.tail;
    this.#consumesInbox = true;
    inbox.head = this.#consume(bytes, inbox.head);
    this.#consumesInbox = false;
    this.#chunk = null;
    return inbox.isEmpty;
  }

  /** Receives headers and what else comes with them. @returns whether that was all there is */
  #fetch(): boolean {
    const inbox = this.#inbox;
    const { bytes } = inbox.open();
    // Data that is thrown away has no place of its own.
    const isHeader = this.#expectsLongWrite && this.#payloadLeft === 0;
    const room = isHeader ? HEADER_AHEAD_BYTE_LENGTH : bytes.byteLength - inbox.tail;
    const count = this.#connection.transport.fetch!(bytes, inbox.tail, room);
    inbox.tail += count;
    return count < room;
  }

  /** Receives data right into its place, and what comes behind it. @returns whether that was all there is */
  #fetchPayload(request: Request): boolean {
    const inbox = this.#inbox;
    const { transport } = this.#connection;
    const { bytes } = this.#bufferFor(request);
    const at = request.byteLength - this.#gatheringLeft;
    const wanted = this.#gatheringLeft;
    if (this.#payloadLeft > wanted) {
      // Behind a part of a long WRITE comes the next part, which has its own place.
      const count = transport.fetch!(bytes, at, wanted);
      this.#gathered(request, count);
      return count < wanted;
    }
    const next = inbox.open();
    // Behind a short one may come many more: with a header alone each of them would need a call of its own.
    const ahead = this.#expectsLongWrite ? HEADER_AHEAD_BYTE_LENGTH : next.bytes.byteLength - inbox.tail;
    const count = transport.fetchTwo!(bytes, at, wanted, next.bytes, inbox.tail, ahead);
    inbox.tail += Math.max(0, count - wanted);
    this.#gathered(request, Math.min(count, wanted));
    return count < wanted + ahead;
  }

  afterTurn(): void {
    if (this.#parked.length > 0) this.#startParked();
    this.#turnByteLength = 0;
    this.#output.flush();
  }

  onDrain(): void {
    if (this.#connection.hasBacklog || this.#parked.length > 0) this.#connection.schedule();
  }

  /** Whether the next request has to wait. Whatever it waits for calls schedule() when it comes. */
  #mustWait(): boolean {
    if (this.#parked.length > 0) this.#startParked();
    if (this.#mustWaitForDevice()) return true;
    return this.#isCrowded && this.#parked.length + this.#output.unsentCount >= MAX_WAITING_REQUEST_COUNT;
  }

  /** The same for a part of a WRITE, and for requests that were read: none of them waits for the client. */
  #mustWaitForDevice(): boolean {
    this.#isCrowded = this.#parked.length > 0 || this.#hasNoRoom();
    if (this.#requestCount >= this.#maxRequestCount) return true;
    if (this.#isCrowded && this.#requestCount >= MAX_AHEAD_REQUEST_COUNT) return true;
    if (this.#turnByteLength < MAX_TURN_BYTE_LENGTH) return false;
    this.#connection.schedule();
    return true;
  }

  /** Whether a READ has to wait until the client has taken replies, or others have given memory back. */
  #hasNoRoom(): boolean {
    const { idleByteLength } = this.#inbox;
    if (!this.account.hasRoom(idleByteLength)) return true;
    if (this.#connection.transport.pendingByteLength >= MAX_UNSENT_BYTE_LENGTH) return true;
    if (this.account.serverHasRoom(idleByteLength)) return false;
    this.#waitForServer();
    return true;
  }

  /** Begins READs that wait, as far as there is room for them. */
  #startParked(): void {
    const parked = this.#parked;
    while (parked.length > 0) {
      if (this.#connection.host.isShuttingDown || hasChanged(this.#limits)) {
        const request = parked.shift()!;
        this.#replies.refuseRequest(Errno.ESHUTDOWN, request);
        this.#recycle(request);
        continue;
      }
      if (this.#hasNoRoom() || this.#requestCount >= this.#maxRequestCount) return;
      if (this.#turnByteLength >= MAX_TURN_BYTE_LENGTH) {
        this.#connection.schedule();
        return;
      }
      this.#start(parked.shift()!);
      if (this.#output.readyByteLength >= MAX_BATCH_BYTE_LENGTH) this.#output.flush();
    }
  }

  #waitForServer(): void {
    if (this.#waitsForServer) return;
    this.#waitsForServer = true;
    this.account.waitForServer(() => {
      this.#waitsForServer = false;
      this.#connection.schedule();
    });
  }

  /** @returns the offset behind the request and as much of its data as there is; -1 when nothing more is to be read */
  #takeRequest(chunk: Uint8Array, offset: number): number {
    const need = this.#headerByteLength;
    if (this.#partialByteLength === 0 && this.#end - offset >= need) {
      return this.#onHeader(this.#decode(this.#view, offset), chunk, offset + need);
    }
    const count = Math.min(need - this.#partialByteLength, this.#end - offset);
    this.#partial.set(chunk.subarray(offset, offset + count), this.#partialByteLength);
    this.#partialByteLength += count;
    if (this.#partialByteLength < need) return offset + count;
    this.#partialByteLength = 0;
    return this.#onHeader(this.#decode(this.#partialView, 0), chunk, offset + count);
  }

  #decode(view: DataView, offset: number): boolean {
    if (this.#isExtended) return decodeExtendedRequest(view, offset, this.#header);
    return decodeRequest(view, offset, this.#header);
  }

  #onHeader(isKnown: boolean, chunk: Uint8Array, offset: number): number {
    const header = this.#header;
    this.#turnByteLength += TURN_REQUEST_BYTE_LENGTH;
    if (!isKnown) {
      this.#connection.violation('a request without its magic');
      return -1;
    }
    if (header.type === CMD_DISC) {
      this.#connection.finish();
      return -1;
    }
    if (hasChanged(this.#limits)) return this.#onDeviceChanged();
    let errno: number = this.#connection.host.isShuttingDown ? Errno.ESHUTDOWN : 0;
    let hasPayload = header.type === CMD_WRITE;
    if (this.#isExtended) {
      // With extended headers the flag alone says whether data follows. Where it is wrong, the data is still that.
      hasPayload = (header.flags & CMD_FLAG_PAYLOAD_LEN) !== 0;
      header.flags &= ~CMD_FLAG_PAYLOAD_LEN;
      if (hasPayload !== (header.type === CMD_WRITE)) errno = Errno.EINVAL;
    }
    if (errno === 0) errno = checkRequest(header, this.#limits);
    if (hasPayload) return this.#onWrite(errno, chunk, offset);
    if (errno !== 0) this.#replies.refuse(errno, header);
    else if (this.#isCrowded && header.type === CMD_READ) this.#parked.push(this.#newRequest());
    else this.#start(this.#newRequest());
    return offset;
  }

  /** Nobody can tell this client that its disk is another one now, but that it has to connect anew. */
  #onDeviceChanged(): number {
    this.#replies.refuse(Errno.ESHUTDOWN, this.#header);
    this.#connection.finish();
    return -1;
  }

  #onWrite(errno: number, chunk: Uint8Array, offset: number): number {
    const { byteLength } = this.#header;
    if (errno !== 0) {
      this.#replies.refuse(errno, this.#header);
      if (byteLength > MAX_DISCARDED_BYTE_LENGTH) {
        // Reading gigabytes only to throw them away is what an attacker would like.
        this.#connection.finish();
        return -1;
      }
      this.#payloadLeft = byteLength;
      return offset;
    }
    const request = this.#newRequest();
    this.#expectsLongWrite = byteLength >= LONG_WRITE_BYTE_LENGTH;
    if (this.#end - offset >= byteLength) {
      if (this.#consumesInbox) {
        request.inbox = this.#inbox.hold();
      } else {
        request.chargedByteLength = byteLength;
        this.account.charge(byteLength);
      }
      request.setMemory(chunk, offset, byteLength);
      this.#start(request);
      return offset + byteLength;
    }
    this.#payloadLeft = byteLength;
    if (byteLength > SEGMENT_BYTE_LENGTH) {
      this.#long = request;
      request.isComplete = false;
    } else {
      this.#gathering = request;
      this.#gatheringLeft = byteLength;
    }
    return offset;
  }

  /** @returns how many bytes it took; none when the next part of a long WRITE has to wait */
  #takePayload(chunk: Uint8Array, offset: number): number {
    if (this.#long !== null && this.#gathering === null && !this.#beginSegment(this.#long)) return 0;
    const request = this.#gathering;
    const left = request === null ? this.#payloadLeft : this.#gatheringLeft;
    const count = Math.min(left, this.#end - offset);
    if (request === null) {
      this.#payloadLeft -= count;
      this.#turnByteLength += count;
    } else {
      this.#gather(request, chunk, offset, count);
      this.#gathered(request, count);
    }
    return count;
  }

  /** `count` bytes more of its data are in place. */
  #gathered(request: Request, count: number): void {
    this.#payloadLeft -= count;
    this.#gatheringLeft -= count;
    if (this.#gatheringLeft > 0) return;
    this.#gathering = null;
    const long = this.#payloadLeft === 0 ? this.#long : null;
    if (long !== null) {
      this.#long = null;
      this.#requestCount++;
      long.isSubmitted = true;
      long.isComplete = true;
    }
    this.#start(request);
  }

  /** Parts end where a multiple of the segment's length is on the device, so that at most the first and last are no whole blocks. */
  #beginSegment(long: Request): boolean {
    if (long.partCount >= MAX_SEGMENT_COUNT || this.#mustWaitForDevice()) return false;
    const done = long.byteLength - this.#payloadLeft;
    const misalignment = (long.offsetLow + done) % SEGMENT_BYTE_LENGTH;
    const part = this.newPart(long);
    part.sector =
      long.sector + Math.floor((long.head + done) / (this.#limits.alignmentMask + 1)) * this.#limits.blockSectorCount;
    part.head = (long.head + done) & this.#limits.alignmentMask;
    part.byteLength = Math.min(this.#payloadLeft, SEGMENT_BYTE_LENGTH - misalignment);
    this.#gathering = part;
    this.#gatheringLeft = part.byteLength;
    return true;
  }

  /**
   * Copies. Keeping the received chunks and writing from them costs more than that: each is new memory then, while chunks
   * that are let go at once come back warm.
   */
  #gather(request: Request, chunk: Uint8Array, offset: number, count: number): void {
    const { bytes } = this.#bufferFor(request);
    bytes.set(chunk.subarray(offset, offset + count), request.byteLength - this.#gatheringLeft);
  }

  /** Memory for a WRITE's data, all of it. */
  #bufferFor(request: Request): PooledBuffer {
    if (request.buffer === null) {
      request.buffer = this.account.take(request.byteLength);
      request.setMemory(request.buffer.bytes, 0, request.byteLength);
    }
    return request.buffer;
  }

  /** A request with the header that was just read. */
  #newRequest(): Request {
    const request = this.#free.pop() ?? new Request(this.#commands.onBioEnd);
    const { type, flags, cookieHigh, cookieLow, offsetHigh, offsetLow, byteLength } = this.#header;
    request.command = type;
    request.flags = flags;
    request.cookieHigh = cookieHigh;
    request.cookieLow = cookieLow;
    request.offsetHigh = offsetHigh;
    request.offsetLow = offsetLow;
    request.head = offsetLow & this.#limits.alignmentMask;
    request.sector = offsetHigh * SECTORS_PER_HIGH + ((offsetLow - request.head) >>> SECTOR_SHIFT);
    request.byteLength = byteLength;
    return request;
  }

  newPart(parent: Request): Request {
    const part = this.#free.pop() ?? new Request(this.#commands.onBioEnd);
    part.parent = parent;
    part.command = parent.command;
    part.flags = parent.flags;
    part.sector = parent.sector;
    part.head = parent.head;
    part.byteLength = parent.byteLength;
    parent.partCount++;
    return part;
  }

  startPart(part: Request): void {
    this.#start(part);
  }

  #start(request: Request): void {
    this.#requestCount++;
    if (request.command === CMD_READ) this.#reserveReply(request);
    request.isSubmitted = true;
    try {
      if (request.command === CMD_READ || request.command === CMD_WRITE) {
        this.#turnByteLength += request.byteLength;
        this.#commands.start(request);
      } else {
        const begin = this.reactor.now();
        this.#commands.start(request);
        this.#turnByteLength += (this.reactor.now() - begin) * TURN_MILLISECOND_BYTE_LENGTH;
      }
    } catch (error) {
      if (request.isSubmitted) this.#lose(request);
      throw error;
    }
  }

  /** Memory for the whole blocks around a READ, with room for the reply's header before the first byte asked for. */
  #reserveReply(request: Request): void {
    const headerByteLength = this.#replies.dataHeaderByteLength;
    const coverByteLength = this.#commands.coverByteLength(request);
    const lead = Math.max(0, headerByteLength - request.head);
    const reserved = lead + Math.max(coverByteLength, request.head);
    const buffer = this.#output.reserve(reserved);
    request.buffer = buffer;
    request.end = buffer.used;
    request.start = buffer.used - reserved;
    request.dataStart = request.start + lead + request.head;
    request.setMemory(buffer.bytes, request.start + lead, coverByteLength);
  }

  onThrow(request: Request, error: unknown): void {
    if (request.isSubmitted) this.#lose(request);
    this.#connection.crash(error);
  }

  /** Comes from inside a device, or from the start. */
  onEnd(request: Request): void {
    request.isSubmitted = false;
    this.#requestCount--;
    const { parent } = request;
    if (parent !== null) this.#endPart(parent, request);
    else if (this.#closed) this.#drop(request);
    else this.#answer(request);
    this.#recycle(request);
    if (this.#closed) this.#connection.checkGone();
    else if (!this.#connection.isProcessing) this.#connection.schedule();
  }

  #endPart(parent: Request, part: Request): void {
    this.#returnPayload(part);
    parent.partCount--;
    if (!this.#commands.onPartEnd(parent, part)) return;
    this.onEnd(parent);
  }

  #answer(request: Request): void {
    this.#replies.answer(request);
    if (request.command !== CMD_READ) this.#returnPayload(request);
  }

  #drop(request: Request): void {
    if (request.command === CMD_READ) this.#output.release(request.buffer!);
    else this.#returnPayload(request);
  }

  #returnPayload(request: Request): void {
    if (request.buffer !== null) this.account.give(request.buffer);
    if (request.inbox !== null) this.#inbox.release(request.inbox);
    this.account.charge(-request.chargedByteLength);
  }

  #recycle(request: Request): void {
    request.clear();
    this.#free.push(request);
  }

  /** Gives up a request whose device threw. Its memory may still be written to, so that is never used again. */
  #lose(request: Request): void {
    request.isLost = true;
    request.isSubmitted = false;
    this.#requestCount--;
    this.#commands.unlock(request);
    if (request.edges !== null) this.account.abandon(request.edges);
    if (request.buffer !== null && request.command === CMD_READ) this.#output.abandon(request.buffer);
    else if (request.buffer !== null) this.account.abandon(request.buffer);
    if (request.inbox !== null) this.#inbox.abandon(request.inbox);
    this.account.charge(-request.chargedByteLength);
    if (request.parent !== null) this.#loseWhole(request.parent);
  }

  /** What a lost part belongs to never ends either. */
  #loseWhole(request: Request): void {
    if (request.isSubmitted) this.#lose(request);
  }

  close(): void {
    this.#closed = true;
    this.#chunk = null;
    this.#output.discard();
    this.#inbox.close();
    this.#parked.length = 0;
    const request = this.#gathering;
    this.#gathering = null;
    this.#long = null;
    if (request !== null) this.#returnPayload(request);
  }
}
