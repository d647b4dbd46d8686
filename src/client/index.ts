// `dmkit/client`: everything that the command does, from a program.

import { Snapshots } from '../api/snapshots.ts';
import { methodsOf, type Reply, type RequestArgs, type RequestMethods, type RequestName } from '../control/requests.ts';
import type {
  Dependency,
  DeviceStatus,
  LoadReply,
  LostReply,
  Restored,
  StatusLine,
  TargetVersion,
} from '../control/types.ts';
import { DaemonFolder } from '../daemon/folder.ts';
import { workingFolder } from '../files/working-folder.ts';
import { formatNbdUri } from '../nbd/protocol/uri.ts';
import type { TableEntry } from '../table/text.ts';
import { ClientControl } from './connect.ts';

export * from '../api/snapshots.ts';
export { DmError, TableError } from '../block/errors.ts';
export type {
  Dependency,
  DeviceStatus,
  LoadReply,
  LostDevice,
  LostReply,
  Restored,
  SnapshotStatus,
  StatusLine,
  TargetVersion,
} from '../control/types.ts';
export type { ChangedExtent, SnapshotCondition, SnapshotCounters } from '../overlays/changes.ts';

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
  /**
   * Takes sentences about a table that was accepted: bytes at the end of a file that no sector has, a store that was not
   * detached cleanly.
   */
  onNotice?: (text: string) => void;
}

export type LoadDeviceOptions = Pick<CreateDeviceOptions, 'readOnly' | 'baseFolder' | 'onNotice'>;

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
  /** Every request of the control socket as a method, as its table declares it. */
  readonly requests: RequestMethods;
  readonly #control: ClientControl;

  constructor(control: ClientControl) {
    this.#control = control;
    this.snapshots = new Snapshots(control);
    this.requests = methodsOf(control);
  }

  #call<Name extends RequestName>(name: Name, args: RequestArgs<Name>, signal?: AbortSignal): Promise<Reply<Name>> {
    return this.#control.call(name, args, { signal });
  }

  /** Makes a device, loads its table and resumes it, whole or not at all. Without a table: an empty one. */
  create(
    name: string,
    table: string | readonly TableEntry[] | null,
    options: CreateDeviceOptions = {},
  ): Promise<DeviceStatus> {
    const { baseFolder: folder = workingFolder(), onNotice, ...rest } = options;
    const args = { name, ...rest, folder, ...(table === null ? {} : { table }) };
    return this.#control.call('create', args, { onNotice });
  }

  /** Puts a table into the inactive slot; {@link resume} makes it live. */
  load(name: string, table: string | readonly TableEntry[], options: LoadDeviceOptions = {}): Promise<LoadReply> {
    const { readOnly = false, baseFolder: folder = workingFolder(), onNotice } = options;
    return this.#control.call('load', { device: { name }, table, readOnly, folder }, { onNotice });
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

  /**
   * Takes over the sizes that the files and disks below a device have now. NBD clients learn them when they connect again.
   *
   * @returns those that changed
   */
  refresh(name: string): Promise<{ name: string; sectorCount: number }[]> {
    return this.#call('refresh', { device: { name } });
  }

  /** Lists the devices that a daemon lost when it ended. */
  lost(): Promise<LostReply> {
    return this.#call('lost', {});
  }

  /** Makes lost devices again: all, or those named. `force` accepts disks that are not the same. */
  restore(names?: readonly string[], options: { force?: boolean } = {}): Promise<Restored[]> {
    return this.#call('restore', { ...(names === undefined ? {} : { names: [...names] }), ...options });
  }

  /** Accepts the disks that lost devices' tables lead to now. @returns a sentence for each that is another one */
  adopt(names: readonly string[]): Promise<string[]> {
    return this.#call('adopt', { names: [...names] });
  }

  /** Forgets lost devices. */
  async forget(names: readonly string[]): Promise<void> {
    await this.#call('forget', { names: [...names] });
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
