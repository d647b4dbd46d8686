// Requests that can't be answered at once: a request goes through its steps, each one call on another thread (or, in
// blocking mode, here). The portable engine is this alone; direct adds what it can do without leaving the thread.
import fs from 'node:fs';
import {
  type Bio,
  REQ_FUA,
  REQ_NOFALLBACK,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
} from '../block/bio.ts';
import { EXTENT_DATA, type ExtentCallback } from '../block/block-device.ts';
import { MAX_OFFLOADED_CALL_COUNT, MAX_POOLED_OBJECT_COUNT } from '../block/bounds.ts';
import { Errno, errnoMessage, errnoName } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { PINS_HOLD } from './address.ts';
import { BounceBuffers, type DirectIo, PAGE_BYTE_LENGTH } from './bounce.ts';
import { blockingCalls, type FileCalls, threadCalls } from './calls.ts';
import { MemoryCursor, SYSTEM_TRANSFER_BOUNDS, type TransferBounds } from './cursor.ts';
import { type Engine, type EngineCapabilities, EngineFile, type EngineKind, type FileKind } from './engine.ts';
import { enterSubmit, leaveSubmit } from './nesting.ts';
import type { RequestOperation, RingCarrier } from './ring-carrier.ts';

/** For tests: smaller bounds, calls that fail. */
export interface ThreadedEngineOptions {
  bounds?: TransferBounds;
  maxOffloadedCallCount?: number;
  threadCalls?: FileCalls;
  blockingCalls?: FileCalls;
  /** Memory can be kept from being transferred (see address.ts). */
  pinsHold?: boolean;
}

/** From here on a byte position may not be exact as a number (2^43 sectors leave room for any transfer below 2^53). */
export const FAR_SECTOR = 2 ** 43;

export const ZEROES_BYTE_LENGTH = 65536;
const plainZeroes = new Uint8Array(ZEROES_BYTE_LENGTH);
const MAX_ZERO_VIEW_COUNT = 16;

/** What a request does next. */
export const STEP_PREFLUSH = 0;
export const STEP_TRANSFER = 1;
export const STEP_SYNC = 2;
/** Discard or write-zeroes by the means of the engine; which one is in `method`. */
export const STEP_SPECIAL = 3;
/** `method` of a request whose STEP_SPECIAL has not begun. */
export const METHOD_NONE = -1;
/** Write-zeroes by writing zeroes. */
export const STEP_WRITE_ZEROES = 4;

/** A request on its way through its steps; pooled. */
export class FileRequest {
  file!: ThreadedFile;
  bio!: Bio;
  step = STEP_TRANSFER;
  method = METHOD_NONE;
  readonly cursor: MemoryCursor;
  /** Bytes zeroed by STEP_WRITE_ZEROES. */
  zeroedByteLength = 0;
  /** Outcome of the call that ended last. */
  errno = 0;
  result = 0;
  /** Its calls are made on this thread, one after the other. */
  here = false;
  /** Takes one of the places for calls on threads. */
  counted = false;
  /** Is its file's one write on a thread. */
  holdsWrite = false;
  /** Makes its calls on a ring; null where threads make them. */
  carrier: RingCarrier | null = null;
  /** The ring's own, kept for the next use. */
  operation: RequestOperation | null = null;
  /** Its data goes through this buffer, a part at a time; null where it goes straight to its memory. */
  bounce: Uint8Array | null = null;
  issuing = false;
  returned = false;
  next: FileRequest | null = null;
  /** For the calls: made once, not for every request. */
  readonly onCall: (errno: number, result: number) => void;

  constructor(bounds: TransferBounds, onReturn: (request: FileRequest) => void) {
    this.cursor = new MemoryCursor(bounds);
    this.onCall = (errno, result) => {
      this.errno = errno;
      this.result = result;
      // A call that ended at once is picked up by the loop that made it, so that many in a row don't nest.
      if (this.issuing) this.returned = true;
      else onReturn(this);
    };
  }
}

/** First in, first out. */
class RequestQueue {
  #head: FileRequest | null = null;
  #tail: FileRequest | null = null;

  push(request: FileRequest): void {
    request.next = null;
    if (this.#tail === null) this.#head = request;
    else this.#tail.next = request;
    this.#tail = request;
  }

  shift(): FileRequest | null {
    const request = this.#head;
    if (request === null) return null;
    this.#head = request.next;
    if (this.#head === null) this.#tail = null;
    request.next = null;
    return request;
  }
}

/** What the engines on threads remember about a file. */
export class ThreadedFile extends EngineFile {
  /** In memory: a call is a copy and nothing else, a flush not even that. Neither has to be timed or given to a thread. */
  neverWaits = false;
  /**
   * Writes of one file wait for one another on its lock: more than one at a time would only occupy threads, which other
   * files could use. The rest waits here.
   */
  writeOnThread = false;
  readonly waitingWrites = new RequestQueue();
}

/** Base of the engines that hand requests to libuv's threads. */
export abstract class ThreadedEngine implements Engine {
  abstract readonly kind: EngineKind;
  abstract readonly capabilities: EngineCapabilities;
  blocking = false;
  protected readonly bounds: TransferBounds;
  readonly #maxOffloadedCallCount: number;
  readonly #threadCalls: FileCalls;
  readonly #blockingCalls: FileCalls;
  readonly #pinsHold: boolean;
  readonly #waiting = new RequestQueue();
  readonly #pool: FileRequest[] = [];
  readonly #onReturn = (request: FileRequest): void => {
    if (this.#advance(request)) this.#run(request);
  };
  readonly #waitingForBounce = new RequestQueue();
  #bounceBuffers: BounceBuffers | null = null;
  #bouncedRequestCount = 0;
  #bouncedByteLength = 0;
  #offloadedCount = 0;
  #starting = false;

  constructor(options: ThreadedEngineOptions) {
    this.bounds = options.bounds ?? SYSTEM_TRANSFER_BOUNDS;
    this.#maxOffloadedCallCount = options.maxOffloadedCallCount ?? MAX_OFFLOADED_CALL_COUNT;
    this.#threadCalls = options.threadCalls ?? threadCalls;
    this.#blockingCalls = options.blockingCalls ?? blockingCalls;
    this.#pinsHold = options.pinsHold ?? PINS_HOLD;
  }

  /** Requests that occupy a thread now. */
  get offloadedCount(): number {
    return this.#offloadedCount;
  }

  /** Requests whose memory O_DIRECT could not take, or that could not be kept, and the bytes that were copied for them. */
  get bounced(): { readonly requestCount: number; readonly byteLength: number } {
    return { requestCount: this.#bouncedRequestCount, byteLength: this.#bouncedByteLength };
  }

  open(fd: number, kind: FileKind, path: string): EngineFile {
    return new ThreadedFile(this, fd, kind, path);
  }

  close(file: EngineFile): void {
    if (file.closing) return;
    file.closing = true;
    if (file.pendingCount === 0) this.closed(file);
  }

  reopen(file: EngineFile): boolean {
    if (!file.closing || file.pendingCount === 0) return false;
    file.closing = false;
    return true;
  }

  submit(file: EngineFile, bio: Bio): void {
    if (!enterSubmit(bio)) return;
    try {
      if (file.failure !== null || file.closing) bio.fail(Errno.EIO, bio.device!);
      else this.begin(file as ThreadedFile, bio);
    } finally {
      leaveSubmit();
    }
  }

  queryExtent(_file: EngineFile, _sector: number, sectorCount: number, done: ExtentCallback): void {
    done(0, sectorCount, EXTENT_DATA);
  }

  allocate(_file: EngineFile, _sector: number, _sectorCount: number, done: (errno: number) => void): void {
    done(Errno.EOPNOTSUPP);
  }

  gainsFromAllocation(_file: EngineFile): boolean {
    return false;
  }

  /** Starts a request of a file that works. */
  protected begin(file: ThreadedFile, bio: Bio): void {
    this.offload(file, bio, 0);
  }

  /** Makes the call of STEP_SPECIAL that `request.method` says (METHOD_NONE: the first), then calls request.onCall. */
  protected issueSpecial(request: FileRequest): void {
    request.onCall(Errno.EOPNOTSUPP, 0);
  }

  /**
   * After a method of STEP_SPECIAL gave EOPNOTSUPP: sets `request.method` to the next.
   *
   * @returns false when there is none
   */
  protected nextMethod(_request: FileRequest): boolean {
    return false;
  }

  /** Moves data at or past {@link FAR_SECTOR}, where node:fs can't. */
  protected issueFarTransfer(request: FileRequest): void {
    request.onCall(Errno.EFBIG, 0);
  }

  /** Nothing uses the file any more. */
  protected closed(file: EngineFile): void {
    closeDescriptor(file.fd);
  }

  /** The ring that makes the calls of a request; null for threads. */
  protected carrierOf(_request: FileRequest): RingCarrier | null {
    return null;
  }

  /** True for memory that O_DIRECT can't take. */
  protected needsBounce(_request: FileRequest): boolean {
    return false;
  }

  /** Without O_DIRECT any address will do. */
  protected makeBounceBuffers(): BounceBuffers {
    return new BounceBuffers(() => 0);
  }

  /** Zeroes to write, at an address that O_DIRECT takes where the engine knows addresses. */
  protected get zeroes(): Uint8Array {
    return plainZeroes;
  }

  /** Gives a request to the threads or the ring, from byte `doneByteLength` of its data on. */
  protected offload(file: ThreadedFile, bio: Bio, doneByteLength: number): void {
    const request = this.#pool.pop() ?? new FileRequest(this.bounds, this.#onReturn);
    request.file = file;
    request.bio = bio;
    request.step = firstStep(bio);
    request.method = METHOD_NONE;
    request.zeroedByteLength = 0;
    request.here = this.blocking || (this.capabilities.inline && file.neverWaits && isPlain(file, bio));
    file.pendingCount++;
    if (bio.hasData) {
      request.cursor.start(bio, doneByteLength);
      if (!request.cursor.check(!request.here)) {
        this.#finish(request, Errno.EFAULT, bio.sector);
        return;
      }
    }
    request.carrier = request.here ? null : this.carrierOf(request);
    if (!bio.hasData || !this.#mustBounce(request) || this.#takeBounce(request)) this.#go(request);
  }

  #mustBounce(request: FileRequest): boolean {
    if (!request.here && !this.#pinsHold && !request.cursor.isKept) return true;
    return request.file.directIo !== null && this.needsBounce(request);
  }

  #go(request: FileRequest): void {
    // The ring has a bound of its own.
    if (request.here || request.carrier !== null) this.#run(request);
    else this.#admit(request);
  }

  /** @returns false when the request has to wait for a buffer: it goes on when it gets one */
  #takeBounce(request: FileRequest): boolean {
    this.#bounceBuffers ??= this.makeBounceBuffers();
    const buffers = this.#bounceBuffers;
    this.#bouncedRequestCount++;
    request.bounce = this.blocking ? buffers.synchronous : buffers.take();
    if (request.bounce === null) this.#waitingForBounce.push(request);
    return request.bounce !== null;
  }

  #giveBounce(buffer: Uint8Array): void {
    const buffers = this.#bounceBuffers!;
    buffers.give(buffer);
    if (buffer === buffers.synchronous) return;
    const next = this.#waitingForBounce.shift();
    if (next === null) return;
    next.bounce = buffers.take();
    // One that waited in the middle of its way has its place on the threads.
    if (next.counted) this.#run(next);
    else this.#go(next);
  }

  #admit(request: FileRequest): void {
    // Around the page cache, writes need not wait for one another.
    if (request.bio.op === REQ_OP_WRITE && request.file.directIo === null) {
      const file = request.file;
      if (file.writeOnThread) {
        file.waitingWrites.push(request);
        return;
      }
      file.writeOnThread = true;
      request.holdsWrite = true;
    }
    this.#waiting.push(request);
    this.#startWaiting();
  }

  /** Fills the free places. Not reentrant: requests that end at once come back here and must not nest. */
  #startWaiting(): void {
    if (this.#starting) return;
    this.#starting = true;
    try {
      while (this.#offloadedCount < this.#maxOffloadedCallCount) {
        const request = this.#waiting.shift();
        if (request === null) return;
        this.#start(request);
      }
    } finally {
      this.#starting = false;
    }
  }

  #start(request: FileRequest): void {
    request.counted = true;
    this.#offloadedCount++;
    if (request.file.failure === null) this.#run(request);
    else this.#finish(request, Errno.EIO, request.bio.sector);
  }

  #run(request: FileRequest): void {
    do {
      request.issuing = true;
      request.returned = false;
      this.#issue(request);
      request.issuing = false;
      if (!request.returned) return;
    } while (this.#advance(request));
  }

  #issue(request: FileRequest): void {
    const { carrier, file } = request;
    const isFar = request.bio.sector >= FAR_SECTOR;
    switch (request.step) {
      case STEP_TRANSFER:
        this.#issueData(request, isFar);
        break;
      case STEP_SPECIAL:
        this.issueSpecial(request);
        break;
      case STEP_WRITE_ZEROES:
        if (carrier !== null) carrier.writeZeroes(request, this.zeroes);
        else if (isFar) request.onCall(Errno.EFBIG, 0);
        else this.#issueZeroes(request);
        break;
      default:
        if (carrier !== null) carrier.dataSync(request);
        else this.#callsOf(request).dataSync(file.fd, request.onCall);
    }
  }

  #callsOf(request: FileRequest): FileCalls {
    // What was given to a thread before a synchronous call began may take its next step during it.
    return request.here || this.blocking ? this.#blockingCalls : this.#threadCalls;
  }

  #issueData(request: FileRequest, isFar: boolean): void {
    const { carrier } = request;
    const bounceByteLength = isFar && carrier === null ? 0 : this.#fillBounce(request);
    // A write's memory was transferred away while it waited.
    if (bounceByteLength < 0) request.onCall(Errno.EFAULT, 0);
    else if (carrier !== null) carrier.transfer(request, bounceByteLength);
    else if (isFar) this.issueFarTransfer(request);
    else this.#issueTransfer(request, bounceByteLength);
  }

  #issueTransfer(request: FileRequest, bounceByteLength: number): void {
    const { bio, file, cursor } = request;
    const position = bio.sector * SECTOR_SIZE + cursor.doneByteLength;
    const views = request.bounce === null ? cursor.views() : [request.bounce.subarray(0, bounceByteLength)];
    if (bio.op === REQ_OP_READ) this.#callsOf(request).read(file.fd, views, position, request.onCall);
    else this.#callsOf(request).write(file.fd, views, position, request.onCall);
  }

  /**
   * Puts the next bytes of a write into the request's buffer.
   *
   * @returns the bytes of it to move; 0 without a buffer, -1 for memory that has gone
   */
  #fillBounce(request: FileRequest): number {
    const { bio, bounce, cursor } = request;
    if (bounce === null) return 0;
    const byteLength = Math.min(bounce.byteLength, cursor.leftByteLength);
    this.#bouncedByteLength += byteLength;
    return bio.op === REQ_OP_WRITE ? cursor.copyTo(bounce.subarray(0, byteLength)) || -1 : byteLength;
  }

  #issueZeroes(request: FileRequest): void {
    const { bio, file } = request;
    const position = bio.sector * SECTOR_SIZE + request.zeroedByteLength;
    const views = viewsOfZeroes(this.zeroes, bio.byteLength - request.zeroedByteLength);
    this.#callsOf(request).write(file.fd, views, position, request.onCall);
  }

  /** Takes the outcome of a call. @returns true when there is another call to make; else the request has ended */
  #advance(request: FileRequest): boolean {
    if (request.errno === Errno.EINTR) return true;
    if (request.errno === Errno.EAGAIN && request.carrier !== null) return this.#leaveRing(request);
    switch (request.step) {
      case STEP_TRANSFER:
        return this.#advanceTransfer(request);
      case STEP_SPECIAL:
        return this.#advanceSpecial(request);
      case STEP_WRITE_ZEROES:
        return this.#advanceZeroes(request);
      default:
        return this.#advanceSync(request);
    }
  }

  /** The kernel is short of something that the ring needs: threads finish the request. @returns as {@link #advance} */
  #leaveRing(request: FileRequest): boolean {
    request.carrier = null;
    if (this.blocking) return true;
    this.#admit(request);
    return false;
  }

  #advanceTransfer(request: FileRequest): boolean {
    const { bio, cursor, file } = request;
    if (request.errno === Errno.EINVAL && file.directIo !== null && request.bounce === null) {
      // Memory that the device can't take after all.
      if (this.#makeAligned(file.directIo, request)) return this.#takeBounce(request);
    }
    const firstSector = bio.sector + Math.floor(cursor.doneByteLength / SECTOR_SIZE);
    if (request.errno !== 0) return this.#finish(request, request.errno, firstSector);
    // A read that gives nothing is past the end of the file: it was cut under the device. Asking again would go on for ever.
    if (request.result === 0) return this.#finish(request, Errno.EIO, firstSector);
    const { bounce } = request;
    if (bounce !== null && bio.op === REQ_OP_READ && !cursor.copyFrom(bounce.subarray(0, request.result))) {
      return this.#finish(request, Errno.EFAULT, firstSector);
    }
    cursor.advance(request.result);
    if (cursor.leftByteLength === 0) return this.#afterTransfer(request);
    // O_DIRECT can't go on inside a block: that is where the file ends.
    const rest = file.directIo === null ? 0 : cursor.doneByteLength % file.directIo.blockByteLength;
    if (rest === 0) return true;
    return this.#finish(request, Errno.EIO, bio.sector + Math.floor(cursor.doneByteLength / SECTOR_SIZE));
  }

  /** Bounces what did not begin with a page from now on. @returns false where that can't have been the reason */
  #makeAligned(directIo: DirectIo, request: FileRequest): boolean {
    directIo.memoryAlignment = PAGE_BYTE_LENGTH;
    return this.needsBounce(request);
  }

  #advanceSync(request: FileRequest): boolean {
    const { bio, file, errno } = request;
    if (errno !== 0) {
      if (file.failure === null) {
        file.failure = syncFailure(file.path, errno);
        file.onFailure(file.failure);
      }
      return this.#finish(request, errno, bio.op === REQ_OP_FLUSH ? 0 : bio.sector);
    }
    if (request.step === STEP_SYNC) return this.#finish(request, 0, 0);
    request.step = STEP_TRANSFER;
    return true;
  }

  #advanceSpecial(request: FileRequest): boolean {
    const { bio, file, errno } = request;
    if (errno === 0) return this.#afterTransfer(request);
    if (errno !== Errno.EOPNOTSUPP && errno !== Errno.ENOSYS) return this.#finish(request, errno, bio.sector);
    if (this.nextMethod(request)) return true;
    if (bio.op === REQ_OP_WRITE_ZEROES && (bio.flags & REQ_NOFALLBACK) === 0 && file.kind === 'file') {
      request.step = STEP_WRITE_ZEROES;
      return true;
    }
    return this.#finish(request, Errno.EOPNOTSUPP, bio.sector);
  }

  #advanceZeroes(request: FileRequest): boolean {
    const { bio } = request;
    const firstSector = bio.sector + Math.floor(request.zeroedByteLength / SECTOR_SIZE);
    if (request.errno !== 0) return this.#finish(request, request.errno, firstSector);
    if (request.result === 0) return this.#finish(request, Errno.EIO, firstSector);
    request.zeroedByteLength += request.result;
    return request.zeroedByteLength < bio.byteLength || this.#afterTransfer(request);
  }

  /** All bytes are where they belong: durable too? @returns as {@link #advance} */
  #afterTransfer(request: FileRequest): boolean {
    if ((request.bio.flags & REQ_FUA) === 0 || request.bio.op === REQ_OP_READ) return this.#finish(request, 0, 0);
    request.step = STEP_SYNC;
    return true;
  }

  /** Ends the request and gives its place to one that waits. @returns false, for the callers' convenience */
  #finish(request: FileRequest, errno: number, sector: number): false {
    const { bio, file } = request;
    if (request.counted) this.#offloadedCount--;
    request.counted = false;
    if (request.holdsWrite) this.#passOnWrite(file);
    request.holdsWrite = false;
    request.cursor.release();
    request.carrier = null;
    const { bounce } = request;
    request.bounce = null;
    if (this.#pool.length < MAX_POOLED_OBJECT_COUNT) this.#pool.push(request);
    if (--file.pendingCount === 0 && file.closing) this.closed(file);
    if (bounce !== null) this.#giveBounce(bounce);
    if (!this.blocking) this.#startWaiting();
    if (errno === 0) bio.endIo(0);
    else bio.fail(errno, bio.device!, sector);
    return false;
  }

  #passOnWrite(file: ThreadedFile): void {
    const next = file.waitingWrites.shift();
    file.writeOnThread = next !== null;
    if (next === null) return;
    next.holdsWrite = true;
    this.#waiting.push(next);
  }
}

/** A transfer or flush through the page cache. */
function isPlain(file: ThreadedFile, bio: Bio): boolean {
  return file.directIo === null && (bio.hasData || bio.op === REQ_OP_FLUSH);
}

function firstStep(bio: Bio): number {
  switch (bio.op) {
    case REQ_OP_FLUSH:
      return STEP_SYNC;
    case REQ_OP_DISCARD:
    case REQ_OP_WRITE_ZEROES:
      return STEP_SPECIAL;
    case REQ_OP_WRITE:
      return bio.flags & REQ_PREFLUSH ? STEP_PREFLUSH : STEP_TRANSFER;
    default:
      return STEP_TRANSFER;
  }
}

function viewsOfZeroes(zeroes: Uint8Array, byteLength: number): Uint8Array[] {
  const views: Uint8Array[] = [];
  for (let left = byteLength; left > 0 && views.length < MAX_ZERO_VIEW_COUNT; left -= ZEROES_BYTE_LENGTH) {
    views.push(left < ZEROES_BYTE_LENGTH ? zeroes.subarray(0, left) : zeroes);
  }
  return views;
}

function syncFailure(path: string, errno: number): DmError {
  return new DmError(
    Errno.EIO,
    `${path}: fdatasync failed with ${errnoName(errno)} (${errnoMessage(errno)}), and what was written since the last ` +
      'good flush may be lost. Every request fails until all users close the device and it is opened again.',
  );
}

function closeDescriptor(fd: number): void {
  try {
    fs.closeSync(fd);
  } catch {
    // Linux frees the descriptor whatever close says, and what it could say about data was said by fdatasync.
  }
}
