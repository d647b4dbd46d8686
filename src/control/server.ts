// The daemon's side of the control socket: clients, their requests, and the undoing of requests whose client goes away.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Transport } from '../block/reactor.ts';
import { version } from '../block/version.ts';
import {
  MAX_CLIENT_COUNT,
  MAX_CLIENT_REPLY_BYTE_LENGTH,
  MAX_CLIENT_REQUEST_COUNT,
  MAX_CLIENT_TURN_COUNT,
  MAX_REQUEST_BYTE_LENGTH,
  MAX_REQUEST_DEPTH,
} from './bounds.ts';
import type { ClientInfo } from './core/host.ts';
import type { LocalControl } from './local-control.ts';
import { isRequestName, REQUESTS, type RequestName } from './requests.ts';
import { type Fields, isCount, isFields } from './schema.ts';
import type { StatusLine } from './types.ts';
import {
  attachTables,
  encodeError,
  encodeLines,
  encodeMessage,
  type Message,
  MessageDecoder,
  PROTOCOL_VERSION,
  ProtocolError,
} from './wire.ts';

/** Of a client's command line, for messages. */
const MAX_COMMAND_LENGTH = 200;

export interface ControlServerOptions {
  control: LocalControl;
  /** Told of clients that broke the protocol. */
  onError?: (error: Error) => void;
  /** A client came or went. */
  onClients?: (count: number) => void;
  /** Set by {@link ControlServer.refuse}. */
  isStopping?: boolean;
}

/** Answers clients, wherever their connections come from. */
export class ControlServer {
  readonly #options: ControlServerOptions;
  readonly #clients = new Set<Client>();

  constructor(options: ControlServerOptions) {
    this.#options = options;
  }

  get clientCount(): number {
    return this.#clients.size;
  }

  /** Serves one client; closes it at once when there are too many. */
  accept(transport: Transport): void {
    if (this.#clients.size >= MAX_CLIENT_COUNT) {
      transport.destroy();
      return;
    }
    const client = new Client(transport, this.#options, () => {
      this.#clients.delete(client);
      this.#options.onClients?.(this.#clients.size);
    });
    this.#clients.add(client);
    this.#options.onClients?.(this.#clients.size);
  }

  /** From now on requests are refused: the daemon ends. Those under way go on. */
  refuse(): void {
    this.#options.isStopping = true;
  }

  /** Sends the answers that are there and closes. */
  close(): void {
    for (const client of this.#clients) client.end();
  }

  /** Closes at once. */
  destroy(): void {
    for (const client of this.#clients) client.destroy();
  }
}

class Client {
  readonly #transport: Transport;
  readonly #options: ControlServerOptions;
  readonly #decoder = new MessageDecoder({ maxByteLength: MAX_REQUEST_BYTE_LENGTH, maxDepth: MAX_REQUEST_DEPTH });
  readonly #running = new Map<number, AbortController>();
  #info: ClientInfo | undefined;
  #isPaused = false;
  /** Came, and waits for its turn; what follows it is in the decoder still. */
  #held: Message | null = null;
  #isTurnDue = false;
  #isResting = false;
  /** It asks for nothing any more. */
  #isOver = false;

  constructor(transport: Transport, options: ControlServerOptions, onGone: () => void) {
    this.#transport = transport;
    this.#options = options;
    transport.setHandler({
      onData: (chunk) => this.#onData(chunk),
      onEnd: () => this.#cancelAll(),
      onDrain: () => this.#checkPause(),
      onClose: () => {
        this.#cancelAll();
        onGone();
      },
    });
    this.#send({ dmkit: { protocol: PROTOCOL_VERSION, version } });
  }

  end(): void {
    this.#transport.end();
  }

  destroy(): void {
    this.#transport.destroy();
  }

  #send(message: object, texts: Uint8Array[][] = []): void {
    this.#transport.send(encodeMessage(message, texts), () => this.#checkPause());
    this.#checkPause();
  }

  /** Its answers wait for it. */
  get #isDeaf(): boolean {
    return this.#transport.pendingByteLength > MAX_CLIENT_REPLY_BYTE_LENGTH;
  }

  /** A client that asks and does not listen waits itself. */
  #checkPause(): void {
    if (this.#isOver) return;
    if (this.#held !== null && !this.#mustWait(this.#held) && !this.#isTurnDue) {
      this.#isTurnDue = true;
      setImmediate(() => {
        this.#isTurnDue = false;
        this.#takeMessages();
      });
    }
    // With many requests under way, and none held back, it is still listened to: it may cancel them, or go away.
    const waits = this.#isDeaf || this.#held !== null || this.#isResting;
    if (waits === this.#isPaused) return;
    this.#isPaused = waits;
    if (waits) this.#transport.pause();
    else this.#transport.resume();
  }

  #onData(chunk: Uint8Array): void {
    this.#decoder.add(chunk);
    this.#takeMessages();
    if (this.#decoder.isInLongText) this.#restFromReading();
  }

  /** A long text comes faster than it is decoded: others get their turn between its chunks. */
  #restFromReading(): void {
    if (this.#isResting) return;
    this.#isResting = true;
    this.#checkPause();
    setImmediate(() => {
      this.#isResting = false;
      this.#checkPause();
    });
  }

  /** Takes some messages of those that are there. A chunk may hold thousands, each with a long answer. */
  #takeMessages(): void {
    try {
      for (let count = 0; !this.#isOver; count++) {
        const message = this.#held ?? this.#decoder.next();
        this.#held = null;
        if (message === null) break;
        if (count === MAX_CLIENT_TURN_COUNT || this.#mustWait(message)) {
          this.#held = message;
          break;
        }
        this.#onMessage(message);
      }
      this.#checkPause();
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#options.onError?.(error);
      this.#isOver = true;
      this.#transport.destroy();
    }
  }

  #mustWait({ json }: Message): boolean {
    if (this.#isDeaf) return true;
    const isRequest = isFields(json) && json.id !== undefined;
    return isRequest && this.#running.size >= MAX_CLIENT_REQUEST_COUNT;
  }

  #onMessage({ json, texts }: Message): void {
    if (!isFields(json)) throw new ProtocolError('a message that is no object');
    if (isFields(json.hello)) {
      this.#onHello(json.hello);
      return;
    }
    if (isCount(json.cancel)) {
      this.#running.get(json.cancel)?.abort();
      return;
    }
    const { id, name, args } = json;
    if (!isCount(id) || typeof name !== 'string' || !isFields(args)) {
      throw new ProtocolError('a request without its parts');
    }
    if (this.#running.has(id)) throw new ProtocolError(`two requests of number ${id}`);
    void this.#run(id, name, attachTables(args, texts));
  }

  #onHello({ protocol, version: theirs, pid, command }: Fields): void {
    if (protocol !== PROTOCOL_VERSION) {
      throw new ProtocolError(`a client of dmkit ${String(theirs).slice(0, 32)}, which speaks protocol ${protocol}`);
    }
    if (isCount(pid)) this.#info = { pid, command: String(command).slice(0, MAX_COMMAND_LENGTH) };
  }

  async #run(id: number, name: string, args: Fields): Promise<void> {
    const controller = new AbortController();
    this.#running.set(id, controller);
    this.#checkPause();
    try {
      if (this.#options.isStopping) throw new DmError(Errno.ESHUTDOWN, 'the daemon is ending');
      if (!isRequestName(name))
        throw new DmError(Errno.EINVAL, `no request is called ${JSON.stringify(name.slice(0, 64))}`);
      const reply = await this.#options.control.call(name, args as never, {
        signal: controller.signal,
        ...(this.#info === undefined ? {} : { client: this.#info }),
        onProgress: (progress) => this.#send({ id, progress }),
        onNotice: (notice) => this.#send({ id, notice }),
      });
      await this.#answer(id, name, reply);
    } catch (error) {
      this.#send({ id, error: encodeError(error) });
    } finally {
      this.#running.delete(id);
      this.#checkPause();
    }
  }

  async #answer(id: number, name: RequestName, reply: unknown): Promise<void> {
    const request = REQUESTS[name];
    const field = 'linesField' in request ? request.linesField : undefined;
    const lines = field === undefined ? null : await encodeLines((reply as { lines: StatusLine[] }).lines);
    if (lines === null) this.#send({ id, reply });
    else this.#send({ id, reply: { ...(reply as object), lines: { text: 0 } } }, [lines]);
  }

  /** A command that was interrupted waits no longer: its request is undone, as a signal does in the kernel. */
  #cancelAll(): void {
    this.#isOver = true;
    this.#held = null;
    for (const controller of this.#running.values()) controller.abort();
    // A client that has closed its half asks for nothing any more, and waits for no answer.
    this.#transport.end();
  }
}
