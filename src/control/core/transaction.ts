// Changes of mapped devices that happen whole or not at all: each step notes how it is undone, and the end of what was
// removed or replaced waits until the change is for good.
import { Errno } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import type { MappedDevice, SuspendOptions } from '../../mapper/mapped-device.ts';
import type { CreateOptions, LoadOptions } from '../../mapper/mapper.ts';
import type { Table } from '../../table/table.ts';
import type { TableInput } from '../../table/text.ts';
import { snapshotOf } from '../../targets/snapshot/report.ts';
import type { ControlHost, Json, RequestContext } from './host.ts';
import { holdTable } from './live-table.ts';
import { loadTable } from './load.ts';
import { changed, checkSignal } from './waiting.ts';

type Step = () => void | Promise<void>;

export class Transaction {
  readonly host: ControlHost;
  readonly context: RequestContext;
  /** Devices whose records have to be written anew. */
  readonly touched = new Set<MappedDevice>();
  readonly removed = new Set<MappedDevice>();
  /** Further keys of the journal that change with it; null where they go. */
  readonly keys = new Map<string, Json>();
  /** Sentences that the caller has by now. */
  readonly #told = new Set<string>();
  readonly #created = new Set<MappedDevice>();
  readonly #undo: Step[] = [];
  readonly #finish: Step[] = [];

  constructor(host: ControlHost, context: RequestContext) {
    this.host = host;
    this.context = context;
  }

  /** A step back, taken in reverse order where the change fails. */
  onUndo(step: Step): void {
    this.#undo.push(step);
  }

  /** Done when the change is for good. */
  onFinish(step: Step): void {
    this.#finish.push(step);
  }

  /** Tells the caller a sentence, once for each change: a batch may name the same file in many tables. */
  tell(text: string): void {
    if (this.#told.has(text)) return;
    this.#told.add(text);
    this.context.onNotice?.(text);
  }

  checkSignal(): void {
    checkSignal(this.context.signal);
  }

  async rollBack(): Promise<void> {
    for (const step of this.#undo.splice(0).reverse()) {
      try {
        await step();
      } catch (error) {
        this.context.onNotice?.(`undoing failed: ${(error as Error).message}`);
      }
    }
  }

  async finish(): Promise<void> {
    for (const step of this.#finish.splice(0)) {
      try {
        await step();
      } catch (error) {
        // The change is for good already: the caller hears that it is done, and what was left.
        this.context.onNotice?.(`done, but for this: ${(error as Error).message}`);
      }
    }
  }

  /** Names the part of a compound request that failed, for messages. */
  #withStep(error: unknown, request: string, device: MappedDevice): unknown {
    if (error instanceof DmError && this.#created.has(device)) {
      error.step ??= { request, major: device.major, minor: device.minor };
    }
    return error;
  }

  // Steps

  create(name: string, options: CreateOptions): MappedDevice {
    const { mapper } = this.host;
    const device = mapper.create(name, options);
    this.#created.add(device);
    this.touched.add(device);
    this.onUndo(async () => {
      if (mapper.isListed(device)) await removed((done) => mapper.remove(device, {}, done));
    });
    return device;
  }

  async load(
    device: MappedDevice,
    table: TableInput,
    options: LoadOptions & { folder?: string | undefined } = {},
  ): Promise<void> {
    const { everLoaded } = device;
    let previous: Table | null = null;
    let wasKept = false;
    try {
      await loadTable(
        this.host,
        device,
        table,
        {
          ...options,
          verify: (argument, lower) => {
            options.verify?.(argument, lower);
            this.#refuseStoreOfRemoved(lower);
          },
          keepPrevious: (table) => {
            previous = table;
            wasKept = true;
          },
        },
        this.context.signal,
      );
    } catch (error) {
      throw this.#withStep(error, 'load', device);
    }
    this.touched.add(device);
    if (!wasKept) return;
    this.onUndo(() => {
      if (!this.removed.has(device)) device.unload(previous, everLoaded);
    });
    this.onFinish(() => previous?.destroy());
  }

  /** In one change a store can not pass from a device that goes to one that comes: undone, it would have lost it. */
  #refuseStoreOfRemoved(lower: unknown): void {
    for (const device of this.removed) {
      if (!device.table?.targets.some((target) => snapshotOf(target)?.cow === lower)) continue;
      const text = `${device.dmName}, which the same change removes, has this store: make two changes of it`;
      throw new DmError(Errno.EBUSY, text);
    }
  }

  clear(device: MappedDevice): void {
    let previous: Table | null = null;
    device.clear((table) => {
      previous = table;
    });
    this.touched.add(device);
    this.onUndo(() => device.unload(previous, device.everLoaded));
    this.onFinish(() => previous?.destroy());
  }

  async suspend(device: MappedDevice, options: SuspendOptions = {}): Promise<void> {
    const { mapper } = this.host;
    if (device.suspended) return;
    await changed(this.context.signal, (done) => mapper.suspend(device, options, () => done(null)));
    this.touched.add(device);
    this.onUndo(() => this.resumeLive(device));
  }

  /** Lets requests of a suspended device through again. A table that waits goes on waiting: it is not for this to swap it in. */
  async resumeLive(device: MappedDevice): Promise<void> {
    if (!device.suspended) return;
    if (device.table === null) {
      await new Promise<void>((resolve) => device.dropLive(resolve));
      return;
    }
    let waiting: Table | null = null;
    device.clear((table) => {
      waiting = table;
    });
    try {
      await changed(undefined, (done) => this.host.mapper.resume(device, {}, done));
    } finally {
      device.unload(waiting, device.everLoaded);
    }
  }

  /** Makes the inactive table live, where there is one. */
  async resume(device: MappedDevice, options: SuspendOptions = {}): Promise<void> {
    const { mapper } = this.host;
    const { suspended: wasSuspended, table: old } = device;
    const swaps = device.inactiveTable !== null;
    // What the old table has open stays open until the change is for good.
    const held = swaps && old !== null && !this.#created.has(device) ? holdTable(this.host, old) : null;
    try {
      await changed(this.context.signal, (done) => mapper.resume(device, options, done));
    } catch (error) {
      held?.release();
      throw this.#withStep(error, 'resume', device);
    }
    this.touched.add(device);
    if (held !== null) this.onFinish(() => held.release());
    if (this.#created.has(device)) return;
    this.onUndo(async () => {
      if (held !== null) {
        await loadTable(this.host, device, held.entries, held.options, undefined);
        await changed(undefined, (done) => mapper.resume(device, {}, done));
        held.release();
      } else if (swaps) await new Promise<void>((resolve) => device.dropLive(resolve));
      if (wasSuspended && old !== null) {
        await changed(undefined, (done) => mapper.suspend(device, {}, () => done(null)));
      }
    });
  }

  /** Takes a device away, or, deferred, lets it go with its last user. @throws DmError EBUSY */
  remove(device: MappedDevice, deferred = false): void {
    const { mapper } = this.host;
    mapper.refusePinned(device);
    const userCount = mapper.userCountWithout(device, this.removed);
    if (userCount > 0) {
      if (!deferred) {
        throw new DmError(Errno.EBUSY, `${device.dmName} is in use by ${userCount}: close or remove those first`);
      }
      device.deferredRemove = true;
      this.touched.add(device);
      this.onUndo(() => {
        device.deferredRemove = false;
      });
      return;
    }
    mapper.detach(device);
    this.removed.add(device);
    this.onUndo(() => {
      this.removed.delete(device);
      try {
        mapper.reattach(device);
      } catch (error) {
        // Its name was given away in this moment: it can't come back before a restart.
        mapper.destroyDetached(device);
        throw error;
      }
    });
    this.onFinish(() => removed((done) => mapper.destroyDetached(device, done)));
  }

  rename(device: MappedDevice, newName: string): void {
    const { mapper } = this.host;
    const { dmName } = device;
    mapper.rename(device, newName, { quietly: true });
    this.touched.add(device);
    this.onUndo(() => mapper.rename(device, dmName, { quietly: true }));
    this.onFinish(() => raiseForLive(device));
  }

  setUuid(device: MappedDevice, uuid: string): void {
    this.host.mapper.setUuid(device, uuid, { quietly: true });
    this.touched.add(device);
    this.onUndo(() => this.host.mapper.unsetUuid(device));
    this.onFinish(() => raiseForLive(device));
  }
}

function raiseForLive(device: MappedDevice): void {
  if (device.table !== null) device.raiseEvent();
}

function removed(begin: (done: () => void) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    try {
      begin(resolve);
    } catch (error) {
      reject(error);
    }
  });
}
