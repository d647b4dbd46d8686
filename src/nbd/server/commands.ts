// What each command is on the device. Requests begin and end on any byte: a READ reads the blocks around what was asked,
// a WRITE reads the blocks at its ends, puts its data between and writes them back with nobody else in them (RangeLock);
// a TRIM leaves its ends alone, and WRITE_ZEROES writes zeroes there.
import { REQ_FUA, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE } from '../../block/bio.ts';
import { submitBio } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import type { Reactor } from '../../block/reactor.ts';
import { SECTOR_SHIFT, SECTOR_SIZE } from '../../block/sector.ts';
import { RangeRequest } from '../../block/zeroout.ts';
import {
  CMD_BLOCK_STATUS,
  CMD_CACHE,
  CMD_FLAG_FAST_ZERO,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_FLAG_REQ_ONE,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
} from '../protocol/constants.ts';
import { CACHE_PIECE_BYTE_LENGTH, MAX_CACHE_BYTE_LENGTH } from './bounds.ts';
import type { MemoryAccount } from './buffer-pool.ts';
import type { RequestLimits } from './check.ts';
import { ExtentList } from './extents.ts';
import { RangeClaim, type RangeLock, rangeLockOf } from './range-lock.ts';
import type { Request } from './request.ts';

/** What the end of a request's bio, claim or part leads to. */
const STEP_DATA = 0;
const STEP_HEAD = 1;
const STEP_TAIL = 2;
const STEP_GOOD_PART = 3;
const STEP_CACHE = 4;
const STEP_MIDDLE = 5;
const STEP_EDGES = 6;

export interface CommandHost {
  readonly reactor: Reactor;
  readonly account: MemoryAccount;
  /** A reply can say what is good of a READ that failed. */
  readonly hasChunks: boolean;
  /** The client is gone: nothing can be answered. */
  readonly isAbandoned: boolean;
  /** The client is gone, or the server is to end: what can be answered short is. */
  readonly isHurried: boolean;
  /** A request that is a part of `parent`; it is to be started. */
  newPart(parent: Request): Request;
  startPart(part: Request): void;
  /** The request has ended, with its `errno`. */
  onEnd(request: Request): void;
  /** The device threw, in a call that nobody waits for. */
  onThrow(request: Request, error: unknown): void;
}

let zeroes = new Uint8Array(8192);

function zeroesOf(byteLength: number): Uint8Array {
  if (zeroes.byteLength < byteLength) zeroes = new Uint8Array(byteLength);
  return zeroes;
}

export class Commands {
  readonly #host: CommandHost;
  readonly #limits: RequestLimits;
  readonly #lock: RangeLock;
  readonly #mask: number;

  constructor(host: CommandHost, limits: RequestLimits) {
    this.#host = host;
    this.#limits = limits;
    this.#lock = rangeLockOf(limits.device);
    this.#mask = limits.alignmentMask;
  }

  /** Gives it to the device. It ends in this call or later; an exception is the device's. */
  start(request: Request): void {
    if (request.byteLength === 0 && request.command !== CMD_FLUSH) {
      const refusal = request.command === CMD_BLOCK_STATUS ? Errno.EINVAL : 0;
      this.#end(request, request.isRefused ? Errno.EOPNOTSUPP : refusal, -1);
      return;
    }
    switch (request.command) {
      case CMD_READ:
        this.#read(request);
        break;
      case CMD_WRITE:
        this.#write(request);
        break;
      case CMD_FLUSH:
        request.step = STEP_DATA;
        request.bio.reset(REQ_OP_FLUSH, 0, this.#limits.device, 0, 0);
        submitBio(request.bio);
        break;
      case CMD_TRIM:
        this.#trim(request);
        break;
      case CMD_WRITE_ZEROES:
        this.#writeZeroes(request);
        break;
      case CMD_CACHE:
        this.#cache(request);
        break;
      default:
        this.#blockStatus(request);
    }
  }

  /** Bytes of the whole blocks around a READ or WRITE. */
  coverByteLength(request: Request): number {
    return (request.head + request.byteLength + this.#mask) & ~this.#mask;
  }

  #end(request: Request, errno: number, errorSector: number): void {
    request.errno = errno;
    request.errorSector = errorSector;
    this.#host.onEnd(request);
  }

  /** The end of the request's own bio. Comes from inside a device: nothing may be thrown into it. */
  readonly onBioEnd = (request: Request): void => {
    if (request.isLost) return;
    try {
      this.#onStep(request);
    } catch (error) {
      this.#host.onThrow(request, error);
    }
  };

  #onStep(request: Request): void {
    const { status, errorSector } = request.bio;
    switch (request.step) {
      case STEP_DATA:
        if (request.command === CMD_READ && status !== 0) this.#onReadFailed(request, status, errorSector);
        else if (request.command === CMD_WRITE) this.#endWrite(request, status, errorSector);
        else this.#end(request, status, errorSector);
        break;
      case STEP_GOOD_PART:
        this.#onGoodPart(request);
        break;
      case STEP_CACHE:
        this.#onCachePiece(request);
        break;
      default:
        if (status !== 0) this.#endWrite(request, status, errorSector);
        else if (request.step === STEP_HEAD) this.#readTail(request);
        else this.#writeAround(request);
    }
  }

  #read(request: Request): void {
    request.step = STEP_DATA;
    const sectorCount = this.coverByteLength(request) >> SECTOR_SHIFT;
    request.bio.reset(REQ_OP_READ, 0, this.#limits.device, request.sector, sectorCount);
    submitBio(request.bio);
  }

  /**
   * Reads what is before the failing sector once more, and by itself: a device that fails a request may have transferred
   * nothing of it, and what was in the memory before is nobody's business.
   */
  #onReadFailed(request: Request, errno: number, errorSector: number): void {
    const blockSectorCount = (this.#mask + 1) >> SECTOR_SHIFT;
    const sectorCount = errorSector - request.sector;
    const goodSectorCount = sectorCount - (sectorCount % blockSectorCount);
    const goodByteLength = goodSectorCount * SECTOR_SIZE - request.head;
    if (!this.#host.hasChunks || errorSector < 0 || goodByteLength <= 0 || goodByteLength >= request.byteLength) {
      this.#end(request, errno, errorSector);
      return;
    }
    request.errno = errno;
    request.errorSector = errorSector;
    request.goodByteLength = goodByteLength;
    request.step = STEP_GOOD_PART;
    request.bio.reset(REQ_OP_READ, 0, this.#limits.device, request.sector, goodSectorCount);
    submitBio(request.bio);
  }

  #onGoodPart(request: Request): void {
    const { status, errorSector } = request.bio;
    if (status !== 0) {
      request.goodByteLength = 0;
      if (errorSector >= 0) request.errorSector = Math.min(request.errorSector, errorSector);
    }
    this.#host.onEnd(request);
  }

  #write(request: Request): void {
    request.step = STEP_DATA;
    if (((request.head | request.byteLength) & this.#mask) !== 0) {
      this.#claim(request, this.coverByteLength(request) >> SECTOR_SHIFT, true);
      return;
    }
    request.epoch = this.#lock.tryEnter();
    if (request.epoch >= 0) this.#submitWrite(request);
    else this.#claim(request, request.byteLength >> SECTOR_SHIFT, false);
  }

  #claim(request: Request, sectorCount: number, isExclusive: boolean): void {
    request.claim ??= new RangeClaim(() => this.#onGranted(request));
    const { claim } = request;
    claim.firstSector = request.sector;
    claim.endSector = request.sector + sectorCount;
    claim.isExclusive = isExclusive;
    this.#lock.claim(claim);
  }

  #onGranted(request: Request): void {
    const claim = request.claim!;
    if (claim.isExclusive) request.isExclusive = true;
    else request.epoch = claim.epoch;
    try {
      if (claim.isExclusive) this.#readHead(request);
      else if (request.command === CMD_WRITE) this.#submitWrite(request);
      else this.#submitRange(request);
    } catch (error) {
      this.#host.onThrow(request, error);
    }
  }

  /** Gives back the request's place among those that change the device. */
  unlock(request: Request): void {
    if (request.isExclusive) {
      request.isExclusive = false;
      this.#lock.release(request.claim!);
    } else if (request.epoch >= 0) {
      const { epoch } = request;
      request.epoch = -1;
      this.#lock.leave(epoch);
    }
  }

  #submitWrite(request: Request): void {
    const flags = request.isFua ? REQ_FUA : 0;
    const sectorCount = this.coverByteLength(request) >> SECTOR_SHIFT;
    request.bio.reset(REQ_OP_WRITE, flags, this.#limits.device, request.sector, sectorCount);
    submitBio(request.bio);
  }

  #endWrite(request: Request, errno: number, errorSector: number): void {
    if (request.edges !== null) this.#host.account.give(request.edges);
    request.edges = null;
    this.unlock(request);
    this.#end(request, errno, errorSector);
  }

  /** The first block, unless the WRITE begins with it and goes on. */
  #readHead(request: Request): void {
    const blockByteLength = this.#mask + 1;
    request.edges = this.#host.account.take(2 * blockByteLength);
    request.step = STEP_HEAD;
    if (request.head > 0 || this.coverByteLength(request) === blockByteLength)
      this.#readEdge(request, 0, request.sector);
    else this.#readTail(request);
  }

  #readTail(request: Request): void {
    const blockByteLength = this.#mask + 1;
    const coverByteLength = this.coverByteLength(request);
    request.step = STEP_TAIL;
    if (coverByteLength > blockByteLength && ((request.head + request.byteLength) & this.#mask) !== 0) {
      const before = (coverByteLength - blockByteLength) >> SECTOR_SHIFT;
      this.#readEdge(request, blockByteLength, request.sector + before);
    } else {
      this.#writeAround(request);
    }
  }

  #readEdge(request: Request, offset: number, sector: number): void {
    const blockByteLength = this.#mask + 1;
    request.setEdgeMemory(request.edges!.bytes, offset, blockByteLength);
    request.bio.reset(REQ_OP_READ, 0, this.#limits.device, sector, blockByteLength >> SECTOR_SHIFT);
    submitBio(request.bio);
  }

  #writeAround(request: Request): void {
    const blockByteLength = this.#mask + 1;
    const tail = (request.head + request.byteLength) & this.#mask;
    const lastBlock = this.coverByteLength(request) === blockByteLength ? 0 : blockByteLength;
    const tailByteLength = tail === 0 ? 0 : blockByteLength - tail;
    request.wrapMemory(request.edges!.bytes, request.head, lastBlock + tail, tailByteLength);
    request.step = STEP_DATA;
    this.#submitWrite(request);
  }

  /** Whole blocks inside the request: leaves off what is not whole at its ends. */
  #shrinkToBlocks(request: Request): void {
    const blockByteLength = this.#mask + 1;
    const end = request.head + request.byteLength;
    const start = request.head > 0 ? blockByteLength : 0;
    request.byteLength = Math.max(0, end - (end % blockByteLength) - start);
    request.sector += start >> SECTOR_SHIFT;
    request.head = 0;
  }

  #trim(request: Request): void {
    this.#shrinkToBlocks(request);
    if (request.byteLength === 0) this.#end(request, 0, -1);
    else this.#changeRange(request);
  }

  /** TRIM or WRITE_ZEROES of whole blocks. */
  #changeRange(request: Request): void {
    request.step = STEP_DATA;
    request.epoch = this.#lock.tryEnter();
    if (request.epoch >= 0) this.#submitRange(request);
    else this.#claim(request, request.byteLength / SECTOR_SIZE, false);
  }

  #submitRange(request: Request): void {
    const { flags, sector } = request;
    const { device } = this.#limits;
    const sectorCount = request.byteLength / SECTOR_SIZE;
    request.range ??= new RangeRequest(this.#host.reactor, this.#isAbandoned);
    const onEnd = (errno: number): void => this.#onRangeEnd(request, errno);
    if (request.command === CMD_TRIM) {
      request.range.discard(device, sector, sectorCount, request.isFua, onEnd);
    } else {
      const noUnmap = (flags & CMD_FLAG_NO_HOLE) !== 0;
      const noFallback = (flags & CMD_FLAG_FAST_ZERO) !== 0;
      request.range.zeroOut(device, sector, sectorCount, { fua: request.isFua, noUnmap, noFallback }, onEnd);
    }
  }

  #onRangeEnd(request: Request, errno: number): void {
    if (request.isLost) return;
    try {
      // Trimming is a wish: a device that has lost the ability since the handshake has fulfilled it as it is.
      const granted = request.command === CMD_TRIM && errno === Errno.EOPNOTSUPP;
      this.unlock(request);
      this.#end(request, granted ? 0 : errno, request.range!.errorSector);
    } catch (error) {
      this.#host.onThrow(request, error);
    }
  }

  #writeZeroes(request: Request): void {
    const isWhole = (request.head & this.#mask) === 0 && request.byteLength % (this.#mask + 1) === 0;
    if (isWhole) this.#changeRange(request);
    else this.#zeroParts(request);
  }

  /** The whole blocks first: that tells whether FAST_ZERO can be granted, before anything is changed. */
  #zeroParts(request: Request): void {
    const middle = this.#host.newPart(request);
    this.#shrinkToBlocks(middle);
    request.isComplete = false;
    request.step = STEP_MIDDLE;
    // A part of no length ends at once, and leads on to the edges. But then this is a write like any other, and no faster.
    middle.isRefused = middle.byteLength === 0 && (request.flags & CMD_FLAG_FAST_ZERO) !== 0;
    this.#host.startPart(middle);
  }

  /** A part has ended, and counts no more. True when that was the last, and the whole has ended. */
  onPartEnd(request: Request, part: Request): boolean {
    if (
      part.errno !== 0 &&
      (request.errno === 0 || (part.errorSector >= 0 && part.errorSector < request.errorSector))
    ) {
      request.errno = part.errno;
      request.errorSector = part.errorSector;
    }
    if (request.command === CMD_WRITE_ZEROES && request.step === STEP_MIDDLE) {
      request.step = STEP_EDGES;
      if (request.errno === 0) this.#zeroEdges(request);
      request.isComplete = true;
    }
    return request.isComplete && request.partCount === 0;
  }

  #zeroEdges(request: Request): void {
    const blockByteLength = this.#mask + 1;
    const { head, byteLength } = request;
    const end = head + byteLength;
    const tail = end % blockByteLength;
    const headByteLength = head === 0 ? 0 : Math.min(byteLength, blockByteLength - head);
    if (headByteLength > 0) this.#zeroEdge(request, 0, head, headByteLength);
    if (tail > 0 && end - tail > head) this.#zeroEdge(request, (end - tail) / SECTOR_SIZE, 0, tail);
    else if (tail > 0 && head === 0) this.#zeroEdge(request, 0, 0, tail);
  }

  #zeroEdge(request: Request, sectorOffset: number, head: number, byteLength: number): void {
    const part = this.#host.newPart(request);
    part.command = CMD_WRITE;
    part.flags = request.flags & CMD_FLAG_FUA;
    part.sector = request.sector + sectorOffset;
    part.head = head;
    part.byteLength = byteLength;
    part.setMemory(zeroesOf(byteLength), 0, byteLength);
    this.#host.startPart(part);
  }

  /** Reads and throws away, a piece at a time: what is below keeps what it wants to keep. */
  #cache(request: Request): void {
    request.step = STEP_CACHE;
    request.buffer = this.#host.account.take(CACHE_PIECE_BYTE_LENGTH);
    this.#cachePiece(request, request.sector);
  }

  #cachePiece(request: Request, sector: number): void {
    const done = (sector - request.sector) * SECTOR_SIZE;
    const wanted = Math.min(request.head + request.byteLength, MAX_CACHE_BYTE_LENGTH) - done;
    const byteLength = Math.min((Math.max(0, wanted) + this.#mask) & ~this.#mask, CACHE_PIECE_BYTE_LENGTH);
    if (byteLength === 0) {
      this.#end(request, 0, -1);
      return;
    }
    request.setMemory(request.buffer!.bytes, 0, byteLength);
    request.bio.reset(REQ_OP_READ, 0, this.#limits.device, sector, byteLength >> SECTOR_SHIFT);
    submitBio(request.bio);
  }

  #onCachePiece(request: Request): void {
    const { status, errorSector, sector, sectorCount } = request.bio;
    if (status !== 0) {
      this.#end(request, status, errorSector);
      return;
    }
    this.#host.reactor.afterSockets(() => {
      try {
        this.#cachePiece(request, sector + sectorCount);
      } catch (error) {
        this.#host.onThrow(request, error);
      }
    });
  }

  readonly #isAbandoned = (): boolean => this.#host.isAbandoned;

  readonly #isHurried = (): boolean => this.#host.isHurried;

  #blockStatus(request: Request): void {
    request.extents ??= new ExtentList(this.#host.reactor, this.#isHurried);
    const { extents, sector, head, byteLength, flags } = request;
    const onlyOne = (flags & CMD_FLAG_REQ_ONE) !== 0;
    extents.query(this.#limits.device, this.#limits.contextIds, sector, head, byteLength, onlyOne, (errno) => {
      if (request.isLost) return;
      this.#end(request, errno, extents.errorSector);
    });
  }
}
