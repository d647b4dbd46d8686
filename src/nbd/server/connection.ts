// One client's connection: what arrives goes to the phase it is in (handshake, then transmission), and whatever goes
// wrong inside ends this connection alone.
import type { BlockDevice } from '../../block/block-device.ts';
import type { Reactor, Timer, Transport, TransportHandler, TransportSecurity } from '../../block/reactor.ts';
import { MalformedError } from '../protocol/info.ts';
import type { MemoryAccount } from './buffer-pool.ts';
import type { ExportTable, NbdExport } from './exports.ts';
import { Handshake } from './handshake.ts';
import type { Negotiation } from './negotiation.ts';
import { Transmission } from './transmission.ts';

/** How a server offers TLS. */
export interface ServerTls {
  readonly security: TransportSecurity;
  /** Without TLS a client can do nothing but ask for it and leave. */
  readonly required: boolean;
}

/** What a connection knows of its server. */
export interface ConnectionHost {
  readonly reactor: Reactor;
  readonly exports: ExportTable;
  readonly handshakeTimeoutMilliseconds: number;
  readonly maxConnectionRequestCount: number;
  readonly allowsExtendedHeaders: boolean;
  /** Null: no TLS. */
  readonly tls: ServerTls | null;
  /** The server takes no more work: options and requests are answered with that. */
  readonly isShuttingDown: boolean;
  newAccount(): MemoryAccount;
  /** An exception or a protocol violation in words; the connection is being closed. */
  report(error: Error, peer: string): void;
  /** The connection has chosen an export, with this device; `onDetach` follows when its transport is gone. */
  onAttach(device: BlockDevice): void;
  onDetach(device: BlockDevice): void;
  /** During a shutdown: the connection has answered everything. It stays open until the server ends it. */
  onQuiet(): void;
  /** The handshake is over: false where there are too many connections, and this one is to end. */
  onTransmission(connection: Connection): boolean;
  /** The transport is gone and no device has a request of it any more. */
  onGone(connection: Connection): void;
}

/** One of the stages of a connection. A phase is total: every byte sequence is consumed, waited on, or ends it. */
export interface Phase {
  /**
   * Takes bytes from `offset` on.
   *
   * @returns where it stopped: the chunk's end, or earlier when it has to wait (or another phase goes on)
   */
  consume(chunk: Uint8Array, offset: number): number;
  /** Fetches what has arrived and takes it, as far as it can now. @returns whether the rest has to wait */
  pull(): boolean;
  /** After the last consume of a turn. */
  afterTurn(): void;
  /** What was sent has left. */
  onDrain(): void;
  /** Requests that a device still has. */
  readonly requestCount: number;
  /** The connection is gone: lets go of everything that nobody else uses. */
  close(): void;
}

export class Connection implements TransportHandler {
  readonly host: ConnectionHost;
  readonly transport: Transport;
  /** The export in transmission; null before. */
  entry: NbdExport | null = null;
  #phase: Phase;
  #backlog: Uint8Array[] = [];
  #offset = 0;
  #processing = false;
  #scheduled = false;
  #paused = false;
  /** What the phase fetched has to wait, or what it might fetch. */
  #pullWaits = false;
  #isReadable = false;
  /** Nothing more is read: the client said goodbye or hung up. */
  #inputEnded = false;
  #outputEnded = false;
  /** The client sends no more; what it has sent may wait still. */
  #peerEnded = false;
  #closed = false;
  #gone = false;
  #handshakeTimer: Timer | null;
  /** The client has sent something. */
  hasSpoken = false;

  constructor(host: ConnectionHost, transport: Transport) {
    this.host = host;
    this.transport = transport;
    this.#phase = new Handshake(this);
    this.#handshakeTimer = host.reactor.after(host.handshakeTimeoutMilliseconds, () => {
      this.violation('the handshake took too long');
    });
  }

  get isInTransmission(): boolean {
    return this.entry !== null;
  }

  /** Nothing more is read. */
  get isInputEnded(): boolean {
    return this.#inputEnded;
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  get requestCount(): number {
    return this.#phase.requestCount;
  }

  /** Has answered everything it was asked. */
  get isQuiet(): boolean {
    return this.requestCount === 0;
  }

  /** Begins to talk. */
  start(): void {
    this.#guard(() => {
      this.transport.setHandler(this);
      (this.#phase as Handshake).start();
    });
  }

  onData(chunk: Uint8Array): void {
    if (this.#inputEnded || this.#closed) return;
    this.hasSpoken = true;
    this.#backlog.push(chunk);
    if (this.#backlog.length === 1) this.process();
  }

  onReadable(): boolean {
    if (this.#inputEnded) {
      // Nobody fetches it, and it would be told of again and again.
      this.transport.pause();
      return false;
    }
    this.#isReadable = true;
    this.process();
    return this.isQuiet && !this.#scheduled && !this.#inputEnded;
  }

  onEnd(): void {
    this.#peerEnded = true;
    // A client may send all its requests and close its side: what has arrived is done and answered all the same.
    if (!this.#processing && !this.hasBacklog) this.finish();
  }

  onDrain(): void {
    this.#guard(() => this.#phase.onDrain());
  }

  onClose(): void {
    this.#closed = true;
    this.#stopTimer();
    this.#backlog = [];
    this.#guard(() => this.#phase.close());
    const { entry } = this;
    if (entry !== null) this.#guard(() => this.host.onDetach(entry.device));
    this.checkGone();
  }

  /** Gives what has arrived to the phase, as far as that takes it now. */
  process(): void {
    if (this.#processing || this.#closed) return;
    this.#processing = true;
    this.#guard(() => {
      this.#consumeBacklog();
      if ((this.#isReadable || this.#pullWaits) && this.#backlog.length === 0 && !this.#closed && !this.#inputEnded) {
        this.#isReadable = false;
        this.#pullWaits = this.#phase.pull();
      }
      this.#phase.afterTurn();
    });
    this.#processing = false;
    this.#afterProcessing();
  }

  #consumeBacklog(): void {
    const backlog = this.#backlog;
    while (backlog.length > 0 && !this.#closed && !this.#inputEnded) {
      const chunk = backlog[0]!;
      const phase = this.#phase;
      this.#offset = phase.consume(chunk, this.#offset);
      if (this.#offset === chunk.byteLength) {
        backlog.shift();
        this.#offset = 0;
      } else if (phase === this.#phase) {
        break;
      }
    }
  }

  #afterProcessing(): void {
    if (this.#peerEnded && !this.hasBacklog) this.#inputEnded = true;
    if (this.#inputEnded) this.#backlog = [];
    const mustWait = this.#backlog.length > 0 || (this.#pullWaits && !this.#inputEnded);
    if (mustWait !== this.#paused && !this.#closed) {
      this.#paused = mustWait;
      if (mustWait) this.transport.pause();
      else this.transport.resume();
    }
    this.#checkFinished();
  }

  /** Processes again in this reactor's next turn: many causes, one turn. */
  readonly schedule = (): void => {
    if (this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    this.host.reactor.wake(this.#onWake);
  };

  readonly #onWake = (): void => {
    this.#scheduled = false;
    this.process();
  };

  /** Something that has arrived waits. */
  get hasBacklog(): boolean {
    return this.#backlog.length > 0 || this.#pullWaits;
  }

  get isProcessing(): boolean {
    return this.#processing;
  }

  /** Goes over to TLS, with `lastWords` the last in the clear. A client that fails in it is gone. */
  startTls(lastWords: Uint8Array, onSecure: () => void): void {
    this.transport.startTls!(this.host.tls!.security, lastWords, (error) => {
      if (error === null) this.#guard(onSecure);
      else if (!this.#inputEnded) this.violation(`TLS: ${error.message}`);
    });
  }

  /** The handshake succeeded: requests on `entry` follow. */
  enterTransmission(entry: NbdExport, negotiation: Negotiation): void {
    this.#stopTimer();
    if (!this.host.onTransmission(this)) {
      this.destroy();
      return;
    }
    this.entry = entry;
    this.host.onAttach(entry.device);
    this.#phase = new Transmission(this, entry, negotiation);
    this.transport.startPull?.();
  }

  /** Reads nothing more, answers what is on its way, then closes. */
  finish(): void {
    if (this.#inputEnded) return;
    this.#inputEnded = true;
    if (!this.#processing) this.process();
  }

  #checkFinished(): void {
    if (this.requestCount > 0 || this.#closed) return;
    if (this.#inputEnded) this.endOutput();
    else if (this.host.isShuttingDown && this.entry !== null) this.host.onQuiet();
  }

  /** Sends what is queued and closes. */
  endOutput(): void {
    if (this.#outputEnded || this.#closed) return;
    this.#inputEnded = true;
    this.#outputEnded = true;
    this.#guard(() => this.transport.end());
  }

  /** The peer broke the protocol (or took too long) in a way that can't be answered. */
  violation(text: string): void {
    this.host.report(new MalformedError(text), this.transport.peer);
    this.destroy();
  }

  destroy(): void {
    this.#inputEnded = true;
    this.transport.destroy();
  }

  /** To be called when a request of a closed connection has ended. */
  checkGone(): void {
    if (!this.#closed || this.#gone || this.requestCount > 0) return;
    this.#gone = true;
    this.host.onGone(this);
  }

  #stopTimer(): void {
    this.#handshakeTimer?.cancel();
    this.#handshakeTimer = null;
  }

  /** Runs code of this connection; an exception is a bug, and ends this connection alone. */
  #guard(work: () => void): void {
    try {
      work();
    } catch (error) {
      this.crash(error);
    }
  }

  crash(error: unknown): void {
    this.#inputEnded = true;
    this.host.report(error instanceof Error ? error : new Error(String(error)), this.transport.peer);
    this.transport.destroy();
  }
}
