// Merging overlays into their origins, in the process that holds the devices: once begun, a merge goes on to its end,
// whatever becomes of the client that asked for it, and after a crash from the journal's record.
//
// Where a device maps the origin (snapshot-origin), that one merges:    Where none does, the overlay itself merges:
//   1. suspend the overlay, load snapshot-merge into the other            1. load snapshot-merge into the overlay
//   2. journal: the other merges, the overlay is gone                     2. journal: it merges
//   3. resume the other, remove the overlay                               3. resume it
//   4. wait                                                               4. wait
//   5. load snapshot-origin again; journal; resume it                     5. journal: it is gone; remove it
//
// All tables use the very disks that the overlay has open.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { escapeArgument } from '../block/escape.ts';
import type { Json, RequestContext } from '../control/core/host.ts';
import { entriesOf, reopening } from '../control/core/live-table.ts';
import { loadTable } from '../control/core/load.ts';
import { asJson, type Plane } from '../control/core/plane.ts';
import { DEVICE_PREFIX, describeTable, idOf, MERGE_PREFIX, type MergeRecord } from '../control/core/records.ts';
import { Transaction } from '../control/core/transaction.ts';
import { changed } from '../control/core/waiting.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { TableEntry } from '../table/text.ts';
import type { Snapshot } from '../targets/snapshot/snapshot.ts';
import { snapshotReports } from './changes.ts';
import { OverlayDropping, overlayOf, staleStores } from './drop.ts';
import { written } from './marks.ts';
import { inUse, isOverlayUuid, newOverlayUuid } from './names.ts';
import type { DroppedOverlay, MergeProgress } from './options.ts';
import { mappersOfDevice, overlaysOnDevice } from './users.ts';

const POLL_MILLISECONDS = 20;
/** A user of an overlay that is merged may stay for days. */
const USERS_POLL_MILLISECONDS = 250;

/** A merge under way in this process. */
interface Running {
  readonly record: MergeRecord;
  readonly ended: Promise<DroppedOverlay>;
  readonly listeners: Set<RequestContext>;
  last(): MergeProgress | null;
  /** The sentence for those who wait: why it has not ended though everything is merged. */
  notice(): string | null;
}

export class Merges {
  readonly #plane: Plane;
  readonly #running = new Map<string, Running>();
  /** Merges that have begun and not ended, failed ones too, by the overlay's name. */
  readonly #records = new Map<string, MergeRecord>();

  constructor(plane: Plane) {
    this.#plane = plane;
  }

  /** A merge of that name has begun and not ended. */
  has(name: string): boolean {
    return this.#records.has(name);
  }

  /**
   * Begins a merge or joins one that has begun, and waits for its end.
   *
   * @throws DmError EBUSY while the overlay is in use, EINVAL for one that can't be merged, EIO where the merge failed, EINTR
   *   after the signal: the merge goes on
   */
  async merge(name: string, deleteCow: boolean, context: RequestContext): Promise<DroppedOverlay> {
    let running = this.#running.get(name);
    if (running === undefined) running = this.#start(name, await this.#begin(name, deleteCow, context));
    else if (deleteCow) await this.#wishDeletion(running.record);
    return waitFor(running, name, context);
  }

  /** Goes on with a merge of the journal, whose device is here again. */
  resume(record: MergeRecord): void {
    this.#records.set(record.name, record);
    this.#start(record.name, record);
  }

  #start(name: string, record: MergeRecord): Running {
    const listeners = new Set<RequestContext>();
    let last: MergeProgress | null = null;
    let notice: string | null = null;
    const context: RequestContext = {
      onProgress: (progress) => {
        last = progress as MergeProgress;
        for (const { onProgress } of listeners) onProgress?.(progress);
      },
      onNotice: (text) => {
        notice = text;
        for (const { onNotice } of listeners) onNotice?.(text);
      },
    };
    const ended = this.#run(record, context).finally(() => this.#running.delete(name));
    const running: Running = { record, ended, listeners, last: () => last, notice: () => notice };
    this.#running.set(name, running);
    ended.catch((error: Error) => this.#plane.hooks.onError?.(error, `the merge of ${name} stopped`));
    return running;
  }

  async #run(record: MergeRecord, context: RequestContext): Promise<DroppedOverlay> {
    const device = this.#deviceOf(record);
    for (;;) {
      await this.#wait(record, device, context);
      try {
        return await this.#finish(record, device);
      } catch (error) {
        // A client that came in this moment is waited for like others.
        if (!this.#plane.host.mapper.isListed(device) || this.#userOf(record, device) === null) throw error;
      }
    }
  }

  #deviceOf(record: MergeRecord): MappedDevice {
    const device = this.#plane.host.mapper.list().find((one) => idOf(one) === record.deviceId);
    if (device !== undefined) return device;
    throw new DmError(Errno.ENXIO, `the device that merged ${record.name} is gone`);
  }

  // Beginning

  async #begin(name: string, deleteCow: boolean, context: RequestContext): Promise<MergeRecord> {
    const { mapper } = this.#plane.host;
    const known = this.#records.get(name);
    if (known !== undefined) {
      if (deleteCow) await this.#wishDeletion(known);
      await this.#restartFailed(this.#deviceOf(known));
      return known;
    }
    const device = mapper.get(name);
    const overlay = overlayOf(device);
    if (overlay.isMerge) {
      await this.#restartFailed(device);
      return this.#remember(name, device, overlay, !isOverlayUuid(device.uuid), deleteCow);
    }
    if (overlay.state === null) return this.#joinHandedOver(device, overlay, deleteCow);
    checkMergeable(device, overlay);
    const origins = mappersOfDevice(this.#plane.host, overlay.origin.device);
    if (origins.length > 1) {
      const names = origins.map(({ dmName }) => dmName).join(' and ');
      throw new DmError(Errno.EBUSY, `${names} both map the origin: leave one of them`);
    }
    const [origin] = origins;
    return origin === undefined
      ? this.#becomeMerge(device, overlay, deleteCow, context)
      : this.#mergeIn(origin, device, overlay, deleteCow, context);
  }

  /** A later caller wants the store deleted at the end. */
  async #wishDeletion(record: MergeRecord): Promise<void> {
    if (record.deleteCow) return;
    await this.#plane.journal?.commit(this.#keyOf({ ...record, deleteCow: true }));
    record.deleteCow = true;
  }

  #remember(
    name: string,
    device: MappedDevice,
    overlay: Snapshot,
    mapsOrigin: boolean,
    deleteCow: boolean,
  ): MergeRecord {
    const record = { name, deviceId: idOf(device), mapsOrigin, cow: overlay.cow.name, deleteCow };
    this.#records.set(name, record);
    return record;
  }

  async #becomeMerge(
    device: MappedDevice,
    overlay: Snapshot,
    deleteCow: boolean,
    context: RequestContext,
  ): Promise<MergeRecord> {
    const name = device.dmName;
    const transaction = new Transaction(this.#plane.host, context);
    const record = this.#remember(name, device, overlay, false, deleteCow);
    try {
      // So that a later run tells an overlay, which goes at the end, from a device that maps an origin, which stays.
      if (device.uuid === '') transaction.setUuid(device, newOverlayUuid());
      await this.#loadMerge(transaction, device, device);
      transaction.checkSignal();
      const live = await describeTable(device.inactiveTable, this.#plane.host);
      await this.#plane.foretell(
        device,
        { live, inactive: null, suspended: false, suspension: null },
        this.#keyOf(record),
      );
    } catch (error) {
      this.#records.delete(name);
      await transaction.rollBack();
      throw error;
    }
    await this.#pass(transaction, device, record);
    return record;
  }

  #keyOf(record: MergeRecord): Map<string, Json> {
    return new Map([[MERGE_PREFIX + record.name, asJson(record)]]);
  }

  /** Puts the merge's line into the inactive slot of `merging`. */
  async #loadMerge(transaction: Transaction, merging: MappedDevice, overlay: MappedDevice): Promise<void> {
    const line: TableEntry = { ...entriesOf(overlay.table!)[0]!, type: 'snapshot-merge' };
    const tables = [overlay.table!, ...(merging.table === null ? [] : [merging.table])];
    await transaction.load(merging, [line], reopening(this.#plane.host, ...tables));
  }

  /** The step that can't be undone. */
  async #pass(transaction: Transaction, device: MappedDevice, record: MergeRecord): Promise<void> {
    try {
      await changed(undefined, (done) => this.#plane.host.mapper.resume(device, {}, done));
    } catch (error) {
      // The table that did not fit is gone; the live one goes on.
      this.#records.delete(record.name);
      await changed(undefined, (done) => this.#plane.host.mapper.resume(device, {}, done)).catch(() => {});
      await this.#plane.journal?.commit(new Map([[MERGE_PREFIX + record.name, null]])).catch(() => {});
      await transaction.rollBack();
      await this.#plane.note(device);
      throw error;
    }
    await transaction.finish();
    this.#plane.hooks.onChange?.(device);
  }

  async #mergeIn(
    origin: MappedDevice,
    device: MappedDevice,
    overlay: Snapshot,
    deleteCow: boolean,
    context: RequestContext,
  ): Promise<MergeRecord> {
    const { host, journal } = this.#plane;
    if (origin.sectorCount !== device.sectorCount) {
      const text = `${origin.dmName} has ${origin.sectorCount} sectors and ${device.dmName} ${device.sectorCount}: merge it by hand`;
      throw new DmError(Errno.EINVAL, text);
    }
    const transaction = new Transaction(host, context);
    const record = this.#remember(device.dmName, origin, overlay, true, deleteCow);
    try {
      await transaction.suspend(device);
      await this.#loadMerge(transaction, origin, device);
      transaction.checkSignal();
      const live = await describeTable(origin.inactiveTable, host);
      const future = {
        ...(await this.#plane.describe(origin)),
        live,
        inactive: null,
        suspended: false,
        suspension: null,
      };
      const keys = this.#keyOf(record);
      keys.set(DEVICE_PREFIX + idOf(origin), asJson(future));
      keys.set(DEVICE_PREFIX + idOf(device), null);
      await journal?.commit(keys);
    } catch (error) {
      this.#records.delete(record.name);
      await transaction.rollBack();
      throw error;
    }
    try {
      await this.#pass(transaction, origin, record);
    } catch (error) {
      await this.#plane.note(device);
      throw error;
    }
    // It has handed its store over and shows nothing any more. One that a client opened in this moment goes at the end.
    if (device.openCount === 0) await removed(this.#plane, device);
    return record;
  }

  /** Another device has the store: a merge that was begun by hand. */
  async #joinHandedOver(device: MappedDevice, overlay: Snapshot, deleteCow: boolean): Promise<MergeRecord> {
    const merging = overlaysOnDevice(this.#plane.host, overlay.cow).find((one) => one !== device);
    if (merging === undefined) {
      const text = `${device.dmName} has handed its store over, and no device has it: remove it`;
      throw new DmError(Errno.EINVAL, text);
    }
    if (overlayOf(merging).isMerge) await this.#restartFailed(merging);
    else await this.#swap(merging, [{ ...entriesOf(merging.table!)[0]!, type: 'snapshot-merge' }]);
    return this.#remember(device.dmName, merging, overlay, !isOverlayUuid(merging.uuid), deleteCow);
  }

  /** A merge that has failed begins anew as another line; in between nothing may write. */
  async #restartFailed(merging: MappedDevice): Promise<void> {
    const overlay = overlayOf(merging);
    if (!overlay.mergeFailed) return;
    if (merging.openCount > 0) {
      const { message } = inUse({ name: merging.dmName, openCount: merging.openCount });
      throw new DmError(Errno.EBUSY, `the merge has failed, and begins again only when nothing uses it: ${message}`);
    }
    // A store has two lines at the most.
    await this.#removeOthers(merging, overlay);
    const [line] = entriesOf(merging.table!);
    await this.#swap(merging, [{ ...line!, type: 'snapshot' }]);
    await this.#swap(merging, [{ ...line!, type: 'snapshot-merge' }]);
  }

  async #swap(device: MappedDevice, table: TableEntry[]): Promise<void> {
    const { host } = this.#plane;
    await loadTable(host, device, table, reopening(host, device.table!), undefined);
    try {
      await changed(undefined, (done) => host.mapper.resume(device, {}, done));
    } catch (error) {
      // The table that did not fit is gone; the live one goes on.
      await changed(undefined, (done) => host.mapper.resume(device, {}, done));
      throw error;
    } finally {
      await this.#plane.note(device);
    }
  }

  // Waiting and ending

  async #wait(record: MergeRecord, device: MappedDevice, { onProgress, onNotice }: RequestContext): Promise<void> {
    const { mapper } = this.#plane.host;
    let totalChunkCount = 0;
    let isToldOfUsers = false;
    for (;;) {
      const [status] = snapshotReports(device);
      if (status === undefined || !mapper.isListed(device)) {
        throw new DmError(Errno.EINVAL, `${device.dmName} has another table now: the merge was taken away`);
      }
      const { condition, usedChunkCount, metadataChunkCount, chunkSectorCount } = status;
      if (condition === 'Merge failed' || condition === 'Invalid') {
        throw new DmError(
          Errno.EIO,
          `${device.dmName}: ${condition}: reading ${status.cow} or writing ${status.origin} failed. Chunks that are not home are in the store still: mend that, and merge again`,
        );
      }
      const leftChunkCount = usedChunkCount - metadataChunkCount;
      totalChunkCount = Math.max(totalChunkCount, leftChunkCount);
      onProgress?.({ leftChunkCount, totalChunkCount, chunkSectorCount });
      const isMerged = condition === 'Merged';
      const user = isMerged ? this.#userOf(record, device) : null;
      if (isMerged && user === null) return;
      if (user !== null && !isToldOfUsers) {
        onNotice?.(`${user.dmName} is merged into its origin; it goes when its users (${user.openCount}) have left it`);
        isToldOfUsers = true;
      }
      if (device.suspended) await changed(undefined, (done) => mapper.resume(device, {}, done));
      await new Promise((resolve) => setTimeout(resolve, isMerged ? USERS_POLL_MILLISECONDS : POLL_MILLISECONDS));
    }
  }

  /** A device that goes at the end and is in use: by a client that came after the beginning. */
  #userOf(record: MergeRecord, device: MappedDevice): MappedDevice | null {
    const others = overlaysOnDevice(this.#plane.host, overlayOf(device).cow).filter((one) => one !== device);
    const going = record.mapsOrigin ? others : [device, ...others];
    return going.find(({ openCount }) => openCount > 0) ?? null;
  }

  async #finish(record: MergeRecord, device: MappedDevice): Promise<DroppedOverlay> {
    const { journal } = this.#plane;
    const overlay = overlayOf(device);
    await this.#removeOthers(device, overlay);
    const stale = staleStores(this.#plane, overlay.origin.device, overlay.cow);
    const transaction = new Transaction(this.#plane.host, {});
    const dropping = new OverlayDropping(this.#plane, transaction);
    let deleted = false;
    try {
      deleted = record.deleteCow && dropping.deleteFile(overlay.cow, device);
      const keys = transaction.keys;
      if (journal?.values.has(MERGE_PREFIX + record.name)) keys.set(MERGE_PREFIX + record.name, null);
      for (const [key, count] of written(this.#plane, overlay.origin.device)) keys.set(key, count);
      if (record.mapsOrigin) await this.#foretellOrigin(transaction, device, overlay);
      else {
        transaction.remove(device);
        await journal?.commit(new Map([...keys, [DEVICE_PREFIX + idOf(device), null]]));
      }
    } catch (error) {
      await transaction.rollBack();
      throw error;
    }
    this.#records.delete(record.name);
    if (record.mapsOrigin) {
      try {
        await changed(undefined, (done) => this.#plane.host.mapper.resume(device, {}, done));
      } finally {
        await this.#plane.note(device);
      }
    }
    await transaction.finish();
    return { name: record.name, cow: record.cow, deleted, stale };
  }

  /**
   * The device goes on as the mapping of its origin. A swap can't be undone, and a write to the origin that came before the
   * journal knew of it would make the store look like that of another content: so the journal hears of it first.
   */
  async #foretellOrigin(transaction: Transaction, device: MappedDevice, overlay: Snapshot): Promise<void> {
    const { begin: sector, sectorCount } = overlay.target;
    const params = escapeArgument(overlay.origin.device.name);
    const table = [{ sector, sectorCount, type: 'snapshot-origin', params }];
    await transaction.load(device, table, reopening(this.#plane.host, device.table!));
    const live = await describeTable(device.inactiveTable, this.#plane.host);
    await this.#plane.foretell(device, { live, inactive: null, suspended: false, suspension: null }, transaction.keys);
  }

  /** Overlays that have handed their store over to the merge. */
  async #removeOthers(merging: MappedDevice, overlay: Snapshot): Promise<void> {
    for (const other of overlaysOnDevice(this.#plane.host, overlay.cow)) {
      if (other === merging) continue;
      if (other.openCount > 0) throw inUse({ name: other.dmName, openCount: other.openCount });
      await removed(this.#plane, other);
    }
  }
}

async function removed(plane: Plane, device: MappedDevice): Promise<void> {
  await new Promise<void>((resolve) => plane.host.mapper.remove(device, {}, resolve));
  await plane.note(device);
}

async function waitFor(running: Running, name: string, context: RequestContext): Promise<DroppedOverlay> {
  const { signal } = context;
  // One of its own: the same context may wait twice.
  const listener: RequestContext = { ...context };
  running.listeners.add(listener);
  const last = running.last();
  if (last !== null) context.onProgress?.(last);
  const notice = running.notice();
  if (notice !== null) context.onNotice?.(notice);
  let onAbort = (): void => {};
  try {
    return await new Promise((resolve, reject) => {
      onAbort = () =>
        reject(new DmError(Errno.EINTR, `the merge of ${name} goes on; merge it again to wait for its end`));
      if (signal?.aborted) onAbort();
      signal?.addEventListener('abort', onAbort, { once: true });
      running.ended.then(resolve, reject);
    });
  } finally {
    signal?.removeEventListener('abort', onAbort);
    running.listeners.delete(listener);
  }
}

function checkMergeable({ dmName: name, openCount }: MappedDevice, overlay: Snapshot): void {
  if (overlay.storeWord === 'N') {
    throw new DmError(Errno.EINVAL, `${name} has a transient store, which can't be merged: copy the device instead`);
  }
  if (!overlay.valid) {
    throw new DmError(
      Errno.EINVAL,
      `${name} is invalid: parts of its content are lost, and nothing was merged; drop it`,
    );
  }
  if (openCount > 0) throw inUse({ name, openCount });
}
