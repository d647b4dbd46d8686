// The requests of the control socket, done on the mapped devices of this process.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { TargetRegistry } from '../block/target.ts';
import { isNbdUri } from '../devices/nbd-uri.ts';
import type { MappedDevice, StateChange } from '../mapper/mapped-device.ts';
import type { LoadOptions, Mapper } from '../mapper/mapper.ts';
import { RemoteDevices, type RemoteLease } from '../reactor/remote-devices.ts';
import type { Control, DeviceAddress, DeviceStatus, Reply, RequestArgs, RequestName } from './control.ts';
import { snapshotHandlers } from './snapshots.ts';
import { depsOf, linesOf, ReadAheads, statusOf } from './status.ts';

/** What only the daemon itself can do. */
type DaemonRequest = 'daemon' | 'restore' | 'shutdown';
type DeviceRequest = Exclude<RequestName, DaemonRequest>;

type Handler<Name extends RequestName> = (
  args: RequestArgs<Name>,
  signal: AbortSignal | undefined,
) => Promise<Reply<Name>> | Reply<Name>;

export interface LocalControlOptions {
  mapper: Mapper;
  targets: TargetRegistry;
  /** How a load's device arguments are to be read, for a caller in `folder`. */
  translate?: (folder: string | undefined, host: boolean) => (argument: string) => string;
  /** For tables that name NBD URIs; without it they are refused. */
  remotes?: RemoteDevices;
  /** Something about this device has changed; `previousName` where that is its name. */
  onChange?: (device: MappedDevice, previousName?: string) => void;
  daemon?: { [Name in DaemonRequest]: Handler<Name> };
}

/** Waits for a change of state; a signal undoes it. */
function changed(
  signal: AbortSignal | undefined,
  begin: (done: (error: DmError | null) => void) => StateChange,
): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(interrupted());
      return;
    }
    let over = false;
    const change = begin((error) => {
      over = true;
      signal?.removeEventListener('abort', onAbort);
      if (error === null) resolve();
      else reject(error);
    });
    function onAbort(): void {
      change.cancel();
      reject(interrupted());
    }
    if (!over) signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** Waits for what cannot be undone under way; a signal lets it go when it is there. */
function leased(signal: AbortSignal | undefined, connecting: Promise<RemoteLease>): Promise<RemoteLease> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      void connecting.then((lease) => lease.release());
      reject(interrupted());
    };
    if (signal?.aborted) {
      onAbort();
      return;
    }
    signal?.addEventListener('abort', onAbort, { once: true });
    connecting.then((lease) => {
      signal?.removeEventListener('abort', onAbort);
      resolve(lease);
    }, reject);
  });
}

function interrupted(): DmError {
  return new DmError(Errno.EINTR, 'interrupted: it was undone');
}

/** Devices of this process, asked as the daemon is. */
export class LocalControl implements Control {
  readonly #mapper: Mapper;
  readonly #options: LocalControlOptions;
  readonly #readAheads = new ReadAheads();
  readonly #handlers: { [Name in DeviceRequest]: Handler<Name> };

  constructor(options: LocalControlOptions) {
    this.#mapper = options.mapper;
    this.#options = options;
    this.#handlers = {
      ...this.#questions(),
      ...this.#tableRequests(),
      ...this.#deviceRequests(),
      ...snapshotHandlers(options.mapper, (address) => this.#find(address)),
    };
  }

  async call<Name extends RequestName>(
    name: Name,
    args: RequestArgs<Name>,
    signal?: AbortSignal,
  ): Promise<Reply<Name>> {
    const handlers = { ...this.#options.daemon, ...this.#handlers } as Partial<
      Record<RequestName, Handler<RequestName>>
    >;
    const handler = Object.hasOwn(handlers, name) ? handlers[name] : undefined;
    if (handler === undefined) throw new DmError(Errno.EOPNOTSUPP, `"${name}" can not be asked here`);
    return (await handler(args as never, signal)) as Reply<Name>;
  }

  #questions(): Pick<
    { [Name in DeviceRequest]: Handler<Name> },
    'targets' | 'list' | 'info' | 'table' | 'deps' | 'wait'
  > {
    return {
      targets: () => this.#options.targets.list().map(({ name, version }) => ({ name, version })),
      list: () => this.#mapper.list().map((device) => this.#status(device)),
      info: ({ device, inactive }) => this.#status(this.#find(device), inactive),
      table: (args) => {
        const device = this.#find(args.device);
        const table = args.inactive ? device.inactiveTable : device.table;
        return { status: this.#status(device, args.inactive), lines: linesOf(table, args.type) };
      },
      deps: (args) => {
        const device = this.#find(args.device);
        return depsOf(args.inactive ? device.inactiveTable : device.table);
      },
      wait: (args, signal) => this.#wait(args, signal),
    };
  }

  #tableRequests(): Pick<{ [Name in DeviceRequest]: Handler<Name> }, 'load' | 'clear' | 'suspend' | 'resume'> {
    return {
      load: (args, signal) => {
        const device = this.#find(args.device);
        const uris = RemoteDevices.urisIn(args.table);
        if (uris.length > 0 && this.#options.remotes !== undefined) {
          return this.#loadRemote(device, args, leased(signal, this.#options.remotes.lease(uris, args.folder)));
        }
        return this.#load(device, args, null);
      },
      clear: (args) => {
        const device = this.#find(args.device);
        device.clear();
        return this.#noted(device);
      },
      suspend: async (args, signal) => {
        const device = this.#find(args.device);
        const options = { noflush: args.noflush ?? false };
        await changed(signal, (done) => this.#mapper.suspend(device, options, () => done(null)));
        return this.#noted(device);
      },
      resume: async (args, signal) => {
        const device = this.#find(args.device);
        const options = { noflush: args.noflush ?? false };
        try {
          await changed(signal, (done) => this.#mapper.resume(device, options, done));
        } finally {
          // A resume that failed has emptied the inactive slot.
          this.#noted(device);
        }
        return this.#status(device);
      },
    };
  }

  #load(device: MappedDevice, args: RequestArgs<'load'>, lease: RemoteLease | null): DeviceStatus {
    const options: LoadOptions = { readOnly: args.readOnly ?? false };
    const translate = this.#options.translate?.(args.folder, args.host ?? false) ?? ((argument: string) => argument);
    options.translate = (argument) =>
      lease !== null && isNbdUri(argument) ? lease.translate(argument) : translate(argument);
    this.#mapper.load(device, args.table, options);
    return this.#noted(device);
  }

  async #loadRemote(
    device: MappedDevice,
    args: RequestArgs<'load'>,
    connecting: Promise<RemoteLease>,
  ): Promise<DeviceStatus> {
    const lease = await connecting;
    try {
      if (!this.#mapper.has(device.dmName) || this.#mapper.get(device.dmName) !== device) {
        throw new DmError(Errno.ENXIO, `${device.dmName} was removed while its remote devices were connected`);
      }
      return this.#load(device, args, lease);
    } finally {
      lease.release();
    }
  }

  #deviceRequests(): Pick<
    { [Name in DeviceRequest]: Handler<Name> },
    'create' | 'remove' | 'removeAll' | 'rename' | 'setUuid' | 'message' | 'setReadAhead'
  > {
    return {
      create: (args) => this.#create(args),
      remove: async ({ device, deferred = false }) => {
        await this.#remove(this.#find(device), deferred);
        return null;
      },
      removeAll: async ({ deferred = false }) => this.#removeAll(deferred),
      rename: ({ name, newName }) => {
        const device = this.#mapper.get(name);
        this.#mapper.rename(device, newName);
        return this.#noted(device, name);
      },
      setUuid: ({ name, uuid }) => {
        const device = this.#mapper.get(name);
        this.#mapper.setUuid(device, uuid);
        return this.#noted(device);
      },
      message: ({ device, sector, text }) => this.#find(device).message(sector, text) ?? null,
      setReadAhead: ({ device: address, sectorCount, atLeast = false }) => {
        const device = this.#find(address);
        this.#readAheads.set(device, sectorCount, atLeast);
        return this.#status(device);
      },
    };
  }

  #find(address: DeviceAddress): MappedDevice {
    if ('name' in address) return this.#mapper.get(address.name);
    if ('uuid' in address) return this.#mapper.getByUuid(address.uuid);
    return this.#mapper.getByNumber(address.major, address.minor);
  }

  #status(device: MappedDevice, inactive?: boolean): DeviceStatus {
    return statusOf(device, this.#readAheads, inactive);
  }

  #noted(device: MappedDevice, previousName?: string): DeviceStatus {
    this.#options.onChange?.(device, previousName);
    return this.#status(device);
  }

  #create(args: RequestArgs<'create'>): DeviceStatus {
    const { name, uuid, major, minor } = args;
    if (major !== undefined && major !== this.#mapper.major) {
      throw new DmError(Errno.ENXIO, `the major number of dmkit's devices is ${this.#mapper.major}, not ${major}`);
    }
    const device = this.#mapper.create(name, {
      ...(uuid === undefined ? {} : { uuid }),
      ...(minor === undefined ? {} : { minor }),
    });
    return this.#noted(device);
  }

  async #remove(device: MappedDevice, deferred: boolean): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      try {
        this.#mapper.remove(device, { deferred }, resolve);
      } catch (error) {
        reject(error);
      }
    });
    this.#options.onChange?.(device);
  }

  /** One after the other, each when the one on top of it is gone, until no more go. */
  async #removeAll(deferred: boolean): Promise<string[]> {
    for (let removed = true; removed; ) {
      removed = false;
      for (const device of this.#mapper.list()) {
        if (device.openCount > 0 || !this.#mapper.has(device.dmName)) continue;
        await this.#remove(device, false);
        removed = true;
      }
    }
    const left = this.#mapper.list();
    if (deferred) for (const device of left) await this.#remove(device, true);
    return left.map((device) => device.dmName);
  }

  async #wait(args: RequestArgs<'wait'>, signal: AbortSignal | undefined): Promise<DeviceStatus> {
    const device = this.#find(args.device);
    const name = device.dmName;
    await changed(signal, (done) => {
      const stop = device.waitForEvent(args.eventNumber, () => done(null));
      return { cancel: stop };
    });
    return { ...this.#status(device), name };
  }
}
