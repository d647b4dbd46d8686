// The control socket under clients that mean ill or are of another version: each is cut off or answered, and the others
// are served as if it were not there.
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import type { Transport } from '../../src/block/reactor.ts';
import { version } from '../../src/block/version.ts';
import { findDaemon } from '../../src/client/connect.ts';
import { MAX_CLIENT_REQUEST_COUNT, MAX_REQUEST_BYTE_LENGTH } from '../../src/control/bounds.ts';
import { REQUESTS, type RequestName } from '../../src/control/requests.ts';
import { ControlServer } from '../../src/control/server.ts';
import { encodeMessage, MessageDecoder, PROTOCOL_VERSION } from '../../src/control/wire.ts';
import { DaemonFolder } from '../../src/daemon/folder.ts';
import { connectNbd } from '../../src/nbd/index.ts';
import { type Running, running } from '../daemon/support.ts';
import { printSeedOnFailure } from '../support/seed.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

interface Answer {
  dmkit?: { protocol: number; version: string };
  id?: number;
  reply?: unknown;
  error?: { errno: number; code: string; message: string };
}

/** A client that sends what it likes. */
class RawClient {
  readonly socket: Socket;
  readonly answers: Answer[] = [];
  readonly closed: Promise<unknown>;
  readonly #decoder = new MessageDecoder();

  private constructor(socket: Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) => socket.once('close', resolve));
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      for (const { json } of this.#decoder.push(chunk)) this.answers.push(json as Answer);
    });
  }

  static async connect(path: string): Promise<RawClient> {
    const socket = connect(path);
    const client = new RawClient(socket);
    onTestFinished(() => void socket.destroy());
    await once(socket, 'connect');
    return client;
  }

  send(message: object, texts: Uint8Array[][] = []): void {
    this.socket.write(Buffer.concat(encodeMessage(message, texts)));
  }

  /** The next event of a kind, or the end. */
  async next(event: 'data' | 'drain'): Promise<void> {
    await new Promise<void>((resolve) => {
      const onEvent = (): void => {
        this.socket.off(event, onEvent).off('close', onEvent);
        resolve();
      };
      this.socket.on(event, onEvent).on('close', onEvent);
    });
  }

  /** Resolves to false where the client was cut off before. */
  async has(condition: () => boolean): Promise<boolean> {
    while (!condition()) {
      if (this.socket.destroyed) return false;
      await this.next('data');
    }
    return true;
  }

  answerOf(id: number): Answer | undefined {
    return this.answers.find((one) => one.id === id);
  }
}

function frame(text: string, byteLength = Buffer.byteLength(text)): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(byteLength);
  return Buffer.concat([length, Buffer.from(text)]);
}

/** Reads of a device until `work` has ended. @returns how many were answered meanwhile */
async function readsDuring({ client }: Running, name: string, work: () => Promise<unknown>): Promise<number> {
  const disk = await connectNbd(await client.uri(name));
  let isOver = false;
  let count = 0;
  const working = work().finally(() => {
    isOver = true;
  });
  while (!isOver) {
    await disk.read(0, 4096);
    count++;
  }
  await working;
  await disk.close();
  return count;
}

async function withDevice(): Promise<Running> {
  const daemon = await running();
  const image = join(tempDir('s'), 'a.img');
  makeImage(image, 64);
  await daemon.client.create('d', `0 64 linear ${image} 0`);
  return daemon;
}

describe('a client that sends 100 MB of [', () => {
  const megabyte = Buffer.alloc(1 << 20, '[');

  test.each([
    ['without a frame', Buffer.alloc(0)],
    ['in a frame of that length', frame('', 100 << 20)],
    ['in frames as long as are taken', null],
  ])('%s is cut off, and reads go on being answered', async (_, head) => {
    const daemon = await withDevice();
    let sentByteCount = 0;
    const readCount = await readsDuring(daemon, 'd', async () => {
      const client = await RawClient.connect(daemon.folder.controlSocket);
      if (head !== null) client.socket.write(head);
      for (let count = 0; count < 100 && !client.socket.destroyed; count++) {
        const bytes = head === null ? frame(megabyte.toString(), MAX_REQUEST_BYTE_LENGTH) : megabyte;
        if (!client.socket.write(bytes)) await client.next('drain');
        sentByteCount += bytes.byteLength;
      }
      await client.closed;
    });
    expect(readCount).toBeGreaterThan(0);
    expect(sentByteCount).toBeLessThan(100 << 20);
    expect(await daemon.client.list()).toHaveLength(1);
  });

  test('behind a request, as its table, is refused, and reads go on being answered', async () => {
    const daemon = await withDevice();
    const client = await RawClient.connect(daemon.folder.controlSocket);
    const readCount = await readsDuring(daemon, 'd', async () => {
      client.send({ id: 1, name: 'load', args: { device: { name: 'd' }, table: { text: 0 } } }, [
        Array.from({ length: 100 }, () => megabyte),
      ]);
      await client.has(() => client.answerOf(1) !== undefined);
    });
    expect(readCount).toBeGreaterThan(0);
    expect(client.answerOf(1)).toMatchObject({ error: { code: 'EINVAL' } });
    expect(await daemon.client.info('d')).toMatchObject({ live: true, inactive: false });
  });
});

describe('a client that asks and reads nothing', () => {
  /** A control socket whose connections are known. */
  async function served() {
    const dm = new DeviceMapper();
    onTestFinished(() => dm.close());
    const path = join(tempDir('s'), 's');
    const server = new ControlServer({ control: dm.control });
    const pending: number[] = [];
    await new Promise<void>((resolve, reject) => {
      const accept = (transport: Transport): void => {
        const index = pending.push(0) - 1;
        const send = transport.send.bind(transport);
        // The most that waited at one time.
        transport.send = (chunks, onSent) => {
          send(chunks, onSent);
          pending[index] = Math.max(pending[index]!, transport.pendingByteLength);
        };
        server.accept(transport);
      };
      dm.loop.listen({ unix: path }, accept, (error, listener) => {
        if (listener === null) return reject(error);
        onTestFinished(() => {
          server.destroy();
          listener.close();
        });
        resolve();
      });
    });
    for (let index = 0; index < 100; index++) {
      await dm.create(`device-${index}`, [{ sector: 0, sectorCount: 8, type: 'zero', params: '' }]);
    }
    return { path, pending };
  }

  test('is not listened to until it reads; the others are served; then it gets every answer', async () => {
    const { path, pending } = await served();
    const deaf = await RawClient.connect(path);
    await deaf.has(() => deaf.answers.length === 1);
    deaf.socket.pause();
    const requestCount = 4000;
    for (let id = 1; id <= requestCount; id++) {
      if (id % 2 === 0) deaf.send({ id, name: 'list', args: {} });
      else deaf.send({ id, name: 'table', args: { device: { name: 'device-1' }, type: 'table' } });
    }
    const other = await RawClient.connect(path);
    for (let id = 1; id <= 200; id++) {
      other.send({ id, name: 'list', args: {} });
      expect(await other.has(() => other.answerOf(id) !== undefined)).toBe(true);
    }
    expect(pending[0]).toBeGreaterThan(1 << 20);
    expect(deaf.answers).toHaveLength(1);
    deaf.socket.resume();
    await deaf.has(() => deaf.answers.length === requestCount + 1);
    const ids = new Set(deaf.answers.filter(({ reply }) => reply !== undefined).map(({ id }) => id));
    expect(ids.size).toBe(requestCount);
    expect(deaf.answerOf(2)!.reply).toHaveLength(100);
    // At no time did more than a few MiB wait for it.
    expect(pending[0]).toBeLessThan(4 << 20);
  });

  test('and has as many requests under way as it may can cancel them, or go away', async () => {
    const daemon = await withDevice();
    const { eventNumber } = await daemon.client.info('d');
    const waiting = async (): Promise<RawClient> => {
      const client = await RawClient.connect(daemon.folder.controlSocket);
      for (let id = 1; id <= MAX_CLIENT_REQUEST_COUNT; id++) {
        client.send({ id, name: 'wait', args: { device: { name: 'd' }, eventNumber } });
      }
      return client;
    };
    const client = await waiting();
    client.send({ cancel: 7 });
    client.send({ id: 1000, name: 'list', args: {} });
    expect(await client.has(() => client.answerOf(1000) !== undefined)).toBe(true);
    expect(client.answerOf(7)).toMatchObject({ error: { code: 'EINTR' } });
    expect(client.answers).toHaveLength(3);
    const leaving = await waiting();
    leaving.socket.end();
    await leaving.closed;
  });
});

describe('versions', () => {
  test('a client of protocol 1 gets a greeting that it can read, and is cut off when it says so', async () => {
    const { folder, client: other } = await running();
    const client = await RawClient.connect(folder.controlSocket);
    const [chunk] = (await once(client.socket, 'data')) as [Buffer];
    // Bytes of protocol 1: four of length, big-endian, and JSON.
    const byteLength = chunk.readUInt32BE();
    const greeting = JSON.parse(chunk.toString('utf8', 4, 4 + byteLength));
    expect(greeting).toEqual({ dmkit: { protocol: 2, version } });
    client.socket.write(frame('{"hello":{"protocol":1,"version":"0.1.0","pid":1,"command":"dmkit ls"}}'));
    await client.closed;
    expect(await other.list()).toEqual([]);
  });

  test('a client of this protocol and another version is answered', async () => {
    const { folder } = await running();
    const client = await RawClient.connect(folder.controlSocket);
    client.send({ hello: { protocol: PROTOCOL_VERSION, version: '9.9.9', pid: 1, command: 'dmkit ls' } });
    client.send({ id: 1, name: 'list', args: {} });
    expect(await client.has(() => client.answerOf(1) !== undefined)).toBe(true);
    expect(client.answerOf(1)).toEqual({ id: 1, reply: [] });
  });

  test('a daemon of protocol 1 is refused in a sentence that names both versions', async () => {
    const folder = new DaemonFolder(join(tempDir('d'), 'd'));
    folder.make();
    const server = createServer((socket) => {
      socket.on('error', () => {}).write(frame('{"dmkit":{"protocol":1,"version":"0.0.9"}}'));
    });
    await new Promise<void>((resolve) => server.listen(folder.controlSocket, resolve));
    onTestFinished(() => void server.close());
    const control = (await findDaemon(folder))!;
    const refused = { code: 'DM_DAEMON_VERSION', message: expect.stringMatching(/\b0\.0\.9\b/) };
    await expect(control.call('list', {})).rejects.toMatchObject(refused);
    await expect(control.call('list', {})).rejects.toThrow(`dmkit ${version}`);
    expect(control.isOver).toBe(true);
  });
});

describe('bytes of any kind', () => {
  const name = fc.oneof(fc.constantFrom(...(Object.keys(REQUESTS) as RequestName[])), fc.string());
  // A daemon that ends because it is asked to is none that died.
  const request = fc
    .record({ id: fc.oneof(fc.nat(), fc.jsonValue()), name, args: fc.oneof(fc.object(), fc.jsonValue()) })
    .filter((one) => one.name !== 'shutdown');
  const json = (value: unknown): string => JSON.stringify(value) ?? 'null';
  const message = fc.oneof(
    { weight: 4, arbitrary: request.map((one) => frame(json(one))) },
    fc.jsonValue().map((one) => frame(json(one))),
    fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
    // Lengths that are not true.
    fc.tuple(request, fc.integer({ min: 0, max: 400 })).map(([one, byteLength]) => frame(json(one), byteLength)),
    fc
      .record({
        lengths: fc.array(fc.integer({ min: -1, max: 40 }), { maxLength: 3 }),
        text: fc.string(),
        of: fc.jsonValue(),
      })
      .map(({ lengths, text, of }) => {
        const args = { device: { name: 'd' }, table: { text: of } };
        return Buffer.concat([frame(json({ id: 1, name: 'load', args, texts: lengths })), Buffer.from(text)]);
      }),
  );

  const LAST_ID = 2 ** 40;

  /** The daemon has something to answer to the last request, or to cut off. */
  function isDue(bytes: Buffer): boolean {
    try {
      const messages = [...new MessageDecoder({ maxByteLength: MAX_REQUEST_BYTE_LENGTH, maxDepth: 16 }).push(bytes)];
      return (messages.at(-1)?.json as Answer | null | undefined)?.id === LAST_ID;
    } catch {
      return true;
    }
  }

  test('are refused or cut off, and another client is served', async () => {
    printSeedOnFailure();
    const daemon = await withDevice();
    let answerCount = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(message, { minLength: 1, maxLength: 4 }), fc.nat(), async (messages, cut) => {
        const client = await RawClient.connect(daemon.folder.controlSocket);
        const bytes = Buffer.concat(messages);
        const at = cut % (bytes.byteLength + 1);
        const sent = cut % 3 === 0 ? bytes.subarray(0, at) : bytes;
        client.socket.write(bytes.subarray(0, at));
        if (sent === bytes) client.socket.write(bytes.subarray(at));
        const last = Buffer.concat(encodeMessage({ id: LAST_ID, name: 'list', args: {} }));
        client.socket.write(last);
        const over = client.has(() => client.answerOf(LAST_ID) !== undefined);
        // Where the last request is a part of what came before, no answer is due.
        if (isDue(Buffer.concat([sent, last]))) await over;
        expect(await daemon.client.info('d')).toMatchObject({ live: true, inactive: false });
        client.socket.end();
        await client.closed;
        for (const { error } of client.answers) {
          if (error === undefined) continue;
          answerCount++;
          expect(error.code).toMatch(/^E[A-Z]+$/);
          expect(error.message).not.toBe('');
        }
      }),
    );
    expect(answerCount).toBeGreaterThan(0);
  });
});
