// System calls that fail, one after the other, and peers that disappear at every stage: such a connection ends alone,
// loses no memory, and burns no time.
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { type Listener, NodeLoop } from '../../src/reactor/node-loop.ts';
import { tempDir } from '../support/tmp.ts';
import { HeldDevice, pattern } from './support.ts';
import {
  expectRest,
  loopTurn,
  patient,
  type SocketKind,
  socketLibrary,
  WireClient,
  WireServer,
} from './wire-client.ts';

const [READ, WRITE, DISC, FLUSH, ZEROES] = [0, 1, 2, 3, 6];
const KIB = 1024;
const MIB = 1 << 20;

afterEach(() => {
  vi.restoreAllMocks();
});

/** A short session that has a bit of everything. @throws when the connection ends in it, or a byte is wrong */
async function runSession(client: WireClient, isLong: boolean): Promise<void> {
  const large = pattern(isLong ? 1200 * KIB : 9000, 3);
  const small = pattern(700, 5);
  expect((await client.ask({ type: WRITE, offset: 4096, data: large })).error).toBe(0);
  expect((await client.ask({ type: WRITE, offset: 100, data: small, flags: 1 })).error).toBe(0);
  // Several at once, and one whose data is thrown away.
  const expected = new Map([
    [1, { offset: 0, readLength: 4096 }],
    [2, { offset: 0, readLength: -1 }],
    [3, { offset: 0, readLength: -1 }],
    [4, { offset: 4096, readLength: large.byteLength }],
  ]);
  client.socket.write(
    Buffer.concat([
      client.encode({ type: READ, cookie: 1, length: 4096 }),
      client.encode({ type: WRITE, cookie: 2, offset: 4 * MIB, data: small }),
      client.encode({ type: FLUSH, cookie: 3 }),
      client.encode({ type: READ, cookie: 4, offset: 4096, length: large.byteLength }),
    ]),
  );
  const replies = await client.readReplies(expected);
  const first = Buffer.alloc(4096);
  first.set(small, 100);
  expect(replies[1]!.data!.equals(first)).toBe(true);
  expect(replies[2]!.error).toBe(Errno.ENOSPC);
  expect(replies[3]!.error).toBe(0);
  expect(Buffer.compare(replies[4]!.data!, large)).toBe(0);
}

async function serveAndRun(kind: SocketKind, isLong = true): Promise<void> {
  const wire = await WireServer.start(new MemoryDevice('disk', 8192), kind);
  const client = await WireClient.open(wire, 'structured');
  await runSession(client, isLong);
  client.socket.end(client.encode({ type: DISC }));
  await wire.expectEmpty();
  expect(wire.errors).toEqual([]);
}

describe.each<SocketKind>(['unix', 'tcp'])('over %s', (kind) => {
  it.each([
    ['duplicate', Errno.EMFILE],
    ['controlPoll', Errno.ENOSPC],
  ] as const)("stays with Node's stream where %s fails", async (name, errno) => {
    const library = socketLibrary();
    const failing = vi.spyOn(library, name).mockReturnValue(-errno);
    const receive = vi.spyOn(library, 'receive');
    await serveAndRun(kind);
    expect(failing).toHaveBeenCalled();
    expect(receive).not.toHaveBeenCalled();
  });

  it.each(['receive', 'receiveVector', 'send'] as const)('goes on when any %s finds nothing to do', async (name) => {
    const library = socketLibrary();
    const real = library[name];
    for (const errno of [Errno.EINTR, Errno.EAGAIN]) {
      for (let failing = 1, count = failing; count >= failing; failing++) {
        count = 0;
        vi.spyOn(library, name).mockImplementation((...all) => (++count === failing ? -errno : real(...all)));
        await serveAndRun(kind);
        // TCP's own pieces make many calls of one session.
        if (failing > 30) break;
      }
    }
  });

  it.each([
    ['receive', Errno.ECONNRESET],
    ['receiveVector', Errno.ECONNRESET],
    ['send', Errno.EPIPE],
  ] as const)('ends alone when any %s fails', async (name, errno) => {
    const library = socketLibrary();
    const real = library[name];
    const wire = await WireServer.start(new MemoryDevice('disk', 8192), kind);
    const other = await WireClient.open(wire);
    let failedCount = 0;
    for (let failing = 1; failing <= 30; failing++) {
      const client = await WireClient.open(wire, 'structured');
      let count = 0;
      const spy = vi.spyOn(library, name).mockImplementation((...all) => (++count === failing ? -errno : real(...all)));
      const error = await runSession(client, true).then(
        () => null,
        (reason: Error) => reason,
      );
      spy.mockRestore();
      client.socket.destroy();
      await expect.poll(() => wire.server.statistics.connectionCount, patient).toBe(1);
      if (error === null && count < failing) break;
      expect(error?.message).toBe('the connection ended');
      failedCount++;
      expect((await other.ask({ type: READ, length: 512 })).error).toBe(0);
    }
    expect(failedCount).toBeGreaterThan(0);
    other.socket.end();
    await wire.expectEmpty();
    await expectRest();
  });

  it.each([1, 2, 3, 15, 16, 17, 20, 100, 4096, 100_000])(
    'loses nothing when %i bytes are sent at once',
    async (most) => {
      const library = socketLibrary();
      const { send } = library;
      vi.spyOn(library, 'send').mockImplementation((fd, address, byteLength) =>
        send(fd, address, Math.min(byteLength, most)),
      );
      await serveAndRun(kind, most >= 4096);
    },
  );

  it('ends the connection of a client that is gone while nothing is read from it, and others live on', async () => {
    const device = new HeldDevice(8192);
    const wire = await WireServer.start(device, kind, { maxConnectionRequestCount: 1 });
    const other = await WireClient.open(wire);
    const client = await WireClient.open(wire);
    // The others have to wait: the socket is not read.
    for (const cookie of [1, 2, 3]) client.socket.write(client.encode({ type: READ, cookie, length: MIB }));
    await expect.poll(() => device.bios.length, patient).toBe(1);
    await expectRest();
    const library = socketLibrary();
    const { controlPoll } = library;
    let removedCount = 0;
    const spy = vi.spyOn(library, 'controlPoll').mockImplementation((poll, operation, fd, event) => {
      if (operation === 2) removedCount++;
      return controlPoll(poll, operation, fd, event);
    });
    kind === 'tcp' ? client.socket.resetAndDestroy() : client.socket.destroy();
    await expect.poll(() => removedCount, patient).toBeGreaterThan(0);
    await expectRest();
    spy.mockRestore();
    device.finish(0);
    await expect.poll(() => wire.server.statistics.connectionCount, patient).toBe(1);
    // What had not begun is given up.
    expect(device.bios.length).toBe(0);
    const read = other.ask({ type: READ, length: 512 });
    await expect.poll(() => device.bios.length, patient).toBe(1);
    device.finish(0);
    expect((await read).error).toBe(0);
    other.socket.end();
    await wire.expectEmpty();
  });
});

it('what a callback of something sent throws ends its connection alone', async () => {
  const errors: unknown[] = [];
  const ends: (Error | null)[] = [];
  const loop = new NodeLoop({ onError: (error) => errors.push(error) });
  const path = join(tempDir(), 's.sock');
  const listener = await new Promise<Listener>((resolve) =>
    loop.listen(
      { unix: path },
      (transport) => {
        transport.setHandler({
          onData: () => transport.startPull!(),
          onEnd: () => {},
          onDrain: () => {},
          onReadable: () => {
            transport.fetch!(new Uint8Array(100), 0, 100);
            // Through the event loop, with more than the kernel takes at once.
            transport.send([new Uint8Array(8 * MIB)], () => {
              throw new Error('a bug');
            });
            return true;
          },
          onClose: (error) => ends.push(error),
        });
      },
      (_error, made) => resolve(made!),
    ),
  );
  const socket = connect(path);
  socket.on('error', () => {});
  socket.resume();
  socket.write('x');
  for (let i = 0; i < 20; i++) await loopTurn();
  socket.write('y');
  await expect.poll(() => ends.map(String), patient).toEqual(['Error: a bug']);
  expect(errors.map(String)).toEqual(['Error: a bug']);
  await new Promise<void>((resolve) => listener.close(resolve));
});

describe('a peer that disappears', () => {
  const stages: [string, (client: WireClient) => Uint8Array[], number][] = [
    ['after the handshake', () => [], 0],
    ['in a header', (client) => [client.encode({ type: READ, length: 512 }).subarray(0, 11)], 0],
    ['behind a READ', (client) => [client.encode({ type: READ, length: 512 })], 1],
    ['behind a large READ', (client) => [client.encode({ type: READ, length: 4 * MIB })], 1],
    ['behind a WRITE', (client) => [client.encode({ type: WRITE, data: pattern(4096) })], 1],
    ['before the data of a WRITE', (client) => [client.encode({ type: WRITE, length: 4096 })], 0],
    [
      'in the data of a WRITE',
      (client) => [client.encode({ type: WRITE, data: pattern(90_000) }).subarray(0, 70_000)],
      0,
    ],
    [
      'in the data of a long WRITE',
      (client) => [client.encode({ type: WRITE, data: pattern(4 * MIB) }).subarray(0, 3 * MIB + 77)],
      3,
    ],
    [
      'in data that is thrown away',
      (client) => [client.encode({ type: WRITE, offset: 64 * MIB, data: pattern(MIB) }).subarray(0, MIB / 2)],
      0,
    ],
    [
      'behind many requests of all kinds',
      (client) =>
        Array.from({ length: 40 }, (_, i) =>
          client.encode({
            type: [READ, WRITE, FLUSH, ZEROES][i % 4]!,
            cookie: i,
            offset: i % 4 === 2 ? 0 : i * 4096,
            ...(i % 4 === 1 ? { data: pattern(4096, i) } : { length: i % 4 === 2 ? 0 : 4096 }),
          }),
        ),
      40,
    ],
    [
      'behind a goodbye',
      (client) => [client.encode({ type: WRITE, data: pattern(1000) }), client.encode({ type: DISC })],
      1,
    ],
  ];
  const ways: [string, (socket: Socket) => void][] = [
    ['closes', (socket) => socket.destroy()],
    ['resets', (socket) => socket.resetAndDestroy()],
    ['ends', (socket) => socket.end()],
  ];
  const rows = stages.flatMap(([stage, messages, bioCount]) =>
    (['unix', 'tcp'] as const).flatMap((kind) =>
      ways
        .filter(([way]) => kind === 'tcp' || way !== 'resets')
        .flatMap(([way, leave]) =>
          // Either all of it is answered and waits for a client that reads no more, or the device still has it.
          [false, true].map((isHeld) => ({ stage, kind, way, isHeld, messages, bioCount, leave })),
        ),
    ),
  );

  it.each(rows)('$stage: it $way ($kind, held: $isHeld)', async ({ kind, isHeld, messages, bioCount, leave }) => {
    const held = new HeldDevice(32_768, { maxWriteZeroesSectorCount: 32_768 });
    const wire = await WireServer.start(isHeld ? held : new MemoryDevice('disk', 32_768), kind);
    const client = await WireClient.open(wire);
    if (!isHeld) client.socket.pause();
    for (const message of messages(client)) client.socket.write(message);
    if (isHeld) await expect.poll(() => held.bios.length, patient).toBe(bioCount);
    for (let i = 0; i < 5; i++) await loopTurn();
    leave(client.socket);
    client.socket.resume();
    await expectRest();
    for (let i = 0; held.bios.length > 0 || i < 20; i++) {
      if (held.bios.length > 0) held.finish((i * 7) % held.bios.length);
      await loopTurn();
    }
    await wire.expectEmpty();
    expect(wire.errors).toEqual([]);
    await expectRest();
  });
});
