// A disk is known again by itself and not by its path: merges, restores and stores that go on never reach another one
// that has taken its name. Crashes are real: the daemon runs in a process of its own and gets SIGKILL.
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { DaemonClient } from '../../src/client/index.ts';
import { makeRecord } from '../../src/control/record-format.ts';
import { connectNbd } from '../../src/nbd/index.ts';
import { dmkit } from '../support/cli.ts';
import { itPeer, peer, start } from '../support/peers.ts';
import { makeImage, randomBytes } from '../support/tmp.ts';
import { eventually, readAll, restoreAll, World, writeSectors } from './kill-support.ts';

const linear = (path: string): string => `0 256 linear ${path} 0`;
const mapping = (path: string): string => `0 256 snapshot-origin ${path}`;

/** A world whose daemon has made devices and is gone. */
async function crashed(
  images: readonly string[],
  prepare: (client: DaemonClient, world: World) => Promise<unknown>,
): Promise<World> {
  const world = new World(images);
  const daemon = await world.daemonProcess();
  await prepare(daemon.client, world);
  await daemon.kill();
  return world;
}

async function overlay(client: DaemonClient, world: World, image: string, name: string): Promise<Buffer> {
  await client.snapshots.create({ origin: world.image(image), name });
  await writeSectors(client, name, [1, 100], 700);
  return readAll(client, name);
}

/** Another image of the same size at a path, as an editor or `mv` puts it there. */
function replace(path: string, seed: number): Buffer {
  const content = makeImage(`${path}.new`, 256, seed);
  renameSync(path, `${path}.old`);
  renameSync(`${path}.new`, path);
  return content;
}

describe('a merge writes into the file that is open', () => {
  for (const mapped of [false, true]) {
    const how = mapped ? 'through the device of the origin' : 'by itself';
    test(`when the image was renamed over, ${how}`, async () => {
      const world = new World(['a']);
      const { client } = await world.daemon();
      if (mapped) await client.create('o', mapping(world.image('a')));
      const content = await overlay(client, world, 'a', 'v');
      const other = replace(world.image('a'), 9);
      await client.snapshots.merge('v');
      expect(readFileSync(world.image('a')).equals(other)).toBe(true);
      expect(readFileSync(`${world.image('a')}.old`).equals(content)).toBe(true);
      if (mapped) expect((await readAll(client, 'o')).equals(content)).toBe(true);
    });

    test(`when the symbolic link leads elsewhere, ${how}`, async () => {
      const world = new World(['a', 'b']);
      const { client } = await world.daemon();
      const link = join(world.images, 'link.img');
      symlinkSync(world.image('a'), link);
      const other = readFileSync(world.image('b'));
      if (mapped) await client.create('o', mapping(link));
      await client.snapshots.create({ origin: link, name: 'v' });
      await writeSectors(client, 'v', [1, 100], 700);
      const content = await readAll(client, 'v');
      unlinkSync(link);
      symlinkSync(world.image('b'), link);
      await client.snapshots.merge('v');
      expect(readFileSync(world.image('b')).equals(other)).toBe(true);
      expect(readFileSync(world.image('a')).equals(content)).toBe(true);
    });
  }

  test('and --delete-cow leaves a file that took the name of the store', async () => {
    const world = new World(['a']);
    const { client } = await world.daemon();
    await overlay(client, world, 'a', 'v');
    renameSync(world.cow('v'), `${world.cow('v')}.old`);
    writeFileSync(world.cow('v'), 'something else');
    expect(await client.snapshots.merge('v', { deleteCow: true })).toMatchObject({ deleted: false });
    expect(readFileSync(world.cow('v'), 'utf8')).toBe('something else');
  });
});

describe('a restore', () => {
  test('refuses an image that took the place of the lost one, and names both; adopt accepts it', async () => {
    const world = await crashed(['a'], (client, world) => client.create('d', linear(world.image('a'))));
    const other = replace(world.image('a'), 9);
    const { client } = await world.daemon();
    const [refused] = await restoreAll(client);
    expect(refused).toMatchObject({ name: 'd', error: expect.stringMatching(/another file now: .*inode.*expected/) });
    expect(refused!.error).toContain('dmkit adopt');
    expect(await client.list()).toEqual([]);
    expect(readFileSync(world.image('a')).equals(other)).toBe(true);
    expect(await client.adopt(['d'])).toEqual([expect.stringContaining('it is accepted')]);
    expect(await client.restore()).toEqual([{ name: 'd', error: null, notices: [] }]);
    expect((await readAll(client, 'd')).equals(other)).toBe(true);
  });

  test('refuses the replaced origin of an overlay; --force accepts it and says so', async () => {
    const world = await crashed(['a'], (client, world) => overlay(client, world, 'a', 'v'));
    replace(world.image('a'), 9);
    const { client } = await world.daemon();
    expect((await restoreAll(client))[0]!.error).toContain('another file now');
    const [forced] = await client.restore(undefined, { force: true });
    expect(forced!.error).toBe(null);
    expect(forced!.notices.join()).toContain('another file now');
  });

  test('puts a stacked device on its own lower one and on no other that came meanwhile', async () => {
    const world = await crashed(['a', 'b'], async (client, world) => {
      await client.create('low', linear(world.image('a')));
      await client.create('top', '0 256 linear dm:low 0');
    });
    const { client } = await world.daemon();
    const minors = new Map((await client.lost()).devices.map(({ name, minor }) => [name, minor]));
    const other = await client.create('other', linear(world.image('b')));
    expect([...minors.values()]).not.toContain(other.minor);
    await expect(client.create('third', linear(world.image('b')), { minor: minors.get('low')! })).rejects.toThrow();
    // Without the lower one it isn't made at all.
    expect(await client.restore(['top'])).toMatchObject([{ error: expect.stringContaining('low') }]);
    // A device of that name which is no lost one is not it.
    await client.create('low', linear(world.image('b')));
    expect(await client.restore(['top'])).toMatchObject([{ error: expect.stringContaining('low') }]);
    await client.remove('low');
    for (const { error } of await restoreAll(client)) expect(error).toBe(null);
    expect((await readAll(client, 'top')).equals(readFileSync(world.image('a')))).toBe(true);
    expect((await client.info('low')).minor).toBe(minors.get('low'));
  });

  test('holds an origin back while the store of its overlay is away, and both are right afterwards', async () => {
    let content: Buffer | null = null;
    const world = await crashed(['a'], async (client, world) => {
      mkdirSync(join(world.path, 'stores'));
      await client.create('o', mapping(world.image('a')));
      const { path } = world;
      await client.snapshots.create({ origin: world.image('a'), name: 'v', cowFolder: join(path, 'stores') });
      await writeSectors(client, 'v', [1, 100], 700);
      content = await readAll(client, 'v');
    });
    const stores = join(world.path, 'stores');
    renameSync(stores, `${stores}-away`);
    const { client } = await world.daemon();
    const results = new Map((await restoreAll(client)).map((one) => [one.name, one]));
    expect(results.get('v')!.error).toContain('v.cow');
    expect(results.get('o')).toMatchObject({ error: null, notices: [expect.stringContaining('overlay v is missing')] });
    expect(await client.info('o')).toMatchObject({
      suspended: true,
      suspendedBy: { reason: expect.stringContaining('overlay v is missing') },
    });
    const disk = await connectNbd(await client.uri('o'));
    const data = randomBytes(512, 4711);
    let isWritten = false;
    expect(disk.byteLength).toBe(256 * 512);
    const writing = disk.write(50 * 512, data).then(() => {
      isWritten = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect([
      isWritten,
      readFileSync(world.image('a'))
        .subarray(50 * 512, 51 * 512)
        .equals(data),
    ]).toEqual([false, false]);
    renameSync(`${stores}-away`, stores);
    expect(await client.restore()).toMatchObject([{ name: 'v', error: null }]);
    await writing;
    await disk.close();
    expect((await client.info('o')).suspended).toBe(false);
    expect((await readAll(client, 'v')).equals(content!)).toBe(true);
    expect((await readAll(client, 'o')).subarray(50 * 512, 51 * 512).equals(data)).toBe(true);
  });

  test('of an origin and its overlay says nothing of a missing one', async () => {
    const world = await crashed(['a'], async (client, world) => {
      await client.create('o', mapping(world.image('a')));
      await overlay(client, world, 'a', 'v');
    });
    const { client } = await world.daemon();
    const results = await restoreAll(client);
    expect(results.find(({ name }) => name === 'o')).toEqual({ name: 'o', error: null, notices: [] });
  });

  test('says of a transient overlay that it is not restored', async () => {
    const world = await crashed(['a'], async (client, world) => {
      await client.snapshots.create({ origin: world.image('a'), name: 't', store: 'transient' });
      await client.create('d', '0 8 zero');
    });
    const { code, stdout, stderr } = await dmkit(['restore'], { env: world.environment });
    expect([code, stdout]).toEqual([1, 'd\n']);
    expect(stderr).toContain('t: not restored: its store is transient');
    expect((await dmkit(['lost'], { env: world.environment })).stdout).toBe('No lost devices\n');
    await dmkit(['shutdown'], { env: world.environment });
  });
});

describe('the list of lost devices', () => {
  test('survives two crashes with a create between them', async () => {
    const world = await crashed(['a', 'b'], (client, world) => client.create('one', linear(world.image('a'))));
    const second = await world.daemonProcess();
    await second.client.create('two', linear(world.image('b')));
    await second.kill();
    const third = await world.daemonProcess();
    await third.kill();
    const { client } = await world.daemon();
    expect((await client.lost()).devices.map(({ name }) => name)).toEqual(['one', 'two']);
    for (const { error } of await restoreAll(client)) expect(error).toBe(null);
    expect((await readAll(client, 'one')).equals(readFileSync(world.image('a')))).toBe(true);
    expect((await readAll(client, 'two')).equals(readFileSync(world.image('b')))).toBe(true);
  });

  itPeer(['nbdkit'], 'keeps a device whose server is down during two restores', async () => {
    const world = new World(['a']);
    const socket = join(world.path, 's.sock');
    const serve = async () => {
      const server = await start(peer('nbdkit'), ['-f', '-U', socket, 'file', world.image('a')]);
      await eventually(() => existsSync(socket));
      return server;
    };
    let server = await serve();
    const first = await world.daemonProcess();
    await first.client.create('d', `0 256 linear nbd+unix:///?socket=${socket} 0`);
    await first.kill();
    await server.stop();
    rmSync(socket, { force: true });
    for (let reboot = 0; reboot < 2; reboot++) {
      const next = await world.daemonProcess();
      const [result] = await next.client.restore();
      expect(result!.error).not.toBe(null);
      expect((await next.client.lost()).devices).toMatchObject([{ name: 'd', error: result!.error }]);
      await next.kill();
    }
    server = await serve();
    const { client, daemon } = await world.daemon();
    expect(await client.restore()).toMatchObject([{ name: 'd', error: null }]);
    expect((await readAll(client, 'd')).equals(readFileSync(world.image('a')))).toBe(true);
    await daemon.stop('shutdown');
    await server.stop();
  });
});

describe('a journal', () => {
  test('that is damaged in the middle gives the whole records, and names the damaged one', async () => {
    const world = await crashed(['a'], async (client, world) => {
      for (const name of ['first', 'middle', 'last'])
        await client.create(name, linear(world.image('a')), { readOnly: true });
    });
    const bytes = readFileSync(world.folder.journal);
    const at = bytes.indexOf('middle');
    expect(at).toBeGreaterThan(0);
    bytes[at + 20]! ^= 0xff;
    writeFileSync(world.folder.journal, bytes);
    const { client } = await world.daemon();
    const { devices, damage } = await client.lost();
    expect(devices.map(({ name }) => name)).toEqual(['first', 'last']);
    expect(damage).toEqual([expect.stringMatching(/journal\.json: bytes \d+ to \d+ are damaged.*middle/)]);
    for (const { error } of await restoreAll(client)) expect(error).toBe(null);
    const told = await dmkit(['lost'], { env: world.environment });
    expect(told.stderr).toContain('are damaged');
  });

  test('of version 0.1 is read, in both of its files', async () => {
    const world = new World(['a']);
    mkdirSync(world.folder.path, { mode: 0o700 });
    const device = (name: string, minor: number, params: string) => ({
      id: minor,
      name,
      uuid: '',
      minor,
      suspended: false,
      live: { readOnly: false, lines: [{ sector: 0, sectorCount: 256, type: 'linear', params }] },
      inactive: null,
    });
    const file = (...devices: object[]): string => `${JSON.stringify({ format: 1, major: 253, devices })}\n`;
    writeFileSync(world.folder.journal, file(device('top', 5, '253:4 0'), device('low', 4, `${world.image('a')} 0`)));
    writeFileSync(world.folder.lostJournal, file(device('older', 7, `${world.image('a')} 0`)));
    const { client } = await world.daemon();
    for (const { error } of await restoreAll(client)) expect(error).toBe(null);
    expect((await client.list()).map(({ name }) => name)).toEqual(['low', 'older', 'top']);
    expect((await readAll(client, 'top')).equals(readFileSync(world.image('a')))).toBe(true);
    const { minor } = await client.info('low');
    expect(await client.deps('top')).toMatchObject([{ minor }]);
  });

  test('of a newer version is refused with a sentence, and stays as it is', async () => {
    const world = await crashed(['a'], (client) => client.create('d', '0 8 zero'));
    const text = makeRecord(1, '{"format":9}\n').toString('latin1');
    writeFileSync(world.folder.journal, text, 'latin1');
    const { code, stderr } = await dmkit(['restore'], { env: world.environment });
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/newer|version/);
    expect(stderr).not.toContain('    at ');
    expect(readFileSync(world.folder.journal, 'latin1')).toBe(text);
  });
});

describe('a store that was kept', () => {
  const stale = (text: string) => ({ code: 'ESTALE', cause: { message: expect.stringContaining(text) } });

  /** An overlay that was dropped, with its content. */
  async function kept(prepare: (client: DaemonClient, world: World) => Promise<unknown> = async () => {}) {
    const world = new World(['a', 'b']);
    const { client, daemon } = await world.daemon();
    await prepare(client, world);
    const content = await overlay(client, world, 'a', 'v');
    const again = (options: { origin?: string; force?: boolean } = {}) =>
      client.snapshots.create({ origin: world.image('a'), name: 'v', cow: world.cow('v'), ...options });
    return { world, client, daemon, content, again };
  }

  test('goes on over the same origin, without a notice', async () => {
    const { client, content, again } = await kept();
    await client.snapshots.drop('v');
    expect((await again()).notices).toEqual([]);
    expect((await readAll(client, 'v')).equals(content)).toBe(true);
  });

  test('goes on after its origin was opened for writing and not written', async () => {
    const { world, client, content, again } = await kept();
    await client.snapshots.drop('v');
    for (const table of [mapping(world.image('a')), linear(world.image('a'))]) {
      await client.create('d', table);
      await client.remove('d');
    }
    expect((await again()).notices).toEqual([]);
    expect((await readAll(client, 'v')).equals(content)).toBe(true);
  });

  test('is refused after a merge into its origin, and the merge names it', async () => {
    const { world, client, again } = await kept();
    await client.snapshots.drop('v');
    await client.snapshots.create({ origin: world.image('a'), name: 'w' });
    await writeSectors(client, 'w', [1], 3);
    expect(await client.snapshots.merge('w', { deleteCow: true })).toMatchObject({ stale: [world.cow('v')] });
    await expect(again()).rejects.toMatchObject(stale('was changed'));
    expect(await client.list()).toEqual([]);
    expect((await again({ force: true })).notices).toEqual([expect.stringContaining('was changed')]);
  });

  test('is refused when its origin was touched', async () => {
    const { world, client, again } = await kept();
    await client.snapshots.drop('v');
    utimesSync(world.image('a'), 1, 1);
    await expect(again()).rejects.toMatchObject(stale('--force'));
    await again({ force: true });
  });

  test('is refused over another origin, and both are named', async () => {
    const { world, client, again } = await kept();
    await client.snapshots.drop('v');
    const origin = world.image('b');
    const named = (path: string) => expect(again({ origin })).rejects.toMatchObject(stale(path));
    for (const path of [world.cow('v'), world.image('a'), origin]) await named(path);
    await again({ origin, force: true });
  });

  test('is refused over a file that took the place of its origin', async () => {
    const { world, client, again } = await kept();
    await client.snapshots.drop('v');
    replace(world.image('a'), 9);
    await expect(again()).rejects.toMatchObject(stale('was there before'));
  });

  test('is accepted with a notice after a crash', async () => {
    const world = await crashed(['a'], (client, world) => overlay(client, world, 'a', 'v'));
    const { client } = await world.daemon();
    await client.forget(['v']);
    const cow = world.cow('v');
    let notices: string[] = [];
    await eventually(async () => {
      try {
        ({ notices } = await client.snapshots.create({ origin: world.image('a'), name: 'v', cow }));
        return true;
      } catch (error) {
        if ((error as { code?: string }).code !== 'EBUSY') throw error;
        return false;
      }
    });
    expect(notices).toEqual([expect.stringContaining('was not detached cleanly')]);
  });

  test('that a bare table made is accepted', async () => {
    const world = new World(['a']);
    const { client } = await world.daemon();
    writeFileSync(world.cow('bare'), '');
    truncateSync(world.cow('bare'), 1 << 20);
    const table = `0 256 snapshot ${world.image('a')} ${world.cow('bare')} P 32`;
    await client.create('v', table);
    await writeSectors(client, 'v', [1, 100], 700);
    const content = await readAll(client, 'v');
    await client.remove('v');
    copyFileSync(world.image('a'), world.image('copy'));
    for (const origin of ['a', 'copy']) {
      const options = { origin: world.image(origin), name: 'v', cow: world.cow('bare') };
      expect((await client.snapshots.create(options)).notices).toEqual([]);
      expect((await readAll(client, 'v')).equals(content)).toBe(true);
      await client.snapshots.drop('v');
    }
  });
});
