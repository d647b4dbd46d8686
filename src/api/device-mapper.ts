// A device mapper for one program: one reactor on Node's own loop with its engine, lower devices and mapped devices.
import type { BlockDevice } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { AnyTargetType } from '../block/target.ts';
import { LocalControl, type LocalControlOptions } from '../control/local-control.ts';
import { DeviceRegistry, type DirectIoChoice, type HeldFile } from '../devices/index.ts';
import { isNbdUri } from '../devices/nbd-uri.ts';
import { DmIoClient } from '../dm-io/index.ts';
import type { MappedDevice, SuspendOptions } from '../mapper/mapped-device.ts';
import { type CreateOptions, Mapper, refusePinned } from '../mapper/mapper.ts';
import { chooseMajor } from '../reactor/major.ts';
import { NodeLoop } from '../reactor/node-loop.ts';
import { RemoteDevices, type RemoteDevicesOptions } from '../reactor/remote-devices.ts';
import type { TableEntry } from '../table/text.ts';
import { builtinTargets, Targets } from '../targets/index.ts';
import { Disk } from './disk.ts';
import { Snapshots } from './snapshots.ts';

export interface DeviceMapperOptions {
  /** Where relative paths in tables start; the working directory unless given. */
  baseFolder?: string;
  /** Which files and block devices are opened around the page cache (O_DIRECT); none unless given. */
  directIo?: DirectIoChoice;
  /**
   * What another thread of this process has open: nothing else can be opened then.
   *
   * @internal
   */
  heldFiles?: readonly HeldFile[];
  /** Target types of the program's own, beside those that dmkit brings. */
  targets?: readonly AnyTargetType[];
  /** How NBD URIs in tables are connected, and what becomes of them when their server goes away. */
  remote?: RemoteDevicesOptions;
  /**
   * For a daemon.
   *
   * @internal
   */
  control?: Pick<LocalControlOptions, 'translate' | 'daemon' | 'onChange' | 'onError'>;
}

export interface TableOptions {
  /** Nothing can be written through it, and what is below is opened for reading alone. */
  readOnly?: boolean;
  /**
   * Takes sentences about a table that was accepted: bytes at the end of a file that no sector has, a store that was not
   * detached cleanly. Nothing is printed where it is left out.
   */
  onNotice?: (text: string) => void;
}

/**
 * Builds devices out of tables, in this process, without root.
 *
 * @example
 * ```ts
 * const dm = new DeviceMapper();
 * const disk = await dm.create('joined', '0 2048 linear a.img 0\n2048 2048 linear b.img 0');
 * await disk.write(2047, Buffer.alloc(1024, 'x')); // the last sector of a.img and the first of b.img
 * await dm.close();
 * ```
 */
export class DeviceMapper {
  readonly loop: NodeLoop;
  readonly targets: Targets;
  readonly devices: DeviceRegistry;
  readonly mapper: Mapper;
  readonly remotes: RemoteDevices;
  /** Everything that can be asked of the devices, as a daemon is asked; {@link Snapshots} work with it too. */
  readonly control: LocalControl;
  /** Overlays as a whole: made, merged and dropped. */
  readonly snapshots: Snapshots;
  readonly #disks = new Set<Disk>();
  readonly #whenNoDisks: (() => void)[] = [];

  constructor(options: DeviceMapperOptions = {}) {
    this.loop = new NodeLoop();
    this.targets = new Targets([...builtinTargets, ...(options.targets ?? [])]);
    this.devices = new DeviceRegistry({
      reactor: this.loop,
      ...(options.baseFolder === undefined ? {} : { baseFolder: options.baseFolder }),
      ...(options.directIo === undefined ? {} : { directIo: options.directIo }),
      ...(options.heldFiles === undefined ? {} : { heldFiles: options.heldFiles }),
    });
    this.remotes = new RemoteDevices(this, options.remote);
    const services = { reactor: this.loop, engines: this.devices.engines };
    this.mapper = new Mapper(this.targets, this.devices, chooseMajor(), services);
    const { mapper, targets, devices, remotes } = this;
    this.control = new LocalControl({ mapper, targets, devices, remotes, ...options.control });
    this.snapshots = new Snapshots(this.control);
  }

  /**
   * Makes a mapped device, loads its table and resumes it. When the table is refused nothing is left behind.
   *
   * @param table dmsetup's table text, or its lines
   * @throws TableError with the kernel's reason; DmError EBUSY for a name that is taken, EINVAL for text that can't be read
   */
  async create(
    name: string,
    table: string | readonly TableEntry[],
    options: CreateOptions & TableOptions = {},
  ): Promise<Disk> {
    const { readOnly = false, uuid, minor, onNotice } = options;
    const args = {
      name,
      table,
      readOnly,
      ...(uuid === undefined ? {} : { uuid }),
      ...(minor === undefined ? {} : { minor }),
    };
    await this.control.call('create', args, { onNotice });
    return this.#opened(`/dev/mapper/${name}`, readOnly);
  }

  /**
   * Opens any device: an image or block device by path or `major:minor`, a mapped one as `/dev/mapper/NAME`, a remote
   * one by its NBD URI.
   *
   * @throws DmError ENODEV, ENXIO, EACCES, EBUSY … as the kernel's look-up of a device gives; ECONNREFUSED …
   */
  async open(argument: string, options: Pick<TableOptions, 'readOnly'> = {}): Promise<Disk> {
    const readOnly = options.readOnly ?? false;
    if (!isNbdUri(argument)) return this.#opened(argument, readOnly);
    const lease = await this.remotes.lease([argument]);
    try {
      return this.#opened(lease.translate(argument), readOnly);
    } finally {
      lease.release();
    }
  }

  /** Puts a table into the inactive slot of a device; {@link resume} makes it live. @throws as {@link create} */
  async load(name: string, table: string | readonly TableEntry[], options: TableOptions = {}): Promise<void> {
    const { readOnly = false, onNotice } = options;
    await this.control.call('load', { device: { name }, table, readOnly }, { onNotice });
  }

  /** Holds new requests back; resolves when none is in flight. */
  async suspend(name: string, options: SuspendOptions = {}): Promise<void> {
    await this.control.call('suspend', { device: { name }, noflush: options.noflush ?? false });
  }

  /** Swaps in a loaded table, if there is one, and lets requests through. */
  async resume(name: string, options: SuspendOptions = {}): Promise<void> {
    await this.control.call('resume', { device: { name }, noflush: options.noflush ?? false });
  }

  /**
   * Removes a mapped device. Handles that this program still has on it are closed first; anything else that uses it
   * (a device stacked on it, an NBD client) makes it busy, and so do threads that serve it.
   *
   * @throws DmError ENXIO, EBUSY
   */
  async remove(name: string): Promise<void> {
    const device = this.mapper.get(name);
    refusePinned(device);
    for (const disk of this.#disks) if (disk.device === device) disk.close();
    await this.control.call('remove', { device: { name } });
  }

  /** Resolves when it is removed, and what its targets still had to write is written. */
  async #gone(device: MappedDevice): Promise<void> {
    await new Promise<void>((resolve) => this.mapper.remove(device, {}, resolve));
  }

  /** Status or table lines of a device, as dmsetup prints them. */
  lines(name: string, type: 'table' | 'info'): string[] {
    return this.mapper.get(name).lines(type);
  }

  /**
   * A dm-io client for the devices of this device mapper: synchronous calls on them work through it.
   *
   * @param pageCount 4 KiB pages of data in flight at the most
   */
  dmIoClient(pageCount?: number): DmIoClient {
    const options = { reactor: this.loop, engines: this.devices.engines };
    return new DmIoClient(pageCount === undefined ? options : { ...options, pageCount });
  }

  /**
   * Closes every handle, removes every device and closes what was below. Requests in flight end first; those that wait for
   * a remote server that is gone fail.
   *
   * @throws DmError EBUSY for what others use. Nothing is closed while threads serve a device: they would write on when
   *   the lock is gone
   */
  async close(): Promise<void> {
    for (const device of this.mapper.list()) refusePinned(device);
    this.remotes.abandonLost();
    for (const disk of this.#disks) disk.close();
    await this.#removeUnused();
    if (this.#disks.size > 0) await new Promise<void>((resolve) => this.#whenNoDisks.push(resolve));
    await this.remotes.closed();
    const busy = this.mapper.list();
    if (busy.length > 0) {
      const names = busy.map((device) => device.dmName).join(', ');
      throw new DmError(Errno.EBUSY, `still in use: ${names}; stop what serves or uses them first`);
    }
  }

  /** From the top of each stack down, as long as something goes; also what somebody else is removing already. */
  async #removeUnused(): Promise<void> {
    do {
      // A whole list at a time: a daemon has thousands.
      for (const device of this.mapper.list()) {
        if (device.openCount === 0 && this.mapper.isListed(device)) await this.#gone(device);
      }
      await new Promise<void>((resolve) => this.mapper.whenGone(resolve));
    } while (this.#hasUnused());
  }

  #hasUnused(): boolean {
    for (const device of this.mapper.devices()) if (device.openCount === 0) return true;
    return false;
  }

  #opened(argument: string, readOnly: boolean): Disk {
    const device: BlockDevice = this.mapper.open(argument, readOnly);
    const disk: Disk = new Disk(device, () => {
      this.#disks.delete(disk);
      this.mapper.close(device, readOnly);
      if (this.#disks.size === 0) for (const resolve of this.#whenNoDisks.splice(0)) resolve();
    });
    this.#disks.add(disk);
    return disk;
  }
}
