// Taking overlays away, and the kept stores that lose their worth with a change of their origin.
import fs from 'node:fs';
import type { BlockDevice } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import type { Json } from '../control/core/host.ts';
import type { Plane } from '../control/core/plane.ts';
import { type KeptStore, STORE_PREFIX, UNLINK_PREFIX } from '../control/core/records.ts';
import type { Transaction } from '../control/core/transaction.ts';
import { EngineDevice } from '../devices/engine-device.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { snapshotOf } from '../targets/snapshot/report.ts';
import { originFacts, readMarkAt } from './marks.ts';
import { inUse } from './names.ts';
import type { DroppedOverlay } from './options.ts';
import { fileFailure } from './store-file.ts';
import { mappersOfDevice, overlaysOnDevice } from './users.ts';

/** The one snapshot line of an overlay. @throws DmError EINVAL for a device that is something else */
export function overlayOf(device: MappedDevice) {
  const targets = device.table?.targets ?? [];
  const snapshot = targets.map(snapshotOf).find((one) => one !== null);
  if (snapshot === undefined) {
    throw new DmError(Errno.EINVAL, `${device.dmName} is no overlay: its table has no snapshot line`);
  }
  if (targets.length > 1) {
    throw new DmError(Errno.EINVAL, `the table of ${device.dmName} has ${targets.length} lines: change it by hand`);
  }
  return snapshot!;
}

/** A file that is deleted when a change is for good; known again at the next start, should that not come. */
interface Deletion {
  path: string;
  dev: string;
  inode: string;
}

export class OverlayDropping {
  readonly #plane: Plane;
  readonly #transaction: Transaction;

  constructor(plane: Plane, transaction: Transaction) {
    this.#plane = plane;
    this.#transaction = transaction;
  }

  /** @throws DmError EBUSY for an overlay that is in use, or is being merged */
  drop(device: MappedDevice, deleteCow: boolean): DroppedOverlay {
    const snapshot = overlayOf(device);
    if (snapshot.isMerge || snapshot.state === null) {
      throw new DmError(Errno.EBUSY, `${device.dmName} is being merged into its origin: finish that (merge it again)`);
    }
    const userCount = this.#plane.host.mapper.userCountWithout(device, this.#transaction.removed);
    if (userCount > 0) throw inUse({ name: device.dmName, openCount: userCount });
    const { cow, origin } = snapshot;
    const writable = mappersOfDevice(this.#plane.host, origin.device).length > 0;
    const stale = [...(writable && !deleteCow ? [cow.name] : []), ...staleStores(this.#plane, device)];
    this.#transaction.remove(device);
    const deleted = deleteCow && this.deleteFile(cow, device);
    return { name: device.dmName, cow: cow.name, deleted, stale };
  }

  /**
   * Deletes a store's file when the change is for good. Only a file that `cow` still leads to, and that no other device
   * uses.
   *
   * @throws DmError EBUSY
   */
  deleteFile(cow: BlockDevice, except: MappedDevice): boolean {
    const others = overlaysOnDevice(this.#plane.host, cow).filter((one) => one !== except);
    if (others.length > 0) {
      const names = others.map(({ dmName }) => dmName).join(', ');
      throw new DmError(Errno.EBUSY, `${cow.name} is the store of ${names} too: it can't be deleted`);
    }
    const deletion = deletionOf(cow);
    if (deletion === null) return false;
    const key = UNLINK_PREFIX + deletion.path;
    const { journal } = this.#plane;
    if (journal !== null) this.#transaction.keys.set(key, deletion as unknown as Json);
    this.#transaction.onFinish(async () => {
      try {
        deleteSame(deletion);
      } catch (error) {
        this.#transaction.context.onNotice?.(`${fileFailure(deletion.path, error).message}: the file is left`);
      }
      // Without this record the file would be looked for at the next start.
      await journal?.commit(new Map([[key, null]]), { durable: false }).catch(() => {});
    });
    return true;
  }
}

function deletionOf(cow: BlockDevice): Deletion | null {
  if (!(cow instanceof EngineDevice)) return null;
  const open = fs.fstatSync(cow.descriptor, { bigint: true });
  const there = fs.statSync(rawName(cow.path), { bigint: true, throwIfNoEntry: false });
  if (!open.isFile() || there === undefined || there.dev !== open.dev || there.ino !== open.ino) return null;
  return { path: cow.path, dev: String(open.dev), inode: String(open.ino) };
}

/** Deletes the file, unless its path leads to another by now. */
export function deleteSame({ path, dev, inode }: Deletion): void {
  const stat = fs.statSync(rawName(path), { bigint: true, throwIfNoEntry: false });
  if (stat !== undefined && String(stat.dev) === dev && String(stat.ino) === inode) fs.unlinkSync(rawName(path));
}

/** Kept stores whose origin is `origin`, as far as their files are there and still say so. */
export function staleStores(plane: Plane, origin: BlockDevice, except?: BlockDevice): string[] {
  const { kind, key } = originFacts(plane.host, origin);
  const paths: string[] = [];
  for (const [name, value] of plane.journal?.values ?? []) {
    if (!name.startsWith(STORE_PREFIX)) continue;
    const { path, originKey } = value as unknown as KeptStore;
    if (originKey !== `${kind}:${key}` || path === except?.name) continue;
    if (stillKept(path, name.slice(STORE_PREFIX.length))) paths.push(path);
  }
  return [...new Set(paths)].sort();
}

function stillKept(path: string, storeId: string): boolean {
  let fd: number;
  try {
    fd = fs.openSync(rawName(path), 'r');
  } catch {
    return false;
  }
  try {
    const mark = readMarkAt(fd);
    return mark !== null && mark !== 'damaged' && mark.storeId === storeId;
  } finally {
    fs.closeSync(fd);
  }
}
