// What the NBD tests share: a pair of transports in memory, a reactor that the test turns by hand, a raw client, and a
// device that ends its requests when it is told to.
import { Bio } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { defaultLimits, type QueueLimits } from '../../src/block/limits.ts';
import type { Reactor, Timer, Transport, TransportHandler } from '../../src/block/reactor.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { encodeMetaContextRequest } from '../../src/nbd/protocol/meta-context.ts';
import { encodeOptionHeader } from '../../src/nbd/protocol/wire.ts';
import { NbdServer, type NbdServerOptions } from '../../src/nbd/server/server.ts';

/** A reactor whose clock and turns belong to the test. */
export class ManualReactor implements Reactor {
  #now = 0;
  #queue: (() => void)[] = [];
  #timers = new Set<{ at: number; callback: () => void }>();

  now(): number {
    return this.#now;
  }

  after(milliseconds: number, callback: () => void): Timer {
    const timer = { at: this.#now + milliseconds, callback };
    this.#timers.add(timer);
    return { cancel: () => this.#timers.delete(timer) };
  }

  wake(callback: () => void): void {
    this.#queue.push(callback);
  }

  afterSockets(callback: () => void): void {
    this.#queue.push(callback);
  }

  get timerCount(): number {
    return this.#timers.size;
  }

  /** Runs what is queued, and what that queues. */
  turn(): void {
    for (let i = 0; this.#queue.length > 0; i++) {
      if (i > 1_000_000) throw new Error('the reactor never comes to rest');
      this.#queue.shift()!();
    }
  }

  advance(milliseconds: number): void {
    this.#now += milliseconds;
    for (const timer of [...this.#timers]) {
      if (timer.at > this.#now || !this.#timers.delete(timer)) continue;
      timer.callback();
      this.turn();
    }
  }
}

/** One end of a connection in memory. What is sent waits until the test (or `autoDeliver`) lets it through. */
export class MemoryTransport implements Transport {
  readonly peer = 'memory';
  readonly #reactor: Reactor;
  handler: TransportHandler | null = null;
  other!: MemoryTransport;
  /** The peer takes what is sent at once; else it waits in `outgoing`. */
  autoDeliver = true;
  outgoing: { chunks: Uint8Array[]; onSent: () => void }[] = [];
  pendingByteLength = 0;
  isPaused = false;
  isEnding = false;
  isClosed = false;
  sendCount = 0;
  #held: Uint8Array[] = [];

  constructor(reactor: Reactor) {
    this.#reactor = reactor;
  }

  setHandler(handler: TransportHandler): void {
    this.handler = handler;
    this.#release();
  }

  send(chunks: readonly Uint8Array[], onSent: () => void): void {
    this.sendCount++;
    if (this.isClosed || this.isEnding) {
      this.#reactor.wake(onSent);
      return;
    }
    for (const chunk of chunks) this.pendingByteLength += chunk.byteLength;
    this.outgoing.push({ chunks: [...chunks], onSent });
    if (this.autoDeliver) this.#reactor.wake(() => this.deliver());
  }

  /** Lets everything that was sent through to the peer. */
  deliver(): void {
    for (const { chunks, onSent } of this.outgoing.splice(0)) {
      for (const chunk of chunks) {
        this.pendingByteLength -= chunk.byteLength;
        // The peer gets memory of its own, as from a socket; the sender's is free from here on.
        if (!this.isClosed) this.other.receive(new Uint8Array(chunk));
        chunk.fill(0xee);
      }
      onSent();
    }
    if (!this.isClosed) this.handler?.onDrain();
  }

  receive(chunk: Uint8Array): void {
    this.#held.push(chunk);
    this.#release();
  }

  #release(): void {
    while (!this.isPaused && !this.isClosed && this.handler !== null && this.#held.length > 0) {
      this.handler.onData(this.#held.shift()!);
    }
  }

  pause(): void {
    this.isPaused = true;
  }

  resume(): void {
    this.isPaused = false;
    this.#reactor.wake(() => this.#release());
  }

  end(): void {
    if (this.isEnding) return;
    this.isEnding = true;
    this.#reactor.wake(() => {
      this.deliver();
      this.destroy();
    });
  }

  destroy(): void {
    this.close();
    this.#reactor.wake(() => this.other.close());
  }

  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.#reactor.wake(() => {
      for (const { onSent } of this.outgoing.splice(0)) onSent();
      this.handler?.onClose(null);
    });
  }
}

export function transportPair(reactor: Reactor): [MemoryTransport, MemoryTransport] {
  const a = new MemoryTransport(reactor);
  const b = new MemoryTransport(reactor);
  a.other = b;
  b.other = a;
  return [a, b];
}

/** A device on top of memory that keeps its requests until the test ends them. */
export class HeldDevice implements BlockDevice {
  readonly name = 'held';
  readonly limits: QueueLimits;
  readonly readOnly = false;
  readonly memory: MemoryDevice;
  sectorCount: number;
  bios: Bio[] = [];
  flushCount = 0;

  constructor(sectorCount: number, limits: Partial<QueueLimits> = {}) {
    this.sectorCount = sectorCount;
    this.limits = { ...defaultLimits(), hasWriteCache: true, ...limits };
    this.memory = new MemoryDevice('below', sectorCount);
  }

  submit(bio: Bio): void {
    this.bios.push(bio);
  }

  /** Ends the request at `index`, done on the memory for errno 0. */
  finish(index: number, errno = 0): void {
    const bio = this.bios.splice(index, 1)[0]!;
    if (errno !== 0) {
      bio.fail(errno, this);
      return;
    }
    const below = new Bio();
    below.reset(bio.op, bio.flags, this.memory, bio.sector, bio.sectorCount);
    below.vecs = bio.vecs;
    below.vecIndex = bio.vecIndex;
    below.vecOffset = bio.vecOffset;
    below.onEnd = () => bio.endIo(below.status);
    this.memory.submit(below);
  }
}

/** One connection to a server, and what came out of it. */
class RawClient {
  readonly reactor: ManualReactor;
  readonly client: MemoryTransport;
  readonly serverSide: MemoryTransport;
  #received: Uint8Array[] = [];
  #receivedByteLength = 0;
  isClosed = false;
  /** Everything that came, once {@link keepAll} was called. */
  readonly everything: Buffer[] = [];
  #keepsAll = false;

  constructor(reactor: ManualReactor, server: NbdServer) {
    this.reactor = reactor;
    [this.client, this.serverSide] = transportPair(this.reactor);
    this.client.setHandler({
      onData: (chunk) => {
        if (this.#keepsAll) {
          this.everything.push(Buffer.from(chunk));
          return;
        }
        this.#received.push(chunk);
        this.#receivedByteLength += chunk.byteLength;
      },
      onEnd: () => {},
      onDrain: () => {},
      onClose: () => {
        this.isClosed = true;
      },
    });
    server.accept(this.serverSide);
    this.reactor.turn();
  }

  /** From now on (and from the beginning) what arrives is kept in `everything`, for a reader that comes later. */
  keepAll(): void {
    this.everything.push(...this.#received.splice(0).map((chunk) => Buffer.from(chunk)));
    this.#keepsAll = true;
  }

  /** What has arrived and was not asked for yet. */
  get receivedByteLength(): number {
    return this.#receivedByteLength;
  }

  send(...messages: Uint8Array[]): this {
    const copies = messages.map((message) => new Uint8Array(message));
    this.client.send(copies, () => {});
    this.reactor.turn();
    return this;
  }

  /** Takes exactly `byteLength` bytes of what has arrived. */
  take(byteLength: number): Buffer {
    const all = Buffer.concat(this.#received);
    if (all.byteLength < byteLength) throw new Error(`wanted ${byteLength} bytes, ${all.byteLength} came`);
    this.#received = [all.subarray(byteLength)];
    this.#receivedByteLength -= byteLength;
    return all.subarray(0, byteLength);
  }

  /** Greeting, flags and GO for the default export, and everything they bring. */
  go(name = ''): this {
    this.send(u32(3));
    return this.goOn(name);
  }

  /** GO, after options that came before. */
  goOn(name = ''): this {
    this.send(option(7, encodeGoRequest(name, [])));
    this.take(this.receivedByteLength);
    return this;
  }

  takeChunk(): Chunk {
    const header = this.take(20);
    if (header.readUInt32BE(0) !== 0x668e33ef) throw new Error('no chunk');
    const payload = this.take(header.readUInt32BE(16));
    const isDone = (header.readUInt16BE(4) & 1) !== 0;
    return { type: header.readUInt16BE(6), isDone, cookie: Number(header.readBigUInt64BE(8)), payload };
  }

  takeReply(): { error: number; cookie: number } {
    const reply = this.take(16);
    if (reply.readUInt32BE(0) !== 0x67446698) throw new Error('no reply');
    return { error: reply.readUInt32BE(4), cookie: Number(reply.readBigUInt64BE(8)) };
  }

  takeOptionReply(): { option: number; type: number; data: Buffer } {
    const header = this.take(20);
    if (header.readBigUInt64BE(0) !== 0x3e889045565a9n) throw new Error('no option reply');
    const data = this.take(header.readUInt32BE(16));
    return { option: header.readUInt32BE(8), type: header.readUInt32BE(12), data };
  }
}

/** A server with one export, and one connection to it. */
export class Session extends RawClient {
  readonly server: NbdServer;
  readonly errors: Error[];

  constructor(device: BlockDevice, options: Partial<NbdServerOptions> & { readOnly?: boolean } = {}) {
    const { readOnly = false, ...rest } = options;
    const reactor = new ManualReactor();
    const errors: Error[] = [];
    const server = new NbdServer({
      reactor,
      exports: [{ name: 'disk', description: 'a disk', device, readOnly }],
      onError: (error) => errors.push(error),
      ...rest,
    });
    super(reactor, server);
    this.server = server;
    this.errors = errors;
  }

  connectAnother(): RawClient {
    return new RawClient(this.reactor, this.server);
  }

  /** Shuts down, and keeps that from getting on: a second connection has a request that its device never ends. */
  holdShutdown(): void {
    this.server.exports.add({ name: 'held', device: new HeldDevice(8) });
    this.connectAnother()
      .go('held')
      .send(request({ type: 0, length: 512 }));
    this.server.shutdown();
    this.reactor.turn();
  }
}

export function u32(value: number): Uint8Array {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function option(number: number, data: Uint8Array = new Uint8Array(0), byteLength = data.byteLength): Uint8Array {
  const message = new Uint8Array(16 + data.byteLength);
  encodeOptionHeader(new DataView(message.buffer), 0, number, byteLength);
  message.set(data, 16);
  return message;
}

export interface RequestFields {
  type: number;
  flags?: number;
  cookie?: number;
  offset?: number | bigint;
  length?: number;
  data?: Uint8Array;
  magic?: number;
}

export function request(fields: RequestFields): Uint8Array {
  const { type, flags = 0, cookie = 1, offset = 0, data = new Uint8Array(0), magic = 0x25609513 } = fields;
  const message = Buffer.alloc(28 + data.byteLength);
  message.writeUInt32BE(magic, 0);
  message.writeUInt16BE(flags, 4);
  message.writeUInt16BE(type, 6);
  message.writeBigUInt64BE(BigInt(cookie), 8);
  message.writeBigUInt64BE(BigInt(offset), 16);
  message.writeUInt32BE(fields.length ?? data.byteLength, 24);
  message.set(data, 28);
  return message;
}

/** `byteLength` bytes that tell where they belong. */
export function pattern(byteLength: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(byteLength);
  for (let i = 0; i < byteLength; i++) bytes[i] = (i * 31 + (i >> 8) * 17 + seed * 101) & 0xff;
  return bytes;
}

/** A chunk of a structured reply, and what is in it. */
export interface Chunk {
  type: number;
  isDone: boolean;
  cookie: number;
  payload: Buffer;
}

/** The data of SET_META_CONTEXT and LIST_META_CONTEXT. */
export function contexts(exportName: string, ...queries: string[]): Uint8Array {
  return encodeMetaContextRequest({ exportName, queries });
}

/** Negotiates structured replies, and base:allocation with it, then enters the export. */
export function goStructured<Client extends RawClient>(client: Client, exportName = ''): Client {
  client.send(u32(3), option(8), option(10, contexts(exportName, 'base:allocation')));
  return client.goOn(exportName);
}
