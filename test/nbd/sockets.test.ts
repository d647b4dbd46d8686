// Real sockets: the listener's care for its file, and the public client and server over them.
import { existsSync, fstatSync, lstatSync, openSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import {
  connectNbd,
  formatNbdUri,
  type ListenAddress,
  type Listener,
  listNbdExports,
  NbdServer,
  NodeLoop,
} from '../../src/nbd/index.ts';
import { run } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';
import { HeldDevice, pattern } from './support.ts';

const loop = new NodeLoop();
/** A machine under load takes its time. */
const patient = { timeout: 150_000 };

function listen(address: ListenAddress, server?: NbdServer): Promise<Listener> {
  return new Promise((resolve, reject) => {
    loop.listen(
      address,
      (transport) => (server === undefined ? transport.destroy() : server.accept(transport)),
      (error, listener) => {
        if (listener === null) reject(error);
        else resolve(listener);
      },
    );
  });
}

const closed = (listener: Listener) => new Promise<void>((resolve) => listener.close(resolve));
const turns = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

describe('a connection of another thread', () => {
  it('that is none is refused, and its descriptor closed', () => {
    const path = join(tempDir('adopt'), 'file');
    writeFileSync(path, '');
    const fd = openSync(path, 'r');
    expect(() => loop.adopt(fd, 'nobody')).toThrow();
    expect(() => fstatSync(fd)).toThrow(/EBADF/);
  });
});

describe('a Unix socket', () => {
  it('has mode 0600, leaves nothing else behind, and goes when closed', async () => {
    const folder = tempDir();
    const path = join(folder, 's.sock');
    const listener = await listen({ unix: path });
    expect(listener.address).toBe(`unix:${path}`);
    expect(statSync(path).mode & 0o7777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(['s.sock']);
    await closed(listener);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('has the mode that is asked for, whatever the umask', async () => {
    const path = join(tempDir(), 's.sock');
    const listener = await listen({ unix: path, mode: 0o666 });
    expect(statSync(path).mode & 0o7777).toBe(0o666);
    await closed(listener);
  });

  it('takes the place of a dead one', async () => {
    const path = join(tempDir(), 's.sock');
    const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
    await run(process.execPath, ['-e', script]);
    const dead = lstatSync(path);
    expect(dead.isSocket()).toBe(true);
    const listener = await listen({ unix: path });
    expect(lstatSync(path).ino).not.toBe(dead.ino);
    await closed(listener);
  });

  it('never takes the place of a living one, nor of a file', async () => {
    const folder = tempDir();
    const path = join(folder, 's.sock');
    const first = await listen({ unix: path });
    await expect(listen({ unix: path })).rejects.toMatchObject({ code: 'EADDRINUSE' });
    await closed(first);
    writeFileSync(path, 'precious');
    await expect(listen({ unix: path })).rejects.toMatchObject({ code: 'EADDRINUSE' });
    expect(statSync(path).size).toBe(8);
    expect(readdirSync(folder)).toEqual(['s.sock']);
  });

  it('leaves another file alone that has taken its place', async () => {
    const path = join(tempDir(), 's.sock');
    const listener = await listen({ unix: path });
    const { unlinkSync } = await import('node:fs');
    unlinkSync(path);
    writeFileSync(path, 'precious');
    await closed(listener);
    expect(existsSync(path)).toBe(true);
  });

  it('says what is wrong with a path', async () => {
    const folder = tempDir();
    await expect(listen({ unix: join(folder, 'x'.repeat(200)) })).rejects.toMatchObject({ code: 'ENAMETOOLONG' });
    await expect(listen({ unix: join(folder, 'no', 'folder') })).rejects.toMatchObject({ code: 'ENOENT' });
    await expect(listen({ unix: '\0abstract' })).rejects.toMatchObject({ code: 'EINVAL' });
  });
});

describe('TCP', () => {
  it.each(['0.0.0.0', '::', '', '192.0.2.1', 'example.org'])('refuses to listen at %j unless told', async (host) => {
    await expect(listen({ host, port: 0 })).rejects.toMatchObject({ code: 'EACCES' });
  });

  it('listens everywhere when told', async () => {
    const listener = await listen({ host: '0.0.0.0', port: 0, allowRemote: true });
    expect(listener.port).toBeGreaterThan(0);
    await closed(listener);
  });

  it('says that a port is taken', async () => {
    const listener = await listen({ host: '127.0.0.1', port: 0 });
    await expect(listen({ host: '127.0.0.1', port: listener.port })).rejects.toMatchObject({ code: 'EADDRINUSE' });
    await closed(listener);
  });
});

describe.each(['unix', 'tcp'])('client and server over %s', (kind) => {
  async function serve(device: MemoryDevice | HeldDevice) {
    const server = new NbdServer({ reactor: loop, exports: [{ name: 'disk/1', description: 'a disk', device }] });
    const socket = join(tempDir(), 's.sock');
    const listener = await listen(kind === 'unix' ? { unix: socket } : { host: '127.0.0.1', port: 0 }, server);
    onTestFinished(() => closed(listener));
    const where = kind === 'unix' ? { socket } : { host: '127.0.0.1', port: listener.port };
    return { server, listener, uri: formatNbdUri({ ...where, exportName: 'disk/1' }) };
  }

  it('shares a disk among several connections', async () => {
    const { server, uri } = await serve(new MemoryDevice('disk', 1 << 17));
    const disk = await connectNbd(uri, { connections: 4 });
    expect([disk.connectionCount, server.statistics.connectionCount]).toEqual([4, 4]);
    const data = pattern((40 << 20) + 7);
    await disk.write(3, data);
    await disk.flush();
    expect(Buffer.compare(await disk.read(3, data.length), data)).toBe(0);
    await disk.close();
    await expect.poll(() => server.statistics.connectionCount, patient).toBe(0);
    await expect(connectNbd(uri, { connections: 17 })).rejects.toMatchObject({ code: 'EINVAL' });
  });

  it('serves 256 connections at once, and closes one more', async () => {
    const { server, uri } = await serve(new MemoryDevice('disk', 2048));
    const disks = await Promise.all(Array.from({ length: 16 }, () => connectNbd(uri, { connections: 16 })));
    expect(server.statistics.connectionCount).toBe(256);
    await expect(connectNbd(uri)).rejects.toThrow();
    const data = pattern(1 << 20);
    // Every one changes its own bytes of every sector.
    await Promise.all(
      disks.flatMap((disk, i) =>
        Array.from({ length: 32 }, (_, sector) => {
          const at = sector * 512 + i * 32;
          return disk.write(at, data.subarray(at, at + 32));
        }),
      ),
    );
    expect(Buffer.compare(await disks[0]!.read(0, 16384), data.subarray(0, 16384))).toBe(0);
    await Promise.all(disks.map((disk) => disk.close()));
    await expect.poll(() => server.statistics.connectionCount, patient).toBe(0);
  });

  it('reads, writes, zeroes, lists', async () => {
    const { server, uri } = await serve(new MemoryDevice('disk', 16384));
    expect(await listNbdExports(uri)).toEqual([{ name: 'disk/1', description: 'a disk' }]);
    const disk = await connectNbd(uri);
    expect(disk).toMatchObject({ byteLength: 16384 * 512, readOnly: false });
    const data = pattern(3 << 20);
    await disk.write(512, data, { fua: true });
    await disk.flush();
    expect(Buffer.compare(await disk.read(512, data.length), data)).toBe(0);
    await disk.writeZeroes(512, 4096);
    await disk.trim(8192, 4096);
    expect((await disk.read(512, 4096)).every((byte) => byte === 0)).toBe(true);
    await expect(disk.read(16384 * 512, 512)).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(disk.write(16384 * 512, pattern(512))).rejects.toMatchObject({ code: 'ENOSPC' });
    await disk.close();
    await expect
      .poll(() => server.statistics, patient)
      .toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
  });

  it('refuses what is not there', async () => {
    const { uri } = await serve(new MemoryDevice('disk', 8));
    await expect(connectNbd(uri.replace('disk', 'other'))).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('makes a client wait that does not read, and forgets it when it goes', async () => {
    const { server, listener } = await serve(new MemoryDevice('disk', 2048));
    const path = listener.address.replace(/^unix:/, '');
    const socket = kind === 'unix' ? connect(path) : connect(listener.port, '127.0.0.1');
    socket.on('error', () => {});
    const go = '00000003' + '49484156454f5054' + '00000007' + '00000006' + '000000000000';
    const read = '25609513' + '0000' + '0000' + '0000000000000000' + '0000000000000000' + '00010000';
    socket.write(Buffer.from(go, 'hex'));
    for (let i = 0; i < 2000; i++) socket.write(Buffer.from(read, 'hex'));
    await expect.poll(() => server.statistics.usedByteLength, patient).toBeGreaterThan(256 << 10);
    await turns(100);
    expect(server.statistics.usedByteLength).toBeLessThanOrEqual(1 << 20);
    socket.destroy();
    await expect
      .poll(() => server.statistics, patient)
      .toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
  });

  it('shuts down with requests in flight', async () => {
    const device = new HeldDevice(64);
    const { server, uri } = await serve(device);
    const disk = await connectNbd(uri);
    const reading = disk.read(0, 512);
    await expect.poll(() => device.bios.length, patient).toBe(1);
    const shutdown = new Promise<Error | null>((resolve) => server.shutdown(resolve));
    device.finish(0);
    await expect.poll(() => device.bios.length, patient).toBe(1);
    device.finish(0);
    expect(await reading).toHaveLength(512);
    expect(await shutdown).toBe(null);
    await expect(disk.read(0, 512)).rejects.toThrow();
  });
});

it('a connection whose handler throws ends alone', async () => {
  const errors: unknown[] = [];
  const own = new NodeLoop({ onError: (error) => errors.push(error) });
  const path = join(tempDir(), 's.sock');
  const ends: (Error | null)[] = [];
  const listener = await new Promise<Listener>((resolve) =>
    own.listen(
      { unix: path },
      (transport) =>
        transport.setHandler({
          onData: () => {
            throw new Error('a bug');
          },
          onEnd: () => {},
          onDrain: () => {},
          onClose: (error) => ends.push(error),
        }),
      (_error, made) => resolve(made!),
    ),
  );
  const socket = connect(path);
  socket.on('error', () => {});
  socket.write('x');
  await expect.poll(() => ends.map(String), patient).toEqual(['Error: a bug']);
  expect(errors.map(String)).toEqual(['Error: a bug']);
  await closed(listener);
});

it('a loop keeps the order of what it was woken with, past an exception', async () => {
  const events: unknown[] = [];
  const own = new NodeLoop({ onError: (error) => events.push(String(error)) });
  own.wake(() => {
    events.push(1);
    own.wake(() => events.push(3));
    throw new Error('a bug');
  });
  own.wake(() => events.push(2));
  const timer = own.after(0, () => events.push('cancelled'));
  timer.cancel();
  let isDue = false;
  own.after(5, () => {
    isDue = true;
  });
  expect(events).toEqual([]);
  await expect.poll(() => events, patient).toEqual([1, 'Error: a bug', 2, 3]);
  await expect.poll(() => isDue, patient).toBe(true);
});

it('a listener whose server died is told from one that is busy', async () => {
  // A backlog that is full answers EAGAIN, which is no proof of death.
  const path = join(tempDir(), 's.sock');
  const server = createServer(() => {});
  await new Promise<void>((resolve) => server.listen(path, resolve));
  await expect(listen({ unix: path })).rejects.toMatchObject({ code: 'EADDRINUSE' });
  server.close();
});
