// The daemon's side of the control socket: clients, their requests, and what becomes of a request whose client goes away.
import type { Transport } from '../block/reactor.ts';
import { version } from '../block/version.ts';
import { MAX_CLIENT_COUNT, MAX_CLIENT_REQUEST_COUNT } from './bounds.ts';
import { checkMessage } from './check.ts';
import type { Control, RequestName } from './control.ts';
import { encodeError, encodeMessage, MessageDecoder, PROTOCOL_VERSION, ProtocolError } from './protocol.ts';

export interface ControlServerOptions {
  control: Control;
  /** Told of clients that broke the protocol. */
  onError?: (error: Error) => void;
  /** A client came or went. */
  onClients?: (count: number) => void;
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

  /** Sends what has been answered and closes. */
  close(): void {
    for (const client of this.#clients) client.end();
  }
}

class Client {
  readonly #transport: Transport;
  readonly #options: ControlServerOptions;
  readonly #decoder = new MessageDecoder();
  readonly #running = new Map<number, AbortController>();

  constructor(transport: Transport, options: ControlServerOptions, onGone: () => void) {
    this.#transport = transport;
    this.#options = options;
    transport.setHandler({
      onData: (chunk) => this.#onData(chunk),
      onEnd: () => this.#cancelAll(),
      onDrain: () => {},
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

  #send(message: unknown): void {
    this.#transport.send(encodeMessage(message), () => {});
  }

  #onData(chunk: Uint8Array): void {
    try {
      for (const message of this.#decoder.push(chunk)) this.#onMessage(message);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#options.onError?.(error);
      this.#transport.destroy();
    }
  }

  #onMessage(raw: unknown): void {
    const message = checkMessage(raw);
    if ('cancel' in message) {
      this.#running.get(message.cancel)?.abort();
      return;
    }
    if (this.#running.size >= MAX_CLIENT_REQUEST_COUNT) throw new ProtocolError('too many requests at one time');
    if (this.#running.has(message.id)) throw new ProtocolError(`two requests of number ${message.id}`);
    void this.#run(message.id, message.name, message.args);
  }

  async #run(id: number, name: RequestName, args: object): Promise<void> {
    const controller = new AbortController();
    this.#running.set(id, controller);
    try {
      const reply = await this.#options.control.call(name, args as never, controller.signal);
      this.#send({ id, reply });
    } catch (error) {
      this.#send({ id, error: encodeError(error) });
    } finally {
      this.#running.delete(id);
    }
  }

  /** A command that was interrupted waits no longer: what it waited for is undone, as a signal does in the kernel. */
  #cancelAll(): void {
    for (const controller of this.#running.values()) controller.abort();
    // Half-closed is gone: nobody asks without waiting for the answer.
    this.#transport.end();
  }
}
