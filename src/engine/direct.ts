// System calls on the reactor's own thread: the fastest way to bytes that are in the page cache. What would have to wait
// for a disk goes to another thread: reads are tried with RWF_NOWAIT first; writes only copy into the cache, until the
// kernel throttles whoever dirties too much: a file whose call was slow keeps its calls on threads for a while.
import {
  type Bio,
  REQ_FUA,
  REQ_NOFALLBACK,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_PREFLUSH,
} from '../block/bio.ts';
import { EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, type ExtentCallback } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import type { Reactor } from '../block/reactor.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { isInMemory } from '../files/in-memory.ts';
import { allocatePages, BounceBuffers } from './bounce.ts';
import { addressOfPiece, type IovecArray, MemoryCursor, makeIovecArray, setIovec } from './cursor.ts';
import type { EngineCapabilities, EngineFile, EngineKind, FileKind } from './engine.ts';
import type { Libc } from './libc.ts';
import type { RingCarrier } from './ring-carrier.ts';
import {
  FAR_SECTOR,
  type FileRequest,
  METHOD_NONE,
  ThreadedEngine,
  type ThreadedEngineOptions,
  ThreadedFile,
  ZEROES_BYTE_LENGTH,
} from './threads.ts';

const RWF_NOWAIT = 8;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const FALLOC_FL_ZERO_RANGE = 16;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const BLKDISCARD = 0x1277;
const BLKZEROOUT = 0x127f;

/** A call on this thread that took longer has waited for something other than the copy, or for its processor. */
const SLOW_CALL_MILLISECONDS = 4;
/** What a copy alone may take. */
const MILLISECONDS_PER_BYTE = 1 / (512 * 1024);
/** How long a slow file's calls then stay on threads. */
const OFFLOAD_MILLISECONDS = 1000;
/** How long it is looked after a slow call (and after calls on threads) whether another one sleeps. */
const SUSPICION_MILLISECONDS = 1000;
/** Slow calls may sleep this long, and this part of the time, before the file is slow: others of this thread wait meanwhile. */
const MAX_SLEPT_MILLISECONDS = 100;
const MAX_SLEPT_PART = 0.1;
/** Up to here a punch is done inline: it takes 2 us (tmpfs) to 9 us (ext4) for 4 KiB, and 75 ms for 64 MiB of ext4. */
const MAX_INLINE_PUNCH_BYTE_LENGTH = 256 * 1024;

// How STEP_SPECIAL reaches its end: the methods are tried in this order, from the first that the request allows.
const METHOD_PUNCH_HOLE = 0;
const METHOD_ZERO_RANGE = 1;
const METHOD_BLKDISCARD = 2;
const METHOD_BLKZEROOUT = 3;

/** No system call returns it. */
const MEMORY_REFUSED = -2;

export interface DirectEngineOptions extends ThreadedEngineOptions {
  reactor: Pick<Reactor, 'now'>;
  libc: Libc;
  /** What takes the place of threads: a ring that is made at its first use. */
  carrier?: RingCarrier | null;
}

/** What the direct engine has learnt about one file. */
export class DirectFile extends ThreadedFile {
  /** preadv2 takes RWF_NOWAIT here. */
  takesNowait = true;
  takesPunchHole = true;
  takesZeroRange = true;
  /** Until then (the reactor's clock) its calls go to threads; 0 for never. */
  offloadUntil = 0;
  /** Until then it is looked whether calls sleep. */
  suspectUntil = 0;
  /** How long slow calls have slept, less what they may; and when the last one ended. */
  sleptMilliseconds = 0;
  slowEnd = 0;
}

export class DirectEngine extends ThreadedEngine {
  readonly kind: EngineKind = 'direct';
  readonly capabilities: EngineCapabilities = {
    fallocate: true,
    seekHole: true,
    ioctl: true,
    locks: true,
    inline: true,
  };
  readonly #libc: Libc;
  readonly #reactor: Pick<Reactor, 'now'>;
  readonly #carrier: RingCarrier | null;
  #zeroes: Uint8Array | null = null;
  readonly #iovec: IovecArray;
  /** Of the request that is being done inline: nothing runs between its start and its end. */
  readonly #cursor: MemoryCursor;

  constructor(options: DirectEngineOptions) {
    super(options);
    this.#libc = options.libc;
    this.#reactor = options.reactor;
    this.#carrier = options.carrier ?? null;
    this.#iovec = makeIovecArray(options.libc);
    this.#cursor = new MemoryCursor(this.bounds);
  }

  override open(fd: number, kind: FileKind, path: string): EngineFile {
    const file = new DirectFile(this, fd, kind, path);
    file.neverWaits = kind === 'file' && isInMemory(fd);
    this.#carrier?.addFile();
    return file;
  }

  protected override closed(file: EngineFile): void {
    super.closed(file);
    this.#carrier?.dropFile();
  }

  protected override carrierOf(_request: FileRequest): RingCarrier | null {
    const carrier = this.#carrier;
    return carrier === null || carrier.prepare() !== null ? null : carrier;
  }

  protected override needsBounce({ cursor, file }: FileRequest): boolean {
    const { memoryAlignment, blockByteLength } = file.directIo!;
    return !cursor.isAligned(this.#libc, memoryAlignment, blockByteLength);
  }

  protected override makeBounceBuffers(): BounceBuffers {
    return new BounceBuffers(this.#libc.addressOf);
  }

  protected override get zeroes(): Uint8Array {
    this.#zeroes ??= allocatePages(this.#libc.addressOf, ZEROES_BYTE_LENGTH);
    return this.#zeroes;
  }

  override queryExtent(file: EngineFile, sector: number, sectorCount: number, done: ExtentCallback): void {
    // A block device knows no holes.
    if (file.kind === 'block') done(0, sectorCount, EXTENT_DATA);
    else findExtent(this.#libc, file.fd, sector, sectorCount, done);
  }

  override allocate(file: EngineFile, sector: number, sectorCount: number, done: (errno: number) => void): void {
    if (file.failure !== null || file.closing) {
      done(Errno.EIO);
      return;
    }
    file.pendingCount++;
    const ended = (errno: number): void => {
      if (--file.pendingCount === 0 && file.closing) this.closed(file);
      done(errno);
    };
    const offset = byteOffset(sector, 0);
    const length = byteOffset(sectorCount, 0);
    if (this.blocking) {
      ended(this.#libc.fallocate(file.fd, FALLOC_FL_KEEP_SIZE, offset, length) < 0 ? this.#libc.errno() : 0);
    } else {
      this.#libc.fallocateOnThread(file.fd, FALLOC_FL_KEEP_SIZE, offset, length, (result, errno) => {
        ended(result < 0 ? errno : 0);
      });
    }
  }

  /** In memory a write takes its page at once, for what an allocation costs; on a disk's file system that is a journal's. */
  override gainsFromAllocation(file: EngineFile): boolean {
    return file.kind === 'file' && !(file as DirectFile).neverWaits;
  }

  protected override begin(file: DirectFile, bio: Bio): void {
    if (file.directIo !== null && bio.hasData) {
      if (isWholeBlocks(bio, file.directIo.blockByteLength)) this.offload(file, bio, 0);
      else bio.fail(Errno.EINVAL, bio.device!);
    } else if (bio.op === REQ_OP_READ) {
      if (file.takesNowait && !this.blocking && bio.sector < FAR_SECTOR) this.#readCached(file, bio);
      else this.#transfer(file, bio);
    } else if (bio.op === REQ_OP_WRITE && (bio.flags & (REQ_PREFLUSH | REQ_FUA)) === 0) {
      this.#transfer(file, bio);
    } else {
      this.offload(file, bio, 0);
    }
  }

  /** Reads what is cached and hands the rest to a thread. */
  #readCached(file: DirectFile, bio: Bio): void {
    const piece = this.#singlePiece(bio);
    if (piece === 0) {
      this.#readCachedPieces(file, bio);
      return;
    }
    const { byteLength } = bio;
    const iovec = this.#iovec;
    setIovec(iovec.words, 0, piece, byteLength);
    const length = this.#libc.preadv2(file.fd, iovec.address, 1, bio.sector * SECTOR_SIZE, RWF_NOWAIT);
    if (length === byteLength) bio.endIo(0);
    else this.#readRest(file, bio, length, 0);
  }

  #readCachedPieces(file: DirectFile, bio: Bio): void {
    const cursor = this.#cursor;
    cursor.start(bio, 0);
    const length =
      cursor.fitsOneChunk || cursor.check(false) ? this.#readCachedChunks(file, bio, cursor) : MEMORY_REFUSED;
    const done = cursor.doneByteLength;
    const isWhole = cursor.leftByteLength === 0;
    cursor.release();
    if (isWhole) bio.endIo(0);
    else if (length === MEMORY_REFUSED) bio.fail(Errno.EFAULT, bio.device!);
    else this.#readRest(file, bio, length, done);
  }

  /** @returns what the last call returned, or MEMORY_REFUSED */
  #readCachedChunks(file: DirectFile, bio: Bio, cursor: MemoryCursor): number {
    let length = 0;
    while (cursor.leftByteLength > 0) {
      const count = cursor.fillIovec(this.#libc, this.#iovec);
      if (count === 0) return MEMORY_REFUSED;
      const offset = bio.sector * SECTOR_SIZE + cursor.doneByteLength;
      length = this.#libc.preadv2(file.fd, this.#iovec.address, count, offset, RWF_NOWAIT);
      if (length !== cursor.chunkByteLength) break;
      cursor.advance(length);
    }
    return length;
  }

  /** After a read without waiting gave `length` bytes (negative: an error) behind `doneByteLength` others. */
  #readRest(file: DirectFile, bio: Bio, length: number, doneByteLength: number): void {
    const errno = length < 0 ? this.#libc.errno() : 0;
    if (errno === Errno.EOPNOTSUPP || errno === Errno.ENOSYS) {
      file.takesNowait = false;
      this.#transfer(file, bio);
    } else {
      // EAGAIN: not cached. Any other error is said again on the thread, in full.
      this.offload(file, bio, doneByteLength + Math.max(0, length));
    }
  }

  /** Moves data on this thread, unless the file was slow lately. */
  #transfer(file: DirectFile, bio: Bio): void {
    const isTimed = !file.neverWaits && !this.blocking;
    const start = isTimed ? this.#reactor.now() : 0;
    if (start < file.offloadUntil && isTimed && bio.sector < FAR_SECTOR) {
      this.offload(file, bio, 0);
      return;
    }
    const sleepCount = start < file.suspectUntil && isTimed ? this.#libc.sleepCount() : -1;
    const errno = this.#moveSinglePiece(file, bio) ? 0 : this.#moveAll(file, bio);
    const firstSector = bio.sector + Math.floor(this.#cursor.doneByteLength / SECTOR_SIZE);
    if (isTimed) this.#watch(file, start, bio.byteLength, sleepCount);
    if (errno === 0) bio.endIo(0);
    else bio.fail(errno, bio.device!, firstSector);
  }

  /** The usual case. @returns false when it is another, or went wrong: {@link #moveAll} does it then */
  #moveSinglePiece(file: DirectFile, bio: Bio): boolean {
    const piece = this.#singlePiece(bio);
    if (piece === 0 || bio.sector >= FAR_SECTOR) return false;
    const { byteLength } = bio;
    const offset = bio.sector * SECTOR_SIZE;
    const length =
      bio.op === REQ_OP_READ
        ? this.#libc.pread(file.fd, piece, byteLength, offset)
        : this.#libc.pwrite(file.fd, piece, byteLength, offset);
    return length === byteLength;
  }

  /**
   * Moves all of the data on this thread: short transfers, many pieces, errors.
   *
   * @returns an errno; the cursor's doneByteLength says how far it came
   */
  #moveAll(file: DirectFile, bio: Bio): number {
    const cursor = this.#cursor;
    cursor.start(bio, 0);
    let errno = cursor.fitsOneChunk || cursor.check(false) ? 0 : Errno.EFAULT;
    while (errno === 0 && cursor.leftByteLength > 0) {
      const length = this.#transferChunk(file, bio, cursor);
      if (length > 0) cursor.advance(length);
      else if (length !== -Errno.EINTR) errno = length === 0 ? Errno.EIO : -length;
    }
    cursor.release();
    return errno;
  }

  /** @returns bytes moved, or a negative errno */
  #transferChunk(file: ThreadedFile, bio: Bio, cursor: MemoryCursor): number {
    const libc = this.#libc;
    const count = cursor.fillIovec(libc, this.#iovec);
    if (count === 0) return -Errno.EFAULT;
    const offset = byteOffset(bio.sector, cursor.doneByteLength);
    const length =
      bio.op === REQ_OP_READ
        ? libc.preadv(file.fd, this.#iovec.address, count, offset)
        : libc.pwritev(file.fd, this.#iovec.address, count, offset);
    return length < 0 ? -libc.errno() : length;
  }

  /** Address of the bio's memory where it is one piece that one call can take; 0 otherwise. */
  #singlePiece(bio: Bio): number {
    const vec = bio.vecs[bio.vecIndex];
    const { byteLength } = bio;
    if (vec === undefined || vec.byteLength - bio.vecOffset < byteLength) return 0;
    if (byteLength > this.bounds.maxTransferByteLength) return 0;
    return addressOfPiece(this.#libc, vec, bio.vecOffset, byteLength);
  }

  /**
   * Takes note of how long a call took that began at `start`. A thread that others take the processor from is slow as well,
   * above all when there are more of them than processors, and so is one that waits for the file's lock while its holder
   * has none; other threads would be no help. So a slow call only makes suspicious. The next ones are asked whether they
   * slept, and how long that comes to.
   *
   * @param sleepCount before the call; -1 where there was no suspicion
   */
  #watch(file: DirectFile, start: number, byteLength: number, sleepCount: number): void {
    const end = this.#reactor.now();
    if (end - start <= SLOW_CALL_MILLISECONDS + byteLength * MILLISECONDS_PER_BYTE) return;
    file.suspectUntil = end + SUSPICION_MILLISECONDS;
    if (sleepCount < 0 || this.#libc.sleepCount() === sleepCount) return;
    const allowed = (start - file.slowEnd) * MAX_SLEPT_PART;
    file.sleptMilliseconds = Math.max(0, file.sleptMilliseconds - allowed) + end - start;
    file.slowEnd = end;
    if (file.sleptMilliseconds < MAX_SLEPT_MILLISECONDS) return;
    file.offloadUntil = end + OFFLOAD_MILLISECONDS;
    // When it comes back, one more such call is enough.
    file.suspectUntil = file.offloadUntil + SUSPICION_MILLISECONDS;
    file.sleptMilliseconds = MAX_SLEPT_MILLISECONDS + (OFFLOAD_MILLISECONDS + SUSPICION_MILLISECONDS) * MAX_SLEPT_PART;
  }

  protected override issueFarTransfer(request: FileRequest): void {
    const length = this.#transferChunk(request.file, request.bio, request.cursor);
    request.onCall(length < 0 ? -length : 0, length);
  }

  protected override issueSpecial(request: FileRequest): void {
    const file = request.file as DirectFile;
    if (request.method === METHOD_NONE) {
      request.errno = 0;
      if (!this.nextMethod(request)) {
        request.onCall(Errno.EOPNOTSUPP, 0);
        return;
      }
    }
    if (request.method >= METHOD_BLKDISCARD) this.#issueIoctl(request);
    else this.#issueFallocate(request, file);
  }

  protected override nextMethod(request: FileRequest): boolean {
    const file = request.file as DirectFile;
    const { bio } = request;
    if (request.errno === Errno.EOPNOTSUPP || request.errno === Errno.ENOSYS) forget(file, request.method);
    while (++request.method <= METHOD_BLKZEROOUT) if (allowsMethod(file, bio, request.method)) return true;
    if (file.kind === 'block' || !file.takesPunchHole) {
      if (bio.op === REQ_OP_DISCARD) file.onUnsupported('discard');
      else if (!file.takesZeroRange || file.kind === 'block') file.onUnsupported('write-zeroes');
    }
    return false;
  }

  #issueFallocate(request: FileRequest, file: DirectFile): void {
    const { bio } = request;
    const mode =
      FALLOC_FL_KEEP_SIZE | (request.method === METHOD_PUNCH_HOLE ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
    const offset = byteOffset(bio.sector, 0);
    const length = byteOffset(bio.sectorCount, 0);
    if (this.#offloads(file, bio)) {
      if (request.carrier !== null && bio.sectorCount < FAR_SECTOR) {
        request.carrier.fallocate(request, mode);
        return;
      }
      this.#libc.fallocateOnThread(file.fd, mode, offset, length, (result, errno) => {
        request.onCall(result < 0 ? errno : 0, 0);
      });
      return;
    }
    const start = this.#reactor.now();
    const sleepCount = start < file.suspectUntil && !this.blocking ? this.#libc.sleepCount() : -1;
    const errno = this.#libc.fallocate(file.fd, mode, offset, length) < 0 ? this.#libc.errno() : 0;
    if (!this.blocking) this.#watch(file, start, 0, sleepCount);
    request.onCall(errno, 0);
  }

  #offloads(file: DirectFile, bio: Bio): boolean {
    if (this.blocking) return false;
    return bio.byteLength > MAX_INLINE_PUNCH_BYTE_LENGTH || this.#reactor.now() < file.offloadUntil;
  }

  #issueIoctl(request: FileRequest): void {
    const { bio, file } = request;
    const command = request.method === METHOD_BLKDISCARD ? BLKDISCARD : BLKZEROOUT;
    const range = new BigUint64Array([BigInt(bio.sector) * 512n, BigInt(bio.sectorCount) * 512n]);
    const address = this.#libc.addressOf(range.buffer);
    const answer = (result: number, errno: number): void => {
      // The closure keeps `range` alive for as long as the kernel may read it.
      request.onCall(result < 0 && range.length > 0 ? errno : 0, 0);
    };
    if (!this.blocking) this.#libc.ioctlOnThread(file.fd, command, address, answer);
    else {
      const result = this.#libc.ioctl(file.fd, command, address);
      answer(result, result < 0 ? this.#libc.errno() : 0);
    }
  }
}

/** What the kernel checks of a request around its cache. */
function isWholeBlocks(bio: Bio, blockByteLength: number): boolean {
  const blockSectorCount = blockByteLength / SECTOR_SIZE;
  return bio.sector % blockSectorCount === 0 && bio.sectorCount % blockSectorCount === 0;
}

function forget(file: DirectFile, method: number): void {
  if (method === METHOD_PUNCH_HOLE) file.takesPunchHole = false;
  if (method === METHOD_ZERO_RANGE) file.takesZeroRange = false;
}

function allowsMethod(file: DirectFile, bio: Bio, method: number): boolean {
  const isDiscard = bio.op === REQ_OP_DISCARD;
  const isBlock = file.kind === 'block';
  switch (method) {
    case METHOD_PUNCH_HOLE:
      // On a block device: zeroes by unmapping, where the device can. A discard there may leave anything behind.
      return file.takesPunchHole && (isDiscard ? !isBlock : (bio.flags & REQ_NOUNMAP) === 0);
    case METHOD_ZERO_RANGE:
      return file.takesZeroRange && !isDiscard && !isBlock;
    case METHOD_BLKDISCARD:
      return isDiscard && isBlock;
    default:
      // BLKZEROOUT writes zeroes where the device can't do it by itself, which a punch that failed has just told.
      return !isDiscard && isBlock && (bio.flags & (REQ_NOFALLBACK | REQ_NOUNMAP)) !== REQ_NOFALLBACK;
  }
}

/** A byte offset, exact. */
export function byteOffset(sector: number, byteCount: number): number | bigint {
  return sector < FAR_SECTOR ? sector * SECTOR_SIZE + byteCount : BigInt(sector) * 512n + BigInt(byteCount);
}

/** Sectors that are wholly below a byte offset, and the rest in bytes. */
function wholeSectors(offset: number | bigint): number {
  return typeof offset === 'bigint' ? Number(offset / 512n) : Math.floor(offset / SECTOR_SIZE);
}

function sectorsRoundedUp(offset: number | bigint): number {
  return typeof offset === 'bigint' ? Number((offset + 511n) / 512n) : Math.ceil(offset / SECTOR_SIZE);
}

/** SEEK_DATA and SEEK_HOLE, to sectors: one that is data in part is data. */
function findExtent(libc: Libc, fd: number, sector: number, sectorCount: number, done: ExtentCallback): void {
  const end = sector + sectorCount;
  const start = byteOffset(sector, 0);
  const data = libc.lseek(fd, start, SEEK_DATA);
  if (data < 0) {
    // ENXIO: no data from here on, or the file ends before here (then a read fails, and a hole would hide that).
    const isHole = libc.errno() === Errno.ENXIO && libc.lseek(fd, start, SEEK_HOLE) >= 0;
    done(0, sectorCount, isHole ? EXTENT_HOLE | EXTENT_ZERO : EXTENT_DATA);
    return;
  }
  const firstData = wholeSectors(data);
  if (firstData > sector) {
    done(0, Math.min(firstData, end) - sector, EXTENT_HOLE | EXTENT_ZERO);
    return;
  }
  const hole = libc.lseek(fd, data, SEEK_HOLE);
  const firstHole = hole < 0 ? end : Math.max(sectorsRoundedUp(hole), sector + 1);
  done(0, Math.min(firstHole, end) - sector, EXTENT_DATA);
}
