// One request under way (struct io): where it stands in its regions and memory, its bios in flight, and what failed.
// Pooled, like its bios; in steady state nothing is made for a request.
import {
  Bio,
  fillMemory,
  operationName,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
} from '../block/bio.ts';
import { type BlockDevice, submitBio } from '../block/block-device.ts';
import { MAX_DM_IO_BIO_PAGE_COUNT, MAX_POOLED_OBJECT_COUNT } from '../block/bounds.ts';
import { Errno } from '../block/errno.ts';
import { IoError } from '../block/errors.ts';
import { PAGE_SECTOR_COUNT, SECTOR_SHIFT, SECTOR_SIZE } from '../block/sector.ts';
import { type DmIoError, type FailedRegion, failedRegionsError, severalRegionsError } from './error.ts';
import { DataSource } from './memory.ts';
import type { DmIoNotify, DmIoRegion } from './types.ts';

/** What a job needs of the client it belongs to. */
export interface JobOwner {
  /** A bio of `job` has ended, and with it `pageCount` pages are in flight no more. */
  bioEnded(job: Job, pageCount: number): void;
  /** To be called by the reactor: tells the user. */
  deliver(job: Job): void;
}

class PieceBio extends Bio {
  job!: Job;
  regionIndex = 0;
  pageCount = 0;
}

const NO_JOB = null as unknown as Job;
const NO_DEVICE = null as unknown as BlockDevice;
const pieces: PieceBio[] = [];

function pieceEnded(bio: Bio): void {
  const piece = bio as PieceBio;
  const { job, pageCount } = piece;
  if (piece.status !== 0) job.pieceFailed(piece, piece.regionIndex);
  piece.release();
  piece.job = NO_JOB;
  if (pieces.length < MAX_POOLED_OBJECT_COUNT) pieces.push(piece);
  job.owner.bioEnded(job, pageCount);
}

/** Largest range of one bio without data; 0 where the device takes none. Cuts fall on the granularity where they can. */
function specialSectorCount(device: BlockDevice, op: number): number {
  const { limits } = device;
  if (op === REQ_OP_WRITE_ZEROES) return limits.maxWriteZeroesSectorCount;
  const most = limits.maxDiscardSectorCount;
  const granularity = Math.max(1, limits.discardGranularity >> SECTOR_SHIFT);
  return most < granularity ? most : most - (most % granularity);
}

export class Job {
  /** In the client's queue. */
  next: Job | null = null;
  owner!: JobOwner;
  op = 0;
  flags = 0;
  notify: DmIoNotify | null = null;
  readonly data = new DataSource();
  /** Bios in flight, and one more until the last has been sent. */
  pending = 0;
  /** Every bio has ended. */
  done = false;
  /** A synchronous call gave up on it: nobody asks for the outcome. */
  abandoned = false;
  /** A read of several regions: nothing is sent, bit 0 is the answer. */
  refused = false;
  /** For the reactor; made once. */
  readonly deliver = (): void => this.owner.deliver(this);

  regionCount = 0;
  readonly #devices: BlockDevice[] = [];
  readonly #sectors: number[] = [];
  readonly #counts: number[] = [];
  // Bits 0-31 and 32-63: no number of JavaScript's has 64 of them, and a bigint is made only where somebody sees it.
  #lowBits = 0;
  #highBits = 0;
  readonly #causes: (IoError | null)[] = [];

  // The next bio: which region, how much of the region is behind it, where its data is.
  #region = 0;
  #sentSectorCount = 0;
  #vecIndex = 0;
  #vecOffset = 0;
  /** Set by measure(). */
  #pieceSectorCount = 0;
  #piecePageCount = 0;

  start(owner: JobOwner, op: number, flags: number, notify: DmIoNotify | null, regions: readonly DmIoRegion[]): void {
    this.owner = owner;
    this.op = op;
    this.flags = flags;
    this.notify = notify;
    this.pending = 1;
    this.done = false;
    this.abandoned = false;
    this.refused = false;
    this.regionCount = regions.length;
    for (let i = 0; i < regions.length; i++) {
      const region = regions[i]!;
      this.#devices[i] = region.bdev;
      this.#sectors[i] = region.sector;
      this.#counts[i] = region.count;
    }
    this.#lowBits = 0;
    this.#highBits = 0;
    this.#region = -1;
    this.#nextRegion();
  }

  /** Lets go of everything of the caller's. */
  release(): void {
    this.data.release();
    this.notify = null;
    // Not shortened: an array that is made empty gives its memory back, and the next request would take it again.
    for (let i = 0; i < this.regionCount; i++) this.#devices[i] = NO_DEVICE;
    if (this.failed) this.#causes.length = 0;
  }

  /** Why one of the devices could not end a request while this thread waits; null where all can. */
  syncObstacle(): string | null {
    for (let i = 0; i < this.regionCount; i++) {
      if (this.#counts[i] === 0 && !this.#flushes) continue;
      const reason = this.#devices[i]!.syncObstacle?.() ?? null;
      if (reason !== null) return reason;
    }
    return null;
  }

  // Cutting into bios

  get #flushes(): boolean {
    return this.op === REQ_OP_FLUSH || (this.flags & REQ_PREFLUSH) !== 0;
  }

  get #isSpecial(): boolean {
    return this.op === REQ_OP_DISCARD || this.op === REQ_OP_WRITE_ZEROES;
  }

  #nextRegion(): void {
    this.#region++;
    this.#sentSectorCount = 0;
    this.#vecIndex = this.data.vecIndex;
    this.#vecOffset = this.data.vecOffset;
  }

  /** Goes to the next bio that is to be sent. @returns false when there is none */
  settle(): boolean {
    for (; this.#region < this.regionCount; this.#nextRegion()) {
      const left = this.#counts[this.#region]! - this.#sentSectorCount;
      if (left === 0 && !(this.#sentSectorCount === 0 && this.#flushes)) continue;
      if (this.#isSpecial && specialSectorCount(this.#devices[this.#region]!, this.op) === 0) {
        this.#fail(Errno.EOPNOTSUPP);
        continue;
      }
      return true;
    }
    return false;
  }

  /** Says how large the next bio is, with `maxPageCount` as its bound where there is a choice. @returns its pages */
  measure(maxPageCount: number): number {
    const device = this.#devices[this.#region]!;
    const left = this.#counts[this.#region]! - this.#sentSectorCount;
    if (this.op === REQ_OP_FLUSH || left === 0 || this.#isSpecial) {
      this.#pieceSectorCount = this.#isSpecial ? Math.min(left, specialSectorCount(device, this.op)) : 0;
      this.#piecePageCount = 1;
    } else {
      this.#pieceSectorCount = this.#measureData(left, maxPageCount, device.limits.logicalBlockSize);
      this.#piecePageCount = Math.ceil(this.#pieceSectorCount / PAGE_SECTOR_COUNT);
    }
    return this.#piecePageCount;
  }

  /** Cuts fall between logical blocks of the device, so one block is the least there can be. @returns sectors */
  #measureData(leftSectorCount: number, maxPageCount: number, logicalBlockSize: number): number {
    const pageCount = Math.min(maxPageCount, MAX_DM_IO_BIO_PAGE_COUNT);
    const unit = Math.min(logicalBlockSize, leftSectorCount * SECTOR_SIZE);
    const wanted = Math.max(unit, Math.min(leftSectorCount, pageCount * PAGE_SECTOR_COUNT) * SECTOR_SIZE);
    const { vecs } = this.data;
    let byteLength = -this.#vecOffset;
    let count = 0;
    // A block that lies in very many small pieces gets them all.
    while (byteLength < wanted && (count < MAX_DM_IO_BIO_PAGE_COUNT || byteLength < unit)) {
      byteLength += vecs[this.#vecIndex + count++]!.byteLength;
    }
    byteLength = Math.min(byteLength, wanted);
    if (byteLength === leftSectorCount * SECTOR_SIZE) return leftSectorCount;
    return Math.max(unit, byteLength - (byteLength % unit)) / SECTOR_SIZE;
  }

  /** Sends the bio that measure() was about. It may end in this call. */
  send(): void {
    const region = this.#region;
    const device = this.#devices[region]!;
    const sectorCount = this.#pieceSectorCount;
    const piece = pieces.pop() ?? new PieceBio();
    piece.onEnd = pieceEnded;
    piece.job = this;
    piece.regionIndex = region;
    piece.pageCount = this.#piecePageCount;
    // An empty bio with PREFLUSH is a flush.
    if (this.#counts[region] === 0 || this.op === REQ_OP_FLUSH) {
      piece.reset(REQ_OP_FLUSH, this.flags & ~REQ_PREFLUSH, device, 0, 0);
      this.#nextRegion();
    } else {
      piece.reset(this.op, this.flags, device, this.#sectors[region]! + this.#sentSectorCount, sectorCount);
      if (piece.hasData) {
        piece.vecs = this.data.vecs;
        piece.vecIndex = this.#vecIndex;
        piece.vecOffset = this.#vecOffset;
        this.#advanceData(sectorCount * SECTOR_SIZE);
      }
      this.#sentSectorCount += sectorCount;
      if (this.#sentSectorCount === this.#counts[region]) this.#nextRegion();
    }
    this.pending++;
    submitBio(piece);
  }

  #advanceData(byteLength: number): void {
    const { vecs } = this.data;
    let offset = this.#vecOffset + byteLength;
    while (this.#vecIndex < vecs.length && offset >= vecs[this.#vecIndex]!.byteLength) {
      offset -= vecs[this.#vecIndex]!.byteLength;
      this.#vecIndex++;
    }
    this.#vecOffset = offset;
  }

  // Outcome

  /** The next bio's region fails without it. */
  #fail(errno: number): void {
    const device = this.#devices[this.#region]!;
    const sector = this.#sectors[this.#region]! + this.#sentSectorCount;
    this.#note(this.#region, new IoError(errno, operationName(this.op), device.label ?? device.name, sector));
  }

  pieceFailed(piece: Bio, regionIndex: number): void {
    if (piece.op === REQ_OP_READ) zeroFill(piece);
    this.#note(regionIndex, piece.toError(this.#devices[regionIndex]!));
  }

  /** Sets the region's bit. Of its failures the one at the lowest sector is kept. */
  #note(regionIndex: number, cause: IoError): void {
    if (regionIndex < 32) this.#lowBits |= 1 << regionIndex;
    else this.#highBits |= 1 << (regionIndex - 32);
    while (this.#causes.length <= regionIndex) this.#causes.push(null);
    const known = this.#causes[regionIndex];
    if (known === null || known === undefined || cause.sector < known.sector) this.#causes[regionIndex] = cause;
  }

  get failed(): boolean {
    return this.refused || this.#lowBits !== 0 || this.#highBits !== 0;
  }

  get errorBits(): bigint {
    if (this.refused) return 1n;
    if (this.#lowBits === 0 && this.#highBits === 0) return 0n;
    return (BigInt(this.#highBits >>> 0) << 32n) | BigInt(this.#lowBits >>> 0);
  }

  /** What failed where; null where nothing did. */
  error(): DmIoError | null {
    if (this.refused) return severalRegionsError(this.op, this.regionCount);
    if (!this.failed) return null;
    const failed: FailedRegion[] = [];
    for (let index = 0; index < this.#causes.length; index++) {
      const cause = this.#causes[index];
      if (cause === null || cause === undefined) continue;
      const region = { bdev: this.#devices[index]!, sector: this.#sectors[index]!, count: this.#counts[index]! };
      failed.push({ index, region, cause });
    }
    return failedRegionsError(this.op, this.regionCount, this.errorBits, failed);
  }
}

/** No stale bytes where a read failed: they could be taken for what it read. */
function zeroFill(bio: Bio): void {
  try {
    fillMemory(bio, 0);
  } catch {
    // The memory was transferred away meanwhile: nobody can take it for anything.
  }
}
