// Finding the daemon of a folder, and starting one where a request needs it.
import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Control, Reply, RequestArgs, RequestName } from '../daemon/control.ts';
import { type DaemonFolder, daemonFolder } from '../daemon/folder.ts';
import { NodeLoop } from '../reactor/node-loop.ts';
import { withoutDaemon } from './no-daemon.ts';
import { RemoteControl } from './remote-control.ts';
import { startInBackground } from './start.ts';

const CONNECT_ATTEMPTS = 100;
const CONNECT_MILLISECONDS = 50;
const MAKES_DEVICES: readonly RequestName[] = ['create', 'restore'];

/** The daemon that listens at `folder` now; null where none does. @throws DmError for a socket that can't be used */
export function findDaemon(folder: DaemonFolder): Promise<RemoteControl | null> {
  folder.check();
  folder.checkSocketPaths();
  return new Promise((resolve, reject) => {
    new NodeLoop().connect({ unix: folder.controlSocket }, (error, transport) => {
      if (transport !== null) {
        resolve(new RemoteControl(transport));
        return;
      }
      const code = (error as NodeJS.ErrnoException).code ?? '';
      if (['ENOENT', 'ECONNREFUSED', 'ENOTDIR'].includes(code)) resolve(null);
      else reject(new DmError(errnoFromException(error), `${folder.controlSocket}: ${error?.message}`));
    });
  });
}

async function findOrStart(folder: DaemonFolder): Promise<RemoteControl> {
  folder.make();
  for (let attempt = 0; attempt < CONNECT_ATTEMPTS; attempt++) {
    const found = await findDaemon(folder);
    if (found !== null) return found;
    // False: another command was faster, and its daemon will listen soon.
    if (!(await startInBackground(folder))) await sleep(CONNECT_MILLISECONDS);
  }
  throw new DmError(0, `a daemon has ${folder.lockFile}, but does not answer`, 'DM_NO_DAEMON');
}

export interface ClientOptions {
  /** The daemon's folder: DMKIT_DIR and the rest of the rules unless given. */
  folder?: DaemonFolder;
  /** Told once when the last daemon of the folder ended without taking its devices down: their names. */
  onLost?: (names: string[]) => void;
}

/**
 * The daemon of a folder, found at the first request and started by the first one that makes a device. Where there is
 * none, the others are answered as a daemon without devices would.
 */
export class ClientControl implements Control {
  readonly folder: DaemonFolder;
  readonly #options: ClientOptions;
  #remote: RemoteControl | null = null;
  #lookedForLost = false;

  constructor(options: ClientOptions = {}) {
    this.#options = options;
    this.folder = options.folder ?? daemonFolder();
  }

  async call<Name extends RequestName>(
    name: Name,
    args: RequestArgs<Name>,
    signal?: AbortSignal,
  ): Promise<Reply<Name>> {
    const remote = this.#remote ?? (await this.#find(name));
    if (remote === null) {
      if (name === 'removeAll') this.#forgetLost();
      return withoutDaemon(name);
    }
    return remote.call(name, args, signal);
  }

  async #find(name: RequestName): Promise<RemoteControl | null> {
    try {
      this.#remote = await findDaemon(this.folder);
      if (this.#remote !== null) return this.#remote;
      const lost = await this.#lostDevices(name);
      if (lost !== null) {
        // A daemon that another command has just started has a journal, too: then nothing was lost.
        this.#remote = await findDaemon(this.folder);
        if (this.#remote !== null) return this.#remote;
        this.#options.onLost!(lost);
      }
      if (MAKES_DEVICES.includes(name)) this.#remote = await findOrStart(this.folder);
      return this.#remote;
    } catch (error) {
      // No refusal of a device's: it must not read like one.
      if (error instanceof DmError && error.errno !== 0) throw new DmError(0, error.message, error.code);
      throw error;
    }
  }

  /** No daemon, but its journal or the one of its predecessor: devices are gone. Looks once, where somebody is to be told. */
  async #lostDevices(name: RequestName): Promise<string[] | null> {
    if (this.#lookedForLost || name === 'restore' || this.#options.onLost === undefined) return null;
    this.#lookedForLost = true;
    const { readJournal } = await import('../daemon/journal.ts');
    const state = readJournal(this.folder.journal) ?? readJournal(this.folder.lostJournal);
    return state === null ? null : state.devices.map((device) => device.name);
  }

  /** Who removes everything does not want it back. */
  #forgetLost(): void {
    for (const path of [this.folder.journal, this.folder.lostJournal]) rmSync(path, { force: true });
  }

  async close(): Promise<void> {
    await this.#remote?.close();
    this.#remote = null;
  }
}
