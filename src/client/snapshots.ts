// Overlays as a whole: made, listed, compared, merged and dropped with the requests that a person would give by hand.
import { closeSync, ftruncateSync, openSync, statSync, truncateSync, unlinkSync } from 'node:fs';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Control, SnapshotStatus } from '../daemon/control.ts';
import { type ChangedExtent, joined } from '../reactor/snapshots.ts';
import { parseTable } from '../table/text.ts';
import { inUse, newOverlayUuid } from './overlay.ts';
import { type MergeOptions, Merging } from './snapshot-merge.ts';
import { type CreateSnapshotOptions, type PlannedDevice, planSnapshot, type SnapshotPlan } from './snapshot-plan.ts';

export type { MergeOptions, MergeProgress } from './snapshot-merge.ts';
export type { CreateSnapshotOptions, PlannedDevice, SnapshotPlan, StoreKind } from './snapshot-plan.ts';

export interface DropOptions {
  /** Delete the store's file, too. */
  deleteCow?: boolean;
}

/** What became of an overlay's store. */
export interface DroppedSnapshot {
  cow: string;
  deleted: boolean;
}

function fileFailure(path: string, error: unknown): DmError {
  const errno = errnoFromException(error);
  return new DmError(errno, `${path}: ${errnoMessage(errno)}`);
}

/** The overlays of a daemon. */
export class Snapshots {
  readonly #control: Control;

  constructor(control: Control) {
    this.#control = control;
  }

  /** What {@link create} would do. @throws as that does */
  plan(options: CreateSnapshotOptions): Promise<SnapshotPlan> {
    return planSnapshot(this.#control, options);
  }

  /**
   * Makes an overlay and its store. What writes to the origin through a snapshot-origin is suspended meanwhile, so that the
   * overlay begins with one moment of it. Where it fails, what was made is taken away.
   *
   * @throws DmError EBUSY for a name or store that is taken, ENODEV for an origin that is missing, ENOSPC for a store that
   *   is too small, EEXIST, EINVAL, ENXIO; TableError
   */
  async create(options: CreateSnapshotOptions): Promise<SnapshotPlan> {
    const plan = await this.plan(options);
    const undo: (() => Promise<unknown>)[] = [];
    try {
      this.#makeCow(plan);
      if (plan.makesCow) undo.push(async () => unlinkSync(plan.cow));
      if (plan.originDevice !== null) await this.#make(plan.originDevice, undefined, undo);
      await this.#suspended(plan.suspends, () => this.#make(plan.overlay, newOverlayUuid(), undo));
    } catch (error) {
      for (const step of undo.reverse()) await step().catch(() => {});
      throw error;
    }
    return plan;
  }

  #makeCow({ cow, cowByteLength, makesCow, growsCow }: SnapshotPlan): void {
    try {
      if (growsCow) truncateSync(cow, cowByteLength);
      if (!makesCow) return;
      const fd = openSync(cow, 'wx', 0o600);
      try {
        ftruncateSync(fd, cowByteLength);
      } catch (error) {
        unlinkSync(cow);
        throw error;
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      throw fileFailure(cow, error);
    }
  }

  async #make(planned: PlannedDevice, uuid: string | undefined, undo: (() => Promise<unknown>)[]): Promise<void> {
    const { name, table } = planned;
    const device = { name };
    await this.#control.call('create', uuid === undefined ? device : { name, uuid });
    undo.push(() => this.#control.call('remove', { device }));
    await this.#control.call('load', { device, table: parseTable(table) });
    await this.#control.call('resume', { device });
  }

  /** Does `work` while the devices are suspended; those that were before stay so. */
  async #suspended(names: readonly string[], work: () => Promise<void>): Promise<void> {
    const resume: string[] = [];
    try {
      for (const name of names) {
        const device = { name };
        if ((await this.#control.call('info', { device })).suspended) continue;
        await this.#control.call('suspend', { device });
        resume.push(name);
      }
      await work();
    } finally {
      for (const name of resume) await this.#control.call('resume', { device: { name } });
    }
  }

  /** Every line of type snapshot or snapshot-merge, with its counters; of one device where a name is given. */
  list(name?: string): Promise<SnapshotStatus[]> {
    return this.#control.call('snapshots', name === undefined ? {} : { device: { name } });
  }

  /** The overlay of that name. @throws DmError ENXIO, EINVAL for a device that is something else */
  async #find(name: string): Promise<SnapshotStatus> {
    const [status] = await this.list(name);
    if (status === undefined) {
      // A device that is not there, or no daemon, is told first.
      await this.#control.call('info', { device: { name } });
      throw new DmError(Errno.EINVAL, `${name} is no overlay: its table has no snapshot line`);
    }
    if (status.targetCount > 1) {
      throw new DmError(Errno.EINVAL, `the table of ${name} has ${status.targetCount} lines: change it by hand`);
    }
    return status;
  }

  /**
   * Where an overlay differs from its origin, in ascending order and whole chunks.
   *
   * @throws DmError ENXIO, EINVAL for a device that is no overlay, EIO for one that is invalid
   */
  changes(name: string): AsyncGenerator<ChangedExtent> {
    return joined((sector) => this.#control.call('snapshotChanges', { device: { name }, sector }));
  }

  /**
   * Merges an overlay into its origin, and takes it away when that is done; a device that maps the origin
   * (snapshot-origin) shows what is merged from the first moment on. Called again after an interruption it goes on.
   *
   * @returns the store, empty now
   * @throws DmError EBUSY while somebody uses the overlay, EINVAL for one that can't be merged, EIO where the merge failed,
   *   EINTR for an aborted wait: the merge goes on
   */
  async merge(name: string, options: MergeOptions = {}): Promise<DroppedSnapshot> {
    const cow = await new Merging(this.#control, options).run(await this.#find(name));
    return this.#disposeOf(cow, options.deleteCow ?? false);
  }

  /**
   * Takes an overlay away. Its store stays unless `deleteCow` is given.
   *
   * @throws DmError EBUSY while somebody uses it, or it is being merged
   */
  async drop(name: string, options: DropOptions = {}): Promise<DroppedSnapshot> {
    const status = await this.#find(name);
    if (status.type === 'snapshot-merge' || status.condition === 'Handed over') {
      throw new DmError(Errno.EBUSY, `${name} is being merged into its origin: finish that (merge it again)`);
    }
    if (status.openCount > 0) throw inUse(status);
    await this.#control.call('remove', { device: { name } });
    return this.#disposeOf(status.cow, options.deleteCow ?? false);
  }

  /** Only a file is deleted, and only when nobody has it. */
  async #disposeOf(cow: string, deleteCow: boolean): Promise<DroppedSnapshot> {
    if (!deleteCow) return { cow, deleted: false };
    const { overlays } = await this.#control.call('snapshotUsers', { cow });
    if (overlays.length > 0) {
      throw new DmError(Errno.EBUSY, `the overlay is gone; ${cow} stays, for ${overlays.join(', ')} has it`);
    }
    try {
      if (!statSync(cow).isFile()) return { cow, deleted: false };
      unlinkSync(cow);
    } catch (error) {
      throw fileFailure(cow, error);
    }
    return { cow, deleted: true };
  }
}
