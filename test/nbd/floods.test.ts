// Long requests of one client, hundreds at a time, and another client of the same thread. Each of these floods would take
// minutes; the other client's reads are answered meanwhile, or the test never ends.
import { connect } from 'node:net';
import { describe, expect, onTestFinished, test } from 'vitest';
import type { Bio } from '../../src/block/bio.ts';
import type { BlockDevice, ExtentCallback } from '../../src/block/block-device.ts';
import { defaultLimits } from '../../src/block/limits.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { encodeMetaContextRequest } from '../../src/nbd/protocol/meta-context.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { option, u32 } from './support.ts';
import { patient, WireClient, WireServer } from './wire-client.ts';

const READ = 0;
const CACHE = 5;
const WRITE_ZEROES = 6;
const BLOCK_STATUS = 7;
const GIB = 2 ** 30;

function burn(milliseconds: number): void {
  for (const end = performance.now() + milliseconds; performance.now() < end; );
}

/** Answers at once, and needs the processor for it; extents of 4 KiB. */
class BusyDevice implements BlockDevice {
  readonly name = 'busy';
  readonly readOnly = false;
  readonly sectorCount = GIB / 512;
  readonly limits = { ...defaultLimits(), maxWriteZeroesSectorCount: 8 };
  workCount = 0;

  submit(bio: Bio): void {
    if (bio.sectorCount > 8 || bio.vecs.length === 0) this.#work();
    bio.endIo(0);
  }

  queryExtent(sector: number, _sectorCount: number, done: ExtentCallback): void {
    this.#work();
    done(0, 8, (sector / 8) % 2);
  }

  #work(): void {
    this.workCount++;
    burn(0.05);
  }
}

/** With structured replies and base:allocation. */
async function openClient(wire: WireServer): Promise<WireClient> {
  const socket = connect(wire.connectOptions);
  const client = new WireClient(socket, 'structured');
  onTestFinished(() => void socket.destroy());
  socket.write(Buffer.concat([u32(3), option(8)]));
  await client.read(18 + 20);
  socket.write(option(10, encodeMetaContextRequest({ exportName: '', queries: ['base:allocation'] })));
  socket.write(option(7, encodeGoRequest('', [])));
  for (;;) {
    const header = await client.read(20);
    await client.read(header.readUInt32BE(16));
    if (header.readUInt32BE(8) === 7 && header.readUInt32BE(12) === 1) return client;
  }
}

test('a client that leaves when all its requests have come, and nothing is read from it, is noticed at once', async () => {
  const wire = await WireServer.start(new BusyDevice());
  const flooding = await openClient(wire);
  const count = 250;
  const messages = Array.from({ length: count }, (_, cookie) =>
    flooding.encode({ type: BLOCK_STATUS, cookie, length: GIB / 4 }),
  );
  flooding.socket.write(Buffer.concat(messages));
  await expect.poll(() => wire.server.statistics.requestCount, patient).toBe(count);
  flooding.socket.destroy();
  await wire.expectEmpty();
});

describe.each([
  ['BLOCK_STATUS over many extents', BLOCK_STATUS, GIB / 4],
  ['WRITE_ZEROES in many pieces', WRITE_ZEROES, GIB / 2],
  ['CACHE', CACHE, GIB / 16],
])('a flood of %s', (_name, type, length) => {
  test('another client is answered meanwhile, and what a client that left had asked for is given up', async () => {
    const device = new BusyDevice();
    const wire = await WireServer.start(device);
    const flooding = await openClient(wire);
    const other = await openClient(wire);
    const messages = Array.from({ length: 250 }, (_, cookie) => flooding.encode({ type, cookie, length }));
    flooding.socket.write(Buffer.concat(messages));
    await expect.poll(() => wire.server.statistics.requestCount, patient).toBeGreaterThan(20);
    for (let i = 0; i < 20; i++) expect((await other.ask({ type: READ, length: 4096 })).error).toBe(0);
    // Otherwise there was no flood any more.
    expect(wire.server.statistics.requestCount).toBeGreaterThan(0);
    expect(device.workCount).toBeGreaterThan(0);
    flooding.socket.destroy();
    other.socket.destroy();
    if (type !== CACHE) await wire.expectEmpty();
  });
});

describe('the loop', () => {
  /** Counts looks at sockets, as an immediate and what follows it show them. */
  async function turnsDuring(work: (loop: NodeLoop, go: () => boolean) => void): Promise<number[]> {
    const loop = new NodeLoop();
    let isOver = false;
    let ran = 0;
    work(loop, () => {
      ran++;
      burn(1);
      return !isOver;
    });
    const counts: number[] = [];
    for (let i = 0; i < 20; i++) {
      const before = ran;
      await new Promise<void>((resolve) => setTimeout(resolve, 0));
      counts.push(ran - before);
    }
    isOver = true;
    return counts;
  }

  test('callbacks that wake each other without end leave it to timers and sockets after milliseconds of work', async () => {
    const counts = await turnsDuring((loop, go) => {
      const again = (): void => void (go() && loop.wake(again));
      for (let i = 0; i < 300; i++) loop.wake(again);
    });
    // Each takes a millisecond at least: 4 of them are a turn, and one setTimeout takes two turns at the most.
    expect(Math.max(...counts)).toBeLessThan(50);
    expect(counts.reduce((sum, count) => sum + count)).toBeGreaterThan(20);
  });

  test('so do pieces of long work', async () => {
    const counts = await turnsDuring((loop, go) => {
      const again = (): void => void (go() && loop.afterSockets(again));
      for (let i = 0; i < 300; i++) loop.afterSockets(again);
    });
    expect(Math.max(...counts)).toBeLessThan(50);
    expect(counts.reduce((sum, count) => sum + count)).toBeGreaterThan(20);
  });

  test.each(['wake', 'afterSockets'] as const)(
    '%s keeps the order of its calls, whatever each of them takes',
    async (how) => {
      const loop = new NodeLoop();
      const order: number[] = [];
      let next = 0;
      const add = (): void => {
        const number = next++;
        loop[how](() => {
          order.push(number);
          if (number % 3 === 0) burn(1.5);
          if (next < 300) add();
          if (number % 7 === 0 && next < 300) add();
        });
      };
      for (let i = 0; i < 20; i++) add();
      await expect.poll(() => next >= 300 && order.length === next, patient).toBe(true);
      expect(order).toEqual(Array.from({ length: next }, (_, i) => i));
    },
  );
});
