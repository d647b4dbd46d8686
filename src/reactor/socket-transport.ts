// A node:net socket as a Transport. Whatever the handler throws ends this connection alone.
import type { Socket } from 'node:net';
import type { Transport, TransportHandler } from '../block/reactor.ts';

/** How long a connection that we ended waits for the peer to end it too. */
const LINGER_MILLISECONDS = 2000;

export class SocketTransport implements Transport {
  readonly peer: string;
  readonly #socket: Socket;
  readonly #onError: (error: unknown) => void;
  #handler: TransportHandler | null = null;
  #pendingByteLength = 0;
  #error: Error | null = null;
  #closed = false;
  #ending = false;

  constructor(socket: Socket, peer: string, onError: (error: unknown) => void) {
    this.#socket = socket;
    this.peer = peer;
    this.#onError = onError;
    socket.pause();
    socket.on('error', (error) => {
      this.#error ??= error;
    });
    socket.on('data', (chunk) => {
      this.#guard(() => this.#handler!.onData(chunk));
    });
    socket.on('end', () => {
      this.#guard(() => this.#handler!.onEnd());
    });
    socket.on('close', () => this.#close());
  }

  get pendingByteLength(): number {
    return this.#pendingByteLength;
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
    const socket = this.#socket;
    let byteLength = 0;
    for (const chunk of chunks) byteLength += chunk.byteLength;
    if (socket.destroyed || this.#ending || byteLength === 0) {
      setImmediate(() => this.#guard(onSent));
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
    if (this.#pendingByteLength === 0 && !this.#closed) this.#guard(() => this.#handler?.onDrain());
  }

  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    if (!this.#socket.destroyed) this.#socket.resume();
  }

  end(): void {
    if (this.#ending) return;
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
      this.#error ??= error instanceof Error ? error : new Error(String(error));
      this.#socket.destroy();
      this.#onError(error);
    }
  }
}
