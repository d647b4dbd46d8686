// Serving the devices of a DeviceMapper over NBD: listening, one export a device, and the end of it.

import { resolve } from 'node:path';
import type { DeviceMapper } from '../api/device-mapper.ts';
import type { Disk } from '../api/disk.ts';
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { socketCalls } from '../engine/socket-calls.ts';
import { isLoopback, type ListenAddress, type Listener } from '../reactor/node-loop.ts';
import { formatNbdUri, type NbdUri } from './protocol/uri.ts';
import { NbdServer, type NbdServerOptions } from './server/server.ts';
import { NbdThreads } from './threads.ts';
import { type NbdTlsOptions, serverTls, tlsUriParts } from './tls.ts';

const MAX_PORT = 65535;
/** Each has a heap of its own. */
export const MAX_THREAD_COUNT = 64;

export interface ServeNbdOptions {
  /** Where to listen. A string is `unix:PATH` or `tcp:HOST:PORT`. */
  listen: string | ListenAddress;
  /** Mapped devices by name, each an export of that name; all there are unless given. */
  names?: readonly string[];
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
  /** Where it listens: `unix:PATH`, `tcp:HOST:PORT` with the port that was chosen, or `fd:N` for an inherited socket. */
  readonly address: string;
  /**
   * The server of this thread. Other threads' servers offer what there was at the start: an export that is added here or
   * taken out is so for this thread's clients alone, and the statistics are of those.
   */
  readonly server: NbdServer;
  /** The URI a client attaches to for the device named. @throws DmError EINVAL for an inherited socket: its maker has it */
  uri(name: string): string;
  /**
   * Takes no new client, answers what is in flight, flushes the devices, closes; once, however often it is called.
   *
   * @throws DmError when a flush failed, or a thread did not stop: the devices are in use then until the process ends
   */
  close(): Promise<void>;
}

/**
 * Reads `unix:PATH` or `tcp:HOST:PORT`.
 *
 * @throws DmError EINVAL for anything else
 */
export function parseListenAddress(text: string): ListenAddress {
  if (text.startsWith('unix:') && text.length > 5) return { unix: text.slice(5) };
  const tcp = /^tcp:(?:\[([^\]]+)\]|([^:]+)):([0-9]+)$/.exec(text);
  if (tcp === null) {
    throw new DmError(Errno.EINVAL, `cannot listen at "${text}": an address is unix:PATH or tcp:HOST:PORT`);
  }
  const port = Number(tcp[3]);
  if (port > MAX_PORT) {
    throw new DmError(
      Errno.EINVAL,
      `cannot listen at "${text}": ports go from 1 to ${MAX_PORT}, and 0 takes a free one`,
    );
  }
  return { host: (tcp[1] ?? tcp[2])!, port };
}

/** Whether other machines may reach an address; a name is taken for one that they do, except `localhost`. */
export function isRemote(address: ListenAddress): boolean {
  return 'host' in address && address.host !== 'localhost' && !isLoopback(address.host);
}

function listenAddress({ listen: where, allowRemote = false }: ServeNbdOptions): ListenAddress {
  const address = typeof where === 'string' ? parseListenAddress(where) : where;
  return 'host' in address && typeof where === 'string' ? { ...address, allowRemote } : address;
}

function listenText(address: ListenAddress): string {
  if ('unix' in address) return address.unix;
  if ('fd' in address) return `descriptor ${address.fd}`;
  return `${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`;
}

function listen(
  dm: DeviceMapper,
  address: ListenAddress,
  server: NbdServer,
  threads: NbdThreads | null,
): Promise<Listener> {
  return new Promise((resolve, reject) => {
    dm.loop.listen(
      address,
      (transport) => {
        if (threads?.take(transport, server.statistics.connectionCount, server.establishedCount) !== true)
          server.accept(transport);
      },
      (error, listener) => {
        if (listener !== null) resolve(listener);
        else
          reject(new DmError(errnoFromException(error), `cannot listen at ${listenText(address)}: ${error?.message}`));
      },
    );
  });
}

/** The threads beside this one; null where there are to be none, or these devices can't have any. */
function planThreads(dm: DeviceMapper, names: readonly string[], options: ServeNbdOptions): NbdThreads | null {
  const { threads: threadCount = 1, readOnly = false, tls = null, onError = () => {} } = options;
  if (!Number.isInteger(threadCount) || threadCount < 1 || threadCount > MAX_THREAD_COUNT) {
    throw new DmError(Errno.EINVAL, `${threadCount} threads: 1 to ${MAX_THREAD_COUNT} can be`);
  }
  // Without calls on sockets a connection can't be given to another thread.
  if (threadCount === 1 || socketCalls() === null) return null;
  const threads = NbdThreads.plan(dm, { threadCount, names, readOnly, tls, onError });
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
  const address = listenAddress(options);
  const tls = options.tls === undefined ? null : serverTls(options.tls);
  const uriParts = options.tls === undefined ? {} : tlsUriParts(options.tls, isRemote(address));
  const names = options.names ?? dm.mapper.list().map((device) => device.dmName);
  const readOnly = options.readOnly ?? false;
  const { threadWaitMilliseconds: threadWait = 0 } = options;
  const disks: Disk[] = [];
  const threads = planThreads(dm, names, options);
  const server = new NbdServer({
    reactor: dm.loop,
    ...(threads === null ? {} : { maxServerByteLength: threads.maxServerByteLength }),
    ...(options.onError ? { onError: options.onError } : {}),
    ...(tls === null ? {} : { tls }),
  });
  try {
    for (const name of names) {
      const disk = await dm.open(`/dev/mapper/${dm.mapper.get(name).dmName}`, { readOnly });
      disks.push(disk);
      server.exports.add({ name, device: disk.device, readOnly });
    }
    if (threads !== null && threadWait > 0) {
      threads.start();
      await threads.settled(threadWait);
    }
    const listener = await listen(dm, address, server, threads);
    // Where nobody waits for them they take nothing from the way to here.
    if (threadWait === 0) threads?.start();
    let closing: Promise<void> | null = null;
    return {
      address: listener.address,
      server,
      uri: (name) => formatNbdUri({ ...placeOf(address, listener), ...uriParts, exportName: name }),
      close: () => {
        closing ??= close(listener, server, threads, disks);
        return closing;
      },
    };
  } catch (error) {
    await closeDevices(threads, disks);
    throw error;
  }
}

/** For a URI: no client can connect to the address that stands for all of this machine. */
function reachableHost(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1';
  return host === '::' ? '::1' : host;
}

function placeOf(address: ListenAddress, listener: Listener): Pick<NbdUri, 'socket' | 'host' | 'port'> {
  if ('unix' in address) return { socket: resolve(address.unix) };
  if ('host' in address) return { host: reachableHost(address.host), port: listener.port };
  throw new DmError(Errno.EINVAL, `whoever made the socket ${listener.address} knows its address`);
}

async function close(
  listener: Listener,
  server: NbdServer,
  threads: NbdThreads | null,
  disks: readonly Disk[],
): Promise<void> {
  await new Promise<void>((resolve) => listener.close(resolve));
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
