// A node:net socket as a Transport, in the clear or under TLS. Whatever the handler throws ends this connection alone.
import type { Socket } from 'node:net';
import { Errno, errnoName } from '../block/errno.ts';
import type { Transport, TransportHandler, TransportSecurity } from '../block/reactor.ts';
import { socketCalls } from '../engine/socket-calls.ts';
import { PulledSocket } from './pulled-socket.ts';
import { SocketSecurity } from './tls.ts';

/** How long a connection that we ended waits for the peer to end it too. */
const LINGER_MILLISECONDS = 2000;

/** What Node's sockets have besides what its manual says; looked at with care. */
interface SocketHandle {
  readonly fd?: number;
  reading?: boolean;
  readStart?(): number;
  readStop?(): number;
}

function handleOf(socket: Socket): SocketHandle | null {
  const handle = (socket as unknown as { _handle?: SocketHandle | null })._handle;
  const isKnown =
    typeof handle?.fd === 'number' &&
    handle.fd >= 0 &&
    typeof handle.readStart === 'function' &&
    typeof handle.readStop === 'function';
  return isKnown ? handle : null;
}

export class SocketTransport implements Transport {
  readonly peer: string;
  /** The TCP or Unix socket, and the TLS socket on top of it after startTls. */
  #socket: Socket;
  readonly #onError: (error: unknown) => void;
  #handler: TransportHandler | null = null;
  #pendingByteLength = 0;
  #error: Error | null = null;
  #closed = false;
  #ending = false;
  #wantsPause = false;
  /** Between startTls and its end. */
  #securing = false;
  #isSecure = false;
  /** Asked for, and not there yet. */
  #wantsPull = false;
  #pulled: PulledSocket | null = null;

  constructor(socket: Socket, peer: string, onError: (error: unknown) => void) {
    this.#socket = socket;
    this.peer = peer;
    this.#onError = onError;
    socket.pause();
    socket.on('error', this.#onSocketError);
    socket.on('close', this.#onSocketClose);
    this.#listen();
  }

  readonly #onSocketError = (error: Error): void => {
    this.#error ??= error;
  };

  readonly #onSocketClose = (): void => {
    this.#stopPulling();
    this.#close();
  };

  #listen(): void {
    this.#socket.on('data', this.#onSocketData);
    this.#socket.on('end', this.#onSocketEnd);
  }

  readonly #onSocketData = (chunk: Buffer): void => {
    this.#guard(() => this.#handler!.onData(chunk));
    if (this.#wantsPull) this.#tryToPull();
  };

  readonly #onSocketEnd = (): void => this.#guard(() => this.#handler!.onEnd());

  giveAway(): number | null {
    const handle = handleOf(this.#socket);
    if (this.#handler !== null || this.#socket.destroyed || handle === null) return null;
    const fd = socketCalls()?.duplicate(handle.fd!) ?? -1;
    if (fd < 0) return null;
    this.#closed = true;
    this.#socket.destroy();
    return fd;
  }

  get pendingByteLength(): number {
    return this.#pendingByteLength + (this.#pulled?.waitingByteLength ?? 0);
  }

  setHandler(handler: TransportHandler): void {
    const first = this.#handler === null;
    this.#handler = handler;
    if (!first) return;
    // A connection may have died between accept and here.
    if (this.#socket.destroyed) setImmediate(() => this.#close());
    else this.#socket.resume();
  }

  send(chunks: readonly Uint8Array[], onSent: () => void): void {
    if (this.#securing) throw new Error('something would have left in the clear while TLS begins');
    this.#send(chunks, onSent);
  }

  #send(chunks: readonly Uint8Array[], onSent: () => void): void {
    const socket = this.#socket;
    let byteLength = 0;
    for (const chunk of chunks) byteLength += chunk.byteLength;
    if (socket.destroyed || this.#ending || byteLength === 0) {
      setImmediate(() => this.#guard(onSent));
      return;
    }
    if (this.#pulled !== null) {
      const last = chunks.length - 1;
      for (let i = 0; i < last; i++) this.#pulled.send(chunks[i]!, 0, chunks[i]!.byteLength, null);
      this.#pulled.send(chunks[last]!, 0, chunks[last]!.byteLength, () => this.#guard(onSent));
      return;
    }
    this.#pendingByteLength += byteLength;
    const sent = (): void => this.#sent(byteLength, onSent);
    if (chunks.length === 1) {
      socket.write(chunks[0]!, sent);
      return;
    }
    // Corked writes leave in one writev.
    socket.cork();
    const last = chunks.length - 1;
    for (let i = 0; i < last; i++) socket.write(chunks[i]!);
    socket.write(chunks[last]!, sent);
    socket.uncork();
  }

  #sent(byteLength: number, onSent: () => void): void {
    this.#pendingByteLength -= byteLength;
    this.#guard(onSent);
    if (this.#pendingByteLength > 0 || this.#closed) return;
    if (this.#wantsPull) this.#tryToPull();
    this.#guard(() => this.#handler?.onDrain());
  }

  // Reading and writing without Node's streams

  startPull(): void {
    if (this.#securing || this.#isSecure || this.#closed) return;
    this.#wantsPull = true;
    this.#tryToPull();
  }

  /** Nothing may be on its way through the stream, either way. */
  #tryToPull(): void {
    const socket = this.#socket;
    if (this.#pendingByteLength > 0 || this.#ending || this.#wantsPause) return;
    if (socket.destroyed || socket.readableLength > 0 || socket.readableEnded) return;
    this.#wantsPull = false;
    const handle = handleOf(socket);
    if (handle === null) return;
    this.#pulled = PulledSocket.make(handle.fd!, socket.remoteAddress === undefined, {
      onReadable: () => this.#onReadable(),
      onDrain: () => this.#guard(() => this.#handler!.onDrain()),
      onFailure: (errno) => this.#fail(errno),
    });
    if (this.#pulled === null) return;
    socket.pause();
    // The stream believes that it is being read, and so leaves the handle alone.
    handle.reading = true;
    handle.readStop!();
  }

  #onReadable(): boolean {
    try {
      return this.#handler!.onReadable!();
    } catch (error) {
      this.#crash(error);
      return false;
    }
  }

  /** Gives the socket back to Node's stream, for its end. What has not left yet goes there too. */
  #stopPulling(): void {
    const pulled = this.#pulled;
    if (pulled === null) return;
    this.#pulled = null;
    const waiting = pulled.close();
    for (const { page, offset, byteLength, onSent } of waiting) {
      this.#send([page.subarray(offset, offset + byteLength)], onSent ?? (() => {}));
    }
    const handle = handleOf(this.#socket);
    if (handle === null || this.#socket.destroyed) return;
    handle.reading = true;
    handle.readStart!();
  }

  #fail(errno: number): void {
    const name = errnoName(errno);
    this.#error ??= Object.assign(new Error(`${name}: the connection failed`), { code: name });
    this.destroy();
  }

  /** @returns how many bytes of what was fetched are there */
  #received(count: number): number {
    if (count > 0) return count;
    if (count === 0) this.#guard(() => this.#handler!.onEnd());
    else if (count !== -Errno.EAGAIN && count !== -Errno.EINTR) this.#fail(-count);
    return 0;
  }

  fetch(page: Uint8Array, offset: number, byteLength: number): number {
    const pulled = this.#pulled;
    return pulled === null ? 0 : this.#received(pulled.receive(page, offset, byteLength));
  }

  fetchTwo(
    page: Uint8Array,
    offset: number,
    byteLength: number,
    nextPage: Uint8Array,
    nextOffset: number,
    nextByteLength: number,
  ): number {
    const pulled = this.#pulled;
    if (pulled === null) return 0;
    return this.#received(pulled.receiveTwo(page, offset, byteLength, nextPage, nextOffset, nextByteLength));
  }

  sendNow(page: Uint8Array, offset: number, byteLength: number): number {
    return this.#pulled === null || this.#ending ? 0 : this.#pulled.sendNow(page, offset, byteLength);
  }

  pause(): void {
    this.#wantsPause = true;
    if (this.#pulled !== null) this.#pulled.pause();
    else this.#socket.pause();
  }

  resume(): void {
    this.#wantsPause = false;
    if (this.#wantsPull) this.#tryToPull();
    if (this.#pulled !== null) this.#pulled.resume();
    else if (!this.#securing && !this.#socket.destroyed) this.#socket.resume();
  }

  startTls(security: TransportSecurity, lastWords: Uint8Array, done: (error: Error | null) => void): void {
    if (!(security instanceof SocketSecurity) || this.#securing) throw new Error('not to be secured like this');
    const plain = this.#socket;
    // From here on nothing that comes in the clear is taken for more than the beginning of TLS.
    plain.pause();
    plain.removeListener('data', this.#onSocketData);
    plain.removeListener('end', this.#onSocketEnd);
    const begin = (): void => {
      if (plain.destroyed) done(new Error('the connection was closed before TLS began'));
      else security.wrap(plain, (error, secured) => this.#guard(() => this.#onSecured(error, secured, done)));
    };
    this.#securing = true;
    this.#send([lastWords], begin);
  }

  #onSecured(error: Error | null, secured: Socket | null, done: (error: Error | null) => void): void {
    if (secured === null) {
      this.#error ??= error;
      done(error);
      this.#socket.destroy();
      return;
    }
    this.#isSecure = true;
    // The socket below now closes when the one above does.
    this.#socket.removeListener('close', this.#onSocketClose);
    this.#socket = secured;
    secured.on('error', this.#onSocketError);
    secured.on('close', this.#onSocketClose);
    this.#securing = false;
    done(null);
    this.#listen();
    if (this.#wantsPause) secured.pause();
    else secured.resume();
  }

  end(): void {
    if (this.#ending) return;
    if (this.#securing) {
      this.destroy();
      return;
    }
    this.#stopPulling();
    this.#ending = true;
    const socket = this.#socket;
    // Reads on and throws away: a peer that is still sending would otherwise get a reset, and lose what was sent last.
    socket.removeAllListeners('data');
    socket.resume();
    if (socket.readableEnded) {
      socket.destroySoon();
      return;
    }
    socket.once('end', () => socket.destroySoon());
    socket.end(() => {
      const linger = setTimeout(() => socket.destroy(), LINGER_MILLISECONDS).unref();
      socket.once('close', () => clearTimeout(linger));
    });
  }

  destroy(): void {
    this.#stopPulling();
    this.#socket.destroy();
  }

  #close(): void {
    if (this.#closed || this.#handler === null) return;
    this.#closed = true;
    try {
      this.#handler.onClose(this.#error);
    } catch (error) {
      this.#onError(error);
    }
  }

  /** No call reaches the handler after onClose; what it throws closes this connection. */
  #guard(call: () => void): void {
    try {
      call();
    } catch (error) {
      this.#crash(error);
    }
  }

  #crash(error: unknown): void {
    this.#error ??= error instanceof Error ? error : new Error(String(error));
    this.destroy();
    this.#onError(error);
  }
}
