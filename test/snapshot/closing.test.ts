// What a snapshot has begun by itself, and nobody above waits for, when its table goes: copies for the origin's writes, the
// mark of an invalid store, records, room taken ahead. A removal or a swap is over when they are, and everything is closed.
import { describe, expect, test } from 'vitest';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { HoldingDevice, issue } from '../../src/testing/index.ts';
import { World } from './support.ts';

const CHUNK = 8;
/** A header, an area of records, and one chunk of data. */
const TINY_SECTOR_COUNT = 3 * CHUNK;
const table = (words: string): string => `0 64 snapshot o c ${words}`;

/** Memory whose allocations wait. */
class SlowToAllocate extends MemoryDevice {
  readonly waiting: (() => void)[] = [];

  allocate(_sector: number, _sectorCount: number, done: (errno: number) => void): void {
    this.waiting.push(() => done(0));
  }
}

function worldWith(cow: BlockDevice, words: string) {
  const world = new World(new MemoryDevice('o', 64), cow);
  const origin = world.activate('og', '0 64 snapshot-origin o');
  const snapshot = world.activate('s', table(words));
  /** Begins a write that is not waited for. */
  const begin = (device: MappedDevice, chunk: number) => {
    const request = issue(device, 'write', { sector: chunk * CHUNK, data: new Uint8Array(512).fill(7) });
    world.reactor.runUntilIdle();
    return request;
  };
  return { world, origin, snapshot, begin };
}

/** Removes the snapshot, and tells whether that is over. */
function removing(world: World, snapshot: MappedDevice): { over: boolean } {
  const state = { over: false };
  world.mapper.remove(snapshot, {}, () => {
    state.over = true;
  });
  world.reactor.runUntilIdle();
  return state;
}

describe('a removal waits', () => {
  const heldWorld = (words: string, sectorCount: number) => {
    const cow = new HoldingDevice(new MemoryDevice('c', sectorCount), { op: 'write' });
    cow.holding = false;
    return { cow, ...worldWith(cow, words) };
  };

  function expectToWaitForRelease(world: World, snapshot: MappedDevice, cow: HoldingDevice): void {
    const removal = removing(world, snapshot);
    // The name is free at once.
    expect([removal.over, world.mapper.has('s'), world.resolver.openCount(cow)]).toEqual([false, false, 1]);
    expect(cow.inFlightCount).toBeGreaterThan(0);
    cow.open();
    world.reactor.runUntilIdle();
    expect([removal.over, cow.inFlightCount, world.resolver.openCount(cow)]).toEqual([true, 0, 0]);
  }

  test.each(['P 8', 'PO 8', 'N 8', 'P 8 1 lazy_commit'])(
    'for a copy that a write to the origin needs (%s)',
    (words) => {
      const { world, cow, origin, snapshot, begin } = heldWorld(words, 1024);
      cow.holding = true;
      const write = begin(origin, 0);
      expectToWaitForRelease(world, snapshot, cow);
      expect(write.errno).toBe(0);
    },
  );

  test.each(['P 8', 'PO 8', 'P 8 1 lazy_commit'])('for the mark of an invalid store (%s)', (words) => {
    const { world, cow, origin, snapshot, begin } = heldWorld(words, TINY_SECTOR_COUNT);
    expect(begin(origin, 0).errno).toBe(0);
    cow.holding = true;
    const write = begin(origin, 1);
    expect(cow.heldRequests).toEqual(['write 0+8']);
    expectToWaitForRelease(world, snapshot, cow);
    expect(write.errno).toBe(0);
  });

  test('for records that are on their way into a store that has become invalid', () => {
    const { world, cow, origin, snapshot, begin } = heldWorld('P 8 1 lazy_commit', TINY_SECTOR_COUNT);
    expect(begin(snapshot, 0).errno).toBe(0);
    cow.holding = true;
    const writes = [begin(origin, 0), begin(origin, 1)];
    expect(cow.heldRequests).toEqual(['write 8+8', 'write 0+8']);
    cow.release(cow.held[1]);
    world.reactor.runUntilIdle();
    expectToWaitForRelease(world, snapshot, cow);
    expect(writes.map((write) => write.errno)).toEqual([0, 0]);
  });

  test.each(['P 8', 'N 8'])('for room that is being taken ahead of use (%s)', (words) => {
    const cow = new SlowToAllocate('c', 1024);
    const { world, snapshot, begin } = worldWith(cow, words);
    expect(begin(snapshot, 0).errno).toBe(0);
    expect(cow.waiting).toHaveLength(1);
    const removal = removing(world, snapshot);
    expect([removal.over, world.resolver.openCount(cow)]).toEqual([false, 1]);
    cow.waiting[0]!();
    expect([removal.over, world.resolver.openCount(cow)]).toEqual([true, 0]);
  });
});

describe('a swap waits for what the old table has begun, and the new one has its own', () => {
  test('a store that is being marked as invalid passes to another line', () => {
    const cow = new HoldingDevice(new MemoryDevice('c', TINY_SECTOR_COUNT), { op: 'write' });
    cow.holding = false;
    const { world, origin, snapshot, begin } = worldWith(cow, 'P 8');
    world.suspend(snapshot);
    world.load(snapshot, table('P 8'));
    expect(begin(origin, 0).errno).toBe(0);
    cow.holding = true;
    const write = begin(origin, 1);
    const resumes: unknown[] = [];
    snapshot.resume({}, (error) => resumes.push(error));
    world.reactor.runUntilIdle();
    // It serves, but the files of the old table are open.
    expect([resumes, snapshot.suspended, world.resolver.openCount(cow)]).toEqual([[], false, 2]);
    cow.open();
    world.reactor.runUntilIdle();
    expect([resumes, write.errno, world.resolver.openCount(cow)]).toEqual([[null], 0, 1]);
    expect(snapshot.lines('info')[0]).toMatch(/Invalid$/);
    expect(removing(world, snapshot).over).toBe(true);
    expect(removing(world, origin).over).toBe(true);
    expect(world.resolver.totalOpenCount).toBe(0);
  });

  test('room that the old line was taking is no use of the new one', () => {
    const cow = new SlowToAllocate('c', 65_536);
    const { world, origin, snapshot, begin } = worldWith(cow, 'P 8');
    expect(begin(snapshot, 0).errno).toBe(0);
    world.suspend(snapshot);
    world.load(snapshot, table('P 8'));
    const resumes: unknown[] = [];
    snapshot.resume({}, (error) => resumes.push(error));
    expect([resumes, world.resolver.openCount(cow)]).toEqual([[], 2]);
    cow.waiting.shift()!();
    expect([resumes, world.resolver.openCount(cow)]).toEqual([[null], 1]);
    expect(removing(world, snapshot).over).toBe(true);
    expect(removing(world, origin).over).toBe(true);
    expect(world.resolver.totalOpenCount).toBe(0);
  });
});
