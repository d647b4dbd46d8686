// Remote disks where tables name them: each NBD URI is connected to before the table is loaded, because a load waits for
// nothing, and let go when the last table that uses it goes.
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { DeviceRegistry } from '../devices/index.ts';
import { NbdDevice, type NbdDeviceOptions } from '../devices/nbd.ts';
import type { NbdLinkState } from '../devices/nbd-links.ts';
import { canonicalNbdUri, isNbdUri } from '../devices/nbd-uri.ts';
import { NBD_DEFAULT_PORT } from '../nbd/protocol/constants.ts';
import { type NbdUri, parseNbdUri } from '../nbd/protocol/uri.ts';
import { splitArguments, type TableEntry } from '../table/text.ts';
import { clientTls } from './nbd-credentials.ts';
import type { ConnectAddress, NodeLoop } from './node-loop.ts';

/** How a remote device is connected, beyond what its URI says. */
export type RemoteConnectOptions = Omit<NbdDeviceOptions, 'reactor' | 'connect' | 'exportName' | 'security'>;

export interface RemoteDevicesOptions extends Pick<RemoteConnectOptions, 'connectionCount' | 'reconnect'> {
  /** Told when a connection is lost, back, or given up; `error` says why it was. */
  onState?: (uri: string, state: NbdLinkState, error: DmError | null) => void;
}

/** What connections to remote devices need of a device mapper. */
export interface RemoteHost {
  readonly loop: NodeLoop;
  readonly devices: DeviceRegistry;
}

/** Keeps the devices connected that a table is about to name; {@link release} when it is loaded, or was refused. */
export interface RemoteLease {
  /** The name under which the device is found. @throws DmError where it could not be connected, and why */
  translate(argument: string): string;
  release(): void;
}

function addressOf(uri: NbdUri): ConnectAddress {
  if (uri.socket !== undefined) return { unix: uri.socket };
  return { host: uri.host ?? 'localhost', port: uri.port ?? NBD_DEFAULT_PORT };
}

function cannotConnect(uri: string, error: Error | null): DmError {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  // A host name that nobody knows has no errno.
  const errno = code === 'ENOTFOUND' ? Errno.ENXIO : errnoFromException(error);
  return new DmError(errno, `cannot connect to ${uri}: ${error?.message}`, code);
}

/**
 * Connects to the export of a URI.
 *
 * @param uri in the spelling that the device is to have as its name
 * @throws DmError ECONNREFUSED, ENOENT for an export that is not there, EACCES for TLS, EINVAL for a bad URI …
 */
export function connectNbdDevice(loop: NodeLoop, uri: string, options: RemoteConnectOptions): Promise<NbdDevice> {
  return new Promise((resolve, reject) => {
    const parsed = parseNbdUri(uri);
    const security = clientTls(parsed);
    const connect: NbdDeviceOptions['connect'] = (done) => loop.connect(addressOf(parsed), done);
    const all = { ...options, reactor: loop, connect, exportName: parsed.exportName, security };
    NbdDevice.open(uri, all, (error, device) => {
      if (device !== null) resolve(device);
      else reject(cannotConnect(uri, error));
    });
  });
}

interface Remote {
  device: NbdDevice | null;
  leaseCount: number;
  /** Connected, or connected again. Rejects with DmError. */
  ready: Promise<void>;
}

/** The remote devices of one device mapper that tables name. Those that the program attached itself are not among them. */
export class RemoteDevices {
  readonly #host: RemoteHost;
  readonly #options: RemoteDevicesOptions;
  readonly #remotes = new Map<string, Remote>();
  /** Goodbyes under way, by name: a server with room for one client must hear one before the next hello. */
  readonly #closing = new Map<string, Promise<void>>();

  constructor(host: RemoteHost, options: RemoteDevicesOptions = {}) {
    this.#host = host;
    this.#options = options;
  }

  /** The URIs among the arguments of a table's lines. */
  static urisIn(entries: readonly TableEntry[]): string[] {
    const uris = new Set<string>();
    for (const { params } of entries) {
      if (!params.includes('://')) continue;
      for (const argument of splitArguments(params)) if (isNbdUri(argument)) uris.add(argument);
    }
    return [...uris];
  }

  /**
   * Connects to every URI that is no device yet. What goes wrong is told by `translate`, to the line that names the
   * device: an earlier line may be at fault as well.
   *
   * @param baseFolder where relative paths in the URIs start; the registry's unless given
   */
  async lease(uris: readonly string[], baseFolder?: string): Promise<RemoteLease> {
    const found = new Map<string, string | DmError>();
    const held = new Set<string>();
    await Promise.all(
      uris.map(async (uri) => {
        try {
          const name = baseFolder === undefined ? this.#host.devices.nameOf(uri) : canonicalNbdUri(uri, baseFolder);
          found.set(uri, name);
          if (held.has(name)) return;
          held.add(name);
          if (!(await this.#acquire(name))) held.delete(name);
        } catch (error) {
          if (!(error instanceof DmError)) throw error;
          const name = found.get(uri);
          if (typeof name === 'string') held.delete(name);
          found.set(uri, error);
        }
      }),
    );
    return {
      translate: (argument) => {
        const name = found.get(argument) ?? argument;
        if (name instanceof DmError) throw name;
        return name;
      },
      release: () => {
        for (const name of held) this.#release(name);
        held.clear();
      },
    };
  }

  /** @returns false for a device that the program registered itself. @throws DmError */
  async #acquire(name: string): Promise<boolean> {
    let remote = this.#remotes.get(name);
    if (remote === undefined) {
      if (this.#host.devices.registered(name) !== undefined) return false;
      const made: Remote = { device: null, leaseCount: 0, ready: Promise.resolve() };
      made.ready = this.#connect(name, made);
      this.#remotes.set(name, made);
      remote = made;
    } else if (remote.device !== null && remote.device.failure !== null) {
      remote.ready = revived(remote.device);
    }
    remote.leaseCount++;
    try {
      await remote.ready;
      return true;
    } catch (error) {
      this.#release(name);
      throw error;
    }
  }

  async #connect(name: string, remote: Remote): Promise<void> {
    await this.#closing.get(name);
    const { onState, ...options } = this.#options;
    const tell = (state: NbdLinkState, error: DmError | null): void => onState?.(name, state, error);
    const device = await connectNbdDevice(this.#host.loop, name, { ...options, onState: tell });
    try {
      this.#host.devices.register(name, device, () => this.#closeUnused(name));
    } catch (error) {
      // The program has attached it meanwhile.
      await new Promise<void>((resolve) => device.close(resolve));
      throw error;
    }
    remote.device = device;
  }

  #release(name: string): void {
    const remote = this.#remotes.get(name)!;
    remote.leaseCount--;
    this.#closeUnused(name);
  }

  /** Says goodbye where neither a table nor a lease has it. */
  #closeUnused(name: string): void {
    const remote = this.#remotes.get(name);
    if (remote === undefined || remote.leaseCount > 0) return;
    const { device } = remote;
    if (device === null) {
      this.#remotes.delete(name);
      return;
    }
    const { readerCount, writerCount } = this.#host.devices.info(device)!;
    if (readerCount + writerCount > 0) return;
    this.#remotes.delete(name);
    this.#host.devices.unregister(name);
    const closed = new Promise<void>((resolve) => device.close(resolve)).then(() => {
      if (this.#closing.get(name) === closed) this.#closing.delete(name);
    });
    this.#closing.set(name, closed);
  }

  /** Requests that wait for servers that are gone fail now. */
  abandonLost(): void {
    for (const { device } of this.#remotes.values()) device?.abandon();
  }

  /** Resolves when every goodbye is said. */
  async closed(): Promise<void> {
    await Promise.all(this.#closing.values());
  }
}

function revived(device: NbdDevice): Promise<void> {
  return new Promise((resolve, reject) => {
    device.revive((error) => (error === null ? resolve() : reject(cannotConnect(device.name, error))));
  });
}
