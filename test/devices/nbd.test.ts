// The remote device: against our own server in this process, nbdkit and qemu-nbd; servers that die, stall and come back.
import { createHash } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import { dmIoPromise } from '../../src/api/dm-io-promise.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { attachNbd, formatNbdUri } from '../../src/nbd/index.ts';
import { issue } from '../../src/testing/index.ts';
import { itPeer, peer, start } from '../support/peers.ts';
import { randomBytes as seededBytes, tempDir } from '../support/tmp.ts';
import { eventually, pipe, plainProxy, SECTOR_COUNT, serve } from './nbd-support.ts';

let drawn = 0;
const randomBytes = (byteLength: number): Buffer => seededBytes(byteLength, ++drawn);

function mapper(): DeviceMapper {
  const dm = new DeviceMapper();
  onTestFinished(() => dm.close());
  return dm;
}

async function openRemote(uri: string, options: Parameters<typeof attachNbd>[2] = {}) {
  const dm = mapper();
  const attached = await attachNbd(dm, uri, options);
  const disk = await dm.open(uri);
  return { dm, attached, disk };
}

describe('a remote disk', () => {
  it('reads, writes, zeroes, discards and flushes, in a table as well', async () => {
    const { device, uri } = await serve();
    const dm = mapper();
    const attached = await attachNbd(dm, uri);
    const disk = await dm.create('top', `0 1000 linear ${uri} 8\n1000 8 linear ${uri} 0`);
    const data = randomBytes(3 * 512);
    await disk.write(999, data);
    expect(await disk.read(999, 3)).toEqual(data);
    expect(Buffer.from(device.peek(1007, 1))).toEqual(data.subarray(0, 512));
    expect(Buffer.from(device.peek(0, 2))).toEqual(data.subarray(512));
    await disk.writeZeroes(999, 1);
    await disk.flush();
    expect(device.peek(1007, 1)).toEqual(new Uint8Array(512));
    await disk.discard(0, 256);
    expect(attached.device.connectionCount).toBeGreaterThan(0);
    await expect(attached.close()).rejects.toMatchObject({ code: 'EBUSY' });
    await dm.remove('top');
    await attached.close();
    expect([...dm.devices.list()]).toEqual([]);
  });

  it('takes memory in pieces of any length, and requests past what one message has', async () => {
    const { device, uri } = await serve();
    const { attached, dm } = await openRemote(uri);
    const data = randomBytes(5 << 20);
    const pieces: Uint8Array[] = [];
    for (let at = 0; at < data.byteLength; at += 70_001) pieces.push(data.subarray(at, at + 70_001));
    const client = dm.dmIoClient();
    const memory = { type: 'bvec', vecs: pieces.map(vec) } as const;
    await dmIoPromise({ op: 1, memory, client }, [{ bdev: attached.device, sector: 3, count: (5 << 20) / 512 }]);
    expect(Buffer.compare(device.peek(3, (5 << 20) / 512), data)).toBe(0);
    const read = issue(attached.device, 'read', { sector: 3, sectorCount: (5 << 20) / 512 });
    await expect.poll(() => read.ended).toBe(true);
    expect(Buffer.compare(read.data, data)).toBe(0);
  });

  it('tells holes, errors with their sector, and that it can end no synchronous call', async () => {
    const { device, uri } = await serve();
    device.poke(1024, new Uint8Array(512).fill(1));
    const { attached, dm, disk } = await openRemote(uri);
    const extents = [];
    for await (const extent of disk.extents()) extents.push([extent.sector, extent.sectorCount, extent.hole]);
    expect(extents).toEqual([
      [0, 1024, true],
      [1024, 128, false],
      [1152, SECTOR_COUNT - 1152, true],
    ]);
    expect(attached.device.syncObstacle()).toMatch(/another machine/);
    const client = dm.dmIoClient();
    const read = { op: 0, memory: { type: 'buffer', buffer: Buffer.alloc(512) } } as const;
    expect(() => client.io(read, [{ bdev: attached.device, sector: 0, count: 1 }])).toThrow(
      expect.objectContaining({ code: 'DM_WOULD_DEADLOCK' }),
    );
    await expect(attachNbd(dm, uri)).rejects.toMatchObject({ code: 'EEXIST' });
    await expect(attachNbd(dm, uri.replace('disk', 'other'))).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(attachNbd(dm, 'nbd+unix:///x')).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(attachNbd(dm, 'nbd+unix:///x?socket=nowhere.sock')).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(attachNbd(dm, 'nbd://127.0.0.1:1/x')).rejects.toMatchObject({ code: 'ECONNREFUSED' });
  });
});

function vec(page: Uint8Array): { page: Uint8Array; offset: number; byteLength: number } {
  return { page, offset: 0, byteLength: page.byteLength };
}

describe('a connection that is lost', () => {
  it('comes back, and what was in flight is sent again', async () => {
    const cached = new MemoryDevice('disk', SECTOR_COUNT, { limits: { hasWriteCache: true } });
    const { device, uri, cut, shut, reopen } = await serve(cached);
    const { disk } = await openRemote(uri, { reconnect: { delayMilliseconds: 10 } });
    const data = randomBytes(SECTOR_COUNT * 512);
    let done = 0;
    const writes: Promise<void>[] = [];
    for (let sector = 0; sector < SECTOR_COUNT; sector += 64) {
      writes.push(disk.write(sector, data.subarray(sector * 512, (sector + 64) * 512)).then(() => void done++));
    }
    await expect.poll(() => done).toBeGreaterThan(3);
    cut();
    await expect.poll(() => done).toBeGreaterThan(30);
    shut();
    await new Promise((resolve) => setTimeout(resolve, 60));
    reopen();
    await Promise.all(writes);
    expect(Buffer.compare(device.peek(0, SECTOR_COUNT), data)).toBe(0);
    // Acknowledged writes may be lost with the server: the flush says so, once.
    await expect(disk.flush()).rejects.toMatchObject({ code: 'EIO' });
    await disk.flush();
  });

  it('does not make a flush fail where nothing was written since the last', async () => {
    const { uri, cut } = await serve();
    const { disk } = await openRemote(uri, { reconnect: { delayMilliseconds: 10 } });
    await disk.write(0, randomBytes(512));
    await disk.flush();
    cut();
    await disk.read(0, 1);
    await disk.flush();
  });

  it('fails everything after so many attempts, and after so much time', async () => {
    for (const reconnect of [
      { maxAttemptCount: 3, delayMilliseconds: 5 },
      { timeLimitMilliseconds: 60, delayMilliseconds: 20 },
      { maxAttemptCount: 0 },
    ]) {
      const { uri, shut } = await serve();
      const { attached, disk } = await openRemote(uri, { reconnect });
      shut();
      await expect(disk.read(0, 8)).rejects.toMatchObject({ code: 'EIO' });
      await expect(disk.write(0, randomBytes(512))).rejects.toMatchObject({ code: 'EIO' });
      expect(attached.device.failure?.message).toMatch(/the connection was lost and did not come back/);
    }
  });

  it('is taken for lost when the server owes answers and is silent', async () => {
    const real = await serve();
    const proxy = await stallingProxy(new URL(real.uri).searchParams.get('socket')!);
    const reconnect = { silenceMilliseconds: 100, delayMilliseconds: 10 };
    const { disk } = await openRemote(proxy.uri, { connectionCount: 1, reconnect });
    await disk.write(0, randomBytes(512), { fua: true });
    proxy.stall();
    const read = disk.read(0, 1);
    await expect.poll(() => proxy.connectionCount()).toBe(2);
    expect((await read).byteLength).toBe(512);
  });

  it('is not taken back where the export has another size', async () => {
    const socket = join(tempDir(), 's.sock');
    const first = await serve(new MemoryDevice('disk', 64), join(tempDir(), 'a.sock'));
    const second = await serve(new MemoryDevice('disk', 128), join(tempDir(), 'b.sock'));
    let target = new URL(first.uri).searchParams.get('socket')!;
    const proxy = await plainProxy(socket, () => target);
    const { attached, disk } = await openRemote(formatNbdUri({ socket, exportName: 'disk' }));
    target = new URL(second.uri).searchParams.get('socket')!;
    proxy.cut();
    await expect(disk.read(0, 1)).rejects.toMatchObject({ code: 'EIO' });
    expect(attached.device.failure?.message).toMatch(/another size/);
  });
});

/** Passes everything until it is told to stall: then the connections there are say nothing more. */
async function stallingProxy(target: string) {
  const socket = join(tempDir(), 'p.sock');
  let count = 0;
  let current: Socket | null = null;
  await plainProxy(
    socket,
    () => target,
    (client, to) => {
      count++;
      current = to;
      pipe(client, to);
    },
  );
  return {
    uri: formatNbdUri({ socket, exportName: 'disk' }),
    stall: () => void current?.unpipe().resume(),
    connectionCount: () => count,
  };
}

function sha(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Writes all of a disk, in many requests at a time, and reads it back. */
async function exercise(uri: string, image: string | null, interfere: (done: number) => void = () => {}) {
  const { disk } = await openRemote(uri, { reconnect: { delayMilliseconds: 50 } });
  const data = randomBytes(disk.byteLength);
  let done = 0;
  const step = 128;
  await Promise.all(
    Array.from({ length: Math.ceil(disk.sectorCount / step) }, async (_, i) => {
      await disk.write(i * step, data.subarray(i * step * 512, (i + 1) * step * 512));
      interfere(++done);
    }),
  );
  await disk.flush().catch(() => disk.flush());
  expect(sha(await disk.read(0, disk.sectorCount))).toBe(sha(data));
  if (image !== null) expect(sha(readFileSync(image))).toBe(sha(data));
}

describe('real servers', () => {
  itPeer(['nbdkit'], 'nbdkit, several connections', async () => {
    const socket = join(tempDir(), 'k.sock');
    const server = await start(peer('nbdkit'), ['-f', '-U', socket, 'memory', '16M']);
    onTestFinished(() => void server.stop());
    const uri = formatNbdUri({ socket, exportName: '' });
    await eventually(() => openRemote(uri));
    await exercise(uri, null);
  });

  itPeer(['nbdkit'], 'nbdkit that is slow, and killed and started again in the middle', async () => {
    const folder = tempDir();
    const socket = join(folder, 'k.sock');
    const image = join(folder, 'disk.img');
    writeFileSync(image, Buffer.alloc(4 << 20));
    const args = ['-f', '-U', socket, '--filter=delay', 'file', image, 'wdelay=5ms'];
    let server = await start(peer('nbdkit'), args);
    onTestFinished(() => void server.stop());
    const uri = formatNbdUri({ socket, exportName: '' });
    await eventually(() => openRemote(uri));
    await exercise(uri, image, (done) => {
      if (done !== 20) return;
      process.kill(server.pid, 'SIGKILL');
      rmSync(socket, { force: true });
      void start(peer('nbdkit'), args).then((second) => {
        server = second;
      });
    });
  });

  itPeer(['qemu-nbd'], 'qemu-nbd', async () => {
    const folder = tempDir();
    const socket = join(folder, 'q.sock');
    const image = join(folder, 'disk.img');
    writeFileSync(image, Buffer.alloc(8 << 20));
    const server = await start(peer('qemu-nbd'), ['-f', 'raw', '-t', '-e', '8', '-k', socket, image]);
    onTestFinished(() => void server.stop());
    const uri = formatNbdUri({ socket, exportName: '' });
    await eventually(() => openRemote(uri));
    await exercise(uri, image);
  });
});
