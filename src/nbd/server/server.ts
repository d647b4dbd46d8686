// An NBD server without sockets: it is given connections, wherever they come from.

import { Bio, REQ_OP_FLUSH } from '../../block/bio.ts';
import type { BlockDevice } from '../../block/block-device.ts';
import { submitBio } from '../../block/block-device.ts';
import type { Reactor, Timer, Transport } from '../../block/reactor.ts';
import {
  HANDSHAKE_TIMEOUT_MILLISECONDS,
  MAX_CONNECTION_BYTE_LENGTH,
  MAX_CONNECTION_COUNT,
  MAX_CONNECTION_REQUEST_COUNT,
  MAX_HANDSHAKE_COUNT,
  MAX_SERVER_BYTE_LENGTH,
  SHUTDOWN_TIMEOUT_MILLISECONDS,
} from './bounds.ts';
import { BufferPool, MemoryAccount } from './buffer-pool.ts';
import { Connection, type ConnectionHost, type ServerTls } from './connection.ts';
import { ExportTable, type NbdExport } from './exports.ts';

export interface NbdServerOptions {
  reactor: Reactor;
  /** The first one is the default, unless one is named `''`. More may be added later. */
  exports?: Iterable<NbdExport>;
  /** Offers TLS, or insists on it; none unless given. */
  tls?: ServerTls;
  /**
   * Lets clients negotiate extended headers: 64-bit lengths, an experimental extension of the protocol; false. Requests and
   * replies are a little longer with them.
   */
  extendedHeaders?: boolean;
  /** Told of exceptions (bugs, also a device's) and, as MalformedError, of protocol violations; the connection is closed. */
  onError?: (error: Error, peer: string) => void;
  /** A connection has chosen the export of this device. */
  onAttach?: (device: BlockDevice) => void;
  /** The transport of a connection that had chosen it is gone; the device may have requests of it still. */
  onDetach?: (device: BlockDevice) => void;
  /** A connection has completed its handshake. */
  onEstablished?: () => void;
  /** One of {@link NbdServer.statistics}' connections is no more; it had completed its handshake, or had not. */
  onGone?: (wasEstablished: boolean) => void;
  /** From accept to the transmission phase; 30 s. */
  handshakeTimeoutMilliseconds?: number;
  /** Connections at one time that have completed their handshake; one more is closed at once; 256. */
  maxConnectionCount?: number;
  /** Connections in their handshake; with one more, the oldest that is silent (or the oldest) is closed; 128. */
  maxHandshakeCount?: number;
  /** Requests of one connection that its device has at one time; 256. */
  maxConnectionRequestCount?: number;
  /** Memory for data and unsent replies of one connection, to which one request of the largest size may be added; 64 MiB. */
  maxConnectionByteLength?: number;
  /** The same for all connections, of which each may have one request even above it; 512 MiB. */
  maxServerByteLength?: number;
}

/** What a server holds at the moment. */
export interface NbdServerStatistics {
  connectionCount: number;
  /** Requests that devices have not ended. */
  requestCount: number;
  /** Data of requests and replies on their way, in whole buffers. */
  usedByteLength: number;
}

export class NbdServer {
  readonly #reactor: Reactor;
  /** What is offered; may be added to at any time. {@link removeExport} takes out. */
  readonly exports = new ExportTable();
  readonly #connections = new Set<Connection>();
  readonly #pool: BufferPool;
  readonly #host: ConnectionHost;
  readonly #maxConnectionCount: number;
  readonly #maxHandshakeCount: number;
  /** Connections in their handshake, the oldest first. */
  readonly #handshakes = new Set<Connection>();
  #establishedCount = 0;
  #shutdown: Shutdown | null = null;

  /** @throws Error for two exports of one name or a name that the protocol can't carry */
  constructor(options: NbdServerOptions) {
    this.#reactor = options.reactor;
    this.#pool = new BufferPool(options.maxServerByteLength ?? MAX_SERVER_BYTE_LENGTH);
    this.#maxConnectionCount = options.maxConnectionCount ?? MAX_CONNECTION_COUNT;
    this.#maxHandshakeCount = options.maxHandshakeCount ?? MAX_HANDSHAKE_COUNT;
    for (const entry of options.exports ?? []) this.exports.add(entry);
    this.#host = this.#makeHost(options);
  }

  #makeHost(options: NbdServerOptions): ConnectionHost {
    const server = this;
    const maxConnectionByteLength = options.maxConnectionByteLength ?? MAX_CONNECTION_BYTE_LENGTH;
    return {
      reactor: options.reactor,
      exports: this.exports,
      handshakeTimeoutMilliseconds: options.handshakeTimeoutMilliseconds ?? HANDSHAKE_TIMEOUT_MILLISECONDS,
      maxConnectionRequestCount: options.maxConnectionRequestCount ?? MAX_CONNECTION_REQUEST_COUNT,
      tls: options.tls ?? null,
      allowsExtendedHeaders: options.extendedHeaders ?? false,
      get isShuttingDown(): boolean {
        return server.#shutdown !== null;
      },
      newAccount: () => new MemoryAccount(this.#pool, maxConnectionByteLength),
      report: (error, peer) => options.onError?.(error, peer),
      onAttach: (device) => options.onAttach?.(device),
      onDetach: (device) => options.onDetach?.(device),
      onQuiet: () => this.#shutdown?.check(),
      onTransmission: (connection) => {
        if (this.#isFull) return false;
        this.#handshakes.delete(connection);
        this.#establishedCount++;
        options.onEstablished?.();
        return true;
      },
      onGone: (connection) => {
        const wasEstablished = connection.isInTransmission;
        this.#connections.delete(connection);
        this.#handshakes.delete(connection);
        if (wasEstablished) this.#establishedCount--;
        this.#shutdown?.check();
        options.onGone?.(wasEstablished);
      },
    };
  }

  /** Offers it no longer; connections that use it end when what they have begun is answered. False: there is none. */
  removeExport(name: string): boolean {
    const entry = this.exports.remove(name);
    if (entry === undefined) return false;
    for (const connection of [...this.#connections]) if (connection.entry === entry) connection.finish();
    return true;
  }

  get statistics(): NbdServerStatistics {
    let requestCount = 0;
    for (const connection of this.#connections) requestCount += connection.requestCount;
    return { connectionCount: this.#connections.size, requestCount, usedByteLength: this.#pool.usedByteLength };
  }

  /** Connections that have completed their handshake. */
  get establishedCount(): number {
    return this.#establishedCount;
  }

  /**
   * Serves one client. The transport is the server's from now on; it is closed at once when there are too many, or after
   * a shutdown.
   */
  accept(transport: Transport): void {
    if (this.#isFull || this.#shutdown?.isClosing) {
      transport.destroy();
      return;
    }
    if (this.#handshakes.size >= this.#maxHandshakeCount) this.#dropHandshake();
    const connection = new Connection(this.#host, transport);
    this.#connections.add(connection);
    this.#handshakes.add(connection);
    connection.start();
  }

  get #isFull(): boolean {
    return this.#establishedCount >= this.#maxConnectionCount;
  }

  /** Makes room for another handshake. A client that says something at once gets in, however many are silent. */
  #dropHandshake(): void {
    let oldest: Connection | null = null;
    for (const connection of this.#handshakes) {
      oldest ??= connection;
      if (connection.hasSpoken) continue;
      oldest = connection;
      break;
    }
    this.#handshakes.delete(oldest!);
    oldest!.violation('too many handshakes at one time: this one was the oldest');
  }

  /**
   * Ends: requests that devices have are finished and answered, later ones get ESHUTDOWN, devices are flushed, and the
   * connections close. After `timeoutMilliseconds` what is left is cut off. Close the listeners first.
   *
   * @param done called once; with an error when the time ran out, a flush failed, or the server is ending already
   */
  shutdown(
    done: (error: Error | null) => void = () => {},
    timeoutMilliseconds: number = SHUTDOWN_TIMEOUT_MILLISECONDS,
  ): void {
    if (this.#shutdown !== null) {
      this.#reactor.wake(() => done(new Error('the server is shutting down already')));
      return;
    }
    const devices = new Set<BlockDevice>();
    for (const { device } of this.exports) devices.add(device);
    for (const { entry } of this.#connections) if (entry !== null) devices.add(entry.device);
    this.#shutdown = new Shutdown(this.#reactor, this.#connections, devices, done);
    this.#shutdown.start(timeoutMilliseconds);
  }
}

/** The steps of a shutdown: wait until all is answered, flush, close, wait until all are gone. */
class Shutdown {
  readonly #reactor: Reactor;
  readonly #connections: ReadonlySet<Connection>;
  readonly #devices: ReadonlySet<BlockDevice>;
  readonly #done: (error: Error | null) => void;
  #timer: Timer | null = null;
  #step: 'answering' | 'flushing' | 'closing' | 'done' = 'answering';
  #flushCount = 0;
  #error: Error | null = null;

  constructor(
    reactor: Reactor,
    connections: ReadonlySet<Connection>,
    devices: ReadonlySet<BlockDevice>,
    done: (error: Error | null) => void,
  ) {
    this.#reactor = reactor;
    this.#connections = connections;
    this.#devices = devices;
    this.#done = done;
  }

  /** All is answered and flushed: nobody is let in any more. */
  get isClosing(): boolean {
    return this.#step === 'closing' || this.#step === 'done';
  }

  start(timeoutMilliseconds: number): void {
    this.#timer = this.#reactor.after(timeoutMilliseconds, () => this.#onTimeout());
    this.#reactor.wake(() => this.check());
  }

  check(): void {
    if (this.#step === 'answering') {
      for (const connection of this.#connections) if (connection.isInTransmission && !connection.isQuiet) return;
      this.#flush();
    } else if (this.#step === 'closing' && this.#connections.size === 0) {
      this.#finish();
    }
  }

  #flush(): void {
    this.#step = 'flushing';
    this.#flushCount = 1;
    for (const device of this.#devices) {
      this.#flushCount++;
      const bio = new Bio();
      bio.reset(REQ_OP_FLUSH, 0, device, 0, 0);
      bio.onEnd = () => this.#onFlushed(bio.status === 0 ? null : bio.toError(device));
      try {
        submitBio(bio);
      } catch (error) {
        this.#onFlushed(error as Error);
      }
    }
    this.#onFlushed(null);
  }

  #onFlushed(error: Error | null): void {
    this.#error ??= error;
    if (--this.#flushCount > 0 || this.#step !== 'flushing') return;
    this.#step = 'closing';
    for (const connection of [...this.#connections]) {
      if (connection.isInTransmission) connection.endOutput();
      else connection.destroy();
    }
    this.check();
  }

  #onTimeout(): void {
    let requestCount = 0;
    for (const connection of this.#connections) requestCount += connection.requestCount;
    this.#error ??= new Error(
      `the shutdown took too long: ${this.#connections.size} connections were cut off, devices still have ${requestCount} requests`,
    );
    for (const connection of [...this.#connections]) connection.destroy();
    this.#finish();
  }

  #finish(): void {
    if (this.#step === 'done') return;
    this.#step = 'done';
    this.#timer?.cancel();
    const done = this.#done;
    this.#reactor.wake(() => done(this.#error));
  }
}
