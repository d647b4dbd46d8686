// Requests on ranges of any length, in pieces that the device takes (the kernel's block/blk-lib.c): zero-out, by
// write-zeroes where the device has it and by writing pages of zeroes where it doesn't or turns out not to; and discard.
// With a long range on a device that answers at once, other work gets its turn between pieces.
import {
  Bio,
  type BioVec,
  REQ_NOFALLBACK,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
} from './bio.ts';
import { type BlockDevice, submitBio } from './block-device.ts';
import { Errno } from './errno.ts';
import type { Reactor } from './reactor.ts';
import { SECTOR_SHIFT } from './sector.ts';

const ZERO_PAGE_BYTE_LENGTH = 65536;
const ZERO_VEC_COUNT = 16;
/** One write of zeroes: 1 MiB. */
const MAX_WRITE_SECTOR_COUNT = (ZERO_PAGE_BYTE_LENGTH * ZERO_VEC_COUNT) >> SECTOR_SHIFT;
/** Written without a turn for others: 8 MiB, a few milliseconds. */
const MAX_TURN_SECTOR_COUNT = 8 * MAX_WRITE_SECTOR_COUNT;

/** The same in time: pieces may be long on what is below, or the machine busy. */
const MAX_TURN_MILLISECONDS = 2;

/** What a piece without data counts for, in the same measure: 128 of them make a turn. */
const TURN_COST_OF_A_PIECE = MAX_TURN_SECTOR_COUNT / 128;

let zeroVecs: readonly BioVec[] | null = null;

/** One shared page of zeroes, many times over. Nothing below changes the memory of a write. */
function sharedZeroVecs(): readonly BioVec[] {
  if (zeroVecs === null) {
    const vec: BioVec = { page: new Uint8Array(ZERO_PAGE_BYTE_LENGTH), offset: 0, byteLength: ZERO_PAGE_BYTE_LENGTH };
    zeroVecs = new Array<BioVec>(ZERO_VEC_COUNT).fill(vec);
  }
  return zeroVecs;
}

/** Tells whether `bio` is a write of zeroes that a {@link RangeRequest} made for a device without write-zeroes. */
export function isZeroWrite(bio: Bio): boolean {
  return bio.op === REQ_OP_WRITE && bio.vecs === zeroVecs;
}

export interface ZeroOutOptions {
  /** The range stays provisioned: nothing is unmapped (REQ_NOUNMAP). */
  noUnmap?: boolean;
  /** Ends only when the zeroes are durable. */
  fua?: boolean;
  /** EOPNOTSUPP rather than writing pages (BLKDEV_ZERO_NOFALLBACK). */
  noFallback?: boolean;
}

/** One range at a time; may be used again, also from `onEnd`. */
export class RangeRequest {
  /** The first failing sector on the device; -1 where nothing failed. */
  errorSector = -1;
  readonly #reactor: Reactor;
  readonly #bio = new Bio();
  #device: BlockDevice | null = null;
  #sector = 0;
  #left = 0;
  #op: number = REQ_OP_WRITE_ZEROES;
  #flags = 0;
  #fua = false;
  #noFallback = false;
  #onEnd: (errno: number) => void = () => {};
  #running = false;
  #pieceEnded = false;
  #turnSectorCount = 0;
  #turnBegin = 0;

  readonly #isAbandoned: (() => boolean) | null;

  /** @param isAbandoned asked between turns: where true, the rest is left, and it ends with ESHUTDOWN */
  constructor(reactor: Reactor, isAbandoned: (() => boolean) | null = null) {
    this.#reactor = reactor;
    this.#isAbandoned = isAbandoned;
    this.#bio.onEnd = () => this.#onPieceEnd();
  }

  /**
   * Makes `sectorCount` sectors from `sector` on read as zeroes. `onEnd` is called once, in this call or later: 0, or
   * the errno of the first failure (the sectors before {@link errorSector} are then zero).
   */
  zeroOut(
    device: BlockDevice,
    sector: number,
    sectorCount: number,
    options: ZeroOutOptions,
    onEnd: (errno: number) => void,
  ): void {
    this.#noFallback = options.noFallback ?? false;
    const hasWriteZeroes = device.limits.maxWriteZeroesSectorCount > 0;
    this.#op = hasWriteZeroes || this.#noFallback ? REQ_OP_WRITE_ZEROES : REQ_OP_WRITE;
    this.#flags = (options.noUnmap ? REQ_NOUNMAP : 0) | (this.#noFallback ? REQ_NOFALLBACK : 0);
    this.#start(device, sector, sectorCount, options.fua ?? false, onEnd);
  }

  /** Discards the range; EOPNOTSUPP where the device can't. With `fua` it ends when that is durable. */
  discard(
    device: BlockDevice,
    sector: number,
    sectorCount: number,
    fua: boolean,
    onEnd: (errno: number) => void,
  ): void {
    this.#noFallback = true;
    this.#op = REQ_OP_DISCARD;
    this.#flags = 0;
    this.#start(device, sector, sectorCount, fua, onEnd);
  }

  #start(device: BlockDevice, sector: number, sectorCount: number, fua: boolean, onEnd: (errno: number) => void): void {
    if (this.#device !== null) throw new Error('a range request was started while it ran');
    this.#device = device;
    this.#sector = sector;
    this.#left = sectorCount;
    this.#fua = fua;
    this.#onEnd = onEnd;
    this.errorSector = -1;
    this.#turnSectorCount = 0;
    this.#run();
  }

  /** Submits piece after piece; one that ends later calls back in here. A loop, so that a long range needs no stack. */
  #run(): void {
    this.#running = true;
    do {
      if (this.#isTurnOver()) {
        this.#turnSectorCount = 0;
        this.#running = false;
        this.#reactor.afterSockets(this.#next);
        return;
      }
      this.#pieceEnded = false;
      this.#submitPiece();
    } while (this.#pieceEnded && this.#takePiece());
    this.#running = false;
  }

  readonly #next = (): void => {
    if (this.#isAbandoned?.() !== true) {
      this.#run();
      return;
    }
    this.errorSector = this.#sector;
    this.#finish(Errno.ESHUTDOWN);
  };

  #isTurnOver(): boolean {
    if (this.#turnSectorCount === 0) {
      this.#turnBegin = this.#reactor.now();
      return false;
    }
    return (
      this.#turnSectorCount >= MAX_TURN_SECTOR_COUNT || this.#reactor.now() - this.#turnBegin >= MAX_TURN_MILLISECONDS
    );
  }

  #submitPiece(): void {
    const device = this.#device!;
    const bio = this.#bio;
    if (this.#left === 0) {
      bio.reset(REQ_OP_FLUSH, 0, device, 0, 0);
    } else {
      bio.reset(this.#op, this.#flags, device, this.#sector, Math.min(this.#left, this.#maxSectorCount(device)));
      if (this.#op === REQ_OP_WRITE) {
        bio.vecs = sharedZeroVecs();
        this.#turnSectorCount += bio.sectorCount;
      } else {
        this.#turnSectorCount += TURN_COST_OF_A_PIECE;
      }
    }
    submitBio(bio);
  }

  /** How long a piece the device takes; one that has stopped taking any gets it whole, and refuses it. */
  #maxSectorCount(device: BlockDevice): number {
    const { limits } = device;
    if (this.#op === REQ_OP_WRITE) return MAX_WRITE_SECTOR_COUNT;
    if (this.#op === REQ_OP_WRITE_ZEROES) return limits.maxWriteZeroesSectorCount || this.#left;
    const most = limits.maxDiscardSectorCount || this.#left;
    const granularity = Math.max(1, limits.discardGranularity >> SECTOR_SHIFT);
    return Math.max(most - (most % granularity), Math.min(most, granularity));
  }

  #onPieceEnd(): void {
    this.#pieceEnded = true;
    if (!this.#running && this.#takePiece()) this.#run();
  }

  /** Accounts for an ended piece; false when that was the last. */
  #takePiece(): boolean {
    const bio = this.#bio;
    if (bio.status === Errno.EOPNOTSUPP && bio.op === REQ_OP_WRITE_ZEROES && !this.#noFallback) {
      this.#op = REQ_OP_WRITE;
      this.#flags = 0;
      return true;
    }
    if (bio.status !== 0 || bio.op === REQ_OP_FLUSH) {
      this.errorSector = bio.status === 0 ? -1 : bio.errorSector;
      this.#finish(bio.status);
      return false;
    }
    this.#sector += bio.sectorCount;
    this.#left -= bio.sectorCount;
    if (this.#left > 0 || this.#fua) return true;
    this.#finish(0);
    return false;
  }

  #finish(errno: number): void {
    const onEnd = this.#onEnd;
    this.#device = null;
    this.#running = false;
    this.#bio.release();
    onEnd(errno);
  }
}
