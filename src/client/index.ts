// `dmkit/client`: everything that the command does, from a program.
import type {
  Dependency,
  DeviceStatus,
  Reply,
  RequestArgs,
  RequestName,
  Restored,
  StatusLine,
  TargetVersion,
} from '../daemon/control.ts';
import { DaemonFolder } from '../daemon/folder.ts';
import { formatNbdUri } from '../nbd/protocol/uri.ts';
import { parseTable, type TableEntry } from '../table/text.ts';
import { ClientControl } from './connect.ts';
import { Snapshots } from './snapshots.ts';

export { DmError, TableError } from '../block/errors.ts';
export type {
  Dependency,
  DeviceStatus,
  Restored,
  SnapshotStatus,
  StatusLine,
  TargetVersion,
} from '../daemon/control.ts';
export type { ChangedExtent, SnapshotCondition, SnapshotCounters } from '../reactor/snapshots.ts';
export * from './snapshots.ts';

export interface ConnectOptions {
  /** The daemon's folder; DMKIT_DIR and the rest of the command's rules unless given. */
  folder?: string;
}

export interface CreateDeviceOptions {
  uuid?: string;
  minor?: number;
  readOnly?: boolean;
  /** Where relative paths in the table start: the working directory unless given. */
  baseFolder?: string;
}

export type LoadDeviceOptions = Pick<CreateDeviceOptions, 'readOnly' | 'baseFolder'>;

/** Interrupts what waits: it is undone. */
interface Interruptible {
  signal?: AbortSignal;
}

/**
 * A daemon's devices. The daemon is started by the first call that makes one.
 *
 * Methods reject with DmError (`code` is an errno's name: ENXIO for a device that is not there, EBUSY …) and TableError
 * for a table that is refused, as the same calls in one process do.
 */
export class DaemonClient {
  /** Overlays as a whole. */
  readonly snapshots: Snapshots;
  readonly #control: ClientControl;

  constructor(control: ClientControl) {
    this.#control = control;
    this.snapshots = new Snapshots(control);
  }

  #call<Name extends RequestName>(name: Name, args: RequestArgs<Name>, signal?: AbortSignal): Promise<Reply<Name>> {
    return this.#control.call(name, args, signal);
  }

  /** Makes a device, loads its table and resumes it; where that fails nothing is left. Without a table: an empty one. */
  async create(
    name: string,
    table: string | readonly TableEntry[] | null,
    options: CreateDeviceOptions = {},
  ): Promise<DeviceStatus> {
    const { uuid, minor, ...loadOptions } = options;
    const entries = typeof table === 'string' ? parseTable(table) : table;
    const identity = { ...(uuid === undefined ? {} : { uuid }), ...(minor === undefined ? {} : { minor }) };
    const made = await this.#call('create', { name, ...identity });
    if (entries === null) return made;
    try {
      await this.load(name, entries, loadOptions);
      return await this.resume(name);
    } catch (error) {
      await this.remove(name);
      throw error;
    }
  }

  /** Puts a table into the inactive slot; {@link resume} makes it live. */
  load(name: string, table: string | readonly TableEntry[], options: LoadDeviceOptions = {}): Promise<DeviceStatus> {
    const entries = typeof table === 'string' ? parseTable(table) : [...table];
    const { readOnly = false, baseFolder = process.cwd() } = options;
    return this.#call('load', { device: { name }, table: entries, readOnly, folder: baseFolder });
  }

  resume(name: string, options: { noflush?: boolean } & Interruptible = {}): Promise<DeviceStatus> {
    const { signal, ...rest } = options;
    return this.#call('resume', { device: { name }, ...rest }, signal);
  }

  suspend(name: string, options: { noflush?: boolean } & Interruptible = {}): Promise<DeviceStatus> {
    const { signal, ...rest } = options;
    return this.#call('suspend', { device: { name }, ...rest }, signal);
  }

  /** Empties the inactive slot. */
  clear(name: string): Promise<DeviceStatus> {
    return this.#call('clear', { device: { name } });
  }

  /** `deferred`: a device that is in use goes when its last user does. */
  async remove(name: string, options: { deferred?: boolean } = {}): Promise<void> {
    await this.#call('remove', { device: { name }, ...options });
  }

  /** Gives the names of those that are in use and left. */
  removeAll(options: { deferred?: boolean } = {}): Promise<string[]> {
    return this.#call('removeAll', options);
  }

  rename(name: string, newName: string): Promise<DeviceStatus> {
    return this.#call('rename', { name, newName });
  }

  setUuid(name: string, uuid: string): Promise<DeviceStatus> {
    return this.#call('setUuid', { name, uuid });
  }

  list(): Promise<DeviceStatus[]> {
    return this.#call('list', {});
  }

  info(name: string): Promise<DeviceStatus> {
    return this.#call('info', { device: { name } });
  }

  /** The lines of the live (or inactive) table. */
  async table(name: string, options: { inactive?: boolean } = {}): Promise<StatusLine[]> {
    return (await this.#call('table', { device: { name }, type: 'table', ...options })).lines;
  }

  /** What the targets of the live (or inactive) table say of themselves. */
  async status(name: string, options: { inactive?: boolean } = {}): Promise<StatusLine[]> {
    return (await this.#call('table', { device: { name }, type: 'info', ...options })).lines;
  }

  deps(name: string, options: { inactive?: boolean } = {}): Promise<Dependency[]> {
    return this.#call('deps', { device: { name }, ...options });
  }

  /** Resolves when the device's event number is not `eventNumber` (any more). */
  wait(name: string, eventNumber: number, options: Interruptible = {}): Promise<DeviceStatus> {
    return this.#call('wait', { device: { name }, eventNumber }, options.signal);
  }

  /** Gives a message to the target that owns `sector`, or to the device itself (`@…`). */
  message(name: string, sector: number, text: string): Promise<string | null> {
    return this.#call('message', { device: { name }, sector, text });
  }

  targets(): Promise<TargetVersion[]> {
    return this.#call('targets', {});
  }

  /** Where NBD clients find the device. */
  async uri(name: string): Promise<string> {
    await this.info(name);
    const { nbdSocket } = await this.#call('daemon', {});
    return formatNbdUri({ socket: nbdSocket, exportName: name });
  }

  /** Makes the devices of a daemon that crashed again. */
  restore(): Promise<Restored[]> {
    return this.#call('restore', {});
  }

  /** Ends the daemon and its devices. @throws DmError EBUSY while NBD clients use one, without `force` */
  async shutdown(options: { force?: boolean } = {}): Promise<void> {
    await this.#call('shutdown', options);
  }

  /** Lets go of the daemon; the devices stay. */
  close(): Promise<void> {
    return this.#control.close();
  }
}

/**
 * The daemon of a folder, found or started when it is needed.
 *
 * @example
 * ```ts
 * const dm = connect();
 * await dm.create('joined', '0 2048 linear a.img 0\n2048 2048 linear b.img 0');
 * console.log(await dm.uri('joined'));
 * await dm.close(); // the device stays
 * ```
 */
export function connect(options: ConnectOptions = {}): DaemonClient {
  const folder = options.folder === undefined ? {} : { folder: new DaemonFolder(options.folder) };
  return new DaemonClient(new ClientControl(folder));
}
