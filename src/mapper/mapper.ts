// Mapped devices by name, uuid and number: what the device mapper's control node does (drivers/md/dm-ioctl.c).
import type { BlockDevice } from '../block/block-device.ts';
import type { DeviceResolver } from '../block/device-resolver.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { isOddName } from '../block/file-name.ts';
import { mangled } from '../block/mangling.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { TargetRegistry, TargetServices } from '../block/target.ts';
import { FileDevice } from '../devices/file.ts';
import { sourceSteps, TableBuilder } from '../table/builder.ts';
import { runSteps, type Steps } from '../table/steps.ts';
import type { Table } from '../table/table.ts';
import type { TableInput } from '../table/text.ts';
import { MappedDevice, type SuspendOptions } from './mapped-device.ts';
import type { StateChange } from './state-change.ts';

const MAX_NAME_LENGTH = 127;
const MAX_UUID_LENGTH = 128;
const MAX_MINOR = 2 ** 20 - 1;
const PREFIX = '/dev/mapper/';
/** Names a mapped device of ours, whatever else has that path. */
const OWN_PREFIX = 'dm:';

export interface CreateOptions {
  uuid?: string;
  /** The lowest free one where it is left out. */
  minor?: number;
  /** The minor is one that was reserved, and the device is the one that it was reserved for. */
  isReserved?: boolean;
}

export interface LoadOptions {
  readOnly?: boolean;
  /** Rewrites each device argument before it is looked up. @throws DmError to refuse it */
  translate?: (argument: string) => string;
  /** Gives the device of an argument, with one more user counted, where it is open already: no path is looked up then. */
  openAgain?: (argument: string, readOnly: boolean) => BlockDevice | null;
  /** Sees each device when it was opened, before a target uses it. @throws DmError to refuse it */
  verify?: (argument: string, device: BlockDevice) => void;
  /** Takes the table that was in the inactive slot, instead of its end: for an undo. */
  keepPrevious?: (previous: Table | null) => void;
}

/** @throws DmError EBUSY for a device that has to stay as it is */
export function refusePinned(device: MappedDevice): void {
  if (device.pinned !== null) throw new DmError(Errno.EBUSY, `${device.dmName}: ${device.pinned}`);
}

/** Work beside a swap of tables. */
export interface Passage {
  /** Before the swap; an error stops it. */
  before(done: (error: DmError | null) => void): void;
  /** When the old table is gone. */
  after(done: () => void): void;
  /** Where the swap did not happen. */
  undo(): void;
}

/** Tables of one device that use another, by the mode they open it in. */
interface Uses {
  read: number;
  write: number;
}

export interface RemoveOptions {
  /** A device that is in use goes when its last user does. */
  deferred?: boolean;
}

/**
 * The mapped devices of one reactor. It resolves device arguments too: `/dev/mapper/NAME`, `dm:NAME` and its own `major:minor` are
 * mapped devices, everything else is asked of `lower`.
 */
export class Mapper implements DeviceResolver {
  readonly major: number;
  /** Told when a device is gone and everything it had open is closed. */
  onRemove: ((device: MappedDevice) => void) | null = null;
  /** Asked before a device ends; what it returns is called when its tables are gone, and calls back when it is done. */
  onLeaving: ((device: MappedDevice) => ((done: () => void) => void) | null) | null = null;
  /** Asked before a resume swaps tables; null where nothing has to be done beside it. */
  onGoingLive: ((device: MappedDevice, next: Table) => Passage | null) | null = null;
  readonly #registry: TargetRegistry;
  readonly #lower: DeviceResolver;
  readonly #services: TargetServices | undefined;
  readonly #byName = new Map<string, MappedDevice>();
  readonly #byMinor = new Map<number, MappedDevice>();
  readonly #byUuid = new Map<string, MappedDevice>();
  /** Where the search for a free minor begins: those below are taken. */
  #lowestFreeMinor = 0;
  /** Minors that new devices do not get, and the names of the devices that had them. */
  readonly reservedMinors = new Map<number, string>();
  /** Mapped devices that lie below others: for each user the number of its tables. */
  readonly #stackUses = new WeakMap<MappedDevice, Map<MappedDevice, Uses>>();
  /** Mapped devices that have another device open, for each the number of its tables and of the modes they open it in. */
  readonly #lowerUses = new WeakMap<BlockDevice, Map<MappedDevice, number>>();
  /** Devices that were taken away and still have something open. */
  #leavingCount = 0;
  readonly #whenGone: (() => void)[] = [];

  /** @param services for targets that need a reactor; tables with such targets can't be loaded without */
  constructor(registry: TargetRegistry, lower: DeviceResolver, major: number, services?: TargetServices) {
    this.#registry = registry;
    this.#lower = lower;
    this.major = major;
    this.#services = services;
  }

  /** By name, in the order of their names as dmsetup lists them. */
  list(): MappedDevice[] {
    return [...this.#byName.keys()].sort().map((name) => this.#byName.get(name)!);
  }

  /** In no order. */
  devices(): Iterable<MappedDevice> {
    return this.#byName.values();
  }

  /** @throws DmError ENXIO for a name nobody has */
  get(name: string): MappedDevice {
    const device = this.#byName.get(name);
    if (device === undefined) throw new DmError(Errno.ENXIO, `no mapped device is named ${name}`);
    return device;
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  /**
   * A new device without a table, not suspended, of size 0.
   *
   * @throws DmError EBUSY for a name or uuid that is taken, EINVAL for one that cannot be, ENXIO for a minor that is
   * taken or too large
   */
  create(name: string, options: CreateOptions = {}): MappedDevice {
    checkName(name);
    const uuid = options.uuid ?? '';
    checkUuid(uuid);
    if (this.#byName.has(name)) throw new DmError(Errno.EBUSY, `a device named ${name} exists already`);
    if (this.#byUuid.has(uuid)) {
      throw new DmError(Errno.EBUSY, `a device with uuid ${uuid} exists already`);
    }
    const device = new MappedDevice(name, uuid, this.major, this.#takeMinor(options));
    this.#enlist(device);
    return device;
  }

  #enlist(device: MappedDevice): void {
    this.#byName.set(device.dmName, device);
    this.#byMinor.set(device.minor, device);
    if (device.uuid !== '') this.#byUuid.set(device.uuid, device);
  }

  #takeMinor({ minor: wanted, isReserved = false }: CreateOptions): number {
    if (wanted !== undefined) {
      if (!Number.isInteger(wanted) || wanted < 0 || wanted > MAX_MINOR) {
        throw new DmError(Errno.ENXIO, `minor ${wanted} is not within 0 to ${MAX_MINOR}`);
      }
      const holder = this.#byMinor.get(wanted);
      if (holder !== undefined) throw new DmError(Errno.ENXIO, `minor ${wanted} is taken by ${holder.dmName}`);
      const lost = isReserved ? undefined : this.reservedMinors.get(wanted);
      if (lost !== undefined) {
        const text = `minor ${wanted} is reserved for ${lost}, which is lost: restore it or forget it first`;
        throw new DmError(Errno.ENXIO, text);
      }
      return wanted;
    }
    let minor = this.#lowestFreeMinor;
    while (this.#byMinor.has(minor)) minor++;
    this.#lowestFreeMinor = minor;
    while (this.#byMinor.has(minor) || this.reservedMinors.has(minor)) minor++;
    if (minor > MAX_MINOR) throw new DmError(Errno.EBUSY, 'every minor number is taken');
    return minor;
  }

  /**
   * Builds a table and puts it into the inactive slot. A refused table leaves the slot as it was and nothing open.
   *
   * @throws TableError, whose `reason` is what the kernel would log
   */
  load(device: MappedDevice, table: TableInput, options: LoadOptions = {}): void {
    runSteps(this.#loadSteps(device, table, options));
  }

  /**
   * {@link load} in slices of a few milliseconds, with the reactor's other work in between. A table below 256 lines is
   * loaded, and `done` called, before this returns, unless an earlier load of the device is still under way: loads of one
   * device end in the order of their calls. A mapper without a reactor loads everything at once.
   *
   * Whatever happens to the device meanwhile happens at once. The load fails with ENXIO when the device is removed, and
   * with EBUSY where it has to stay as it is by then; nothing stays open.
   *
   * @param table entries must not change until `done`
   * @param done called once with what {@link load} would throw, or null; not at all after `cancel`, which undoes everything
   */
  loadSliced(
    device: MappedDevice,
    table: TableInput,
    options: LoadOptions,
    done: (error: DmError | null) => void,
  ): StateChange {
    const reactor = this.#services?.reactor ?? null;
    return device.loads.start(() => this.#loadSteps(device, table, options), reactor, done);
  }

  *#loadSteps(device: MappedDevice, table: TableInput, options: LoadOptions): Steps {
    this.#refuseRemoved(device);
    const source = yield* sourceSteps(table);
    refusePinned(device);
    const builder = new TableBuilder({
      registry: this.#registry,
      resolver: this.#resolverFor(device, options),
      readOnly: options.readOnly ?? false,
      checkDevice: (lower) => refuseCycle(device, lower),
      onEvent: () => device.raiseEvent(),
      onWork: (begins) => (begins ? device.beginWork() : device.endWork()),
      services: this.#services,
    });
    device.building.add(builder);
    try {
      const built = yield* builder.build(source);
      const mayTake = (): void => {
        this.#refuseRemoved(device);
        refusePinned(device);
      };
      yield* device.loadSteps(built, mayTake, options.keepPrevious);
    } finally {
      device.building.delete(builder);
    }
  }

  /** True for a device that is in the lists. */
  isListed(device: MappedDevice): boolean {
    return this.#byMinor.get(device.minor) === device;
  }

  /** @throws DmError ENXIO */
  #refuseRemoved(device: MappedDevice): void {
    if (!this.isListed(device)) throw removedWhileLoading(device);
  }

  /**
   * For the tables of `upper`: a mapped device below has it for one user in each mode, however many of its tables (the
   * live one and the inactive one) name it.
   */
  #resolverFor(upper: MappedDevice, options: LoadOptions): DeviceResolver {
    const uses = this.#stackUses;
    return {
      open: (argument, readOnly) => {
        const again = options.openAgain?.(argument, readOnly) ?? null;
        if (again !== null && !(again instanceof MappedDevice)) {
          this.#countLower(upper, again, 1);
          return again;
        }
        const found = again === null ? (options.translate?.(argument) ?? argument) : again.name;
        const lower = again ?? this.#find(found);
        if (lower === undefined) {
          const opened = this.#openVerified(argument, found, readOnly, options);
          this.#countLower(upper, opened, 1);
          return opened;
        }
        checkHasNode(lower, found);
        options.verify?.(argument, lower);
        const mode = readOnly ? 'read' : 'write';
        const byUser = uses.get(lower) ?? new Map<MappedDevice, Uses>();
        uses.set(lower, byUser);
        const counts = byUser.get(upper) ?? { read: 0, write: 0 };
        byUser.set(upper, counts);
        if (counts[mode]++ === 0) this.acquire(lower);
        return lower;
      },
      close: (lower, readOnly) => {
        if (!(lower instanceof MappedDevice)) {
          this.#countLower(upper, lower, -1);
          this.#lower.close(lower, readOnly);
          return;
        }
        const byUser = uses.get(lower)!;
        const counts = byUser.get(upper)!;
        const left = --counts[readOnly ? 'read' : 'write'];
        if (counts.read + counts.write === 0) byUser.delete(upper);
        if (left === 0) this.release(lower);
      },
    };
  }

  #countLower(upper: MappedDevice, lower: BlockDevice, step: 1 | -1): void {
    let byUser = this.#lowerUses.get(lower);
    if (byUser === undefined) {
      byUser = new Map();
      this.#lowerUses.set(lower, byUser);
    }
    const count = (byUser.get(upper) ?? 0) + step;
    if (count > 0) byUser.set(upper, count);
    else byUser.delete(upper);
  }

  /** The listed devices with a table, live or not, that has `lower` open; in no order. A daemon has thousands of others. */
  *devicesOn(lower: BlockDevice): Iterable<MappedDevice> {
    const byUser = lower instanceof MappedDevice ? this.#stackUses.get(lower) : this.#lowerUses.get(lower);
    for (const device of byUser?.keys() ?? []) if (this.isListed(device)) yield device;
  }

  #openVerified(argument: string, found: string, readOnly: boolean, options: LoadOptions): BlockDevice {
    const lower = this.#lower.open(found, readOnly);
    try {
      checkHasSector(lower);
      options.verify?.(argument, lower);
    } catch (error) {
      this.#lower.close(lower, readOnly);
      throw error;
    }
    return lower;
  }

  /** @throws DmError EBUSY for a device that has to stay as it is */
  suspend(device: MappedDevice, options: SuspendOptions, done: () => void): StateChange {
    refusePinned(device);
    return device.suspend(options, done);
  }

  /** @throws DmError EBUSY for a device that has to stay as it is */
  resume(device: MappedDevice, options: SuspendOptions, done: (error: DmError | null) => void): StateChange {
    refusePinned(device);
    const next = device.inactiveTable;
    const passage = next === null ? null : (this.onGoingLive?.(device, next) ?? null);
    return passage === null ? device.resume(options, done) : resumeThrough(passage, device, options, done);
  }

  /**
   * Gives a device another name.
   *
   * @param options `quietly`: no event is raised; the caller raises it when the change is for good
   * @throws DmError EBUSY for a name that is taken (its own one too), EINVAL for one that cannot be
   */
  rename(device: MappedDevice, name: string, options: { quietly?: boolean } = {}): void {
    checkName(name);
    if (this.#byName.has(name)) {
      throw new DmError(
        Errno.EBUSY,
        `Unable to change name on mapped device ${device.dmName} to one that already exists: ${name}`,
      );
    }
    this.#byName.delete(device.dmName);
    device.dmName = name;
    this.#byName.set(name, device);
    if (device.table !== null && !options.quietly) device.raiseEvent();
  }

  /**
   * Gives a uuid to a device that has none.
   *
   * @throws DmError EBUSY for one that is taken (its own one too), EINVAL when it has another or the new one cannot be
   */
  setUuid(device: MappedDevice, uuid: string, options: { quietly?: boolean } = {}): void {
    checkUuid(uuid);
    if (uuid === '') throw new DmError(Errno.EINVAL, 'a uuid has at least one byte');
    if (this.#byUuid.has(uuid)) {
      throw new DmError(
        Errno.EBUSY,
        `Unable to change uuid on mapped device ${device.dmName} to one that already exists: ${uuid}`,
      );
    }
    if (device.uuid !== '') {
      throw new DmError(
        Errno.EINVAL,
        `Unable to change uuid of mapped device ${device.dmName} to ${uuid} because uuid is already set to ${device.uuid}`,
      );
    }
    device.uuid = uuid;
    this.#byUuid.set(uuid, device);
    if (device.table !== null && !options.quietly) device.raiseEvent();
  }

  /** Undoes {@link setUuid}: a device has none before it. */
  unsetUuid(device: MappedDevice): void {
    if (this.#byUuid.get(device.uuid) === device) this.#byUuid.delete(device.uuid);
    device.uuid = '';
  }

  /**
   * Takes a device away. Its name and number are free at once; what it has open is closed when nothing is in flight any
   * more, and `done` is called then.
   *
   * @throws DmError EBUSY while somebody has it open, unless `deferred`: then it goes when the last user does; for one
   *   that has to stay as it is
   */
  remove(device: MappedDevice, options: RemoveOptions = {}, done: () => void = () => {}): void {
    refusePinned(device);
    if (device.openCount > 0) {
      if (!options.deferred) {
        throw new DmError(
          Errno.EBUSY,
          `${device.dmName} is in use by ${device.openCount}: close or remove those first`,
        );
      }
      device.deferredRemove = true;
      done();
      return;
    }
    this.detach(device);
    this.destroyDetached(device, done);
  }

  /** Takes a device out of the lists: its name and number are free, and nothing else has happened to it. */
  detach(device: MappedDevice): void {
    this.#byName.delete(device.dmName);
    this.#byMinor.delete(device.minor);
    if (this.#byUuid.get(device.uuid) === device) this.#byUuid.delete(device.uuid);
    this.#lowestFreeMinor = Math.min(this.#lowestFreeMinor, device.minor);
  }

  /** @throws DmError EBUSY for a device that has to stay as it is */
  refusePinned(device: MappedDevice): void {
    refusePinned(device);
  }

  /** Undoes {@link detach}. @throws DmError EBUSY where its name, number or uuid was given away meanwhile */
  reattach(device: MappedDevice): void {
    if (this.#byName.has(device.dmName) || this.#byMinor.has(device.minor) || this.#byUuid.has(device.uuid)) {
      throw new DmError(Errno.EBUSY, `the name, the number or the uuid of ${device.dmName} has been taken`);
    }
    this.#enlist(device);
  }

  /** Ends a detached device: what it has open is closed when nothing is in flight any more, and `done` is called then. */
  destroyDetached(device: MappedDevice, done: () => void = () => {}): void {
    this.#leavingCount++;
    const leave = this.onLeaving?.(device) ?? ((left) => left());
    try {
      // Before the rest, so that what its table had open is closed when `done` is called.
      device.loads.fail(removedWhileLoading(device));
    } finally {
      device.destroy(() =>
        leave(() => {
          this.onRemove?.(device);
          done();
          if (--this.#leavingCount === 0) for (const gone of this.#whenGone.splice(0)) gone();
        }),
      );
    }
  }

  /** Users of a device, but for the tables of `uppers`. */
  userCountWithout(device: MappedDevice, uppers: Iterable<MappedDevice>): number {
    let count = device.openCount;
    const byUser = this.#stackUses.get(device);
    for (const upper of uppers) {
      const uses = byUser?.get(upper);
      if (uses !== undefined) count -= Number(uses.read > 0) + Number(uses.write > 0);
    }
    return count;
  }

  /** Calls `gone` when no device that was taken away has anything open any more; at once where that is so. */
  whenGone(gone: () => void): void {
    if (this.#leavingCount === 0) gone();
    else this.#whenGone.push(gone);
  }

  /**
   * Removes everything that nothing uses, until nothing more goes, so that stacks unwind from the top.
   *
   * @returns what is left; with `deferred` each of those goes when its last user does
   */
  removeAll(options: RemoveOptions = {}): MappedDevice[] {
    let removed = true;
    while (removed) {
      removed = false;
      for (const device of this.list()) {
        // An earlier removal may have taken it along: a deferred one whose last user it was.
        const isGone = !this.isListed(device);
        if (device.openCount > 0 || device.pinned !== null || isGone) continue;
        this.remove(device);
        removed = true;
      }
    }
    const left = this.list();
    if (options.deferred) for (const device of left) device.deferredRemove = true;
    return left;
  }

  // DeviceResolver

  open(argument: string, readOnly: boolean): BlockDevice {
    const device = this.#find(argument);
    if (device === undefined) return this.#lower.open(argument, readOnly);
    this.acquire(device);
    return device;
  }

  close(device: BlockDevice, readOnly: boolean): void {
    if (device instanceof MappedDevice) this.release(device);
    else this.#lower.close(device, readOnly);
  }

  /** Counts one user. */
  acquire(device: MappedDevice): void {
    device.openCount++;
  }

  /** One user less; the last one takes a device along whose removal was deferred. */
  release(device: MappedDevice): void {
    device.openCount--;
    if (device.openCount === 0 && device.deferredRemove && device.pinned === null) this.remove(device);
  }

  /** @throws DmError ENXIO for a uuid nobody has */
  getByUuid(uuid: string): MappedDevice {
    const device = this.#byUuid.get(uuid);
    if (device === undefined) throw new DmError(Errno.ENXIO, `no mapped device has the uuid ${uuid}`);
    return device;
  }

  /** @throws DmError ENXIO for a number nobody has */
  getByNumber(major: number, minor: number): MappedDevice {
    const device = major === this.major ? this.#byMinor.get(minor) : undefined;
    if (device === undefined) throw new DmError(Errno.ENXIO, `no mapped device has the number ${major}:${minor}`);
    return device;
  }

  /** Devices that dmsetup's commands made keep their names mangled. */
  #keptName(name: string): string {
    return this.#byName.has(name) || !this.#byName.has(mangled(name)) ? name : mangled(name);
  }

  /** The mapped device that a table's argument names; undefined where it is none of ours. */
  #find(argument: string): MappedDevice | undefined {
    if (argument.startsWith(OWN_PREFIX)) return this.get(this.#keptName(argument.slice(OWN_PREFIX.length)));
    if (argument.startsWith(PREFIX)) return this.#byName.get(this.#keptName(argument.slice(PREFIX.length)));
    const numbers = /^([0-9]+):([0-9]+)$/.exec(argument);
    if (numbers === null || Number(numbers[1]) !== this.major) return undefined;
    return this.getByNumber(this.major, Number(numbers[2]));
  }
}

function resumeThrough(
  passage: Passage,
  device: MappedDevice,
  options: SuspendOptions,
  done: (error: DmError | null) => void,
): StateChange {
  let change: StateChange | null = null;
  let isCancelled = false;
  passage.before((refusal) => {
    if (isCancelled) {
      if (refusal === null) passage.undo();
    } else if (refusal !== null) done(refusal);
    else {
      change = device.resume(options, (error) => {
        if (error === null) passage.after(() => done(null));
        else {
          passage.undo();
          done(error);
        }
      });
    }
  });
  return {
    cancel: () => {
      isCancelled = true;
      if (change === null) return;
      change.cancel();
      passage.undo();
    },
  };
}

function removedWhileLoading(device: MappedDevice): DmError {
  return new DmError(Errno.ENXIO, `${device.dmName} was removed while its table was loaded`);
}

/** Before the first load that succeeds the kernel has no block device, and no node, for a mapped device. */
/**
 * The kernel lets a table pass over a device of size zero; but an empty image (a download that failed) would be seen when
 * losetup makes a device of it, and here every request of the mapped device would fail.
 */
function checkHasSector(lower: BlockDevice): void {
  if (!(lower instanceof FileDevice) || lower.sectorCount > 0) return;
  throw new DmError(Errno.ENODEV, `${lower.name} has no whole sector: an image has ${SECTOR_SIZE} bytes at least`);
}

function checkHasNode(device: MappedDevice, argument: string): void {
  if (device.everLoaded) return;
  const errno = /^[0-9]/.test(argument) ? Errno.ENXIO : Errno.ENODEV;
  throw new DmError(errno, `${device.dmName} has never had a table: load one before something is put on it`);
}

function checkUuid(uuid: string): void {
  if (Buffer.byteLength(uuid) > MAX_UUID_LENGTH) {
    throw new DmError(Errno.EINVAL, `a uuid has at most ${MAX_UUID_LENGTH} bytes`);
  }
}

function checkName(name: string): void {
  const length = Buffer.byteLength(name);
  if (length === 0 || length > MAX_NAME_LENGTH) {
    throw new DmError(Errno.EINVAL, `a device's name has 1 to ${MAX_NAME_LENGTH} bytes, this one ${length}`);
  }
  if (name.includes('/')) throw new DmError(Errno.EINVAL, `Name "${name}" invalid. It contains "/".`);
  if (name.includes('\0')) throw new DmError(Errno.EINVAL, "a device's name cannot hold a NUL byte");
  if (isOddName(name)) {
    throw new DmError(Errno.EINVAL, `Name "${name}" invalid. It is not UTF-8, and NBD carries no other names.`);
  }
}

/** Refuses `lower` where `device` is it or lies somewhere below it, through any table that is or waits to be live. */
function refuseCycle(device: MappedDevice, lower: BlockDevice): void {
  const seen = new Set<BlockDevice>();
  const stack: BlockDevice[] = [lower];
  for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
    if (next === device) {
      throw new DmError(Errno.EINVAL, `${device.dmName} cannot be mapped to itself, here through ${lower.name}`);
    }
    if (seen.has(next)) continue;
    seen.add(next);
    if (next.lowerDevices !== undefined) stack.push(...next.lowerDevices());
  }
}
