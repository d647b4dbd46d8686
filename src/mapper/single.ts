// The usual request: a read or write that lies inside one target and needs no cut. It takes a clone and nothing else; what
// is larger goes through request.ts, with the same outcome.
import { Bio, REQ_OP_READ, REQ_OP_WRITE, REQ_PREFLUSH } from '../block/bio.ts';
import { submitBio } from '../block/block-device.ts';
import { MAX_POOLED_OBJECT_COUNT } from '../block/bounds.ts';
import { Errno } from '../block/errno.ts';
import { type AnyTarget, DM_MAPIO_KILL, DM_MAPIO_REMAPPED, DM_MAPIO_REQUEUE } from '../block/target.ts';
import type { Table } from '../table/table.ts';
import type { RequestOwner } from './request.ts';

/** The clone of a whole bio. */
class WholeClone extends Bio {
  original!: Bio;
  owner!: RequestOwner;
  target!: AnyTarget;
  /** Where it was sent, to carry a failing sector back. */
  sentSector = 0;
  requeue = false;
}

const pool: WholeClone[] = [];

/**
 * Maps `bio`, which submitBio has checked, if one clone will do.
 *
 * @returns false when it has to be cut or is no plain transfer; nothing has happened then
 */
export function mapWhole(owner: RequestOwner, table: Table, bio: Bio): boolean {
  if (bio.op !== REQ_OP_READ && (bio.op !== REQ_OP_WRITE || (bio.flags & REQ_PREFLUSH) !== 0)) return false;
  const target = table.find(bio.sector);
  if (target === undefined) return false;
  const inTarget = bio.sector - target.begin;
  const unit = target.maxIoSectorCount;
  const room = unit === 0 ? target.sectorCount - inTarget : unit - (inTarget % unit);
  if (bio.sectorCount > room || bio.sectorCount > target.sectorCount - inTarget) return false;

  const clone = pool.pop() ?? new WholeClone();
  clone.reset(bio.op, bio.flags, null, bio.sector, bio.sectorCount);
  clone.vecs = bio.vecs;
  clone.vecIndex = bio.vecIndex;
  clone.vecOffset = bio.vecOffset;
  clone.onEnd = wholeEnded;
  clone.original = bio;
  clone.owner = owner;
  clone.target = target;
  clone.sentSector = bio.sector;
  clone.requeue = false;
  const result = target.type.map(target, clone);
  if (result === DM_MAPIO_REMAPPED) {
    clone.sentSector = clone.sector;
    submitBio(clone);
  } else if (result === DM_MAPIO_KILL || result === DM_MAPIO_REQUEUE) {
    clone.requeue = result === DM_MAPIO_REQUEUE;
    clone.endIo(Errno.EIO);
  }
  return true;
}

function wholeEnded(bio: Bio): void {
  const clone = bio as WholeClone;
  const { original, owner, target, requeue } = clone;
  if (target.type.endIo !== undefined) target.type.endIo(target, clone);
  const errno = clone.status;
  if (errno !== 0) tellFailure(clone, original, owner);
  clone.release();
  // Back to the pool before anybody is told: the owner of the bio may submit another one from there.
  if (pool.length < MAX_POOLED_OBJECT_COUNT) pool.push(clone);
  owner.requestDone(original, errno, requeue);
}

function tellFailure(clone: WholeClone, original: Bio, owner: RequestOwner): void {
  const below = clone.errorSector < 0 ? clone.sentSector : clone.errorSector;
  original.errorSector = original.sector + Math.max(0, below - clone.sentSector);
  // A request that its target refused has no device below: the mapped device itself is where it failed.
  original.errorDevice = clone.errorDevice ?? owner;
  original.errorDeviceSector = clone.errorDevice === null ? original.errorSector : clone.errorDeviceSector;
}
