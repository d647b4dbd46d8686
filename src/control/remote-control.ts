// The control socket seen from a client: requests out, replies in.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Transport } from '../block/reactor.ts';
import { version } from '../block/version.ts';
import type { RequestContext } from './core/host.ts';
import { type Control, REQUESTS, type Reply, type RequestArgs, type RequestName } from './requests.ts';
import { type Fields, objection } from './schema.ts';
import {
  decodeError,
  decodeLines,
  detachTables,
  encodeMessage,
  type Greeting,
  type Hello,
  type Message,
  MessageDecoder,
  PROTOCOL_VERSION,
  type WireError,
} from './wire.ts';

const MAX_COMMAND_WORD_COUNT = 8;

interface Waiting {
  resolve(reply: unknown): void;
  reject(error: Error): void;
  onProgress?: RequestContext['onProgress'];
  onNotice?: RequestContext['onNotice'];
}

interface FromServer {
  dmkit?: Greeting;
  id?: number;
  reply?: unknown;
  error?: WireError;
  progress?: unknown;
  notice?: string;
}

/** This program, for the daemon's messages. */
function hello(): Hello {
  const words = process.argv.slice(1, MAX_COMMAND_WORD_COUNT + 1).map((word) => word.split('/').at(-1));
  return { protocol: PROTOCOL_VERSION, version, pid: process.pid, command: words.join(' ') };
}

/** A daemon at the other end of a transport. */
export class RemoteControl implements Control {
  readonly #transport: Transport;
  readonly #decoder = new MessageDecoder();
  readonly #waiting = new Map<number, Waiting>();
  #lastId = 0;
  #failure: Error | null = null;
  #greeted!: Pick<Waiting, 'resolve' | 'reject'>;
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
    // A client that never asks is told nothing.
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

  /** The connection has ended. */
  get isOver(): boolean {
    return this.#failure !== null;
  }

  async call<Name extends RequestName>(
    name: Name,
    args: RequestArgs<Name>,
    { signal, onProgress, onNotice }: Omit<RequestContext, 'client'> = {},
  ): Promise<Reply<Name>> {
    const problem = objection(REQUESTS[name].args, args as Fields);
    if (problem !== null) throw new DmError(Errno.EINVAL, `${name}: ${problem}`);
    const detached = detachTables(args);
    await this.#greeting;
    if (this.#failure !== null) throw this.#failure;
    if (signal?.aborted) throw new DmError(Errno.EINTR, 'interrupted');
    const id = ++this.#lastId;
    const cancel = (): void => this.#send({ cancel: id });
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      return (await new Promise((resolve, reject) => {
        this.#waiting.set(id, { resolve, reject, onProgress, onNotice });
        this.#send({ id, name, args: detached.args }, detached.texts);
      })) as Reply<Name>;
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }

  /** Closes; resolves when the connection is gone. Requests under way are undone. */
  close(): Promise<void> {
    this.#transport.end();
    return this.#closed;
  }

  #send(message: object, texts: Uint8Array[][] = []): void {
    this.#transport.send(encodeMessage(message, texts), () => {});
  }

  #onData(chunk: Uint8Array): void {
    try {
      for (const message of this.#decoder.push(chunk)) this.#onMessage(message);
    } catch (error) {
      this.#fail(error as Error);
      this.#transport.destroy();
    }
  }

  #onMessage({ json, texts }: Message): void {
    const { dmkit, id = -1, reply, error, progress, notice } = json as FromServer;
    if (dmkit !== undefined) {
      this.#onGreeting(dmkit);
      return;
    }
    const waiting = this.#waiting.get(id);
    if (progress !== undefined || notice !== undefined) {
      if (notice === undefined) waiting?.onProgress?.(progress);
      else waiting?.onNotice?.(notice);
      return;
    }
    this.#waiting.delete(id);
    if (error !== undefined) waiting?.reject(decodeError(error));
    else if (texts.length === 0) waiting?.resolve(reply);
    else waiting?.resolve({ ...(reply as object), lines: decodeLines(String(texts[0])) });
  }

  #onGreeting(greeting: Greeting): void {
    if (greeting.protocol !== PROTOCOL_VERSION) {
      this.#fail(otherVersion(greeting));
      return;
    }
    this.#send({ hello: hello() });
    this.#greeted.resolve(greeting);
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
  const text = `the daemon is dmkit ${greeting.version} and this is dmkit ${version}: they do not understand each other. End that daemon first, with its own version's dmkit shutdown`;
  return new DmError(0, text, 'DM_DAEMON_VERSION');
}
