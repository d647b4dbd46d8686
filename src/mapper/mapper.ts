// Mapped devices by name, uuid and number: what the device mapper's control node does (drivers/md/dm-ioctl.c).
import type { BlockDevice } from '../block/block-device.ts';
import type { DeviceResolver } from '../block/device-resolver.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { TargetRegistry } from '../block/target.ts';
import { buildTable } from '../table/table.ts';
import { parseTable, type TableEntry } from '../table/text.ts';
import { MappedDevice, type SuspendOptions } from './mapped-device.ts';

const MAX_NAME_LENGTH = 127;
const MAX_UUID_LENGTH = 128;
const MAX_MINOR = 2 ** 20 - 1;
const PREFIX = '/dev/mapper/';

export interface CreateOptions {
  uuid?: string;
  /** The lowest free one where it is left out. */
  minor?: number;
}

/**
 * The mapped devices of one reactor. It resolves device arguments too: `/dev/mapper/NAME` and its own `major:minor` are
 * mapped devices, everything else is asked of `lower`.
 */
export class Mapper implements DeviceResolver {
  readonly major: number;
  readonly #registry: TargetRegistry;
  readonly #lower: DeviceResolver;
  readonly #byName = new Map<string, MappedDevice>();
  readonly #byMinor = new Map<number, MappedDevice>();

  constructor(registry: TargetRegistry, lower: DeviceResolver, major: number) {
    this.#registry = registry;
    this.#lower = lower;
    this.major = major;
  }

  /** By name, in the order of their names as dmsetup lists them. */
  list(): MappedDevice[] {
    return [...this.#byName.keys()].sort().map((name) => this.#byName.get(name)!);
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
    if (Buffer.byteLength(uuid) > MAX_UUID_LENGTH) {
      throw new DmError(Errno.EINVAL, `a uuid has at most ${MAX_UUID_LENGTH} bytes`);
    }
    if (this.#byName.has(name)) throw new DmError(Errno.EBUSY, `a device named ${name} exists already`);
    if (uuid !== '' && this.list().some((device) => device.uuid === uuid)) {
      throw new DmError(Errno.EBUSY, `a device with uuid ${uuid} exists already`);
    }
    const device = new MappedDevice(name, uuid, this.major, this.#takeMinor(options.minor));
    this.#byName.set(name, device);
    this.#byMinor.set(device.minor, device);
    return device;
  }

  #takeMinor(wanted: number | undefined): number {
    if (wanted !== undefined) {
      if (!Number.isInteger(wanted) || wanted < 0 || wanted > MAX_MINOR || this.#byMinor.has(wanted)) {
        throw new DmError(Errno.ENXIO, `minor ${wanted} is taken or not within 0 to ${MAX_MINOR}`);
      }
      return wanted;
    }
    let minor = 0;
    while (this.#byMinor.has(minor)) minor++;
    if (minor > MAX_MINOR) throw new DmError(Errno.EBUSY, 'every minor number is taken');
    return minor;
  }

  /**
   * Builds a table and puts it into the inactive slot. A refused table leaves the slot as it was and nothing open.
   *
   * @throws TableError, whose `reason` is what the kernel would log
   */
  load(device: MappedDevice, table: string | readonly TableEntry[], options: { readOnly?: boolean } = {}): void {
    const entries = typeof table === 'string' ? parseTable(table) : table;
    device.load(
      buildTable(entries, {
        registry: this.#registry,
        resolver: this,
        readOnly: options.readOnly ?? false,
        checkDevice: (lower) => refuseCycle(device, lower),
        onEvent: () => {
          device.eventNumber++;
        },
      }),
    );
  }

  suspend(device: MappedDevice, options: SuspendOptions, done: () => void): void {
    device.suspend(options, done);
  }

  /** @throws DmError EBUSY while somebody has it open */
  remove(device: MappedDevice): void {
    if (device.openCount > 0) {
      throw new DmError(Errno.EBUSY, `${device.dmName} is in use by ${device.openCount}: close or remove those first`);
    }
    this.#byName.delete(device.dmName);
    this.#byMinor.delete(device.minor);
    device.destroy();
  }

  /** Removes everything that nothing uses, until nothing more goes, so that stacks unwind from the top. */
  removeAll(): MappedDevice[] {
    let removed = true;
    while (removed) {
      removed = false;
      for (const device of this.list()) {
        if (device.openCount > 0) continue;
        this.remove(device);
        removed = true;
      }
    }
    return this.list();
  }

  // DeviceResolver

  open(argument: string, readOnly: boolean): BlockDevice {
    const device = this.#find(argument);
    if (device === undefined) return this.#lower.open(argument, readOnly);
    device.openCount++;
    return device;
  }

  close(device: BlockDevice, readOnly: boolean): void {
    if (device instanceof MappedDevice) device.openCount--;
    else this.#lower.close(device, readOnly);
  }

  #find(argument: string): MappedDevice | undefined {
    if (argument.startsWith(PREFIX)) return this.#byName.get(argument.slice(PREFIX.length));
    const numbers = /^([0-9]+):([0-9]+)$/.exec(argument);
    if (numbers === null || Number(numbers[1]) !== this.major) return undefined;
    const device = this.#byMinor.get(Number(numbers[2]));
    if (device === undefined) throw new DmError(Errno.ENXIO, `no mapped device has the number ${argument}`);
    return device;
  }
}

function checkName(name: string): void {
  const length = Buffer.byteLength(name);
  if (length === 0 || length > MAX_NAME_LENGTH) {
    throw new DmError(Errno.EINVAL, `a device's name has 1 to ${MAX_NAME_LENGTH} bytes, this one ${length}`);
  }
  if (name.includes('/')) throw new DmError(Errno.EINVAL, `Name "${name}" invalid. It contains "/".`);
  if (name.includes('\0')) throw new DmError(Errno.EINVAL, "a device's name cannot hold a NUL byte");
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
