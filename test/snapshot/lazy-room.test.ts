// Lazy commit, and the records find no room, or can't be written at all: each kind of request that waits for a record is
// answered as without lazy commit, at once, and what was acknowledged before is there when there is room.
import { describe, expect, test } from 'vitest';
import { REQ_FUA } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { issue } from '../../src/testing/index.ts';
import { World } from './support.ts';
import { TightDevice } from './tight-device.ts';

const CHUNK = 8;
const SECTOR_COUNT = 40 * CHUNK;
const TABLE = `0 ${SECTOR_COUNT} snapshot o c P ${CHUNK}`;

/** Flushes and FUA reach a target only where a device below has a cache. */
const disk = (name: string, sectorCount: number) =>
  new MemoryDevice(name, sectorCount, { limits: { hasWriteCache: true, hasFua: true } });

/** A snapshot with three chunks whose records wait, and a store that refuses records from now on. */
function waiting(lazy: boolean, errno: number) {
  const store = new TightDevice(disk('c', 60 * CHUNK));
  const world = new World(disk('o', SECTOR_COUNT), store);
  const table = lazy ? `${TABLE} 1 lazy_commit` : TABLE;
  const base = world.activate('og', `0 ${SECTOR_COUNT} snapshot-origin o`);
  const snapshot = world.activate('s', table);
  for (let index = 0; index < 3; index++) expect(world.write(snapshot, index * CHUNK, 1, index + 1)).toBe(0);
  let isTight = true;
  store.refuse = ({ sector }) => (isTight && sector >= CHUNK && sector < 2 * CHUNK ? { errno, sectorCount: 0 } : null);
  const info = () => snapshot.lines('info').join();
  const makeRoom = () => {
    isTight = false;
  };
  return { world, store, base, snapshot, table, info, makeRoom };
}

describe('without room for records', () => {
  test('a FUA write of a new chunk fails with ENOSPC, and succeeds when there is room', () => {
    const { world, snapshot, table, info, makeRoom } = waiting(true, Errno.ENOSPC);
    expect(world.write(snapshot, 5 * CHUNK, 1, 9, REQ_FUA)).toBe(Errno.ENOSPC);
    expect(world.write(snapshot, 6 * CHUNK, 1, 9, REQ_FUA)).toBe(Errno.ENOSPC);
    expect(info()).not.toContain('Invalid');
    expect(world.read(snapshot, 0, 17).filter((_, at) => at % CHUNK === 0)).toEqual([1, 2, 3]);
    makeRoom();
    expect(world.write(snapshot, 5 * CHUNK, 1, 10, REQ_FUA)).toBe(0);
    world.remove(snapshot);
    const again = world.activate('s', table);
    expect([0, 1, 2, 5].map((index) => world.read(again, index * CHUNK, 1)[0])).toEqual([1, 2, 3, 10]);
  });

  test('a FUA write of a chunk that has its exception fails with ENOSPC, and succeeds when there is room', () => {
    const { world, snapshot, makeRoom } = waiting(true, Errno.ENOSPC);
    expect(world.write(snapshot, 0, 1, 9, REQ_FUA)).toBe(Errno.ENOSPC);
    makeRoom();
    expect(world.write(snapshot, 0, 1, 9, REQ_FUA)).toBe(0);
  });

  test('writes behind a FUA write of the same chunk are answered too', () => {
    const { world, store, snapshot } = waiting(true, Errno.ENOSPC);
    store.slow = { reactor: world.reactor, random: () => 0.5 };
    const flags = [REQ_FUA, 0, REQ_FUA, 0];
    const requests = flags.map((flag, at) =>
      issue(snapshot, 'write', { sector: 5 * CHUNK + at, data: new Uint8Array(512).fill(at + 1), flags: flag }),
    );
    world.reactor.runUntilIdle();
    expect(requests.map(({ errno }) => errno)).toEqual([Errno.ENOSPC, 0, Errno.ENOSPC, 0]);
  });

  test('FUA writes behind a full window of waiting records are answered', () => {
    const store = new TightDevice(disk('c', 600));
    const world = new World(disk('o', 400), store);
    const snapshot = world.activate('s', '0 400 snapshot o c P 1 1 lazy_commit');
    store.refuse = ({ sector }) => (sector === 1 ? { errno: Errno.ENOSPC, sectorCount: 0 } : null);
    // 32 records fill the window.
    for (let sector = 0; sector < 50; sector++) expect(world.write(snapshot, sector, 1, sector + 1)).toBe(0);
    expect(world.write(snapshot, 60, 1, 1, REQ_FUA)).toBe(Errno.ENOSPC);
    expect(world.io(snapshot, 'flush')).toBe(Errno.ENOSPC);
    store.refuse = () => null;
    expect(world.write(snapshot, 61, 1, 77, REQ_FUA)).toBe(0);
    expect(world.io(snapshot, 'flush')).toBe(0);
    world.remove(snapshot);
    const again = world.activate('s', '0 400 snapshot o c P 1');
    expect(world.read(again, 0, 50)).toEqual(Array.from({ length: 50 }, (_, sector) => sector + 1));
    expect(world.read(again, 61, 1)).toEqual([77]);
  });

  test('a flush fails with ENOSPC as often as it is asked for, and succeeds when there is room', () => {
    const { world, snapshot, table, makeRoom } = waiting(true, Errno.ENOSPC);
    for (let time = 0; time < 3; time++) expect(world.io(snapshot, 'flush')).toBe(Errno.ENOSPC);
    makeRoom();
    expect(world.io(snapshot, 'flush')).toBe(0);
    world.remove(snapshot);
    const again = world.activate('s', table);
    expect([0, 1, 2].map((index) => world.read(again, index * CHUNK, 1)[0])).toEqual([1, 2, 3]);
  });

  test.each([true, false])('a write to the origin goes through and costs the snapshot (lazy: %s)', (lazy) => {
    const { world, base, snapshot, info } = waiting(lazy, Errno.ENOSPC);
    // Without lazy commit the record of chunk 0 is durable: a new chunk shows the same.
    const sector = lazy ? 0 : 5 * CHUNK;
    expect(world.write(base, sector, 1, 0x55)).toBe(0);
    expect(world.read(base, sector, 1)).toEqual([0x55]);
    expect(info()).toContain('Invalid');
    expect(world.io(snapshot, 'read', { sector: 0, sectorCount: 1 })).toBe(Errno.EIO);
  });

  test('a write to the origin below a FUA write that is on its way goes through and costs the snapshot', () => {
    const { world, store, base, snapshot, info } = waiting(true, Errno.ENOSPC);
    store.slow = { reactor: world.reactor, random: () => 0.5 };
    const mine = issue(snapshot, 'write', { sector: 5 * CHUNK, data: new Uint8Array(512), flags: REQ_FUA });
    const below = issue(base, 'write', { sector: 5 * CHUNK, data: new Uint8Array(512) });
    world.reactor.runUntilIdle();
    expect([mine.errno, below.errno]).toEqual([Errno.EIO, 0]);
    expect(info()).toContain('Invalid');
  });

  test('a suspend ends, and what was acknowledged is durable once there is room', () => {
    const { world, snapshot, table, info, makeRoom } = waiting(true, Errno.ENOSPC);
    world.suspend(snapshot);
    world.resume(snapshot);
    expect(info()).not.toContain('Invalid');
    expect(world.read(snapshot, CHUNK, 1)).toEqual([2]);
    makeRoom();
    world.suspend(snapshot);
    world.resume(snapshot);
    world.remove(snapshot);
    const again = world.activate('s', table);
    expect([0, 1, 2].map((index) => world.read(again, index * CHUNK, 1)[0])).toEqual([1, 2, 3]);
  });

  test('a merge stops as failed, with everything readable', () => {
    const { world, base, snapshot, table } = waiting(true, Errno.ENOSPC);
    world.suspend(snapshot);
    world.load(base, table.replace('snapshot', 'snapshot-merge'));
    world.resume(base);
    world.reactor.runUntilIdle();
    expect(base.lines('info').join()).toContain('Merge failed');
    expect([0, 1, 2].map((index) => world.read(base, index * CHUNK, 1)[0])).toEqual([1, 2, 3]);
  });
});

describe('when records cannot be written at all', () => {
  test.each([true, false])('a FUA write fails with EIO, and the snapshot is invalid (lazy: %s)', (lazy) => {
    const { world, snapshot, info } = waiting(lazy, Errno.EIO);
    expect(world.write(snapshot, 5 * CHUNK, 1, 9, REQ_FUA)).toBe(Errno.EIO);
    expect(info()).toContain('Invalid');
  });

  test('a flush fails with EIO, each time', () => {
    const { world, snapshot, info } = waiting(true, Errno.EIO);
    expect(world.io(snapshot, 'flush')).toBe(Errno.EIO);
    expect(info()).toContain('Invalid');
  });

  test('a write to the origin goes through', () => {
    const { world, base, info } = waiting(true, Errno.EIO);
    expect(world.write(base, 0, 1, 0x55)).toBe(0);
    expect(info()).toContain('Invalid');
  });

  test('a suspend ends, and the snapshot is invalid', () => {
    const { world, snapshot, info } = waiting(true, Errno.EIO);
    world.suspend(snapshot);
    expect(info()).toContain('Invalid');
  });

  test('a merge does not begin', () => {
    const { world, base, snapshot, table } = waiting(true, Errno.EIO);
    world.suspend(snapshot);
    world.load(base, table.replace('snapshot', 'snapshot-merge'));
    world.resume(base);
    world.reactor.runUntilIdle();
    expect(base.lines('info').join()).toContain('Invalid');
  });
});
