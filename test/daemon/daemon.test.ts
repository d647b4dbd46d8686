// A daemon over its sockets: users, journal, restore, stopping.
import { readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { connect as connectSocket } from 'node:net';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { startDaemon } from '../../src/daemon/daemon.ts';
import { DaemonFolder } from '../../src/daemon/folder.ts';
import { connectNbd, listNbdExports } from '../../src/nbd/index.ts';
import { makeImage, tempDir } from '../support/tmp.ts';
import { clientOf, running } from './support.ts';

async function eventually(condition: () => Promise<boolean>): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt++) {
    if (await condition()) return;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error('it did not come to that');
}

function image(sectorCount = 64): string {
  const path = join(tempDir('image'), 'a.img');
  makeImage(path, sectorCount);
  return path;
}

describe('users', () => {
  test('an NBD client counts from the choice of an export to its end', async () => {
    const { client, folder } = await running();
    await client.create('d', '0 64 zero');
    await listNbdExports({ socket: folder.nbdSocket, exportName: '' });
    expect((await client.info('d')).openCount).toBe(0);
    const one = await connectNbd(await client.uri('d'));
    const two = await connectNbd(await client.uri('d'));
    expect((await client.info('d')).openCount).toBe(2);
    await expect(client.remove('d')).rejects.toMatchObject({ code: 'EBUSY' });
    await one.close();
    await two.close();
    await eventually(async () => (await client.info('d')).openCount === 0);
    await client.remove('d');
  });

  test('a deferred removal comes when the last client leaves', async () => {
    const { client } = await running();
    await client.create('d', '0 64 zero');
    const disk = await connectNbd(await client.uri('d'));
    await client.remove('d', { deferred: true });
    expect((await client.info('d')).deferredRemove).toBe(true);
    await disk.read(0, 512);
    await disk.close();
    await eventually(async () => (await client.list()).length === 0);
  });

  test('a device is an export from its first load on, under its name of the moment', async () => {
    const { client, folder } = await running();
    const names = async (): Promise<string[]> =>
      (await listNbdExports({ socket: folder.nbdSocket, exportName: '' })).map(({ name }) => name);
    await client.create('empty', null);
    expect(await names()).toEqual([]);
    await client.create('a', '0 64 zero');
    const disk = await connectNbd(await client.uri('a'));
    await client.rename('a', 'b');
    await client.create('a', '0 8 zero');
    expect((await names()).sort()).toEqual(['a', 'b']);
    expect((await disk.read(0, 512)).byteLength).toBe(512);
    await disk.close();
    expect((await connectNbd(await client.uri('a')).then(async (d) => [d.byteLength, await d.close()]))[0]).toBe(4096);
    await client.removeAll();
    expect(await names()).toEqual([]);
  });

  test('a request of a client waits while its device is suspended, and the new table answers it', async () => {
    const { client } = await running();
    const path = image(65);
    await client.create('d', '0 64 zero');
    const disk = await connectNbd(await client.uri('d'));
    await client.suspend('d');
    const reading = disk.read(0, 512);
    await client.load('d', `0 64 linear ${path} 1`);
    await client.resume('d');
    expect((await reading).equals(readFileSync(path).subarray(512, 1024))).toBe(true);
    await disk.close();
  });
});

describe('requests', () => {
  test('relative paths start in the caller’s folder', async () => {
    const { client } = await running();
    const path = image();
    await client.create('d', '0 64 linear a.img 0', { baseFolder: join(path, '..') });
    expect((await client.table('d'))[0]!.params).toBe(`${path} 0`);
    await expect(client.load('d', '0 64 linear nosuch.img 0')).rejects.toMatchObject({
      code: 'ENODEV',
      reason: 'linear: Device lookup failed (-ENODEV)',
      cause: { message: expect.stringContaining(join(process.cwd(), 'nosuch.img')) },
    });
  });

  test('a suspend whose caller goes away is undone', async () => {
    const { client, folder } = await running();
    await client.create('low', '0 64 zero');
    await client.create('top', '0 64 linear dm:low 0');
    const disk = await connectNbd(await client.uri('top'));
    await client.suspend('low');
    const reading = disk.read(0, 512);
    await eventually(async () => (await client.info('top')).inFlightCount === 1);
    const other = clientOf(folder);
    await other.list();
    const suspending = other.suspend('top').catch(() => 'gone');
    // Answered after the suspend has begun.
    await other.list();
    await other.close();
    expect(await suspending).toBe('gone');
    await client.resume('low');
    await reading;
    expect((await client.info('top')).suspended).toBe(false);
    expect((await disk.read(8 * 512, 512)).byteLength).toBe(512);
    await disk.close();
  });

  test('a signal undoes a suspend and a wait', async () => {
    const { client } = await running();
    await client.create('low', '0 64 zero');
    await client.create('top', '0 64 linear dm:low 0');
    const disk = await connectNbd(await client.uri('top'));
    await client.suspend('low');
    const reading = disk.read(0, 512);
    await eventually(async () => (await client.info('top')).inFlightCount === 1);
    const signal = AbortSignal.timeout(50);
    await expect(client.suspend('top', { signal })).rejects.toMatchObject({ code: 'EINTR' });
    await expect(client.wait('top', 0, { signal: AbortSignal.timeout(20) })).rejects.toMatchObject({ code: 'EINTR' });
    await client.resume('low');
    await reading;
    await disk.close();
  });

  test('an overlay that suspends its origin for a moment leaves a waiting table of the origin waiting', async () => {
    const { client } = await running();
    const path = image();
    await client.snapshots.create({ origin: path, name: 'one', originName: 'base' });
    await client.load('base', '0 64 zero');
    await client.snapshots.create({ origin: path, name: 'two', cowFolder: tempDir() });
    expect((await client.table('base'))[0]!.type).toBe('snapshot-origin');
    expect((await client.table('base', { inactive: true }))[0]!.type).toBe('zero');
    expect((await client.info('base')).suspended).toBe(false);
  });

  test('an image that grew is taken with its new length at a load, and by refresh on line', async () => {
    const { client } = await running();
    const path = image(64);
    await client.create('d', `0 64 linear ${path} 0`);
    truncateSync(path, 128 * 512);
    // The live device is no reason to believe the old length.
    await client.load('d', `0 128 linear ${path} 0`);
    await client.resume('d');
    expect((await client.info('d')).sectorCount).toBe(128);
    truncateSync(path, 256 * 512);
    expect(await client.refresh('d')).toEqual([{ name: path, sectorCount: 256 }]);
    expect(await client.refresh('d')).toEqual([]);
    truncateSync(path, 96 * 512);
    await expect(client.load('e', `0 8 linear ${path} 0`)).rejects.toMatchObject({ code: 'ENXIO' });
    await client.create('e', `0 96 linear ${path} 0`);
    await expect(client.create('f', `0 97 linear ${path} 0`)).rejects.toThrow(/too small/);
  });

  test('waiting ends with a rename, and with the removal', async () => {
    const { client } = await running();
    await client.create('d', '0 64 zero');
    const waiting = client.wait('d', 0);
    await client.rename('d', 'e');
    expect(await waiting).toMatchObject({ name: 'd', eventNumber: 1 });
    const again = client.wait('e', 1);
    await client.remove('e');
    await again;
  });

  test('a long table goes through', async () => {
    const { client } = await running();
    const table = Array.from({ length: 200_000 }, (_, index) => ({
      sector: index,
      sectorCount: 1,
      type: 'zero',
      params: '',
    }));
    await client.create('d', table);
    expect((await client.info('d')).targetCount).toBe(200_000);
    expect(await client.table('d')).toHaveLength(200_000);
  });

  test('a client that sends rubbish is cut off, and nobody else notices', async () => {
    const { client, folder } = await running();
    await client.create('d', '0 64 zero');
    for (const bytes of [
      Buffer.alloc(64, 255),
      Buffer.from('GET / HTTP/1.1\r\n\r\n'),
      Buffer.from([0, 0, 0, 1, 0x7b]),
    ]) {
      const closed = new Promise((resolve) => {
        const socket = connectSocket(folder.controlSocket, () => socket.write(bytes));
        socket.on('error', () => {});
        socket.on('close', resolve);
        socket.resume();
      });
      await closed;
    }
    expect(await client.list()).toHaveLength(1);
  });
});

describe('one daemon a folder', () => {
  test('a second one is refused, and leaves the first one’s files alone', async () => {
    const { client, folder } = await running();
    await client.create('d', '0 64 zero');
    const before = readdirSync(folder.path).sort();
    await expect(startDaemon({ folder })).rejects.toMatchObject({ code: 'EBUSY' });
    expect(readdirSync(folder.path).sort()).toEqual(before);
    expect(await client.list()).toHaveLength(1);
  });

  test('its sockets are its user’s alone', async () => {
    const { folder } = await running();
    for (const path of [folder.controlSocket, folder.nbdSocket]) expect(statSync(path).mode & 0o777).toBe(0o600);
  });
});

describe('the end', () => {
  test('by a shutdown takes everything down and forgets it', async () => {
    const { client, daemon, folder } = await running();
    await client.create('d', `0 64 linear ${image()} 0`);
    await client.shutdown();
    expect(await daemon.stopped).toBe('shutdown');
    expect(readdirSync(folder.path).sort()).toEqual(['daemon.lock', 'daemon.log']);
  });

  test('is refused while a client uses a device, unless it is forced; stacked devices are no users', async () => {
    const { client, daemon } = await running();
    await client.create('low', '0 64 zero');
    await client.create('top', '0 64 linear dm:low 0');
    const disk = await connectNbd(await client.uri('top'));
    await expect(client.shutdown()).rejects.toThrow(/top.*--force/);
    await client.shutdown({ force: true });
    await daemon.stopped;
    await expect(disk.read(0, 512)).rejects.toThrow();
    await disk.close().catch(() => {});
  });

  test('what was written is in the image when it has ended', async () => {
    const { client, daemon } = await running();
    const path = image();
    await client.create('d', `0 64 linear ${path} 0`);
    const disk = await connectNbd(await client.uri('d'));
    await disk.write(0, Buffer.alloc(512, 7));
    void daemon.stop('signal');
    await daemon.stopped;
    expect(readFileSync(path)[100]).toBe(7);
    await disk.close().catch(() => {});
  });

  test('comes by itself when there is nothing to do and that was asked for', async () => {
    const { client, daemon } = await running({ idleExitSeconds: 0.2 });
    await client.create('d', '0 8 zero');
    await client.close();
    await new Promise((resolve) => setTimeout(resolve, 400));
    await client.remove('d');
    await client.close();
    expect(await daemon.stopped).toBe('idle');
  });
});

describe('restore', () => {
  async function lost() {
    const first = await running();
    const path = image();
    const { client, folder } = first;
    // Names against the order in which they are built.
    await client.create('z-low', `0 64 linear ${path} 0`, { uuid: 'U' });
    await client.create('a-top', '0 32 linear dm:z-low 8', { minor: 7, readOnly: true });
    await client.create('held', '0 8 zero');
    await client.load('held', '0 16 zero');
    await client.suspend('held');
    await client.create('bare', null);
    const before = await client.list();
    await first.daemon.stop('signal');
    return { folder, before, path };
  }

  test('makes every device as it was: stacks, numbers, both tables, suspended ones', async () => {
    const { folder, before } = await lost();
    const { client } = await running({}, folder);
    expect(await client.list()).toEqual([]);
    expect((await client.restore()).map(({ error }) => error)).toEqual([null, null, null, null]);
    expect(await client.list()).toEqual(before);
    expect((await client.table('a-top'))[0]!.params).toMatch(/^\d+:0 8$/);
    expect((await client.lost()).devices).toEqual([]);
    await expect(client.restore()).rejects.toMatchObject({ code: 'ENOENT' });
  });

  test('tells which could not be made, makes the others, and can be tried again', async () => {
    const { folder, path } = await lost();
    const bytes = readFileSync(path);
    writeFileSync(path, bytes.subarray(0, 512));
    const { client } = await running({}, folder);
    const results = await client.restore();
    expect(results.filter(({ error }) => error !== null).map(({ name }) => name)).toEqual(['a-top', 'z-low']);
    expect(results.find(({ name }) => name === 'z-low')!.error).toMatch(
      /a\.img is shorter now: 512 bytes, and 32768 were expected; dmkit adopt/,
    );
    writeFileSync(path, bytes);
    await client.removeAll();
    expect((await client.restore()).every(({ error }) => error === null)).toBe(true);
  });
});

test('a folder whose path is too long for sockets is refused with the reason', async () => {
  const folder = new DaemonFolder(join(tempDir('long'), 'x'.repeat(100)));
  await expect(startDaemon({ folder })).rejects.toThrow(/at most 107/);
});
