// Memory that its owner transfers away while a request uses it: it stays, or the request fails with EFAULT and nobody
// writes to what it has become. (Node.js 20 has no ArrayBuffer.prototype.transfer, 22 takes marked memory, 24 refuses.)
import { setTimeout as sleep } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { REQ_FUA, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { PINS_HOLD } from '../../src/engine/address.ts';
import { threadCalls } from '../../src/engine/calls.ts';
import { DeviceMapper } from '../../src/index.ts';
import { connectNbd } from '../../src/nbd/index.ts';
import { serve } from '../devices/nbd-support.ts';
import { runs } from '../support/seed.ts';
import { randomBytes } from '../support/tmp.ts';
import { callsWith, ENGINES, libcWith, openImage, request, type TestedEngine, vecOf } from './harness.ts';

type Take = (buffer: ArrayBuffer) => ArrayBuffer;

interface Transferable {
  transfer?(byteLength?: number): ArrayBuffer;
}

const BYTE_LENGTH = 200 * 512;

/** Ways to take memory away that this Node.js has. */
const WAYS: [string, Take][] = [
  ['structuredClone', (buffer) => structuredClone(buffer, { transfer: [buffer] })],
  ...('transfer' in ArrayBuffer.prototype
    ? ([
        ['transfer', (buffer) => (buffer as Transferable).transfer!()],
        ['transfer to a longer buffer', (buffer) => (buffer as Transferable).transfer!(4 * BYTE_LENGTH)],
        ['transfer to a shorter buffer', (buffer) => (buffer as Transferable).transfer!(512)],
      ] as [string, Take][])
    : []),
];

/** What `take` gives; null where the memory is kept. */
function taken(page: Uint8Array, take: Take): Uint8Array | null {
  let moved: ArrayBuffer;
  try {
    moved = take(page.buffer as ArrayBuffer);
  } catch {
    return null;
  }
  return page.byteLength > 0 ? null : new Uint8Array(moved);
}

/** Requests are under way when submit() returns, for a while. */
function slowImage(engine: TestedEngine, pinsHold?: boolean) {
  const later =
    (call: typeof threadCalls.read): typeof threadCalls.read =>
    (fd, views, position, done) =>
      setTimeout(() => call(fd, views, position, done), 20);
  const threads = callsWith({ read: later(threadCalls.read), write: later(threadCalls.write) });
  const libc = libcWith(() => ({ preadv2: () => -1, errno: () => Errno.EAGAIN, uring: () => null }));
  return openImage(engine, {
    byte: 3,
    ...(engine === 'direct' ? { libc } : {}),
    threads: pinsHold === undefined ? threads : { ...threads, pinsHold },
  });
}

it('a mark holds on every Node.js but 21 to 23', () => {
  const major = Number(process.versions.node.split('.')[0]);
  expect(PINS_HOLD).toBe(major < 21 || major > 23);
});

describe.each(WAYS)('%s', (_way, take) => {
  describe.each(ENGINES)('with the %s engine', (engine) => {
    it('a read gives its data or EFAULT, and what the memory has become stays as it is', async () => {
      const device = slowImage(engine);
      const page = new Uint8Array(BYTE_LENGTH).fill(9);
      const answer = request(device, REQ_OP_READ, 0, BYTE_LENGTH / 512, { vecs: vecOf(page) });
      const moved = taken(page, take);
      const { status } = await answer;
      if (moved === null) {
        expect(status).toBe(0);
        expect(page.every((byte) => byte === 3)).toBe(true);
      } else {
        expect(status).toBe(Errno.EFAULT);
        expect(moved.subarray(0, 512).every((byte) => byte === 9)).toBe(true);
        await sleep(30);
        expect(moved.subarray(0, BYTE_LENGTH).every((byte) => byte === 9 || byte === 0)).toBe(true);
      }
      expect(device.file.pendingCount).toBe(0);
    });

    it('a write stores its data, or fails with EFAULT and stores nothing else', async () => {
      const device = slowImage(engine);
      const page = new Uint8Array(BYTE_LENGTH).fill(9);
      const options = { vecs: vecOf(page), flags: REQ_FUA };
      const answer = request(device, REQ_OP_WRITE, 0, BYTE_LENGTH / 512, options);
      const moved = taken(page, take);
      moved?.fill(0xee);
      const { status } = await answer;
      expect(moved === null ? [0] : [0, Errno.EFAULT]).toContain(status);
      const found = new Uint8Array(BYTE_LENGTH);
      expect((await request(device, REQ_OP_READ, 0, BYTE_LENGTH / 512, { vecs: vecOf(found) })).status).toBe(0);
      expect(found.every((byte) => byte === 9 || (status !== 0 && byte === 3))).toBe(true);
    });
  });

  it('a write to an NBD server sends its data and nothing else; a read gives its data or EFAULT', async () => {
    const sectorCount = 4096;
    const server = await serve(new MemoryDevice('disk', sectorCount));
    const client = await connectNbd(server.uri);
    const dm = new DeviceMapper();
    onTestFinished(async () => {
      await dm.close();
      await client.close();
    });
    const disk = await dm.open(server.uri);
    const writes: [string, (page: Uint8Array) => Promise<void>][] = [
      ['connection', (page) => client.write(0, page)],
      ['disk', (page) => disk.write(0, page)],
    ];
    const byteLength = sectorCount * 512;
    for (const [name, write] of writes) {
      server.device.poke(0, new Uint8Array(byteLength).fill(3));
      const page = new Uint8Array(byteLength).fill(9);
      const end = write(page).then(
        () => 'done',
        (error: { code: string }) => error.code,
      );
      await new Promise(setImmediate);
      taken(page, take)?.fill(0xee);
      expect([name, ['done', 'EFAULT'].includes(await end)]).toEqual([name, true]);
      expect(server.device.peek(0, sectorCount).every((byte) => byte === 9 || byte === 3)).toBe(true);
    }
    server.device.poke(0, new Uint8Array(byteLength).fill(3));
    const page = new Uint8Array(byteLength).fill(9);
    const end = disk.readInto(0, page).then(
      () => 'done',
      (error: { code: string }) => error.code,
    );
    await new Promise(setImmediate);
    const moved = taken(page, take);
    expect(await end).toBe(moved === null ? 'done' : 'EFAULT');
    if (moved === null) expect(page.every((byte) => byte === 3)).toBe(true);
    // The connection serves on.
    expect((await client.read(0, 512)).every((byte) => byte === 3)).toBe(true);
    expect((await disk.read(0, 1)).every((byte) => byte === 3)).toBe(true);
  });

  it('a request that waits for a resume gives its data or EFAULT', async () => {
    const dm = new DeviceMapper();
    onTestFinished(() => dm.close());
    const device = new MemoryDevice('m', 512);
    device.poke(0, new Uint8Array(512 * 512).fill(3));
    dm.devices.register('m', device);
    const disk = await dm.create('d', '0 512 linear m 0');
    await dm.suspend('d');
    for (const op of ['readInto', 'write'] as const) {
      const page = new Uint8Array(BYTE_LENGTH).fill(9);
      const end = disk[op](0, page).then(
        () => 'done',
        (error: { code: string }) => error.code,
      );
      const moved = taken(page, take);
      await dm.resume('d');
      expect(await end).toBe(moved === null ? 'done' : 'EFAULT');
      await dm.suspend('d');
    }
    await dm.resume('d');
  });
});

describe.each(ENGINES)('where a mark does not hold, the %s engine', (engine) => {
  it('moves the data of many requests at once through its own buffers', async () => {
    const device = slowImage(engine, false);
    const count = 100;
    const sectorCount = 20;
    const written = Array.from({ length: count }, (_, index) => randomBytes(sectorCount * 512, index));
    const write = (page: Uint8Array, index: number) =>
      request(device, REQ_OP_WRITE, index * sectorCount, sectorCount, { vecs: vecOf(page), flags: REQ_FUA });
    for (const { status } of await Promise.all(written.map(write))) expect(status).toBe(0);
    expect(device.engines.counters.bouncedRequestCount).toBe(count);
    const read = Array.from({ length: count }, () => new Uint8Array(sectorCount * 512));
    await Promise.all(
      read.map((page, index) => request(device, REQ_OP_READ, index * sectorCount, sectorCount, { vecs: vecOf(page) })),
    );
    expect(read.every((page, index) => Buffer.compare(page, written[index]!) === 0)).toBe(true);
  });

  it('copies no shared memory', async () => {
    const device = slowImage(engine, false);
    const page = new Uint8Array(new SharedArrayBuffer(BYTE_LENGTH));
    expect((await request(device, REQ_OP_READ, 0, BYTE_LENGTH / 512, { vecs: vecOf(page) })).status).toBe(0);
    expect(page.every((byte) => byte === 3)).toBe(true);
    expect(device.engines.counters.bouncedRequestCount).toBe(0);
  });

  it('moves any range in any pieces', async () => {
    const device = slowImage(engine, false);
    const cut = fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(
        fc.nat(1000),
        fc.integer({ min: 1, max: 300 }),
        cut,
        fc.nat(),
        async (sector, count, cuts, seed) => {
          const content = randomBytes(count * 512, seed);
          const vecs = [];
          for (let at = 0, i = 0; at < content.byteLength; i++) {
            const byteLength = Math.min(cuts[i % cuts.length]!, content.byteLength - at);
            const page = new Uint8Array(byteLength + 7);
            page.set(content.subarray(at, at + byteLength), 7);
            vecs.push({ page, offset: 7, byteLength });
            at += byteLength;
          }
          expect((await request(device, REQ_OP_WRITE, sector, count, { vecs, flags: REQ_FUA })).status).toBe(0);
          for (const vec of vecs) vec.page.fill(0);
          expect((await request(device, REQ_OP_READ, sector, count, { vecs })).status).toBe(0);
          const found = Buffer.concat(vecs.map(({ page }) => page.subarray(7)));
          expect(found.equals(content)).toBe(true);
        },
      ),
      { numRuns: runs(15) },
    );
  });
});
