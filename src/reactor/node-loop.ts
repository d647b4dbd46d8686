// A reactor on Node's own event loop: timers, a queue of callbacks, and sockets as transports.
// This folder alone may touch node:net; everything above sees Reactor and Transport.
import { connect as connectSocket, createServer, isIP, type Server, Socket } from 'node:net';
import { isOddName } from '../block/file-name.ts';
import type { Reactor, Timer, Transport } from '../block/reactor.ts';
import { socketCalls } from '../engine/socket-calls.ts';
import { SocketTransport } from './socket-transport.ts';
import { StreamPair } from './stream-pair.ts';
import { bindUnixSocket, type UnixSocketFile } from './unix-socket.ts';

/** Where to listen. */
export type ListenAddress =
  /** A Unix socket at `unix`; the file gets `mode` (0o600 unless given) and no other mode at any time. */
  | { unix: string; mode?: number }
  /** TCP; port 0 lets the system choose. Anything but a loopback address needs `allowRemote`. */
  | { host: string; port: number; allowRemote?: boolean }
  /** A socket that somebody else made and that listens already, by its file descriptor. Who may come is theirs to say. */
  | { fd: number };

/** One client that is connected already, by the descriptors that it is read from and written to: one socket, or two pipes. */
export interface ConnectedStreams {
  input: number;
  output: number;
}

/** Where to connect to. */
export type ConnectAddress = { unix: string } | { host: string; port: number };

/** An open listening socket. */
export interface Listener {
  /** `unix:/run/x.sock`, `tcp:127.0.0.1:10809` with the port that was chosen, or `fd:3` for an inherited Unix socket. */
  readonly address: string;
  /** The TCP port; 0 for a Unix socket. */
  readonly port: number;
  /** Stops listening and removes the socket file; connections that were accepted stay. `done` is called once. */
  close(done?: () => void): void;
}

export interface NodeLoopOptions {
  /** Told what a callback or a connection's handler threw. Without it the exception goes to the process. */
  onError?: (error: unknown) => void;
}

/** True for an address (not a name) that only this machine reaches. */
export function isLoopback(address: string): boolean {
  return isIP(address) === 4 ? address.startsWith('127.') : address === '::1' || address.startsWith('::ffff:127.');
}

function addressText(host: string, port: number): string {
  return host.includes(':') ? `tcp:[${host}]:${port}` : `tcp:${host}:${port}`;
}

class ServerListener implements Listener {
  readonly address: string;
  readonly port: number;
  readonly #server: Server;
  readonly #file: UnixSocketFile | null;

  constructor(server: Server, file: UnixSocketFile | null, address: string) {
    this.#server = server;
    this.#file = file;
    const bound = server.address();
    this.port = typeof bound === 'object' && bound !== null ? bound.port : 0;
    this.address = typeof bound === 'object' && bound !== null ? addressText(bound.address, bound.port) : address;
  }

  close(done: () => void = () => {}): void {
    this.#file?.remove();
    // net's own callback waits for every accepted connection; those aren't this listener's.
    this.#server.close();
    setImmediate(done);
  }
}

/** A peer that vanishes without a word is found out by TCP: first asked after ten minutes of silence. */
const SOCKET_OPTIONS = { allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: 600_000 };

/** Drains of woken callbacks in ticks before one is left to the loop. */
const MAX_TICK_ROUND_COUNT = 16;
/** What callbacks may take before the loop looks at sockets and timers again: woken ones in ticks, and long work in pieces. */
const MAX_TURN_MILLISECONDS = 4;

/** A {@link Reactor} that is the event loop this thread runs anyway. */
export class NodeLoop implements Reactor {
  readonly #onError: (error: unknown) => void;
  #queue: (() => void)[] = [];
  /** The array that is filled while the other one is drained. */
  #spare: (() => void)[] = [];
  #tickRoundCount = 0;
  /** When the loop has last looked at its sockets for certain, and whether that is too long ago. */
  #turnBegin = 0;
  #isLate = false;
  /** Pieces of long work, from `#nextPiece` on. */
  #pieces: (() => void)[] = [];
  #nextPiece = 0;
  #hasPieceTurn = false;

  constructor(options: NodeLoopOptions = {}) {
    this.#onError =
      options.onError ??
      ((error) => {
        process.nextTick(() => {
          throw error;
        });
      });
  }

  now(): number {
    return performance.now();
  }

  after(milliseconds: number, callback: () => void): Timer {
    const handle = setTimeout(() => this.#run(callback), milliseconds);
    return { cancel: () => clearTimeout(handle) };
  }

  wake(callback: () => void): void {
    // One drain for all that is queued in a turn.
    if (this.#queue.push(callback) > 1) return;
    if (this.#tickRoundCount < MAX_TICK_ROUND_COUNT && !this.#isLate) {
      this.#tickRoundCount++;
      process.nextTick(this.#drain);
    } else {
      // A tick runs before the loop looks at its sockets and timers; two pieces of code that wake each other would keep
      // it from them for ever. An immediate costs ten times as much, and lets them have their turn.
      setImmediate(this.#drainAfterSockets);
    }
  }

  readonly #drainAfterSockets = (): void => {
    this.#tickRoundCount = 0;
    this.#turnBegin = performance.now();
    this.#isLate = false;
    this.#drain();
  };

  readonly #drain = (): void => {
    // The drain before has used the time up after this had been left to a tick.
    if (this.#isLate) {
      setImmediate(this.#drainAfterSockets);
      return;
    }
    const queue = this.#queue;
    this.#queue = this.#spare;
    let count = 0;
    while (count < queue.length && !this.#isLate) {
      this.#run(queue[count++]!);
      this.#isLate = performance.now() - this.#turnBegin >= MAX_TURN_MILLISECONDS;
    }
    this.#spare = queue;
    if (count === queue.length) queue.length = 0;
    else this.#putBack(queue, count);
  };

  /** Time is up: what is left of `queue` comes before what was woken meanwhile. */
  #putBack(queue: (() => void)[], count: number): void {
    const isScheduled = this.#queue.length > 0;
    this.#queue = queue.slice(count).concat(this.#queue);
    queue.length = 0;
    if (!isScheduled) setImmediate(this.#drainAfterSockets);
  }

  afterSockets(callback: () => void): void {
    this.#pieces.push(callback);
    if (this.#hasPieceTurn) return;
    this.#hasPieceTurn = true;
    setImmediate(this.#runPieces);
  }

  /** One piece after the other, until the time of a turn is up: an immediate for each of many short ones would cost more. */
  readonly #runPieces = (): void => {
    const pieces = this.#pieces;
    const begin = performance.now();
    do {
      this.#run(pieces[this.#nextPiece++]!);
    } while (this.#nextPiece < pieces.length && performance.now() - begin < MAX_TURN_MILLISECONDS);
    this.#hasPieceTurn = this.#nextPiece < pieces.length;
    if (this.#hasPieceTurn) setImmediate(this.#runPieces);
    // Work that goes on and on keeps the array from ever being empty.
    if (this.#nextPiece * 2 >= pieces.length) {
      pieces.copyWithin(0, this.#nextPiece);
      pieces.length -= this.#nextPiece;
      this.#nextPiece = 0;
    }
  };

  #run(callback: () => void): void {
    try {
      callback();
    } catch (error) {
      this.#onError(error);
    }
  }

  /**
   * Listens; `onTransport` gets each connection, paused until it sets its handler.
   *
   * `done` is called once, with the listener or the reason: EADDRINUSE when a server answers at the path or the path is
   * something else than a dead socket, EACCES for an address beyond this machine without `allowRemote`.
   */
  listen(
    address: ListenAddress,
    onTransport: (transport: Transport) => void,
    done: (error: Error | null, listener: Listener | null) => void,
  ): void {
    const server = createServer({ ...SOCKET_OPTIONS, pauseOnConnect: true }, (socket) => {
      this.#run(() => onTransport(this.#wrap(socket, describeAddress(address))));
    });
    if ('fd' in address) this.#listenInherited(server, address.fd, done);
    else if ('unix' in address) this.#listenUnix(server, address.unix, address.mode ?? 0o600, done);
    else this.#listenTcp(server, address, done);
  }

  #listenUnix(
    server: Server,
    path: string,
    mode: number,
    done: (error: Error | null, listener: Listener | null) => void,
  ): void {
    bindUnixSocket(server, path, mode, (error, file) => {
      if (file === null) done(error, null);
      else done(null, this.#listening(server, file, `unix:${file.path}`));
    });
  }

  #listenInherited(server: Server, fd: number, done: (error: Error | null, listener: Listener | null) => void): void {
    server.once('error', (error) => done(error, null));
    server.listen({ fd }, () => {
      server.removeAllListeners('error');
      done(null, this.#listening(server, null, `fd:${fd}`));
    });
  }

  #listenTcp(
    server: Server,
    address: { host: string; port: number; allowRemote?: boolean },
    done: (error: Error | null, listener: Listener | null) => void,
  ): void {
    const { host, port, allowRemote = false } = address;
    const refuse = (where: string): void => {
      const error = new Error(
        `${where} is not a loopback address: others could connect; allowRemote (--allow-remote) lets them`,
      );
      done(Object.assign(error, { code: 'EACCES' }), null);
    };
    if (!allowRemote && host !== 'localhost' && !isLoopback(host)) {
      refuse(host === '' ? 'the empty host' : host);
      return;
    }
    server.once('error', (error) => done(error, null));
    server.listen({ host, port }, () => {
      server.removeAllListeners('error');
      const bound = server.address() as { address: string };
      // A hosts file may send "localhost" anywhere.
      if (!allowRemote && !isLoopback(bound.address)) {
        server.close();
        refuse(bound.address);
      } else {
        done(null, this.#listening(server, null, host));
      }
    });
  }

  #listening(server: Server, file: UnixSocketFile | null, address: string): Listener {
    server.on('error', (error) => this.#onError(error));
    return new ServerListener(server, file, address);
  }

  /** Connects; `done` is called once. */
  connect(address: ConnectAddress, done: (error: Error | null, transport: Transport | null) => void): void {
    if ('unix' in address && isOddName(address.unix)) {
      const error = new Error('the path of a socket must be UTF-8: make a link to it, or to its folder');
      setImmediate(() => done(Object.assign(error, { code: 'EILSEQ' }), null));
      return;
    }
    const options = 'unix' in address ? { path: address.unix } : { host: address.host, port: address.port };
    const socket = connectSocket({ ...options, ...SOCKET_OPTIONS });
    const fail = (error: Error): void => done(error, null);
    socket.once('error', fail);
    socket.once('connect', () => {
      socket.removeListener('error', fail);
      socket.pause();
      done(null, this.#wrap(socket, describeAddress(address)));
    });
  }

  /**
   * Goes on with a connection that another thread of this process gave away ({@link Transport.giveAway}). The descriptor is
   * the transport's from now on, and closed where there can be none.
   *
   * @param local for messages, where the peer has no address of its own
   * @throws Error for a descriptor that is no connection
   */
  adopt(fd: number, local: string): Transport {
    let socket: Socket;
    try {
      socket = new Socket({ fd, allowHalfOpen: true, readable: true, writable: true });
    } catch (error) {
      socketCalls()?.close(fd);
      throw error;
    }
    return this.#wrap(socket, local);
  }

  /**
   * Goes on with a connection that was handed over. The descriptors are the transport's from now on.
   *
   * @param local for messages
   * @throws Error for a descriptor that is neither a connection nor a pipe
   */
  adoptStreams({ input, output }: ConnectedStreams, local: string): Transport {
    if (input === output) return this.adopt(input, local);
    const reader = new Socket({ fd: input, readable: true, writable: false });
    const writer = new Socket({ fd: output, readable: false, writable: true });
    // The transport uses nothing else of a socket than what a pair has.
    return new SocketTransport(new StreamPair(reader, writer) as unknown as Socket, local, this.#onError);
  }

  #wrap(socket: Socket, local: string): Transport {
    const { remoteAddress, remotePort } = socket;
    const peer =
      remoteAddress === undefined || remotePort === undefined ? local : addressText(remoteAddress, remotePort);
    return new SocketTransport(socket, peer, this.#onError);
  }
}

function describeAddress(address: ConnectAddress | ListenAddress): string {
  if ('fd' in address) return `fd:${address.fd}`;
  return 'unix' in address ? `unix:${address.unix}` : addressText(address.host, address.port);
}
