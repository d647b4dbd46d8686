// What a connection whose server reads the socket itself may keep of the server's memory, and of everybody's turns.
import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Bio } from '../../src/block/bio.ts';
import type { Transport, TransportHandler } from '../../src/block/reactor.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { NbdServer } from '../../src/nbd/server/server.ts';
import { HeldDevice, ManualReactor, option, pattern, request, u32 } from './support.ts';
import { expectRest, loopTurn, patient, socketLibrary, WireClient, WireServer } from './wire-client.ts';

const [READ, WRITE, DISC, FLUSH] = [0, 1, 2, 3];
const KIB = 1024;
const MIB = 1 << 20;

afterEach(() => {
  vi.restoreAllMocks();
});

async function finishAll(device: HeldDevice): Promise<void> {
  for (let i = 0; i < 10; i++) {
    while (device.bios.length > 0) device.finish(0);
    await loopTurn();
  }
}

describe('memory', () => {
  it('a connection gets on though it may hold less than it receives at once', async () => {
    const wire = await WireServer.start(new MemoryDevice('disk', 2048), 'unix', { maxConnectionByteLength: 1 });
    const client = await WireClient.open(wire);
    const data = pattern(5000);
    expect(await client.ask({ type: WRITE, offset: 77, data })).toMatchObject({ error: 0 });
    expect(Buffer.compare((await client.ask({ type: READ, offset: 77, length: 5000 })).data!, data)).toBe(0);
    client.socket.end();
    await wire.expectEmpty();
  });

  it('a connection that holds nothing gets on though others hold all that the server may', async () => {
    const device = new HeldDevice(2048);
    const wire = await WireServer.start(device, 'unix', { maxServerByteLength: MIB });
    const greedy = await WireClient.open(wire);
    for (let i = 0; i < 4; i++) greedy.socket.write(greedy.encode({ type: READ, cookie: i, length: 512 * KIB }));
    await expect.poll(() => wire.server.statistics.usedByteLength, patient).toBeGreaterThanOrEqual(MIB);
    const heldCount = device.bios.length;
    const modest = await WireClient.open(wire);
    const write = modest.ask({ type: WRITE, data: pattern(512) });
    await expect.poll(() => device.bios.length, patient).toBe(heldCount + 1);
    device.finish(heldCount);
    expect((await write).error).toBe(0);
    modest.socket.destroy();
    greedy.socket.destroy();
    await expectRest();
    await finishAll(device);
    await wire.expectEmpty();
  });

  it('small WRITEs that come one by one share it', async () => {
    const device = new HeldDevice(2048);
    const wire = await WireServer.start(device);
    const client = await WireClient.open(wire);
    for (let i = 0; i < 100; i++) {
      client.socket.write(client.encode({ type: WRITE, cookie: i, offset: i * 512, data: pattern(512, i) }));
      await expect.poll(() => device.bios.length, patient).toBe(i + 1);
    }
    expect(wire.server.statistics.usedByteLength).toBeLessThan(MIB);
    while (device.bios.length > 0) device.finish(device.bios.length >> 1);
    await expect.poll(() => wire.server.statistics.usedByteLength, patient).toBe(0);
    for (let i = 0; i < 100; i++) {
      expect(Buffer.compare(device.memory.peek(i, 1), pattern(512, i))).toBe(0);
    }
    client.socket.end();
    await wire.expectEmpty();
  });

  it.each([
    ['WRITEs in one piece of memory', WRITE],
    ['READs in one piece of memory', READ],
  ])('is given up once when a device throws at the second step of several %s', async (_name, type) => {
    const device = new ThrowingDevice(64);
    const wire = await WireServer.start(device);
    const client = await WireClient.open(wire, 'structured');
    const one = (i: number): Buffer => {
      // A READ that fails in its middle is done again up to there; a WRITE of part of a block reads that first.
      if (type === READ) return client.encode({ type, cookie: i, offset: i * 4096, length: 4096 });
      return client.encode({ type, cookie: i, offset: i * 4096 + 5, data: pattern(100) });
    };
    client.socket.write(Buffer.concat([one(0), one(1), one(2)]));
    await expect.poll(() => device.bios.length, patient).toBe(3);
    device.isThrowing = true;
    for (const bio of device.bios.splice(0)) {
      if (type === WRITE) bio.endIo(0);
      else bio.fail(5, device, bio.sector + 4);
    }
    await client.ended();
    await wire.expectEmpty();
    expect(wire.errors.map((error) => error.message)).toEqual(['a bug', 'a bug', 'a bug']);
  });
});

class ThrowingDevice extends HeldDevice {
  isThrowing = false;

  override submit(bio: Bio): void {
    if (this.isThrowing) throw new Error('a bug');
    super.submit(bio);
  }
}

/** A client that has one more request, and one more, and reads every reply at once. */
class EndlessTransport implements Transport {
  readonly peer = 'endless';
  readonly pendingByteLength = 0;
  readonly #message: Uint8Array;
  readonly #reactor: ManualReactor;
  handler!: TransportHandler;
  fetchedByteLength = 0;
  isPulled = false;
  isPaused = false;

  constructor(reactor: ManualReactor, message: Uint8Array) {
    this.#reactor = reactor;
    this.#message = message;
  }

  setHandler(handler: TransportHandler): void {
    this.handler = handler;
  }

  send(_chunks: readonly Uint8Array[], onSent: () => void): void {
    this.#reactor.wake(onSent);
  }

  sendNow(_page: Uint8Array, _offset: number, byteLength: number): number {
    return byteLength;
  }

  startPull(): void {
    this.isPulled = true;
  }

  fetch(page: Uint8Array, offset: number, byteLength: number): number {
    const message = this.#message;
    if (this.fetchedByteLength > 4 * MIB) return 0;
    for (let i = 0; i < byteLength; i++) page[offset + i] = message[(this.fetchedByteLength + i) % message.byteLength]!;
    this.fetchedByteLength += byteLength;
    return byteLength;
  }

  pause(): void {
    this.isPaused = true;
  }

  resume(): void {
    this.isPaused = false;
  }

  end(): void {}

  destroy(): void {}
}

describe('turns', () => {
  it.each([
    ['requests without data', request({ type: FLUSH })],
    ['requests that are refused', request({ type: READ, offset: 2n ** 60n, length: 512 })],
    ['small READs', request({ type: READ, length: 1 })],
  ])('%s, one after the other for ever, leave others their turns', (_name, message) => {
    const reactor = new ManualReactor();
    const server = new NbdServer({ reactor, exports: [{ name: 'disk', device: new MemoryDevice('disk', 64) }] });
    const transport = new EndlessTransport(reactor, message);
    server.accept(transport);
    transport.handler.onData(u32(3));
    transport.handler.onData(option(7, encodeGoRequest('', [])));
    reactor.turn();
    expect(transport.isPulled).toBe(true);
    let most = 0;
    const measure = (work: () => void): void => {
      const before = transport.fetchedByteLength;
      work();
      most = Math.max(most, transport.fetchedByteLength - before);
    };
    const wake = reactor.wake.bind(reactor);
    vi.spyOn(reactor, 'wake').mockImplementation((callback) => wake(() => measure(callback)));
    measure(() => transport.handler.onReadable!());
    // What was left is done in later turns.
    expect(transport.isPaused).toBe(true);
    reactor.turn();
    for (let i = 0; i < 100 && transport.fetchedByteLength <= 4 * MIB; i++) {
      measure(() => transport.handler.onReadable!());
      reactor.turn();
    }
    expect(transport.fetchedByteLength).toBeGreaterThan(4 * MIB);
    expect(most).toBeLessThan(512 * KIB);
    expect(transport.isPaused).toBe(false);
    expect(server.statistics.usedByteLength).toBe(0);
  });

  it.each(['end', 'destroy', 'more'])('a client that said goodbye (%s) is not listened to', async (how) => {
    const device = new HeldDevice(64);
    const wire = await WireServer.start(device);
    const client = await WireClient.open(wire);
    client.socket.write(client.encode({ type: READ, length: 512 }));
    client.socket.write(client.encode({ type: DISC }));
    await expect.poll(() => device.bios.length, patient).toBe(1);
    if (how === 'end') client.socket.end();
    else if (how === 'destroy') client.socket.destroy();
    else client.socket.write(client.encode({ type: READ, length: 512 }));
    await expectRest();
    await finishAll(device);
    if (how !== 'destroy') expect((await client.read(16 + 512)).readUInt32BE(4)).toBe(0);
    client.socket.destroy();
    await wire.expectEmpty();
  });

  it('data that is thrown away leaves others their turns, and is not received in small pieces', async () => {
    const wire = await WireServer.start(new MemoryDevice('disk', 2048));
    const client = await WireClient.open(wire);
    expect((await client.ask({ type: WRITE, data: pattern(64 * KIB) })).error).toBe(0);
    client.socket.write(client.encode({ type: WRITE, offset: MIB, length: 64 * MIB }));
    expect((await client.read(16)).readUInt32BE(4)).toBe(28);
    await expectRest();
    // From here on there is always more.
    const library = socketLibrary();
    let left = 64 * MIB;
    const counts: number[] = [0];
    const { receive, waitPoll } = library;
    vi.spyOn(library, 'receive').mockImplementation((fd, address, byteLength) => {
      if (left === 0) return receive(fd, address, byteLength);
      const count = Math.min(left, byteLength);
      left -= count;
      counts[counts.length - 1]!++;
      return count;
    });
    vi.spyOn(library, 'waitPoll').mockImplementation((...all) => {
      counts.push(0);
      return waitPoll(...all);
    });
    client.socket.write(client.encode({ type: FLUSH, cookie: 5 }));
    expect((await client.read(16)).readUInt32BE(12)).toBe(5);
    expect(Math.max(...counts)).toBeLessThanOrEqual(17);
    expect(counts.reduce((sum, count) => sum + count)).toBeLessThan(300);
    client.socket.end();
    await wire.expectEmpty();
  });
});
