// Read-only tables of snapshots over image files: the flag is for the users of the device. The snapshot keeps what its origin
// loses all the same, where its store may be written at all.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { ENGINES } from '../engine/harness.ts';
import { errnoOf } from '../support/errors.ts';
import { itPeer } from '../support/peers.ts';
import { makeImage, tempDir } from '../support/tmp.ts';
import { EngineWorld } from './engine-world.ts';

const SECTOR_COUNT = 512;
const BASE = `0 ${SECTOR_COUNT} snapshot-origin o.img`;
const READ_ONLY = { readOnly: true };

function home() {
  const folder = tempDir('ro');
  const origin = makeImage(join(folder, 'o.img'), SECTOR_COUNT, 3);
  tool('truncate', '-s', String(2 * SECTOR_COUNT * 512), join(folder, 'c.img'));
  return { folder, origin: Buffer.from(origin) };
}

function tool(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { encoding: 'utf8', timeout: 240_000 });
  expect([command, ...args, status, stderr]).toEqual([command, ...args, 0, '']);
}

describe.each(ENGINES)('with the %s engine', (engine) => {
  test.each(['P', 'PO', 'N'])(
    'a read-only snapshot with a blank store keeps what its origin loses (%s)',
    async (word) => {
      const { folder, origin } = home();
      const table = `0 ${SECTOR_COUNT} snapshot o.img c.img ${word} 8`;
      let world = new EngineWorld(engine, folder);
      const base = await world.create('og', BASE);
      let snapshot = await world.create('s', table, READ_ONLY);
      await base.write(0, Buffer.alloc(100 * 512, 0x55));
      expect(world.status('s')).not.toContain('Invalid');
      expect((await snapshot.read(0, SECTOR_COUNT)).equals(origin)).toBe(true);
      expect(await errnoOf(snapshot.write(0, Buffer.alloc(512)))).toBe(Errno.EPERM);
      await world.close();
      if (word === 'N') return;
      world = new EngineWorld(engine, folder);
      snapshot = await world.create('s', table);
      expect((await snapshot.read(0, SECTOR_COUNT)).equals(origin)).toBe(true);
      await world.close();
    },
  );

  test('a read-only merge brings the changes home', async () => {
    const { folder, origin } = home();
    const table = `0 ${SECTOR_COUNT} snapshot o.img c.img P 8`;
    let world = new EngineWorld(engine, folder);
    const snapshot = await world.create('s', table);
    await snapshot.write(40, Buffer.alloc(512, 0x66));
    await world.close();
    world = new EngineWorld(engine, folder);
    await world.create('m', table.replace('snapshot', 'snapshot-merge'), READ_ONLY);
    await expect.poll(() => world.status('m')).toMatch(/ 16\/1024 16$/);
    await world.close();
    origin.fill(0x66, 40 * 512, 41 * 512);
    expect(readFileSync(join(folder, 'o.img')).equals(origin)).toBe(true);
  });

  itPeer(
    ['root'],
    'a store on a read-only file system is read, and lost to the first copy, which raises an event',
    async () => {
      const { folder, origin } = home();
      const sealed = join(folder, 'sealed');
      mkdirSync(sealed);
      tool('mount', '-t', 'tmpfs', '-o', 'size=8m', 'none', sealed);
      onTestFinished(() => void spawnSync('umount', ['-l', sealed], { timeout: 240_000 }));
      for (const name of ['c.img', 'blank.img'])
        tool('cp', '--sparse=always', join(folder, 'c.img'), join(sealed, name));
      const table = `0 ${SECTOR_COUNT} snapshot o.img sealed/c.img P 8`;
      let world = new EngineWorld(engine, folder);
      let snapshot = await world.create('s', table);
      await snapshot.write(40, Buffer.alloc(512, 0x66));
      await world.close();
      tool('mount', '-o', 'remount,ro', sealed);

      world = new EngineWorld(engine, folder);
      await expect(world.create('s', table)).rejects.toMatchObject({ errno: Errno.EROFS });
      const blank = world.create('s', table.replace('c.img', 'blank.img'), READ_ONLY);
      await expect(blank).rejects.toMatchObject({
        cause: { message: expect.stringMatching(/blank.img holds no store yet, and may not be written/) },
      });
      const base = await world.create('og', BASE);
      snapshot = await world.create('s', table, READ_ONLY);
      const expected = Buffer.from(origin);
      expected.fill(0x66, 40 * 512, 41 * 512);
      expect((await snapshot.read(0, SECTOR_COUNT)).equals(expected)).toBe(true);
      const before = world.mapper.get('s').eventNumber;
      // What the store has already needs no copy.
      await base.write(40, Buffer.alloc(512, 1));
      expect(world.status('s')).not.toContain('Invalid');
      expect(await errnoOf(base.write(80, Buffer.alloc(512, 1)))).toBe(0);
      expect(world.status('s')).toContain('Invalid');
      expect(world.mapper.get('s').eventNumber).toBe(before + 1);
      expect(await errnoOf(snapshot.read(0, 1))).toBe(Errno.EIO);
      await world.close();
    },
  );
});
