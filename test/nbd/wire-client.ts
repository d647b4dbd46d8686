// A client of a real socket that says exactly what a test wants said, and a server in this process to say it to.
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, vi } from 'vitest';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import type { SocketLibrary } from '../../src/engine/socket-calls.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { BufferPool, MemoryAccount, type PooledBuffer } from '../../src/nbd/server/buffer-pool.ts';
import { NbdServer, type NbdServerOptions } from '../../src/nbd/server/server.ts';
import { type Listener, NodeLoop } from '../../src/reactor/node-loop.ts';
import { tempDir } from '../support/tmp.ts';
import { option, type RequestFields, request, u32 } from './support.ts';

export type ReplyKind = 'simple' | 'structured' | 'extended';
export type SocketKind = 'unix' | 'tcp';

/** A machine under load takes its time. */
export const patient = { timeout: 150_000, interval: 2 };

/** The calls of sockets, whose methods a test may replace. */
export function socketLibrary(): SocketLibrary {
  return loadLibc().libc!.sockets()!;
}

export const loopTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Waits until the event loop turns without anybody asking for events: something that asks in every turn never gets here. */
export async function expectRest(): Promise<void> {
  const waitPoll = vi.spyOn(socketLibrary(), 'waitPoll');
  try {
    for (let i = 0; i < 200; i++) {
      const before = waitPoll.mock.calls.length;
      for (let turn = 0; turn < 30; turn++) await loopTurn();
      if (waitPoll.mock.calls.length === before) return;
    }
    throw new Error('the event loop is told of something again and again');
  } finally {
    waitPoll.mockRestore();
  }
}

/** What came back for one request. */
export interface WireReply {
  error: number;
  /** A READ's bytes, where it succeeded. */
  data: Buffer | null;
}

export class WireClient {
  readonly socket: Socket;
  readonly #kind: ReplyKind;
  #chunks: Buffer[] = [];
  #byteLength = 0;
  #isOver = false;
  #wake: () => void = () => {};

  constructor(socket: Socket, kind: ReplyKind) {
    this.socket = socket;
    this.#kind = kind;
    socket.on('data', (chunk) => {
      this.#chunks.push(chunk);
      this.#byteLength += chunk.byteLength;
      this.#wake();
    });
    socket.on('error', () => {});
    for (const event of ['end', 'close']) {
      socket.on(event, () => {
        this.#isOver = true;
        this.#wake();
      });
    }
  }

  /** Connects and negotiates. */
  static async open(server: WireServer, kind: ReplyKind = 'simple'): Promise<WireClient> {
    const socket = connect(server.connectOptions);
    socket.setNoDelay(true);
    const client = new WireClient(socket, kind);
    socket.write(u32(3));
    await client.read(18);
    if (kind !== 'simple') {
      socket.write(option(kind === 'extended' ? 11 : 8));
      await client.read(20);
    }
    socket.write(option(7, encodeGoRequest('', [])));
    for (;;) {
      const header = await client.read(20);
      await client.read(header.readUInt32BE(16));
      if (header.readUInt32BE(12) === 1) return client;
    }
  }

  /** Exactly `byteLength` bytes. @throws when the connection ends before */
  async read(byteLength: number): Promise<Buffer> {
    while (this.#byteLength < byteLength) {
      if (this.#isOver) throw new Error('the connection ended');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const parts: Buffer[] = [];
    for (let left = byteLength; left > 0; ) {
      const first = this.#chunks[0]!;
      const part = first.subarray(0, left);
      parts.push(part);
      left -= part.byteLength;
      if (part.byteLength === first.byteLength) this.#chunks.shift();
      else this.#chunks[0] = first.subarray(part.byteLength);
    }
    this.#byteLength -= byteLength;
    return Buffer.concat(parts);
  }

  get unreadByteLength(): number {
    return this.#byteLength;
  }

  /** A request as bytes of this connection's kind. */
  encode(fields: RequestFields): Buffer {
    const plain = Buffer.from(request(fields));
    if (this.#kind !== 'extended') return plain;
    const header = Buffer.alloc(32);
    plain.copy(header, 0, 0, 24);
    header.writeUInt32BE(0x21e41c71, 0);
    if (fields.type === 1) header.writeUInt16BE((fields.flags ?? 0) | 32, 4);
    header.writeBigUInt64BE(BigInt(plain.readUInt32BE(24)), 24);
    return Buffer.concat([header, plain.subarray(28)]);
  }

  /** Replies to `byCookie`, READs with their length (else -1), in whatever order they come. */
  async readReplies(byCookie: ReadonlyMap<number, { offset: number; readLength: number }>): Promise<WireReply[]> {
    const replies: WireReply[] = [];
    const whole = new Map<number, WireReply>();
    while (whole.size < byCookie.size) {
      const { cookie, error, data, isDone } = await this.#readChunk(byCookie);
      const reply = replies[cookie] ?? { error: 0, data: null };
      replies[cookie] = reply;
      reply.error ||= error;
      reply.data ??= data;
      if (!isDone) continue;
      if (whole.has(cookie)) throw new Error(`request ${cookie} was answered twice`);
      whole.set(cookie, reply);
    }
    return replies;
  }

  async #readChunk(byCookie: ReadonlyMap<number, { offset: number; readLength: number }>) {
    const start = await this.read(16);
    const magic = start.readUInt32BE(0);
    const cookie = Number(start.readBigUInt64BE(8));
    const asked = byCookie.get(cookie);
    if (asked === undefined) throw new Error(`a reply to ${cookie}, which was not asked`);
    if (magic === 0x67446698 && this.#kind !== 'extended') {
      const error = start.readUInt32BE(4);
      const data = error === 0 && asked.readLength >= 0 ? await this.read(asked.readLength) : null;
      return { cookie, error, data, isDone: true };
    }
    if (magic !== (this.#kind === 'extended' ? 0x6e8a278c : 0x668e33ef)) throw new Error('a reply without its magic');
    const rest = await this.read(this.#kind === 'extended' ? 16 : 4);
    const byteLength = this.#kind === 'extended' ? Number(rest.readBigUInt64BE(8)) : rest.readUInt32BE(0);
    const payload = await this.read(byteLength);
    const type = start.readUInt16BE(6);
    const isDone = (start.readUInt16BE(4) & 1) !== 0;
    if (type === 0) return { cookie, error: 0, data: null, isDone };
    if (type >= 0x8000) return { cookie, error: payload.readUInt32BE(0), data: null, isDone };
    if (Number(payload.readBigUInt64BE(0)) !== asked.offset) throw new Error('data of another place');
    const data = type === 2 ? Buffer.alloc(payload.readUInt32BE(8)) : payload.subarray(8);
    return { cookie, error: 0, data, isDone };
  }

  /** Asks one thing and waits for the answer. */
  async ask(fields: RequestFields): Promise<WireReply> {
    const readLength = fields.type === 0 ? (fields.length ?? 0) : -1;
    this.socket.write(this.encode({ ...fields, cookie: 1 }));
    const replies = await this.readReplies(new Map([[1, { offset: Number(fields.offset ?? 0), readLength }]]));
    return replies[1]!;
  }

  /** Resolves when the server has ended the connection. */
  async ended(): Promise<void> {
    while (!this.#isOver) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}

/** A server of one export, on a real socket, whose memory is looked after. */
export class WireServer {
  readonly server: NbdServer;
  readonly errors: Error[] = [];
  /** What is wrong with how memory was taken and given; nothing, one hopes. */
  readonly problems: string[];
  readonly #takenBuffers: ReadonlySet<PooledBuffer>;
  connectOptions: { path: string } | { host: string; port: number } = { path: '' };

  private constructor(device: BlockDevice, options: Partial<NbdServerOptions>) {
    ({ problems: this.problems, taken: this.#takenBuffers } = auditMemory());
    this.server = new NbdServer({
      reactor: new NodeLoop(),
      exports: [{ name: 'disk', device }],
      extendedHeaders: true,
      onError: (error) => this.errors.push(error),
      ...options,
    });
  }

  static async start(
    device: BlockDevice,
    kind: SocketKind = 'unix',
    options: Partial<NbdServerOptions> = {},
  ): Promise<WireServer> {
    const wire = new WireServer(device, options);
    const path = join(tempDir(), 's.sock');
    const listener = await new Promise<Listener>((resolve, reject) => {
      new NodeLoop().listen(
        kind === 'unix' ? { unix: path } : { host: '127.0.0.1', port: 0 },
        (transport) => wire.server.accept(transport),
        (error, made) => (made === null ? reject(error) : resolve(made)),
      );
    });
    wire.connectOptions = kind === 'unix' ? { path } : { host: '127.0.0.1', port: listener.port };
    onTestFinished(() => new Promise<void>((resolve) => listener.close(resolve)));
    return wire;
  }

  /** Everybody is gone, everything was given back, once. */
  async expectEmpty(): Promise<void> {
    await expect
      .poll(() => this.server.statistics, patient)
      .toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
    expect(this.problems).toEqual([]);
    expect(this.#takenBuffers.size).toBe(0);
  }
}

const { take, give } = BufferPool.prototype;
const { abandon } = MemoryAccount.prototype;

/** Watches every pool until the test ends or the next audit begins. What is given back is overwritten, so that nobody can use it unseen. */
function auditMemory(): { problems: string[]; taken: ReadonlySet<PooledBuffer> } {
  const problems: string[] = [];
  const taken = new Set<PooledBuffer>();
  const spies = [
    vi.spyOn(BufferPool.prototype, 'take').mockImplementation(function (this: BufferPool, byteLength) {
      const buffer = take.call(this, byteLength);
      if (taken.has(buffer)) problems.push('memory was taken that somebody has');
      taken.add(buffer);
      return buffer;
    }),
    vi.spyOn(BufferPool.prototype, 'give').mockImplementation(function (this: BufferPool, buffer) {
      if (!taken.delete(buffer)) problems.push('memory was given twice');
      buffer.bytes.fill(0xee);
      give.call(this, buffer);
    }),
    vi.spyOn(MemoryAccount.prototype, 'abandon').mockImplementation(function (this: MemoryAccount, buffer) {
      if (!taken.delete(buffer)) problems.push('memory was abandoned that nobody had');
      abandon.call(this, buffer);
    }),
  ];
  onTestFinished(() => {
    for (const spy of spies) spy.mockRestore();
  });
  return { problems, taken };
}
