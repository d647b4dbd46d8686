// Finding the daemon of a folder, and starting one where a request needs it.
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { RequestContext } from '../control/core/host.ts';
import { RemoteControl } from '../control/remote-control.ts';
import { type Control, REQUESTS, type Reply, type RequestArgs, type RequestName } from '../control/requests.ts';
import { type DaemonFolder, daemonFolder } from '../daemon/folder.ts';
import { NodeLoop } from '../reactor/node-loop.ts';
import { startInBackground } from './start.ts';

const CONNECT_ATTEMPTS = 100;
const CONNECT_MILLISECONDS = 50;
/** Requests about lost devices: answered by a daemon, which is started where there is a journal. */
const ABOUT_LOST: readonly RequestName[] = ['lost', 'forget', 'adopt', 'restore'];

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
  /** A look-up under way, which every call waits for that comes meanwhile. */
  #finding: Promise<RemoteControl | null> | null = null;
  #lookedForLost = false;
  #isClosed = false;
  #callCount = 0;

  constructor(options: ClientOptions = {}) {
    this.#options = options;
    this.folder = options.folder ?? daemonFolder();
  }

  async call<Name extends RequestName>(
    name: Name,
    args: RequestArgs<Name>,
    context: Omit<RequestContext, 'client'> = {},
  ): Promise<Reply<Name>> {
    this.#callCount++;
    try {
      const remote = await this.#find(name);
      if (remote !== null) return await remote.call(name, args, context);
      // A plan changes nothing, and needs no daemon.
      if (name === 'overlayPlan') return (await planHere(args as RequestArgs<'overlayPlan'>)) as Reply<Name>;
      return (await REQUESTS[name].withoutDaemon()) as Reply<Name>;
    } finally {
      // A closed client keeps no connection beyond its calls, or its program would not end.
      if (--this.#callCount === 0 && this.#isClosed) await this.#hangUp();
    }
  }

  async #find(name: RequestName): Promise<RemoteControl | null> {
    for (;;) {
      if (this.#remote !== null && !this.#remote.isOver) return this.#remote;
      this.#remote = null;
      const mine = this.#finding === null;
      this.#finding ??= this.#look(name).finally(() => {
        this.#finding = null;
      });
      const found = await this.#finding;
      if (found !== null || mine) return found;
      // The other call did not need a daemon; this one may.
    }
  }

  async #look(name: RequestName): Promise<RemoteControl | null> {
    try {
      this.#remote = await findDaemon(this.folder);
      if (this.#remote !== null) return this.#remote;
      const lost = await this.#lostDevices(name);
      if (lost.length > 0) {
        // A daemon that another command has just started has a journal, too: then nothing was lost.
        this.#remote = await findDaemon(this.folder);
        if (this.#remote !== null) return this.#remote;
        this.#options.onLost!(lost);
      }
      if (this.#starts(name)) this.#remote = await findOrStart(this.folder);
      return this.#remote;
    } catch (error) {
      // No refusal of a device's: it must not read like one.
      if (error instanceof DmError && error.errno !== 0) throw new DmError(0, error.message, error.code);
      throw error;
    }
  }

  #starts(name: RequestName): boolean {
    if (ABOUT_LOST.includes(name)) {
      return name === 'restore' || existsSync(this.folder.journal) || existsSync(this.folder.lostJournal);
    }
    const request = REQUESTS[name];
    return 'starts' in request && request.starts === true;
  }

  /** No daemon, but its journal: devices are gone. Looks once, where somebody is to be told. */
  async #lostDevices(name: RequestName): Promise<string[]> {
    if (this.#lookedForLost || ABOUT_LOST.includes(name) || this.#options.onLost === undefined) return [];
    this.#lookedForLost = true;
    if (!existsSync(this.folder.journal) && !existsSync(this.folder.lostJournal)) return [];
    const { lostNames } = await import('../control/journal.ts');
    return lostNames(this.folder);
  }

  /** Lets go of the daemon. A call that comes later connects for itself alone. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#finding?.catch(() => {});
    await this.#hangUp();
  }

  async #hangUp(): Promise<void> {
    const remote = this.#remote;
    this.#remote = null;
    await remote?.close();
  }
}

async function planHere(args: RequestArgs<'overlayPlan'>): Promise<Reply<'overlayPlan'>> {
  const { DeviceMapper } = await import('../api/device-mapper.ts');
  const dm = new DeviceMapper();
  try {
    return await dm.control.call('overlayPlan', args);
  } finally {
    await dm.close();
  }
}
