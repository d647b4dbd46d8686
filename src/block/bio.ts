// A bio: one request to one block device, as in the kernel (include/linux/blk_types.h, struct bio).
// It names a device, a range of sectors and memory, and it ends by exactly one call of endIo(errno). Whoever made it owns
// it: the layers below read it, may move its `device` and `sector` when it is a clone of theirs, and never keep it
// after endIo. Bios are made to be pooled: reset() makes an ended one as new.
import type { BlockDevice } from './block-device.ts';
import { Errno } from './errno.ts';
import { IoError } from './errors.ts';
import { SECTOR_SHIFT } from './sector.ts';

export const REQ_OP_READ = 0;
export const REQ_OP_WRITE = 1;
/** An empty flush: what this device acknowledged before is durable when it ends. Its range is ignored. */
export const REQ_OP_FLUSH = 2;
export const REQ_OP_DISCARD = 3;
export const REQ_OP_WRITE_ZEROES = 9;

/** Flush the device before the data of this write goes out. */
export const REQ_PREFLUSH = 1 << 0;
/** End only when the data of this write is durable. */
export const REQ_FUA = 1 << 1;
/** Write-zeroes: the range stays provisioned. */
export const REQ_NOUNMAP = 1 << 2;
/** Somebody waits for it. */
export const REQ_SYNC = 1 << 3;
/** Read-ahead: may fail at once where it would have to wait. */
export const REQ_RAHEAD = 1 << 4;
/** Write-zeroes: fail with EOPNOTSUPP rather than take as long as a write would. */
export const REQ_NOFALLBACK = 1 << 5;

const OPERATION_NAMES = new Map<number, string>([
  [REQ_OP_READ, 'read'],
  [REQ_OP_WRITE, 'write'],
  [REQ_OP_FLUSH, 'flush'],
  [REQ_OP_DISCARD, 'discard'],
  [REQ_OP_WRITE_ZEROES, 'write-zeroes'],
]);

/** `read`, `write`, `flush`, `discard`, `write-zeroes`. */
export function operationName(op: number): string {
  return OPERATION_NAMES.get(op) ?? `operation ${op}`;
}

/** A piece of memory: `byteLength` bytes of `page` from `offset` (struct bio_vec). A page may be of any size. */
export interface BioVec {
  page: Uint8Array;
  offset: number;
  byteLength: number;
}

const NO_VECS: readonly BioVec[] = [];

function noOwner(bio: Bio): void {
  throw new Error(`a ${operationName(bio.op)} bio ended that nobody waits for`);
}

/**
 * One request to one device.
 *
 * The memory is `vecs`, from byte `vecOffset` of piece `vecIndex` on, for `byteLength` bytes; the list may be longer.
 * The iterator (vecIndex, vecOffset) belongs to the bio, the list may be shared by many: no layer below changes either.
 */
export class Bio {
  op: number = REQ_OP_READ;
  flags = 0;
  device: BlockDevice | null = null;
  /** First sector, on `device`. */
  sector = 0;
  sectorCount = 0;
  vecs: readonly BioVec[] = NO_VECS;
  vecIndex = 0;
  vecOffset = 0;
  /** Which copy this is, where a target asked for several of one request (dm_bio_get_target_bio_nr). */
  targetBioNumber = 0;
  /** Called by endIo, once. */
  onEnd: (bio: Bio) => void = noOwner;
  /** The owner's. */
  context: unknown = null;
  /** The errno it ended with; 0 for success. Only to be read once it ended. */
  status = 0;
  /** First failing sector, counted on the device it was submitted to; -1 where nothing failed. */
  errorSector = -1;
  /** The bottom-most device that failed it, and the sector there. */
  errorDevice: BlockDevice | null = null;
  errorDeviceSector = -1;
  /** For whoever has the bio queued at the moment. */
  next: Bio | null = null;
  #ended = false;

  get byteLength(): number {
    return this.sectorCount * (1 << SECTOR_SHIFT);
  }

  /** Moves data (so that `vecs` matters). */
  get hasData(): boolean {
    return this.op === REQ_OP_READ || this.op === REQ_OP_WRITE;
  }

  /** Makes an ended (or new) bio ready for another use; memory, owner and range are given anew by the caller. */
  reset(op: number, flags: number, device: BlockDevice | null, sector: number, sectorCount: number): void {
    this.op = op;
    this.flags = flags;
    this.device = device;
    this.sector = sector;
    this.sectorCount = sectorCount;
    this.vecIndex = 0;
    this.vecOffset = 0;
    this.targetBioNumber = 0;
    this.status = 0;
    this.errorSector = -1;
    this.errorDevice = null;
    this.errorDeviceSector = -1;
    this.next = null;
    this.#ended = false;
  }

  /** Lets go of memory and device, so that a pooled bio keeps nothing alive. */
  release(): void {
    this.vecs = NO_VECS;
    this.device = null;
    this.errorDevice = null;
    this.context = null;
    this.next = null;
  }

  /** Ends the request: 0 for success, else a Linux errno. Exactly one call. */
  endIo(errno: number): void {
    if (this.#ended) throw new Error(`a ${operationName(this.op)} bio ended twice`);
    this.#ended = true;
    this.status = errno;
    this.onEnd(this);
  }

  /** Ends it as failed on `device` at `sector`: the bottom of the stack says so, layers above translate. */
  fail(errno: number, device: BlockDevice, sector: number = this.sector): void {
    this.errorSector = sector;
    this.errorDevice = device;
    this.errorDeviceSector = sector;
    this.endIo(errno === 0 ? Errno.EIO : errno);
  }

  /** The exception for an ended bio that failed, for the promise at the edge. `device` is the one it was given to. */
  toError(device: BlockDevice): IoError {
    const sector = this.errorSector < 0 ? this.sector : this.errorSector;
    const lower = this.errorDevice ?? device;
    return new IoError(
      this.status,
      operationName(this.op),
      device.label ?? device.name,
      sector,
      lower.label ?? lower.name,
      this.errorDeviceSector < 0 ? sector : this.errorDeviceSector,
    );
  }
}

/**
 * Sets `to`'s memory to `from`'s, `byteCount` bytes further on. The list is shared, nothing is copied.
 *
 * @throws Error when the memory is shorter than that
 */
export function shareMemory(to: Bio, from: Bio, byteCount: number): void {
  const vecs = from.vecs;
  let index = from.vecIndex;
  let offset = from.vecOffset + byteCount;
  while (index < vecs.length && offset >= vecs[index]!.byteLength) {
    offset -= vecs[index]!.byteLength;
    index++;
  }
  if (index >= vecs.length && offset > 0) throw new Error('the memory of a bio is shorter than its range');
  to.vecs = vecs;
  to.vecIndex = index;
  to.vecOffset = offset;
}

/** Fills `bio`'s memory with `value`, `byteLength` bytes from `byteStart` of it. */
export function fillMemory(
  bio: Bio,
  value: number,
  byteStart = 0,
  byteLength: number = bio.byteLength - byteStart,
): void {
  walkMemory(bio, byteStart, byteLength, (piece) => piece.fill(value));
}

/** Copies `source` into `bio`'s memory from byte `byteStart` of it on. */
export function copyToMemory(bio: Bio, source: Uint8Array, byteStart = 0): void {
  let done = 0;
  walkMemory(bio, byteStart, source.byteLength, (piece) => {
    piece.set(source.subarray(done, done + piece.byteLength));
    done += piece.byteLength;
  });
}

/** Copies from `bio`'s memory, from byte `byteStart` of it on, into `destination`. */
export function copyFromMemory(bio: Bio, destination: Uint8Array, byteStart = 0): void {
  let done = 0;
  walkMemory(bio, byteStart, destination.byteLength, (piece) => {
    destination.set(piece, done);
    done += piece.byteLength;
  });
}

/** False where a piece of `bio`'s memory is shorter than the list says: it was transferred away. */
export function hasMemory(bio: Bio): boolean {
  let left = bio.byteLength + bio.vecOffset;
  for (let index = bio.vecIndex; left > 0; index++) {
    const vec = bio.vecs[index];
    if (vec === undefined || vec.offset + vec.byteLength > vec.page.byteLength) return false;
    left -= vec.byteLength;
  }
  return true;
}

/** Calls `visit` with each contiguous piece of a stretch of `bio`'s memory, in order. */
export function walkMemory(bio: Bio, byteStart: number, byteLength: number, visit: (piece: Uint8Array) => void): void {
  let index = bio.vecIndex;
  let offset = bio.vecOffset + byteStart;
  let left = byteLength;
  while (left > 0) {
    const vec = bio.vecs[index];
    if (vec === undefined) throw new Error('the memory of a bio is shorter than its range');
    if (offset >= vec.byteLength) {
      offset -= vec.byteLength;
      index++;
      continue;
    }
    const length = Math.min(left, vec.byteLength - offset);
    const start = vec.offset + offset;
    visit(vec.page.subarray(start, start + length));
    left -= length;
    offset = 0;
    index++;
  }
}
