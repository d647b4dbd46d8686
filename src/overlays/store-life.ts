// The marks of stores, kept right whichever way their devices come and go.
import type { BlockDevice } from '../block/block-device.ts';
import { errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Json } from '../control/core/host.ts';
import type { Plane } from '../control/core/plane.ts';
import { type KeptStore, STORE_PREFIX } from '../control/core/records.ts';
import { EngineDevice } from '../devices/engine-device.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { Passage } from '../mapper/mapper.ts';
import type { Table } from '../table/table.ts';
import { snapshotOf } from '../targets/snapshot/report.ts';
import { attaching, counted, type LeavingStore, leavingStores, originFacts, written } from './marks.ts';

/** Sees to the marks of every store that goes into use or out of it from now on. */
export function keepMarks(plane: Plane): void {
  const { mapper } = plane.host;
  mapper.onLeaving = (device) => {
    const stores = leavingStores(plane, device);
    return stores.length === 0 ? null : (done) => void detachAll(plane, stores).then(done);
  };
  mapper.onGoingLive = (device, next) => passageOf(plane, device, next);
}

/** Null where no store comes or goes. */
function passageOf(plane: Plane, device: MappedDevice, next: Table): Passage | null {
  noteWritten(plane, next);
  const attach = attaching(plane, next);
  const leaving = leavingStores(plane, device, next);
  if (attach === null && leaving.length === 0) return null;
  const release = (): void => {
    for (const store of leaving) store.release();
  };
  return {
    before: (done) => {
      (attach?.attach() ?? Promise.resolve()).then(
        () => done(null),
        (error: Error) => {
          release();
          done(new DmError(errnoFromException(error), `the mark of a store could not be written: ${error.message}`));
        },
      );
    },
    after: (done) => void detachAll(plane, leaving).then(done),
    undo: () => {
      release();
      attach?.undo().catch((error: Error) => plane.hooks.onError?.(error, 'the mark of a store could not be written'));
    },
  };
}

async function detachAll(plane: Plane, stores: readonly LeavingStore[]): Promise<void> {
  for (const store of stores) {
    const { host } = plane;
    const { kind, key, label } = originFacts(host, store.origin);
    const kept: KeptStore = { path: store.cow.name, originKey: `${kind}:${key}`, originLabel: label };
    const told = (error: Error): void => plane.hooks.onError?.(error, `the store ${store.cow.name} could not be noted`);
    const keys = new Map<string, Json>([[STORE_PREFIX + store.mark.storeId, kept as unknown as Json]]);
    for (const [name, count] of counted(plane, store.origin)) keys.set(name, count);
    // For messages alone: a full disk must not keep the mark from being written.
    await plane.journal?.commit(keys, { durable: false }).catch(told);
    await store.detach().catch(told);
  }
}

/** A table that writes to disks without a time of modification: stores that were kept for them count that. */
function noteWritten(plane: Plane, table: Table): void {
  if (plane.journal === null || table.readOnly) return;
  const cows = new Set<BlockDevice>();
  const origins = new Set<BlockDevice>();
  for (const target of table.targets) {
    const snapshot = snapshotOf(target);
    if (snapshot === null || snapshot.isMerge) continue;
    cows.add(snapshot.cow);
    origins.add(snapshot.origin.device);
  }
  const keys = new Map<string, Json>();
  for (const device of table.devices) {
    const isFile = device instanceof EngineDevice && device.path === device.name;
    if (isFile || cows.has(device) || origins.has(device)) continue;
    for (const [name, count] of written(plane, device)) keys.set(name, count);
  }
  if (keys.size === 0) return;
  plane.journal.commit(keys).catch((error: Error) => plane.hooks.onError?.(error, 'the journal could not be written'));
}
