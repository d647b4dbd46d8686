// Devices of a daemon that ended without taking them down: kept in the journal until they are restored or forgotten.
//
// A restore makes all devices and loads their tables before it resumes any; then overlays are resumed before the devices
// through which their origins are written, because a write in between would reach the overlays as their own content. An
// origin whose overlay is missing stays suspended. Each step leaves the journal so that a restore which is killed goes on
// when it is run again.
import type { BlockDevice } from '../block/block-device.ts';
import { cutEndText } from '../block/cut-end.ts';
import { Errno, errnoMessage } from '../block/errno.ts';
import { DmError, TableError } from '../block/errors.ts';
import { compareIdentities, type DiskIdentity, identifyPath } from '../devices/identity.ts';
import { MappedDevice } from '../mapper/mapped-device.ts';
import { checkingMarks } from '../overlays/marks.ts';
import type { Merges } from '../overlays/merge.ts';
import { LongText } from '../table/long-text.ts';
import { parseTable, splitArguments } from '../table/text.ts';
import type { JournalSink, Json, RequestContext } from './core/host.ts';
import { loadTable } from './core/load.ts';
import { entriesWith } from './core/long-table.ts';
import { asJson, type Plane } from './core/plane.ts';
import {
  DEVICE_PREFIX,
  type DeviceRecord,
  idOf,
  LOST_PREFIX,
  MERGE_PREFIX,
  type MergeRecord,
  setId,
  type TableRecord,
} from './core/records.ts';
import { changed } from './core/waiting.ts';
import { cutEndsOf } from './cut-ends.ts';
import { type Kin, kinOf } from './kin.ts';
import type { LostReply, Restored } from './types.ts';

const BUSY_ATTEMPTS = 10;
const BUSY_MILLISECONDS = 100;

/** A lost device as the journal has it. */
export interface LostRecord {
  device: DeviceRecord;
  /** Why the last restore could not make it; null where none was tried. */
  error: string | null;
}

/** The reason of a failure, and its causes, in one line. */
function reasonOf(error: unknown): string {
  if (!(error instanceof DmError)) throw error;
  const text = error instanceof TableError ? error.reason : error.message;
  const cause = error.cause instanceof Error ? `: ${error.cause.message}` : '';
  return `${text}${cause} (${errnoMessage(error.errno)})`;
}

export class Recovery {
  readonly #plane: Plane;
  readonly #journal: JournalSink;
  readonly #merges: Merges;
  /** Sentences about damage of the journal. */
  readonly #damage: string[];

  constructor(plane: Plane, journal: JournalSink, merges: Merges, damage: string[]) {
    this.#plane = plane;
    this.#journal = journal;
    this.#merges = merges;
    this.#damage = damage;
    this.#reserveMinors();
  }

  /** Lost devices keep their minors, or tables that name them by number would lead to others. */
  #reserveMinors(): void {
    const { reservedMinors } = this.#plane.host.mapper;
    reservedMinors.clear();
    for (const { device } of this.#lost()) reservedMinors.set(device.minor, device.name);
  }

  #lost(): LostRecord[] {
    const records: LostRecord[] = [];
    for (const [key, value] of this.#journal.values) {
      if (key.startsWith(LOST_PREFIX)) records.push(value as unknown as LostRecord);
    }
    return records.sort((a, b) => (a.device.name < b.device.name ? -1 : 1));
  }

  list(): LostReply {
    const devices = this.#lost().map(({ device, error }) => ({
      name: device.name,
      uuid: device.uuid,
      minor: device.minor,
      table: linesOf(device.live ?? device.inactive),
      error,
    }));
    return { devices, damage: [...this.#damage] };
  }

  /** @throws DmError ENXIO for a name that no lost device has */
  #named(names: readonly string[]): LostRecord[] {
    const lost = this.#lost();
    return names.flatMap((name) => {
      const found = lost.filter(({ device }) => device.name === name);
      if (found.length === 0) throw new DmError(Errno.ENXIO, `no lost device is named ${name}`);
      return found;
    });
  }

  // Forgetting and adopting

  async forget(names: readonly string[], context: RequestContext): Promise<void> {
    const records = this.#named(names);
    await this.#journal.commit(new Map(records.map(({ device }) => [LOST_PREFIX + device.id, null])));
    this.#reserveMinors();
    await this.#releaseOrigins(context);
  }

  /** Accepts the disks that the tables of lost devices lead to now. @returns a sentence for each that is another one */
  async adopt(names: readonly string[], _context: RequestContext): Promise<string[]> {
    const sentences: string[] = [];
    const changes = new Map<string, Json>();
    for (const record of this.#named(names)) {
      const device = structuredClone(record.device);
      for (const table of [device.live, device.inactive]) {
        for (const lower of table?.lower ?? []) {
          if (lower.identity?.kind !== 'file' && lower.identity?.kind !== 'block') continue;
          const found = identifyPath(lower.argument, '/');
          const mismatch = compareIdentities(lower.identity, found);
          if (mismatch === null) continue;
          sentences.push(`${device.name}: ${mismatch.text}; it is accepted`);
          lower.identity = found;
        }
      }
      changes.set(LOST_PREFIX + device.id, asJson({ device, error: null, adopted: true }));
    }
    await this.#journal.commit(changes);
    return sentences;
  }

  /** Origins that waited for overlays which are here or forgotten by now are resumed. */
  async #releaseOrigins(context: RequestContext): Promise<void> {
    for (const device of this.#plane.host.mapper.list()) {
      const suspension = this.#plane.suspensionOf(device);
      if (suspension?.reason == null || this.#missingFor(device) !== null) continue;
      const error = await this.#resume(device, context);
      if (error === null) this.#plane.clearSuspension(device);
    }
  }

  // Restoring

  /** @param names of lost devices; null for all */
  async restore(names: readonly string[] | null, force: boolean, context: RequestContext): Promise<Restored[]> {
    const records = names === null ? this.#lost() : this.#named(names);
    if (records.length === 0) throw new DmError(Errno.ENOENT, 'there are no lost devices to restore');
    const restoring = new Restoring(this.#plane, this.#journal, records, force, context);
    await restoring.makeAll();
    for (const device of restoring.inResumeOrder()) {
      const missing = force ? null : this.#missingFor(device, (id) => restoring.isLive(id));
      if (missing === null) await restoring.resume(device);
      else await restoring.hold(device, missing);
    }
    const results = await restoring.finish();
    this.#reserveMinors();
    await this.#releaseOrigins(context);
    this.#continueMerges();
    return results;
  }

  /**
   * Why a device through which an origin is written can't be resumed; null where it can.
   *
   * @param isLive true for a lost device that is live again, and only not yet for good
   */
  #missingFor(device: MappedDevice, isLive: (id: string) => boolean = () => false): string | null {
    const table = device.table ?? device.inactiveTable;
    if (table === null) return null;
    const origins = new Set(kinOf(table).writes);
    if (origins.size === 0) return null;
    for (const { device: lost } of this.#lost()) {
      if (isLive(lost.id)) continue;
      const kin = lost.live === null ? null : kinOf(lost.live);
      if (kin === null || kin.isTransient || kin.writes.length > 0) continue;
      const identities = new Map(lost.live!.lower.map(({ argument, identity }) => [argument, identity]));
      for (const origin of kin.origins) {
        if (this.#isSameOrigin(table.devices, origins, origin, identities.get(origin) ?? null)) {
          return `its overlay ${lost.name} is missing`;
        }
      }
    }
    return null;
  }

  #isSameOrigin(
    devices: readonly BlockDevice[],
    names: ReadonlySet<string>,
    argument: string,
    identity: DiskIdentity | null,
  ): boolean {
    if (names.has(argument)) return true;
    return devices.some((device) => {
      const own = names.has(device.name) ? this.#plane.host.devices?.identity(device) : null;
      return (
        own != null && identity !== null && own.kind === identity.kind && compareIdentities(identity, own) === null
      );
    });
  }

  async #resume(device: MappedDevice, context: RequestContext): Promise<DmError | null> {
    try {
      await changed(context.signal, (done) => this.#plane.host.mapper.resume(device, {}, done));
      return null;
    } catch (error) {
      return error as DmError;
    } finally {
      await this.#plane.note(device);
    }
  }

  /** Merges of the journal whose device is here go on. */
  #continueMerges(): void {
    const present = new Set(this.#plane.host.mapper.list().map(idOf));
    for (const [key, value] of this.#journal.values) {
      if (!key.startsWith(MERGE_PREFIX)) continue;
      const record = value as unknown as MergeRecord;
      if (present.has(record.deviceId) && !this.#merges.has(record.name)) this.#merges.resume({ ...record });
    }
  }
}

/** One run of a restore. */
class Restoring {
  readonly #plane: Plane;
  readonly #journal: JournalSink;
  readonly #force: boolean;
  readonly #context: RequestContext;
  readonly #records: LostRecord[];
  readonly #results = new Map<string, Restored>();
  readonly #made = new Map<string, { device: MappedDevice; record: DeviceRecord }>();

  constructor(plane: Plane, journal: JournalSink, records: LostRecord[], force: boolean, context: RequestContext) {
    this.#plane = plane;
    this.#journal = journal;
    this.#force = force;
    this.#context = context;
    this.#records = records;
  }

  get #mapper() {
    return this.#plane.host.mapper;
  }

  #result(record: DeviceRecord): Restored {
    let result = this.#results.get(record.id);
    if (result === undefined) {
      result = { name: record.name, error: null, notices: [] };
      this.#results.set(record.id, result);
    }
    return result;
  }

  /** Makes the devices and loads their tables, each when those below it are there; resumes none but what a load reads. */
  async makeAll(): Promise<void> {
    let waiting: DeviceRecord[] = [];
    for (const { device } of this.#records) {
      if (device.deferredRemove || isTransient(device)) {
        const why = device.deferredRemove
          ? 'it was to go with its last user'
          : 'its store is transient: everything in it went with its device';
        this.#result(device).error = `not restored: ${why}`;
        await this.#journal.commit(new Map([[LOST_PREFIX + device.id, null]]));
      } else if (await this.#isMerged(device)) {
        this.#result(device).notices.push('its merge goes on');
      } else waiting.push(device);
    }
    for (let progress = true; progress && waiting.length > 0; ) {
      const failed: DeviceRecord[] = [];
      for (const record of waiting) {
        const error = await this.#makePatiently(record);
        this.#result(record).error = error;
        if (error !== null) failed.push(record);
      }
      progress = failed.length < waiting.length;
      waiting = failed;
    }
  }

  /** An overlay whose store another device merges: it is over, and its name stands for the merge. */
  async #isMerged(overlay: DeviceRecord): Promise<boolean> {
    const cow = overlay.live === null ? null : storeOf(overlay.live, 'snapshot');
    if (cow === null || !overlay.suspended) return false;
    const merging = this.#records.find(
      ({ device: { live } }) => live !== null && storeOf(live, 'snapshot-merge') === cow,
    );
    if (merging === undefined) return false;
    const record = { name: overlay.name, deviceId: merging.device.id, mapsOrigin: true, cow, deleteCow: false };
    await this.#journal.commit(
      new Map([
        [MERGE_PREFIX + overlay.name, asJson(record)],
        [LOST_PREFIX + overlay.id, null],
      ]),
    );
    return true;
  }

  /** A daemon that was killed in the middle of its I/O keeps its locks until the kernel has ended that. */
  async #makePatiently(record: DeviceRecord): Promise<string | null> {
    for (let attempt = 1; ; attempt++) {
      const error = await this.#make(record);
      const isBusy = error?.endsWith(`(${errnoMessage(Errno.EBUSY)})`);
      if (!isBusy || attempt >= BUSY_ATTEMPTS || this.#context.signal?.aborted) return error;
      await new Promise((resolve) => setTimeout(resolve, BUSY_MILLISECONDS));
    }
  }

  /** @returns why it could not be made; null where it was */
  async #make(record: DeviceRecord): Promise<string | null> {
    let device: MappedDevice | null = null;
    const { uuid, minor, live } = record;
    this.#result(record).notices.length = 0;
    try {
      device = this.#mapper.create(record.name, { minor, isReserved: true, ...(uuid === '' ? {} : { uuid }) });
      setId(device, record.id);
      if (live !== null) await this.#load(device, record, live);
      // A store on it is read while its overlay is loaded.
      if (live !== null && isPlain(live) && standsOnLive(device)) {
        await changed(this.#context.signal, (done) => this.#mapper.resume(device!, {}, done));
      }
      this.#made.set(record.id, { device, record });
      return null;
    } catch (error) {
      if (device !== null) await new Promise<void>((resolve) => this.#mapper.remove(device!, {}, resolve));
      return reasonOf(error);
    }
  }

  async #load(device: MappedDevice, record: DeviceRecord, table: TableRecord): Promise<void> {
    const text = table.text.length > 1 ? new LongText(table.text) : (table.text[0] ?? '');
    const notices = this.#result(record).notices;
    const identities = new Map(table.lower.map(({ argument, identity }) => [argument, identity]));
    const marks = checkingMarks(this.#plane, await entriesWith(text, 'snapshot'), {
      force: this.#force,
      onNotice: (notice) => notices.push(notice),
    });
    const options = {
      readOnly: table.readOnly,
      translate: (argument: string) => this.#translate(argument, identities.get(argument) ?? null, record),
      verify: (argument: string, lower: BlockDevice) => {
        this.#verify(lower, identities.get(argument) ?? null, notices);
        marks.verify?.(argument, lower);
      },
    };
    await loadTable(this.#plane.host, device, text, options, this.#context.signal);
    for (const end of await cutEndsOf(device.inactiveTable)) this.#tellOnce(record, cutEndText(end));
  }

  /** A sentence about a file goes to the first of its devices alone. */
  #tellOnce(record: DeviceRecord, text: string): void {
    for (const { notices } of this.#results.values()) if (notices.includes(text)) return;
    this.#result(record).notices.push(text);
  }

  /** A mapped device below is the one of the journal, whatever number it has now. */
  #translate(argument: string, identity: DiskIdentity | null, record: DeviceRecord): string {
    const numbers = /^(\d+):(\d+)$/.exec(argument);
    if (identity === null) {
      // Version 0.1 kept no identities: a number of ours means the device of the same journal.
      const lower =
        numbers === null ? undefined : this.#records.find(({ device }) => device.minor === Number(numbers[2]));
      const isOurs = lower !== undefined && this.#isOldMajor(argument, record);
      return isOurs ? this.#numberOf(lower!.device.id, lower!.device.name) : argument;
    }
    return identity.kind === 'mapped' ? this.#numberOf(identity.id, identity.name) : argument;
  }

  #isOldMajor(argument: string, record: DeviceRecord): boolean {
    const { major } = record as DeviceRecord & { major?: number };
    return major !== undefined && argument.startsWith(`${major}:`);
  }

  #numberOf(id: string, name: string): string {
    const device = this.#mapper.list().find((one) => idOf(one) === id);
    if (device !== undefined) return device.name;
    throw new DmError(Errno.ENODEV, `${name}, which lies below it, has not been restored`);
  }

  #verify(lower: BlockDevice, expected: DiskIdentity | null, notices: string[]): void {
    if (expected === null || expected.kind === 'mapped' || expected.kind === 'program') return;
    const found = this.#plane.host.devices?.identity(lower) ?? null;
    const mismatch = found === null ? null : compareIdentities(expected, found);
    if (mismatch !== null) {
      const text = `${mismatch.text}; dmkit adopt accepts it, so does restore --force`;
      if (!this.#force) throw new DmError(Errno.ESTALE, text);
      notices.push(`${mismatch.text}; it was accepted`);
    }
    if (expected.kind === 'block' && expected.mark === null) {
      notices.push(`${lower.name} is known by its number and size alone: whether it is the same disk is not certain`);
    }
  }

  // Resuming

  /** Those that are made and not live yet: below before above, overlays before the devices that write their origins. */
  inResumeOrder(): MappedDevice[] {
    const devices = [...this.#made.values()].map(({ device }) => device).filter(({ table }) => table === null);
    const kin = new Map<MappedDevice, Kin>();
    for (const device of devices) if (device.inactiveTable !== null) kin.set(device, kinOf(device.inactiveTable));
    const ordered: MappedDevice[] = [];
    const seen = new Set<MappedDevice>();
    const visit = (device: MappedDevice): void => {
      if (seen.has(device)) return;
      seen.add(device);
      const below = new Set(device.lowerDevices());
      const writes = new Set(kin.get(device)?.writes);
      for (const other of devices) {
        const isOverlayOfIt = (kin.get(other)?.origins ?? []).some((origin) => writes.has(origin));
        if (below.has(other) || (isOverlayOfIt && (kin.get(other)?.writes.length ?? 0) === 0)) visit(other);
      }
      ordered.push(device);
    };
    for (const device of devices) visit(device);
    return ordered;
  }

  #recordOf(device: MappedDevice): DeviceRecord {
    return this.#made.get(idOf(device))!.record;
  }

  isLive(id: string): boolean {
    return this.#made.get(id)?.device.table != null;
  }

  async resume(device: MappedDevice): Promise<void> {
    const record = this.#recordOf(device);
    try {
      if (device.inactiveTable !== null) {
        await changed(this.#context.signal, (done) => this.#mapper.resume(device, {}, done));
      }
      this.#plane.clearSuspension(device);
    } catch (error) {
      this.#result(record).error = reasonOf(error);
      this.#made.delete(record.id);
      if (device.openCount === 0) await new Promise<void>((resolve) => this.#mapper.remove(device, {}, resolve));
    }
  }

  /**
   * Suspended with its live table, clients see its size and their writes wait; until then none can reach it, because it is
   * no export yet. A merge would begin at once: that table waits in the inactive slot.
   */
  async hold(device: MappedDevice, reason: string): Promise<void> {
    const merges = device.inactiveTable?.targets.some(({ type }) => type.name === 'snapshot-merge') ?? true;
    if (!merges) await this.resume(device);
    if (!this.#made.has(idOf(device))) return;
    await changed(undefined, (done) => this.#mapper.suspend(device, {}, () => done(null)));
    this.#plane.setSuspension(device, null, reason);
    this.#result(this.#recordOf(device)).notices.push(
      `it stays suspended: ${reason}. Restore or forget that one, or say "dmkit resume ${device.dmName}"`,
    );
  }

  /** Suspended devices and waiting tables as they were; then the journal has the devices as live ones. */
  async finish(): Promise<Restored[]> {
    for (const { device, record } of [...this.#made.values()]) {
      try {
        if (record.suspended && !device.suspended) {
          await changed(undefined, (done) => this.#mapper.suspend(device, {}, () => done(null)));
          const { client = null, reason = null, since } = record.suspension ?? {};
          this.#plane.setSuspension(device, client, reason, since);
        }
        if (record.inactive !== null) await this.#load(device, record, record.inactive);
      } catch (error) {
        this.#result(record).notices.push(`its waiting table could not be loaded: ${reasonOf(error)}`);
      }
    }
    const changes = new Map<string, Json>();
    for (const { device, record } of this.#made.values()) {
      // A device that is held back goes on in the journal as it was before, so that a later restore makes it live.
      const isHeld = this.#plane.suspensionOf(device)?.reason != null;
      const now = isHeld ? { ...record, minor: device.minor } : await this.#plane.describe(device);
      changes.set(DEVICE_PREFIX + record.id, asJson(now));
      changes.set(LOST_PREFIX + record.id, null);
    }
    for (const { device } of this.#records) {
      const error = this.#results.get(device.id)?.error ?? null;
      const isKept = this.#journal.values.has(LOST_PREFIX + device.id);
      if (error !== null && isKept) changes.set(LOST_PREFIX + device.id, asJson({ device, error }));
    }
    await this.#journal.commit(changes);
    for (const { device } of this.#made.values()) this.#plane.hooks.onChange?.(device);
    return this.#records.map(({ device }) => this.#result(device));
  }
}

/** The store of a table's one line, where that is of `type`. */
function storeOf(table: TableRecord, type: string): string | null {
  const entries = parseTable(table.text.join(''));
  return entries.length === 1 && entries[0]!.type === type ? (splitArguments(entries[0]!.params)[1] ?? null) : null;
}

function isPlain(table: TableRecord): boolean {
  const { origins, writes } = kinOf(table);
  return origins.length === 0 && writes.length === 0;
}

function standsOnLive(device: MappedDevice): boolean {
  return [...device.lowerDevices()].every((lower) => !(lower instanceof MappedDevice) || lower.table !== null);
}

function isTransient({ live }: DeviceRecord): boolean {
  return live !== null && kinOf(live).isTransient;
}

function linesOf(table: TableRecord | null): string[] {
  return table === null
    ? []
    : table.text
        .join('')
        .split('\n')
        .filter((line) => line !== '');
}
