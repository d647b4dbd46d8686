// The requests about mapped devices, as dmsetup's verbs: each single verb does what the kernel's ioctl does, and `create`
// with a table is one change.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { checkingMarks } from '../overlays/marks.ts';
import { changedPaths } from './changed-paths.ts';
import type { RequestContext } from './core/host.ts';
import { entriesWith } from './core/long-table.ts';
import type { Plane } from './core/plane.ts';
import { describeTable } from './core/records.ts';
import type { Transaction } from './core/transaction.ts';
import { changed } from './core/waiting.ts';
import { tellCutEnds } from './cut-ends.ts';
import type { RequestArgs } from './requests.ts';
import type { DeviceAddress } from './schema.ts';
import { depsOf, linesOf, ReadAheads, statusOf } from './status.ts';
import type { Dependency, DeviceStatus, LoadReply, StatusLine, TableReply, TargetVersion } from './types.ts';

/** How a load's device arguments are to be read, for a caller in `folder`. */
export type Translator = (folder: string | undefined, host: boolean) => (argument: string) => string;

/** Lines that are printed before others get their turn. */
const LINE_COUNT = 2048;

export class DeviceOperations {
  readonly #plane: Plane;
  readonly #translate: Translator;
  readonly #notes: { readAheads: ReadAheads; suspensionOf: Plane['suspensionOf'] };

  constructor(plane: Plane, translate: Translator) {
    this.#plane = plane;
    this.#translate = translate;
    this.#notes = { readAheads: new ReadAheads(), suspensionOf: (device) => plane.suspensionOf(device) };
  }

  get #mapper() {
    return this.#plane.host.mapper;
  }

  /** @throws DmError ENXIO */
  find(address: DeviceAddress): MappedDevice {
    if ('name' in address) return this.#mapper.get(address.name);
    if ('uuid' in address) return this.#mapper.getByUuid(address.uuid);
    return this.#mapper.getByNumber(address.major, address.minor);
  }

  status(device: MappedDevice, inactive?: boolean): DeviceStatus {
    return statusOf(device, this.#notes, inactive);
  }

  // Questions

  targets(): TargetVersion[] {
    return this.#plane.host.targets.list().map(({ name, version }) => ({ name, version }));
  }

  list(): DeviceStatus[] {
    return this.#mapper.list().map((device) => this.status(device));
  }

  info(address: DeviceAddress, inactive?: boolean): DeviceStatus {
    return this.status(this.find(address), inactive);
  }

  async table(args: RequestArgs<'table'>): Promise<TableReply> {
    const device = this.find(args.device);
    const table = args.inactive ? device.inactiveTable : device.table;
    const status = this.status(device, args.inactive);
    if (table === null || table.targets.length <= LINE_COUNT) return { status, lines: linesOf(table, args.type) };
    const lines: StatusLine[] = [];
    for (let from = 0; from < table.targets.length; from += LINE_COUNT) {
      for (const line of linesOf(table, args.type, from, from + LINE_COUNT)) lines.push(line);
      // Others get their turn between the pieces of a long table.
      await new Promise((resolve) => setImmediate(resolve));
    }
    return { status, lines };
  }

  deps(address: DeviceAddress, inactive?: boolean): Dependency[] {
    const device = this.find(address);
    return depsOf(inactive ? device.inactiveTable : device.table);
  }

  async wait(args: RequestArgs<'wait'>, { signal }: RequestContext): Promise<DeviceStatus> {
    const device = this.find(args.device);
    const name = device.dmName;
    await changed(signal, (done) => {
      const stop = device.waitForEvent(args.eventNumber, () => done(null));
      return { cancel: stop };
    });
    return { ...this.status(device), name };
  }

  message(address: DeviceAddress, sector: number, text: string): string | null {
    return this.find(address).message(sector, text) ?? null;
  }

  setReadAhead(address: DeviceAddress, sectorCount: number | null, atLeast = false): DeviceStatus {
    const device = this.find(address);
    this.#notes.readAheads.set(device, sectorCount, atLeast);
    return this.status(device);
  }

  refresh(address: DeviceAddress): { name: string; sectorCount: number }[] {
    const device = this.find(address);
    const found: { name: string; sectorCount: number }[] = [];
    for (const lower of device.table?.devices ?? []) {
      const before = lower.sectorCount;
      const sectorCount = this.#plane.host.devices?.refreshSize(lower) ?? before;
      if (sectorCount !== before) found.push({ name: lower.name, sectorCount });
    }
    return found;
  }

  // Changes: the steps that a batch has too, then the requests.

  createIn = async (transaction: Transaction, args: RequestArgs<'create'>): Promise<() => DeviceStatus> => {
    const { name, uuid, major, minor, table, readAhead } = args;
    if (major !== undefined && major !== this.#mapper.major) {
      throw new DmError(Errno.ENXIO, `the major number of dmkit's devices is ${this.#mapper.major}, not ${major}`);
    }
    const device = transaction.create(name, {
      ...(uuid === undefined ? {} : { uuid }),
      ...(minor === undefined ? {} : { minor }),
    });
    if (table !== undefined) {
      await transaction.load(device, table, await this.#loadOptions(table, args, transaction));
      await tellCutEnds(device, transaction);
      await transaction.resume(device);
    }
    if (readAhead !== undefined) {
      this.#notes.readAheads.set(device, readAhead.sectorCount, readAhead.atLeast ?? false);
    }
    return () => this.status(device);
  };

  async #loadOptions(
    table: RequestArgs<'load'>['table'],
    args: { readOnly?: boolean; folder?: string; host?: boolean; force?: boolean },
    { context }: Transaction,
  ) {
    return {
      ...checkingMarks(this.#plane, await entriesWith(table, 'snapshot'), {
        force: args.force ?? false,
        onNotice: context.onNotice,
      }),
      readOnly: args.readOnly ?? false,
      folder: args.folder,
      translate: this.#translate(args.folder, args.host ?? false),
    };
  }

  loadIn = async (transaction: Transaction, args: RequestArgs<'load'>): Promise<() => LoadReply> => {
    const device = this.find(args.device);
    await transaction.load(device, args.table, await this.#loadOptions(args.table, args, transaction));
    await tellCutEnds(device, transaction);
    const notices = changedPaths(device);
    return () => ({ ...this.status(device), notices });
  };

  clearIn = (transaction: Transaction, args: RequestArgs<'clear'>): (() => DeviceStatus) => {
    const device = this.find(args.device);
    transaction.clear(device);
    return () => this.status(device);
  };

  suspendIn = async (transaction: Transaction, args: RequestArgs<'suspend'>): Promise<() => DeviceStatus> => {
    const device = this.find(args.device);
    await transaction.suspend(device, { noflush: args.noflush ?? false });
    return () => this.status(device);
  };

  resumeIn = async (transaction: Transaction, args: RequestArgs<'resume'>): Promise<() => DeviceStatus> => {
    const device = this.find(args.device);
    await transaction.resume(device, { noflush: args.noflush ?? false });
    return () => this.status(device);
  };

  removeIn = (transaction: Transaction, args: RequestArgs<'remove'>): (() => null) => {
    transaction.remove(this.find(args.device), args.deferred ?? false);
    return () => null;
  };

  renameIn = (transaction: Transaction, args: RequestArgs<'rename'>): (() => DeviceStatus) => {
    const device = this.#mapper.get(args.name);
    transaction.rename(device, args.newName);
    return () => this.status(device);
  };

  setUuidIn = (transaction: Transaction, args: RequestArgs<'setUuid'>): (() => DeviceStatus) => {
    const device = this.#mapper.get(args.name);
    transaction.setUuid(device, args.uuid);
    return () => this.status(device);
  };

  async #change<Args, Result>(
    step: (transaction: Transaction, args: Args) => (() => Result) | Promise<() => Result>,
    args: Args,
    context: RequestContext,
  ): Promise<Result> {
    const reply = await this.#plane.change(context, (transaction) => step(transaction, args));
    return reply();
  }

  create(args: RequestArgs<'create'>, context: RequestContext): Promise<DeviceStatus> {
    return this.#change(this.createIn, args, context);
  }

  load(args: RequestArgs<'load'>, context: RequestContext): Promise<LoadReply> {
    return this.#change(this.loadIn, args, context);
  }

  clear(args: RequestArgs<'clear'>, context: RequestContext): Promise<DeviceStatus> {
    return this.#change(this.clearIn, args, context);
  }

  suspend(args: RequestArgs<'suspend'>, context: RequestContext): Promise<DeviceStatus> {
    return this.#change(this.suspendIn, args, context);
  }

  /**
   * A swap of tables can't be undone, so the journal hears of it first. As in the kernel, a resume that fails leaves the
   * device suspended and has emptied the inactive slot.
   */
  async resume(args: RequestArgs<'resume'>, { signal }: RequestContext): Promise<DeviceStatus> {
    const device = this.find(args.device);
    const { inactiveTable } = device;
    this.#mapper.refusePinned(device);
    const live = await describeTable(inactiveTable ?? device.table, this.#plane.host);
    if (live !== null) await this.#plane.foretell(device, { live, inactive: null, suspended: false, suspension: null });
    const noflush = args.noflush ?? false;
    try {
      await changed(signal, (done) => this.#mapper.resume(device, { noflush }, done));
    } catch (error) {
      await this.#plane.note(device);
      throw error;
    }
    this.#plane.clearSuspension(device);
    this.#plane.hooks.onChange?.(device);
    return this.status(device);
  }

  remove(args: RequestArgs<'remove'>, context: RequestContext): Promise<null> {
    return this.#change(this.removeIn, args, context);
  }

  rename(args: RequestArgs<'rename'>, context: RequestContext): Promise<DeviceStatus> {
    return this.#change(this.renameIn, args, context);
  }

  setUuid(args: RequestArgs<'setUuid'>, context: RequestContext): Promise<DeviceStatus> {
    return this.#change(this.setUuidIn, args, context);
  }

  /** Everything that nothing uses, from the top of each stack down. @returns the names of the others */
  async removeAll(deferred: boolean, context: RequestContext): Promise<string[]> {
    await this.#plane.change(context, (transaction) => {
      for (let progress = true; progress; ) {
        progress = false;
        for (const device of this.#mapper.list()) {
          const isFree = device.pinned === null && this.#mapper.userCountWithout(device, transaction.removed) === 0;
          if (!isFree) continue;
          transaction.remove(device);
          progress = true;
        }
      }
      if (deferred) for (const device of this.#mapper.list()) transaction.remove(device, true);
    });
    return this.#mapper.list().map((device) => device.dmName);
  }
}
