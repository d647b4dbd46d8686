// A daemon: the devices of one folder, its control socket, its NBD socket, its journal and its log.
import { DeviceMapper } from '../api/device-mapper.ts';
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Transport } from '../block/reactor.ts';
import { version } from '../block/version.ts';
import { STOP_TIMEOUT_MILLISECONDS } from '../control/bounds.ts';
import { translator } from '../control/host-paths.ts';
import { type Journal, openJournal } from '../control/journal.ts';
import type { LocalControl } from '../control/local-control.ts';
import { Recovery } from '../control/recovery.ts';
import { ControlServer } from '../control/server.ts';
import type { DaemonInfo } from '../control/types.ts';
import type { NbdReconnectOptions } from '../devices/nbd-links.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { NbdServer } from '../nbd/server/server.ts';
import type { Listener } from '../reactor/node-loop.ts';
import type { DaemonFolder } from './folder.ts';
import { type DaemonLock, takeLock } from './lock.ts';
import { type Log, openLog } from './log.ts';
import { NbdExports } from './nbd-exports.ts';

export interface DaemonOptions {
  folder: DaemonFolder;
  /** Ends by itself after so many seconds without devices and clients; never unless given. */
  idleExitSeconds?: number;
  /** How servers of remote devices that went away are waited for. */
  reconnect?: NbdReconnectOptions;
}

/** Why it ended. */
export type StopReason = 'shutdown' | 'signal' | 'idle';

/** A running daemon. Made by {@link startDaemon}. */
export class Daemon {
  readonly #folder: DaemonFolder;
  readonly #lock: DaemonLock;
  readonly #log: Log;
  readonly #dm: DeviceMapper;
  readonly #control: LocalControl;
  readonly #controlServer: ControlServer;
  readonly #nbd: NbdServer;
  readonly #exports: NbdExports;
  readonly #journal: Journal;
  readonly #translate: ReturnType<typeof translator>;
  readonly #idleExitSeconds: number | undefined;
  #listeners: Listener[] = [];
  #idleTimer: NodeJS.Timeout | null = null;
  #stopping = false;
  #onStopped: (reason: StopReason) => void = () => {};
  /** Resolves when it has ended. */
  readonly stopped: Promise<StopReason>;

  constructor(options: DaemonOptions, lock: DaemonLock, log: Log) {
    this.#folder = options.folder;
    this.#lock = lock;
    this.#log = log;
    this.#idleExitSeconds = options.idleExitSeconds;
    this.stopped = new Promise((resolve) => {
      this.#onStopped = resolve;
    });
    this.#dm = new DeviceMapper({
      baseFolder: options.folder.path,
      remote: {
        ...(options.reconnect === undefined ? {} : { reconnect: options.reconnect }),
        onState: (uri, state, error) => {
          const text = { back: 'a remote device is back', lost: 'a remote device is lost' };
          log.complain({ uri }, error, state === 'failed' ? 'a remote device has failed' : text[state]);
        },
      },
      control: {
        translate: (folder, host) => this.#translate(folder, host),
        onChange: (device) => this.#exports.update(device),
        onError: (error, text) => log.error({ err: error }, text),
        daemon: { info: () => this.#info(), shutdown: (force) => this.#shutdown(force) },
      },
    });
    const { mapper, loop, control } = this.#dm;
    this.#control = control;
    this.#translate = translator(mapper);
    this.#nbd = new NbdServer({
      reactor: loop,
      onError: (error, peer) => log.complain({ peer }, error, 'an NBD client'),
      onAttach: (device) => this.#exports.onAttach(device),
      onDetach: (device) => this.#exports.onDetach(device),
    });
    this.#exports = new NbdExports(this.#nbd, mapper);
    mapper.onRemove = (device) => this.#onRemove(device);
    this.#controlServer = new ControlServer({
      control,
      onError: (error) => log.complain({}, error, 'a control client'),
      onClients: () => this.#checkIdle(),
    });
    const { journal, damage } = openJournal(options.folder);
    this.#journal = journal;
    for (const text of damage) log.error({}, text);
    control.plane.journal = journal;
    control.recovery = new Recovery(control.plane, journal, control.operations.overlays.merges, damage);
  }

  #info(): DaemonInfo {
    return {
      version,
      pid: process.pid,
      major: this.#dm.mapper.major,
      nbdSocket: this.#folder.nbdSocket,
      logFile: this.#folder.logFile,
    };
  }

  /** @throws DmError where a socket cannot be made */
  async listen(): Promise<void> {
    this.#listeners.push(await this.#listen(this.#folder.nbdSocket, (transport) => this.#nbd.accept(transport)));
    this.#listeners.push(
      await this.#listen(this.#folder.controlSocket, (transport) => this.#controlServer.accept(transport)),
    );
    this.#log.info({ version, folder: this.#folder.path, node: process.versions.node }, 'listening');
    this.#checkIdle();
  }

  #listen(unix: string, accept: (transport: Transport) => void): Promise<Listener> {
    return new Promise((resolve, reject) => {
      this.#dm.loop.listen({ unix }, accept, (error, listener) => {
        if (listener !== null) resolve(listener);
        else reject(new DmError(errnoFromException(error), `cannot listen at ${unix}: ${error?.message}`));
      });
    });
  }

  /** Also of a device whose removal was deferred: the journal hears of it when its last user is gone. */
  #onRemove(device: MappedDevice): void {
    this.#exports.remove(device);
    if (this.#stopping) return;
    void this.#control.plane.note(device);
    this.#checkIdle();
  }

  #checkIdle(): void {
    if (this.#idleExitSeconds === undefined) return;
    const isIdle = this.#dm.mapper.list().length === 0 && this.#controlServer.clientCount === 0;
    if (!isIdle) {
      if (this.#idleTimer !== null) clearTimeout(this.#idleTimer);
      this.#idleTimer = null;
    } else this.#idleTimer ??= setTimeout(() => void this.stop('idle'), this.#idleExitSeconds * 1000);
  }

  #shutdown(force: boolean): void {
    const { mapper } = this.#dm;
    const users = mapper
      .list()
      .filter((device) => device.openCount > 0 && mapper.userCountWithout(device, mapper.devices()) > 0);
    if (users.length > 0 && !force) {
      const names = users.map((device) => device.dmName).join(', ');
      throw new DmError(Errno.EBUSY, `in use by NBD clients: ${names}; --force cuts them off`);
    }
    // The answer leaves first.
    setImmediate(() => void this.stop('shutdown'));
  }

  /** Notes what ends the process: a crash should be told where one looks for it. */
  noteCrash(error: unknown): void {
    this.#log.error({ err: error }, 'crashed');
  }

  /** Suspends with flush, takes everything down, and leaves. After a signal the journal stays: a restore is possible. */
  async stop(reason: StopReason): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#log.info({ reason }, 'stopping');
    if (this.#idleTimer !== null) clearTimeout(this.#idleTimer);
    for (const listener of this.#listeners) listener.close();
    this.#controlServer.refuse();
    // Clients whose requests wait for a server that is gone hear so now.
    this.#dm.remotes.abandonLost();
    const failure = await new Promise<Error | null>((resolve) => {
      this.#nbd.shutdown(resolve, STOP_TIMEOUT_MILLISECONDS);
    });
    if (failure !== null) this.#log.error({ err: failure }, 'stopping the NBD server');
    await this.#takeDown();
    this.#controlServer.close();
    await this.#endJournal(reason !== 'signal');
    this.#log.info({ reason }, 'stopped');
    this.#log.close();
    this.#lock.release();
    this.#onStopped(reason);
  }

  /** A shutdown forgets the devices, but no lost ones, and none whose merge has not come to its end. */
  async #endJournal(forgets: boolean): Promise<void> {
    try {
      if (forgets) await this.#journal.forgetDevices();
      if (this.#journal.isEmpty) this.#journal.remove();
      else this.#journal.close();
    } catch (error) {
      this.#log.error({ err: error }, 'the journal could not be closed');
    }
  }

  /**
   * Devices that a stop takes down stay in the journal. One that still waits for something below it, or is in use, does not
   * keep the daemon.
   */
  async #takeDown(): Promise<void> {
    const late = new Promise<Error>((resolve) => {
      const error = new DmError(Errno.ETIMEDOUT, 'devices have requests under way still');
      setTimeout(resolve, STOP_TIMEOUT_MILLISECONDS, error).unref();
    });
    const closed = this.#dm.close().then(
      () => null,
      (error: Error) => error,
    );
    const failure = await Promise.race([closed, late]);
    if (failure !== null) this.#log.error({ err: failure }, 'taking devices down');
  }
}

/**
 * Starts a daemon in this process.
 *
 * @throws DmError EBUSY where one lives in that folder already, ENAMETOOLONG, EACCES …
 */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const { folder } = options;
  folder.make();
  const lock = takeLock(folder.lockFile);
  try {
    const daemon = new Daemon(options, lock, await openLog(folder.logFile));
    await daemon.listen();
    return daemon;
  } catch (error) {
    lock.release();
    throw error;
  }
}
