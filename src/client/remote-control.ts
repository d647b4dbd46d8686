// The control socket seen from a client: requests out, replies in.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Transport } from '../block/reactor.ts';
import type { Control, Reply, RequestArgs, RequestName } from '../daemon/control.ts';
import {
  decodeError,
  encodeMessage,
  type Greeting,
  MessageDecoder,
  PROTOCOL_VERSION,
  type WireError,
} from '../daemon/protocol.ts';

interface Waiting {
  resolve(reply: unknown): void;
  reject(error: Error): void;
}

interface FromServer {
  dmkit?: Greeting;
  id?: number;
  reply?: unknown;
  error?: WireError;
}

/** A daemon at the other end of a transport. */
export class RemoteControl implements Control {
  readonly #transport: Transport;
  readonly #decoder = new MessageDecoder();
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  #failure: Error | null = null;
  #greeted!: Waiting;
  readonly #greeting: Promise<unknown>;
  #onClosed: () => void = () => {};
  readonly #closed: Promise<void>;

  constructor(transport: Transport) {
    this.#transport = transport;
    this.#greeting = new Promise((resolve, reject) => {
      this.#greeted = { resolve, reject };
    });
    this.#closed = new Promise((resolve) => {
      this.#onClosed = resolve;
    });
    // Somebody who never asks is told nothing.
    this.#greeting.catch(() => {});
    transport.setHandler({
      onData: (chunk) => this.#onData(chunk),
      onEnd: () => this.#fail(gone()),
      onDrain: () => {},
      onClose: () => {
        this.#fail(gone());
        this.#onClosed();
      },
    });
  }

  async call<Name extends RequestName>(
    name: Name,
    args: RequestArgs<Name>,
    signal?: AbortSignal,
  ): Promise<Reply<Name>> {
    await this.#greeting;
    if (this.#failure !== null) throw this.#failure;
    const id = ++this.#lastId;
    const cancel = (): void => this.#send({ cancel: id });
    if (signal?.aborted) throw new DmError(Errno.EINTR, 'interrupted');
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      return (await new Promise((resolve, reject) => {
        this.#waiting.set(id, { resolve, reject });
        this.#send({ id, name, args });
      })) as Reply<Name>;
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }

  /** Closes; resolves when the connection is gone. What is under way is undone. */
  close(): Promise<void> {
    this.#transport.end();
    return this.#closed;
  }

  #send(message: unknown): void {
    this.#transport.send(encodeMessage(message), () => {});
  }

  #onData(chunk: Uint8Array): void {
    try {
      for (const message of this.#decoder.push(chunk)) this.#onMessage(message as FromServer);
    } catch (error) {
      this.#fail(error as Error);
      this.#transport.destroy();
    }
  }

  #onMessage({ dmkit, id, reply, error }: FromServer): void {
    if (dmkit !== undefined) {
      if (dmkit.protocol === PROTOCOL_VERSION) this.#greeted.resolve(dmkit);
      else this.#fail(otherVersion(dmkit));
      return;
    }
    const waiting = this.#waiting.get(id ?? -1);
    this.#waiting.delete(id ?? -1);
    if (error === undefined) waiting?.resolve(reply);
    else waiting?.reject(decodeError(error));
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    this.#greeted.reject(this.#failure);
    for (const { reject } of this.#waiting.values()) reject(this.#failure);
    this.#waiting.clear();
  }
}

function gone(): DmError {
  return new DmError(0, 'the daemon went away before it answered; dmkit logs may tell why', 'DM_DAEMON_GONE');
}

function otherVersion(greeting: Greeting): DmError {
  const text = `the daemon is dmkit ${greeting.version} and speaks another protocol: end it (dmkit shutdown of that version) first`;
  return new DmError(0, text, 'DM_DAEMON_VERSION');
}
