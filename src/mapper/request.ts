// One request on its way through a table: cut into pieces, each mapped by its target and sent down as a clone, ended when
// the last piece has ended (drivers/md/dm.c, dm_split_and_process_bio). A failed piece does not keep the later ones back.
import {
  Bio,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
  shareMemory,
} from '../block/bio.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { submitBio } from '../block/block-device.ts';
import { MAX_POOLED_OBJECT_COUNT } from '../block/bounds.ts';
import { Errno } from '../block/errno.ts';
import {
  type AnyTarget,
  DM_MAPIO_KILL,
  DM_MAPIO_REMAPPED,
  DM_MAPIO_REQUEUE,
  DM_MAPIO_SUBMITTED,
} from '../block/target.ts';
import type { Table } from '../table/table.ts';

/** What a request needs of the mapped device it is on. */
export interface RequestOwner extends BlockDevice {
  /** The request has ended in every piece; `bio` has not been ended yet. `requeue`: a target wants it mapped again. */
  requestDone(bio: Bio, errno: number, requeue: boolean): void;
}

/** A clone for one piece; `context` is the request it belongs to. */
class CloneBio extends Bio {
  request!: Request;
  /** The line that mapped it; null for a flush that went to a device past the lines. */
  target: AnyTarget | null = null;
  /** Where the piece starts, on the mapped device, and where it was sent, to carry a failing sector back. */
  originSector = 0;
  sentSector = 0;
}

const NO_TABLE = null as unknown as Table;
const clonePool: CloneBio[] = [];
const requestPool: Request[] = [];

function takeClone(request: Request, target: AnyTarget | null): CloneBio {
  const clone = clonePool.pop() ?? new CloneBio();
  clone.request = request;
  clone.target = target;
  clone.onEnd = cloneEnded;
  return clone;
}

function cloneEnded(bio: Bio): void {
  const clone = bio as CloneBio;
  const { request, target } = clone;
  if (target?.type.endIo !== undefined) target.type.endIo(target, clone);
  if (clone.status !== 0) request.pieceFailed(clone);
  clone.release();
  if (clonePool.length < MAX_POOLED_OBJECT_COUNT) clonePool.push(clone);
  request.pieceEnded();
}

/** A request under way. Pooled: `start` makes it anew. */
export class Request {
  #owner!: RequestOwner;
  #table!: Table;
  #bio!: Bio;
  #pending = 0;
  #errno = 0;
  #errorSector = -1;
  #errorDevice: BlockDevice | null = null;
  #errorDeviceSector = -1;
  #requeue = false;
  /** The flush in front of a write's data is under way; the data follows it. */
  #flushing = false;

  /** Maps `bio`, which submitBio has checked, through `table`. */
  static start(owner: RequestOwner, table: Table, bio: Bio): void {
    const request = requestPool.pop() ?? new Request();
    request.#owner = owner;
    request.#table = table;
    request.#bio = bio;
    request.#errno = 0;
    request.#errorSector = -1;
    request.#errorDevice = null;
    request.#errorDeviceSector = -1;
    request.#requeue = false;
    request.#flushing = bio.op === REQ_OP_WRITE && (bio.flags & REQ_PREFLUSH) !== 0;
    request.#run();
  }

  #run(): void {
    const bio = this.#bio;
    // One more than the pieces, so that pieces that end at once do not end the request before the last one is out.
    this.#pending = 1;
    if (this.#flushing || bio.op === REQ_OP_FLUSH) this.#flush();
    else if (bio.op === REQ_OP_READ || bio.op === REQ_OP_WRITE) this.#transfer();
    else this.#rangeOperation();
    this.pieceEnded();
  }

  /** READ and WRITE: at each target's end, and at the multiples that a target asks for. */
  #transfer(): void {
    const bio = this.#bio;
    const end = bio.sector + bio.sectorCount;
    let sector = bio.sector;
    while (sector < end) {
      const target = this.#table.find(sector);
      if (target === undefined) {
        this.#fail(Errno.EIO, sector);
        return;
      }
      const inTarget = sector - target.begin;
      let count = Math.min(end - sector, target.sectorCount - inTarget);
      const unit = target.maxIoSectorCount;
      if (unit !== 0) count = Math.min(count, unit - (inTarget % unit));
      const clone = takeClone(this, target);
      clone.reset(bio.op, bio.flags & ~REQ_PREFLUSH, null, sector, count);
      if (sector === bio.sector) {
        clone.vecs = bio.vecs;
        clone.vecIndex = bio.vecIndex;
        clone.vecOffset = bio.vecOffset;
      } else {
        shareMemory(clone, bio, (sector - bio.sector) * 512);
      }
      this.#map(clone, target);
      sector += count;
    }
  }

  /** DISCARD and WRITE_ZEROES: only at each target's end, and as many copies as the target asks for. */
  #rangeOperation(): void {
    const bio = this.#bio;
    const end = bio.sector + bio.sectorCount;
    let sector = bio.sector;
    while (sector < end) {
      const target = this.#table.find(sector);
      if (target === undefined) {
        this.#fail(Errno.EIO, sector);
        return;
      }
      const count = Math.min(end - sector, target.begin + target.sectorCount - sector);
      const copies = rangeCopyCount(target, bio.op);
      if (copies === 0) this.#fail(Errno.EOPNOTSUPP, sector);
      for (let number = 0; number < copies; number++) {
        const clone = takeClone(this, target);
        clone.reset(bio.op, bio.flags, null, sector, count);
        clone.targetBioNumber = number;
        this.#map(clone, target);
      }
      sector += count;
    }
  }

  /** An empty flush to everything below: once to each device where that says it all, else as each target asks. */
  #flush(): void {
    const devices = this.#table.flushDevices;
    if (devices !== null) {
      for (const device of devices) {
        const clone = takeClone(this, null);
        clone.reset(REQ_OP_FLUSH, 0, device, 0, 0);
        this.#send(clone);
      }
      return;
    }
    for (const target of this.#table.targets) {
      for (let number = 0; number < target.flushBioCount; number++) {
        const clone = takeClone(this, target);
        clone.reset(REQ_OP_FLUSH, 0, null, target.begin, 0);
        clone.targetBioNumber = number;
        this.#map(clone, target);
      }
    }
  }

  #map(clone: CloneBio, target: AnyTarget): void {
    clone.originSector = clone.sector;
    clone.sentSector = clone.sector;
    this.#pending++;
    switch (target.type.map(target, clone)) {
      case DM_MAPIO_SUBMITTED:
        break;
      case DM_MAPIO_REMAPPED:
        clone.sentSector = clone.sector;
        submitBio(clone);
        break;
      case DM_MAPIO_REQUEUE:
        this.#requeue = true;
        clone.endIo(Errno.EIO);
        break;
      case DM_MAPIO_KILL:
        clone.endIo(Errno.EIO);
        break;
    }
  }

  #send(clone: CloneBio): void {
    clone.originSector = 0;
    clone.sentSector = 0;
    this.#pending++;
    submitBio(clone);
  }

  /** A failure that no clone stands for. */
  #fail(errno: number, sector: number): void {
    this.#note(errno, sector, this.#owner, sector);
  }

  pieceFailed(clone: CloneBio): void {
    if (clone.target === null) this.#tellTargets(clone);
    const below = clone.errorSector < 0 ? clone.sentSector : clone.errorSector;
    const sector = clone.originSector + Math.max(0, below - clone.sentSector);
    // A piece that its target refused has no device below: the mapped device itself is where it failed.
    if (clone.errorDevice === null) this.#note(clone.status, sector, this.#owner, sector);
    else this.#note(clone.status, sector, clone.errorDevice, clone.errorDeviceSector);
  }

  /** A flush that went to a device past the lines failed: the lines on that device see it end. */
  #tellTargets(clone: CloneBio): void {
    for (const target of this.#table.targets) {
      if (target.flushBioCount > 0) target.type.endIo?.(target, clone);
    }
  }

  /** Of several failures the one at the lowest sector is told, so that errno and sector belong together. */
  #note(errno: number, sector: number, device: BlockDevice, deviceSector: number): void {
    if (this.#errno !== 0 && this.#errorSector <= sector) return;
    this.#errno = errno;
    this.#errorSector = sector;
    this.#errorDevice = device;
    this.#errorDeviceSector = deviceSector;
  }

  pieceEnded(): void {
    if (--this.#pending !== 0) return;
    if (this.#flushing && this.#errno === 0) {
      this.#flushing = false;
      this.#run();
      return;
    }
    const owner = this.#owner;
    const bio = this.#bio;
    const errno = this.#errno;
    const requeue = this.#requeue;
    if (errno !== 0) {
      bio.errorSector = this.#errorSector;
      bio.errorDevice = this.#errorDevice;
      bio.errorDeviceSector = this.#errorDeviceSector;
    }
    this.#errorDevice = null;
    // A pooled request keeps no table alive.
    this.#table = NO_TABLE;
    // Back to the pool before anybody is told: the owner of the bio may submit another one from there.
    if (requestPool.length < MAX_POOLED_OBJECT_COUNT) requestPool.push(this);
    owner.requestDone(bio, errno, requeue);
  }
}

function rangeCopyCount(target: AnyTarget, op: number): number {
  if (op === REQ_OP_DISCARD) return target.discardBioCount;
  return op === REQ_OP_WRITE_ZEROES ? target.writeZeroesBioCount : 0;
}
