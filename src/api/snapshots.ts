// Overlays as a whole, for programs: the same calls on devices of this process and of a daemon.

import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Control } from '../control/requests.ts';
import type { SnapshotStatus } from '../control/types.ts';
import { workingFolder } from '../files/working-folder.ts';
import { type ChangedExtent, joined } from '../overlays/changes.ts';
import type { DroppedOverlay, MergeProgress, OverlayOptions, OverlayPlan } from '../overlays/options.ts';

export type { MergeProgress, PlannedDevice, StoreKind } from '../overlays/options.ts';
export type SnapshotPlan = OverlayPlan;
export type DroppedSnapshot = DroppedOverlay;

export interface CreateSnapshotOptions extends Omit<OverlayOptions, 'folder'> {
  /** The folder in which relative paths start; the default is the working directory. */
  baseFolder?: string;
}

export interface MergeOptions {
  /** Delete the store's file when everything is home. */
  deleteCow?: boolean;
  /** Stops waiting; the merge goes on. */
  signal?: AbortSignal;
  onProgress?: (progress: MergeProgress) => void;
  /** Takes sentences: that the end waits for a client of the overlay. */
  onNotice?: (text: string) => void;
}

export interface DropOptions {
  /** Delete the store's file, too. */
  deleteCow?: boolean;
}

function overlayArgs({ baseFolder = workingFolder(), ...options }: CreateSnapshotOptions): OverlayOptions {
  return { ...options, folder: baseFolder };
}

/** The overlays of a daemon, or of this process. */
export class Snapshots {
  readonly #control: Control;

  constructor(control: Control) {
    this.#control = control;
  }

  /** Tells what {@link create} would do. @throws as that does */
  async plan(options: CreateSnapshotOptions): Promise<SnapshotPlan> {
    const [plan] = await this.planAll([options]);
    return plan!;
  }

  /** Tells what {@link createAll} would do. */
  planAll(overlays: readonly CreateSnapshotOptions[]): Promise<SnapshotPlan[]> {
    return this.#control.call('overlayPlan', { overlays: overlays.map(overlayArgs) });
  }

  /**
   * Makes an overlay and its store, whole or not at all. Devices through which the origin is written (snapshot-origin) are
   * suspended meanwhile, so that the overlay begins with one moment of it.
   *
   * @throws DmError EBUSY for a name or store that is taken, ENODEV for an origin that is missing, ENOSPC for a store that
   *   is too small, ESTALE for the store of another origin, EEXIST, EINVAL, ENXIO; TableError
   */
  async create(options: CreateSnapshotOptions): Promise<SnapshotPlan> {
    const [plan] = await this.createAll([options]);
    return plan!;
  }

  /** Makes several overlays, of one origin or of many, all of one moment: every origin stands still before the first begins. */
  createAll(overlays: readonly CreateSnapshotOptions[]): Promise<SnapshotPlan[]> {
    return this.#control.call('overlayCreate', { overlays: overlays.map(overlayArgs) });
  }

  /** Every line of type snapshot or snapshot-merge, with its counters; of one device where a name is given. */
  list(name?: string): Promise<SnapshotStatus[]> {
    return this.#control.call('overlays', name === undefined ? {} : { device: { name } });
  }

  /**
   * Where an overlay differs from its origin, in ascending order and whole chunks.
   *
   * @throws DmError ENXIO where there is no such device, EINVAL where it is not an overlay, EIO where the overlay is invalid
   */
  changes(name: string): AsyncGenerator<ChangedExtent> {
    return joined((sector) => this.#control.call('overlayChanges', { device: { name }, sector }));
  }

  /**
   * Merges an overlay into its origin, and takes it away when that is done; a device that maps the origin
   * (snapshot-origin) shows merged chunks from the first moment on. Once begun, a merge goes on to its end, whatever
   * becomes of this program; called again, it waits for that.
   *
   * @returns the store, empty now, and kept stores that the change of the origin made stale
   * @throws DmError EBUSY while the overlay is in use, EINVAL for one that can't be merged, EIO where the merge failed,
   *   EINTR for an aborted wait: the merge goes on
   */
  merge(name: string, options: MergeOptions = {}): Promise<DroppedSnapshot> {
    const { deleteCow = false, signal, onProgress, onNotice } = options;
    return this.#control.call(
      'overlayMerge',
      { name, deleteCow },
      { signal, onNotice, onProgress: (progress) => onProgress?.(progress as MergeProgress) },
    );
  }

  /**
   * Takes an overlay away. Its store stays unless `deleteCow` is given.
   *
   * @throws DmError EBUSY while it is in use, or being merged
   */
  async drop(name: string, options: DropOptions = {}): Promise<DroppedSnapshot> {
    const [dropped] = await this.dropAll([name], options);
    return dropped!;
  }

  /** Takes several overlays away: all of them, or none. */
  dropAll(names: readonly string[], options: DropOptions = {}): Promise<DroppedSnapshot[]> {
    if (names.length === 0) throw new DmError(Errno.EINVAL, 'an overlay is needed');
    return this.#control.call('overlayDrop', { names: [...names], ...options });
  }
}
