// Where an NBD server is reached: addresses read, listened at all or none, and told as URIs. Knows no device and no export.
import { resolve } from 'node:path';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Transport } from '../block/reactor.ts';
import { isLoopback, type ListenAddress, type Listener, type NodeLoop } from '../reactor/node-loop.ts';
import { formatNbdUri, type NbdUri } from './protocol/uri.ts';
import { type NbdTlsOptions, tlsUriParts } from './tls.ts';

const MAX_PORT = 65535;
/** Ports below it need a privilege. */
const FIRST_USER_PORT = 1024;

/**
 * Reads `unix:PATH` or `tcp:HOST:PORT`.
 *
 * @throws DmError EINVAL for anything else
 */
export function parseListenAddress(text: string): ListenAddress {
  if (text.startsWith('unix:') && text.length > 5) return { unix: text.slice(5) };
  const tcp = /^tcp:(?:\[([^\]]+)\]|([^:]+)):([0-9]+)$/.exec(text);
  if (tcp === null) {
    throw new DmError(
      Errno.EINVAL,
      `cannot listen at "${text}": an address is unix:PATH or tcp:HOST:PORT, with an IPv6 address in brackets`,
    );
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

/** Two texts that are equal name one address. Port 0 names a new one each time. */
function addressKey(address: ListenAddress, index: number): string {
  if ('unix' in address) return `unix:${resolve(address.unix)}`;
  if ('fd' in address) return `fd:${address.fd}`;
  return address.port === 0 ? `free port ${index}` : listenText(address);
}

/**
 * The addresses of a server's option `listen`.
 *
 * @throws DmError EINVAL for text that is no address, one that is given twice, or none
 */
export function listenAddresses(
  where: string | ListenAddress | readonly (string | ListenAddress)[],
  allowRemote: boolean,
): ListenAddress[] {
  const list = Array.isArray(where)
    ? (where as readonly (string | ListenAddress)[])
    : [where as string | ListenAddress];
  if (list.length === 0) throw new DmError(Errno.EINVAL, 'a server needs an address to listen at');
  const addresses = list.map((entry) => {
    const address = typeof entry === 'string' ? parseListenAddress(entry) : entry;
    return 'host' in address && typeof entry === 'string' ? { ...address, allowRemote } : address;
  });
  const keys = addresses.map(addressKey);
  const twice = keys.findIndex((key, index) => keys.indexOf(key) < index);
  if (twice >= 0) {
    throw new DmError(Errno.EINVAL, `cannot listen at ${listenText(addresses[twice]!)} twice: name each address once`);
  }
  return addresses;
}

function listenText(address: ListenAddress): string {
  if ('unix' in address) return address.unix;
  if ('fd' in address) return `descriptor ${address.fd}`;
  return `${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`;
}

/** Why an address could not be listened at, without the address, which stands before it. */
function reason(address: ListenAddress, error: Error | null): string {
  const errno = errnoFromException(error);
  const isTcp = 'host' in address;
  const { code, syscall } = (error ?? {}) as NodeJS.ErrnoException;
  if (isTcp && (code === 'ENOTFOUND' || code === 'EAI_AGAIN')) return `no address of the host ${address.host} is known`;
  // Sentences of our own have no system call.
  if (error !== null && syscall === undefined) return error.message;
  if (isTcp && errno === Errno.EADDRINUSE) return 'another program is listening at this port; port 0 takes a free one';
  if (isTcp && errno === Errno.EADDRNOTAVAIL) return 'this machine has no such address';
  if (isTcp && errno === Errno.EACCES && address.port < FIRST_USER_PORT) {
    return `permission denied: ports below ${FIRST_USER_PORT} need a privilege`;
  }
  return errnoMessage(errno);
}

function listenAt(
  loop: NodeLoop,
  address: ListenAddress,
  onTransport: (transport: Transport) => void,
): Promise<Listener> {
  return new Promise((resolveListener, reject) => {
    loop.listen(address, onTransport, (error, listener) => {
      if (listener !== null) resolveListener(listener);
      else {
        const text = `cannot listen at ${listenText(address)}: ${reason(address, error)}`;
        reject(new DmError(errnoFromException(error), text));
      }
    });
  });
}

/** Stops listening, and removes the files of the sockets. */
export async function closeListeners(listeners: readonly Listener[]): Promise<void> {
  await Promise.all(listeners.map((listener) => new Promise<void>((done) => listener.close(done))));
}

/**
 * Listens at all of the addresses, or at none: what was listened at before one that is refused is closed again.
 *
 * @throws DmError with the first refused address and the reason: EADDRINUSE, EACCES …
 */
export async function listenAtAll(
  loop: NodeLoop,
  addresses: readonly ListenAddress[],
  onTransport: (transport: Transport) => void,
): Promise<Listener[]> {
  const listeners: Listener[] = [];
  try {
    for (const address of addresses) listeners.push(await listenAt(loop, address, onTransport));
    return listeners;
  } catch (error) {
    await closeListeners(listeners);
    throw error;
  }
}

/** The host of `tcp:HOST:PORT` as the system has bound it; a client can't connect to the address for all of this machine. */
function reachableHost(asked: string, listener: Listener): string {
  const bound = /^tcp:\[?([^\]]*?)\]?:\d+$/.exec(listener.address)?.[1];
  if (bound === '0.0.0.0') return '127.0.0.1';
  return bound === '::' ? '::1' : asked;
}

function placeOf(address: ListenAddress, listener: Listener): Pick<NbdUri, 'socket' | 'host' | 'port'> {
  if ('unix' in address) return { socket: resolve(address.unix) };
  if ('host' in address) return { host: reachableHost(address.host, listener), port: listener.port };
  throw new DmError(Errno.EINVAL, `the program that made the socket ${listener.address} knows its address`);
}

/** The URI of an export for clients of one address. @throws DmError EINVAL for an inherited socket */
export function uriAt(
  address: ListenAddress,
  listener: Listener,
  tls: NbdTlsOptions | undefined,
  exportName: string,
): string {
  const uriParts = tls === undefined ? {} : tlsUriParts(tls, isRemote(address));
  return formatNbdUri({ ...placeOf(address, listener), ...uriParts, exportName });
}
