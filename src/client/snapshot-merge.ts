// Merging an overlay into its origin, from whatever state a run before this one has left.
//
// Where a device maps the origin (snapshot-origin), that one merges:    Where none does, the overlay itself merges:
//   1. suspend the overlay                                                1. load snapshot-merge into the overlay
//   2. load snapshot-merge into the origin's device, resume it            2. resume it
//   3. wait                                                               3. wait
//   4. remove the overlay                                                 4. remove it
//   5. load snapshot-origin again, resume it
import { setTimeout as sleep } from 'node:timers/promises';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { escapeArgument } from '../block/escape.ts';
import type { Control, SnapshotStatus } from '../daemon/control.ts';
import type { TableEntry } from '../table/text.ts';
import { inUse, isOverlayUuid, newOverlayUuid } from './overlay.ts';

const POLL_MILLISECONDS = 50;

export interface MergeProgress {
  /** Chunks that are not home yet, and how many there were when this run began to look. */
  leftChunkCount: number;
  totalChunkCount: number;
  chunkSectorCount: number;
}

export interface MergeOptions {
  /** Delete the store's file when everything is home. */
  deleteCow?: boolean;
  /** Stops waiting; the merge goes on. */
  signal?: AbortSignal;
  onProgress?: (progress: MergeProgress) => void;
}

export class Merging {
  readonly #control: Control;
  readonly #options: MergeOptions;

  constructor(control: Control, options: MergeOptions) {
    this.#control = control;
    this.#options = options;
  }

  /** @returns the store */
  async run(overlay: SnapshotStatus): Promise<string> {
    const merging = await this.#begin(overlay);
    await this.#wait(merging);
    await this.#finish(merging);
    return overlay.cow;
  }

  /** @returns the name of the device that merges */
  async #begin(overlay: SnapshotStatus): Promise<string> {
    if (overlay.type === 'snapshot-merge') {
      if (overlay.condition === 'Merge failed') await this.#restart(overlay);
      return overlay.name;
    }
    if (overlay.condition === 'Handed over') return this.#resumeMerge(overlay);
    checkMergeable(overlay);
    const { origins } = await this.#control.call('snapshotUsers', { origin: overlay.origin });
    if (origins.length > 1) {
      throw new DmError(Errno.EBUSY, `${origins.join(' and ')} both map the origin: leave one of them`);
    }
    const [origin] = origins;
    if (origin === undefined) await this.#becomeMerge(overlay);
    else await this.#mergeIn(origin, overlay);
    return origin ?? overlay.name;
  }

  /** The table line of the overlay, as another type. */
  async #line(overlay: SnapshotStatus, type: 'snapshot' | 'snapshot-merge'): Promise<TableEntry[]> {
    const { lines } = await this.#control.call('table', { device: { name: overlay.name }, type: 'table' });
    return [{ ...lines[0]!, type }];
  }

  async #swap(name: string, table: TableEntry[]): Promise<void> {
    const device = { name };
    // What a run before this one left there.
    if ((await this.#control.call('info', { device })).inactive) await this.#control.call('clear', { device });
    await this.#control.call('load', { device, table });
    try {
      await this.#control.call('resume', { device });
    } catch (error) {
      // The table that did not fit is gone; the live one goes on.
      await this.#control.call('resume', { device });
      throw error;
    }
  }

  async #becomeMerge(overlay: SnapshotStatus): Promise<void> {
    const { name, uuid } = overlay;
    // So that a later run knows an overlay, which goes at the end, from a device that maps an origin, which stays.
    if (uuid === '') await this.#control.call('setUuid', { name, uuid: newOverlayUuid() });
    await this.#swap(name, await this.#line(overlay, 'snapshot-merge'));
  }

  async #mergeIn(origin: string, overlay: SnapshotStatus): Promise<void> {
    const device = { name: overlay.name };
    const { sectorCount } = await this.#control.call('info', { device: { name: origin } });
    if (sectorCount !== overlay.sectorCount) {
      const text = `${origin} has ${sectorCount} sectors and ${overlay.name} ${overlay.sectorCount}: merge it by hand`;
      throw new DmError(Errno.EINVAL, text);
    }
    const table = await this.#line(overlay, 'snapshot-merge');
    await this.#control.call('suspend', { device });
    try {
      await this.#swap(origin, table);
    } catch (error) {
      await this.#control.call('resume', { device });
      throw error;
    }
  }

  /** Another device has the store: the merge of a run before this one. */
  async #resumeMerge(overlay: SnapshotStatus): Promise<string> {
    const { overlays } = await this.#control.call('snapshotUsers', { cow: overlay.cow });
    const merging = overlays.find((name) => name !== overlay.name);
    if (merging === undefined) {
      throw new DmError(Errno.EINVAL, `${overlay.name} has handed its store over, and nobody has it: remove it`);
    }
    const [status] = await this.#control.call('snapshots', { device: { name: merging } });
    if (status!.type === 'snapshot-merge' && status!.condition === 'Merge failed') await this.#restart(status!);
    else if (status!.type === 'snapshot') await this.#swap(merging, await this.#line(status!, 'snapshot-merge'));
    return merging;
  }

  /** A merge that has failed begins anew as another line; in between nobody may write. */
  async #restart(merging: SnapshotStatus): Promise<void> {
    if (merging.openCount > 0) {
      const { message } = inUse(merging);
      throw new DmError(Errno.EBUSY, `the merge has failed, and begins again only when nobody uses it: ${message}`);
    }
    const { name } = merging;
    // A store has two lines at the most.
    await this.#removeOthers(merging);
    const [again, through] = [await this.#line(merging, 'snapshot-merge'), await this.#line(merging, 'snapshot')];
    await this.#swap(name, through);
    await this.#swap(name, again);
  }

  async #wait(name: string): Promise<void> {
    const { signal, onProgress } = this.#options;
    let totalChunkCount = 0;
    for (;;) {
      const [status] = await this.#control.call('snapshots', { device: { name } });
      if (status === undefined)
        throw new DmError(Errno.EINVAL, `${name} has another table now: the merge was taken away`);
      const { condition, usedChunkCount, metadataChunkCount, chunkSectorCount } = status;
      if (condition === 'Merge failed' || condition === 'Invalid') throw failed(status);
      const leftChunkCount = usedChunkCount - metadataChunkCount;
      totalChunkCount = Math.max(totalChunkCount, leftChunkCount);
      onProgress?.({ leftChunkCount, totalChunkCount, chunkSectorCount });
      if (condition === 'Merged') return;
      if (status.suspended) await this.#control.call('resume', { device: { name } });
      try {
        await sleep(POLL_MILLISECONDS, undefined, signal === undefined ? {} : { signal });
      } catch {
        throw new DmError(Errno.EINTR, `the merge of ${name} goes on; merge it again to wait for its end`);
      }
    }
  }

  async #finish(merging: string): Promise<void> {
    const device = { name: merging };
    const [status] = await this.#control.call('snapshots', { device });
    await this.#removeOthers(status!);
    if (isOverlayUuid(status!.uuid)) {
      await this.#control.call('remove', { device });
      return;
    }
    const { sector, sectorCount, origin } = status!;
    await this.#swap(merging, [{ sector, sectorCount, type: 'snapshot-origin', params: escapeArgument(origin) }]);
  }

  /** Overlays that have handed their store over to the merge. */
  async #removeOthers(merging: SnapshotStatus): Promise<void> {
    const { overlays } = await this.#control.call('snapshotUsers', { cow: merging.cow });
    for (const name of overlays) {
      if (name !== merging.name) await this.#control.call('remove', { device: { name } });
    }
  }
}

function checkMergeable(overlay: SnapshotStatus): void {
  const { name, condition, store, openCount } = overlay;
  if (store === 'N') {
    throw new DmError(Errno.EINVAL, `${name} has a transient store, which can't be merged: copy the device instead`);
  }
  if (condition === 'Invalid') {
    throw new DmError(
      Errno.EINVAL,
      `${name} is invalid: what it had is not all there, and nothing was merged; drop it`,
    );
  }
  if (openCount > 0) throw inUse(overlay);
}

function failed({ name, condition, origin, cow }: SnapshotStatus): DmError {
  return new DmError(
    Errno.EIO,
    `${name}: ${condition}: reading ${cow} or writing ${origin} failed. What is not home is in the store still: mend that, and merge again`,
  );
}
