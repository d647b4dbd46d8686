// Serving the devices of a DeviceMapper over NBD: listening, one export a device, and the end of it.

import type { DeviceMapper } from '../api/device-mapper.ts';
import type { Disk } from '../api/disk.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { socketCalls } from '../engine/socket-calls.ts';
import type { ConnectedStreams, ListenAddress, Listener } from '../reactor/node-loop.ts';
import { closeListeners, listenAddresses, listenAtAll, uriAt } from './listen.ts';
import { descriptionOf } from './server/exports.ts';
import { NbdServer, type NbdServerOptions } from './server/server.ts';
import { NbdThreads } from './threads.ts';
import { type NbdTlsOptions, serverTls } from './tls.ts';

/** Each has a heap of its own. */
export const MAX_THREAD_COUNT = 64;

export interface ServeNbdOptions {
  /**
   * Where to listen: one address or several, all of them or none. A string is `unix:PATH` or `tcp:HOST:PORT`. The
   * descriptors of one client that is connected already may take their place.
   */
  listen: string | ListenAddress | readonly (string | ListenAddress)[] | ConnectedStreams;
  /** Mapped devices by name, each an export of that name; all there are unless given. */
  names?: readonly string[];
  /** Texts for people, by the names of the exports: at most 4096 bytes each. */
  descriptions?: Readonly<Record<string, string>>;
  /** Clients cannot write, whatever the devices allow. */
  readOnly?: boolean;
  /** Encrypts, and tells who may come; nothing is encrypted unless given. */
  tls?: NbdTlsOptions;
  /** TCP addresses beyond this machine are taken too, when `listen` is a string. */
  allowRemote?: boolean;
  /**
   * Threads that share the connections, this one included; 1 unless given. Only for devices whose lines keep no state and
   * end in files or block devices: others have one. Meanwhile they can be neither changed nor removed (EBUSY).
   * {@link NbdService.server} is this thread's alone.
   */
  threads?: number;
  /**
   * How long to wait for the other threads before listening, for they take some 100 ms to start: clients that come before
   * they are ready are served by this one, to the end. Not at all unless given.
   */
  threadWaitMilliseconds?: number;
  /** Told of a client that broke the protocol and of anything unexpected inside a connection. */
  onError?: NbdServerOptions['onError'];
}

/** A running NBD server. */
export interface NbdService {
  /**
   * Where it listens: `unix:PATH`, `tcp:HOST:PORT` with the port that was chosen, or `fd:N` for an inherited socket and for
   * a client that was connected already.
   */
  readonly address: string;
  /** All of its addresses, in the order of the option `listen`; {@link address} is the first. */
  readonly addresses: readonly string[];
  /**
   * The server of this thread. Other threads' servers offer what there was at the start: an export that is added here or
   * taken out is so for this thread's clients alone, and the statistics are of those.
   */
  readonly server: NbdServer;
  /** The one client that was connected already is gone, and its requests have ended. Never for a server that listens. */
  readonly disconnected: Promise<void>;
  /** The URI a client attaches to for the device named. @throws DmError EINVAL for an inherited socket: its maker has it */
  uri(name: string): string;
  /** The same at each address. @throws DmError EINVAL as {@link uri} */
  uris(name: string): string[];
  /**
   * Takes no new client, answers what is in flight, flushes the devices, closes; once, however often it is called.
   *
   * @throws DmError when a flush failed, or a thread did not stop: the devices are in use then until the process ends
   */
  close(): Promise<void>;
}

function isConnected(listen: ServeNbdOptions['listen']): listen is ConnectedStreams {
  return typeof listen === 'object' && 'input' in listen;
}

/** The threads beside this one; null where there are to be none, or these devices can't have any. */
function planThreads(dm: DeviceMapper, names: readonly string[], options: ServeNbdOptions): NbdThreads | null {
  const { threads: threadCount = 1, readOnly = false, tls = null, descriptions = {}, onError = () => {} } = options;
  if (!Number.isInteger(threadCount) || threadCount < 1 || threadCount > MAX_THREAD_COUNT) {
    throw new DmError(Errno.EINVAL, `${threadCount} threads: 1 to ${MAX_THREAD_COUNT} can be`);
  }
  // Without calls on sockets a connection can't be given to another thread.
  if (threadCount === 1 || isConnected(options.listen) || socketCalls() === null) return null;
  const threads = NbdThreads.plan(dm, { threadCount, names, descriptions, readOnly, tls, onError });
  return typeof threads === 'string' ? null : threads;
}

/**
 * Serves mapped devices over NBD, each as an export of its own name.
 *
 * @throws DmError ENXIO for a name that is no device; EADDRINUSE, EACCES … when it cannot listen there
 * @example
 * ```ts
 * const service = await serveNbd(dm, { listen: 'unix:disk.sock' });
 * console.log(service.uri('disk')); // nbd+unix:///disk?socket=/home/user/disk.sock
 * await service.close();
 * ```
 */
export async function serveNbd(dm: DeviceMapper, options: ServeNbdOptions): Promise<NbdService> {
  const { listen } = options;
  const addresses = isConnected(listen) ? [] : listenAddresses(listen, options.allowRemote ?? false);
  const tls = options.tls === undefined ? null : serverTls(options.tls);
  const names = options.names ?? dm.mapper.list().map((device) => device.dmName);
  const readOnly = options.readOnly ?? false;
  const { threadWaitMilliseconds: threadWait = 0 } = options;
  const disks: Disk[] = [];
  const threads = planThreads(dm, names, options);
  let disconnect = (): void => {};
  const disconnected = new Promise<void>((resolve) => {
    disconnect = resolve;
  });
  const server = new NbdServer({
    reactor: dm.loop,
    ...(threads === null ? {} : { maxServerByteLength: threads.maxServerByteLength }),
    ...(options.onError ? { onError: options.onError } : {}),
    ...(tls === null ? {} : { tls }),
    ...(isConnected(listen) ? { onGone: () => disconnect() } : {}),
  });
  try {
    for (const name of names) {
      const disk = await dm.open(`/dev/mapper/${dm.mapper.get(name).dmName}`, { readOnly });
      disks.push(disk);
      server.exports.add({ name, device: disk.device, readOnly, ...descriptionOf(name, options.descriptions) });
    }
    if (threads !== null && threadWait > 0) {
      threads.start();
      await threads.settled(threadWait);
    }
    const listeners = await listenAtAll(dm.loop, addresses, (transport) => {
      if (threads?.take(transport, server.statistics.connectionCount, server.establishedCount) !== true)
        server.accept(transport);
    });
    // Where nobody waits for them they take nothing from the way to here.
    if (threadWait === 0) threads?.start();
    if (isConnected(listen)) server.accept(dm.loop.adoptStreams(listen, `fd:${listen.input}`));
    const uris = (name: string): string[] =>
      listeners.map((listener, index) => uriAt(addresses[index]!, listener, options.tls, name));
    let closing: Promise<void> | null = null;
    return {
      address: isConnected(listen) ? `fd:${listen.input}` : listeners[0]!.address,
      addresses: listeners.map(({ address }) => address),
      server,
      disconnected,
      uri: (name) => uris(name)[0] ?? refuseUri(),
      uris,
      close: () => {
        closing ??= close(listeners, server, threads, disks);
        return closing;
      },
    };
  } catch (error) {
    // A client may have come to the first address before the second one was refused.
    const shutdown = new Promise((resolve) => server.shutdown(resolve));
    await closeDevices(threads, disks, shutdown);
    throw error;
  }
}

function refuseUri(): never {
  throw new DmError(Errno.EINVAL, 'a server for one client that is connected already has no address');
}

async function close(
  listeners: readonly Listener[],
  server: NbdServer,
  threads: NbdThreads | null,
  disks: readonly Disk[],
): Promise<void> {
  await closeListeners(listeners);
  const shutdown = new Promise<Error | null>((resolve) => server.shutdown(resolve));
  const reason = await closeDevices(threads, disks, shutdown);
  const text = (await shutdown)?.message ?? reason;
  if (text !== null) throw new DmError(Errno.EIO, `stopping the NBD server: ${text}`);
}

/**
 * Ends the threads and closes the devices, after `shutdown`. Where a thread has not ended they stay open and as they are:
 * what it has under way may still be written, so nobody else may have the lock.
 *
 * @returns why the threads did not end as they should
 */
async function closeDevices(
  threads: NbdThreads | null,
  disks: readonly Disk[],
  shutdown: Promise<unknown> | null = null,
): Promise<string | null> {
  const [end] = await Promise.all([threads?.close() ?? null, shutdown]);
  if (end === null || end.hasEnded) {
    threads?.release();
    for (const disk of disks) disk.close();
  }
  return end?.reason ?? null;
}
