// The store's file lies on a file system that is full: the write fails, and the store stays what it was. Real ones: a small
// tmpfs, on each engine.
import { spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { ENGINES } from '../engine/harness.ts';
import { errnoOf } from '../support/errors.ts';
import { itPeer } from '../support/peers.ts';
import { makeImage, tempDir } from '../support/tmp.ts';
import { EngineWorld } from './engine-world.ts';

const SECTOR_COUNT = 16_384;
/** Less than the origin has; a sparse file of any size fits on it. */
const ROOM = '2m';

function tool(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { encoding: 'utf8', timeout: 240_000 });
  expect([command, ...args, status, stderr]).toEqual([command, ...args, 0, '']);
}

/** An origin, and a sparse store on a file system that has less room than the store's size says. */
function tightHome() {
  const folder = tempDir('room');
  const origin = makeImage(join(folder, 'o.img'), SECTOR_COUNT, 3);
  const small = join(folder, 'small');
  mkdirSync(small);
  tool('mount', '-t', 'tmpfs', '-o', `size=${ROOM}`, 'none', small);
  onTestFinished(() => void spawnSync('umount', ['-l', small], { timeout: 240_000 }));
  closeSync(openSync(join(small, 'c.img'), 'w'));
  truncateSync(join(small, 'c.img'), 2 * SECTOR_COUNT * 512);
  return { folder, small, origin };
}

describe.each(ENGINES)('no room below the store, with the %s engine:', (engine) => {
  for (const words of ['P 8', 'P 128', 'PO 32', 'P 8 1 lazy_commit', 'N 8']) {
    itPeer(['root'], `a write to the snapshot fails with ENOSPC, and nothing else does (${words})`, async () => {
      const { folder, small, origin } = tightHome();
      const table = `0 ${SECTOR_COUNT} snapshot o.img small/c.img ${words}`;
      let world = new EngineWorld(engine, folder);
      let snapshot = await world.create('s', table);
      const contents = Buffer.from(origin);
      const chunk = Number(words.split(' ')[1]);
      let failedAt = -1;
      for (let sector = 0; failedAt < 0; sector += chunk) {
        const data = Buffer.alloc(512, 1 + (sector % 251));
        const errno = await errnoOf(snapshot.write(sector, data));
        if (errno === 0) data.copy(contents, sector * 512);
        else expect(errno).toBe(Errno.ENOSPC);
        if (errno !== 0) failedAt = sector;
      }
      expect(failedAt).toBeGreaterThan(0);
      expect(world.status('s')).toMatch(/ \d+\/32768 \d+$/);
      // What is there can be read and written; what is not fails again, alone.
      expect((await snapshot.read(0, SECTOR_COUNT)).equals(contents)).toBe(true);
      expect(await errnoOf(snapshot.write(1, Buffer.alloc(512, 0xee)))).toBe(0);
      contents.fill(0xee, 512, 1024);
      expect(await errnoOf(snapshot.write(failedAt, Buffer.alloc(512, 9)))).toBe(Errno.ENOSPC);
      if (words.startsWith('N')) {
        await world.close();
        return;
      }
      const flushed = await errnoOf(snapshot.flush());
      if (!words.includes('lazy')) expect(flushed).toBe(0);

      // Somebody makes room: it goes on at once, and what was written is there in a process of its own time.
      tool('mount', '-o', 'remount,size=64m', small);
      const data = Buffer.alloc(512, 0x77);
      await snapshot.write(failedAt, data);
      data.copy(contents, failedAt * 512);
      await snapshot.flush();
      expect((await snapshot.read(0, SECTOR_COUNT)).equals(contents)).toBe(true);
      await world.close();
      world = new EngineWorld(engine, folder);
      snapshot = await world.create('s', table);
      expect((await snapshot.read(0, SECTOR_COUNT)).equals(contents)).toBe(true);
      await world.close();
    });
  }

  itPeer(['root'], 'requests of many chunks at the same time: each ends, and what ended well is there', async () => {
    const { folder, small, origin } = tightHome();
    const table = `0 ${SECTOR_COUNT} snapshot o.img small/c.img P 8`;
    const world = new EngineWorld(engine, folder);
    const snapshot = await world.create('s', table);
    const contents = Buffer.from(origin);
    // The area's first page is there: from now on it is data that finds no room, or a later page of records.
    await snapshot.write(16_000, Buffer.alloc(512, 0xdd));
    contents.fill(0xdd, 16_000 * 512, 16_001 * 512);
    const sectors = Array.from({ length: 700 }, (_, index) => index * 16 + 3);
    const errnos = await Promise.all(
      sectors.map((sector) => errnoOf(snapshot.write(sector, Buffer.alloc(1024, 1 + (sector % 251))))),
    );
    expect(new Set(errnos)).toEqual(new Set([0, Errno.ENOSPC]));
    for (const [index, sector] of sectors.entries()) {
      if (errnos[index] === 0) contents.fill(1 + (sector % 251), sector * 512, sector * 512 + 1024);
    }
    expect((await snapshot.read(0, SECTOR_COUNT)).equals(contents)).toBe(true);
    await world.close();
    tool('mount', '-o', 'remount,size=64m', small);
    const again = new EngineWorld(engine, folder);
    const reopened = await again.create('s', table);
    expect((await reopened.read(0, SECTOR_COUNT)).equals(contents)).toBe(true);
    await again.close();
  });

  itPeer(['root'], 'a write to the origin goes through, and the snapshot is invalid', async () => {
    const { folder } = tightHome();
    const world = new EngineWorld(engine, folder);
    const origin = await world.create('o', `0 ${SECTOR_COUNT} snapshot-origin o.img`);
    const table = `0 ${SECTOR_COUNT} snapshot o.img small/c.img P 8`;
    const snapshot = await world.create('s', table);
    await origin.write(0, Buffer.alloc(SECTOR_COUNT * 512, 0x55));
    expect(world.status('s')).toMatch(/Invalid$/);
    expect((await origin.read(0, SECTOR_COUNT)).every((byte) => byte === 0x55)).toBe(true);
    expect(await errnoOf(snapshot.read(0, 1))).toBe(Errno.EIO);
    await world.close();
    const again = new EngineWorld(engine, folder);
    await again.create('s', table);
    expect(again.status('s')).toMatch(/Invalid$/);
    await again.close();
  });

  itPeer(['root'], 'a new store that does not fit at all is refused, and the file stays blank', async () => {
    const { folder, small } = tightHome();
    writeFileSync(join(small, 'filler'), '');
    const filler = openSync(join(small, 'filler'), 'w');
    expect(() => {
      for (;;) writeFileSync(filler, Buffer.alloc(65536, 1));
    }).toThrow(/ENOSPC/);
    closeSync(filler);
    const world = new EngineWorld(engine, folder);
    const table = `0 ${SECTOR_COUNT} snapshot o.img small/c.img P 8`;
    await expect(world.create('s', table)).rejects.toThrow(/Failed to read snapshot metadata/);
    expect(statSync(join(small, 'c.img')).blocks).toBe(0);
    rmSync(join(small, 'filler'));
    await world.create('s', table);
    expect(world.status('s')).toMatch(/ 16\/32768 16$/);
    await world.close();
  });
});
