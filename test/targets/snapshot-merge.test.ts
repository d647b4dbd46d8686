import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { HoldingDevice, issue } from '../../src/testing/index.ts';
import { pattern, World } from '../snapshot/support.ts';
import { RecordingDevice } from '../support/stack.ts';

function setup(chunk = 8, sectorCount = 64) {
  const origin = new RecordingDevice('o', sectorCount);
  origin.bytes.set(pattern(sectorCount, 1));
  const cow = new RecordingDevice('c', 800);
  const world = new World(origin, cow);
  const device = world.activate('s', `0 ${sectorCount} snapshot o c P ${chunk}`);
  return {
    origin,
    cow,
    world,
    device,
    line: (type: string, name = 'c') => `0 ${sectorCount} ${type} o ${name} P ${chunk}`,
  };
}

const status = (device: { lines(type: 'info'): string[] }) =>
  device.lines('info')[0]!.replace(/^.* snapshot-merge /, '');

describe('a merge', () => {
  test('brings everything home, backwards and in runs', () => {
    const { origin, cow, world, device, line } = setup();
    for (const [sector, fill] of [
      [0, 0xa0],
      [8, 0xa1],
      [40, 0xa2],
      [32, 0xa3],
    ] as const) {
      world.write(device, sector + 1, 2, fill);
    }
    world.remove(device);
    origin.log.length = 0;
    const merge = world.activate('m', line('snapshot-merge'));
    expect(merge.lines('table')).toEqual(['0 64 snapshot-merge o c P 8']);
    world.reactor.runUntilIdle();
    expect(origin.log).toEqual(['write 32+8', 'flush 0+0', 'write 40+8', 'flush 0+0', 'write 0+16', 'flush 0+0']);
    expect(status(merge)).toBe('16/800 16');
    const expected = pattern(64, 1);
    for (const [sector, fill] of [
      [1, 0xa0],
      [9, 0xa1],
      [41, 0xa2],
      [33, 0xa3],
    ] as const) {
      expected.fill(fill, sector * 512, (sector + 2) * 512);
    }
    expect(Buffer.compare(origin.bytes, expected)).toBe(0);
    expect(cow.bytes.subarray(4096, 8192).every((byte) => byte === 0)).toBe(true);
    expect(cow.bytes[4]).toBe(1);
    expect(merge.eventNumber).toBe(0);
    world.remove(merge);
    expect(world.resolver.totalOpenCount).toBe(0);
  });

  test('goes on over several areas, and after a suspend', () => {
    const { origin, world, device, line } = setup(1, 200);
    const order = Array.from({ length: 120 }, (_, index) => (index * 37) % 200);
    const expected = pattern(200, 1);
    for (const sector of order) {
      world.write(device, sector, 1, sector ^ 0x55);
      expected.fill(sector ^ 0x55, sector * 512, sector * 512 + 512);
    }
    world.remove(device);
    const merge = world.activate('m', line('snapshot-merge'));
    let suspended = false;
    merge.suspend({}, () => {
      suspended = true;
    });
    world.reactor.runUntilIdle();
    expect(suspended).toBe(true);
    expect(status(merge)).not.toBe('2/800 2');
    world.resume(merge);
    world.reactor.runUntilIdle();
    expect(status(merge)).toBe('2/800 2');
    expect(Buffer.compare(origin.bytes, expected)).toBe(0);
  });

  test('takes the store over from a suspended snapshot', () => {
    const { origin, world, device, line } = setup();
    world.write(device, 3, 1, 0xaa);
    const merge = world.activate('og', '0 64 snapshot-origin o');
    world.load(merge, line('snapshot-merge'));
    expect(() => world.resume(merge)).toThrow('until source is suspended');
    // The new table is live by now, and suspended.
    world.suspend(device);
    world.resume(merge);
    world.reactor.runUntilIdle();
    expect(world.read(merge, 3, 1)).toEqual([0xaa]);
    expect(origin.bytes[3 * 512]).toBe(0xaa);
    expect(device.lines('info')).toEqual(['0 64 snapshot Invalid']);
  });

  test('lets other snapshots keep what they have', () => {
    const { origin, world, device, line } = setup();
    const other = new RecordingDevice('c2', 800);
    world.resolver.devices.set('c2', other);
    world.write(device, 8, 16, 0xaa);
    const second = world.activate('t', '0 64 snapshot o c2 P 4');
    world.write(second, 8, 1, 0xbb);
    world.remove(device);
    const merge = world.activate('m', line('snapshot-merge'));
    world.reactor.runUntilIdle();
    expect(world.read(merge, 8, 2)).toEqual([0xaa, 0xaa]);
    expect(origin.bytes[8 * 512]).toBe(0xaa);
    expect(world.read(second, 8, 16)).toEqual([0xbb, ...Array.from({ length: 15 }, (_, index) => 10 + index)]);
    expect(world.write(merge, 30, 1, 0xcc)).toBe(0);
    expect(world.read(second, 30, 1)).toEqual([31]);
  });

  test('holds writes to the run back, and sends the others where their chunk is', () => {
    const made = setup();
    const { origin, world, device, cow } = made;
    for (const sector of [0, 8, 40]) world.write(device, sector, 1, 0xa0 + sector);
    world.remove(device);
    const holding = new HoldingDevice(origin, { op: 'write' });
    world.resolver.devices.set('h', holding);
    const merge = world.activate('m', '0 64 snapshot-merge h c P 8');
    world.reactor.runUntilIdle();
    expect(holding.heldRequests).toEqual(['write 40+8']);
    expect(world.read(merge, 40, 1)).toEqual([0xa0 + 40]);
    const inRun = issue(merge, 'write', { sector: 41, data: new Uint8Array(512).fill(1) });
    const inStore = issue(merge, 'write', { sector: 1, data: new Uint8Array(512).fill(2) });
    const inOrigin = issue(merge, 'write', { sector: 20, data: new Uint8Array(512).fill(3) });
    expect([inRun.ended, inStore.errno, inOrigin.ended]).toEqual([false, 0, false]);
    expect(cow.log).toContain('write 17+1');
    holding.open();
    world.reactor.runUntilIdle();
    expect([inRun.errno, inOrigin.errno]).toEqual([0, 0]);
    expect(world.read(merge, 40, 2)).toEqual([0xa0 + 40, 1]);
    expect([origin.bytes[41 * 512], origin.bytes[512], origin.bytes[20 * 512]]).toEqual([1, 2, 3]);
    expect(status(merge)).toBe('16/800 16');
  });

  test('acknowledges discards, and flushes both devices', () => {
    const { origin, cow, world, device } = setup();
    world.write(device, 0, 1, 0xaa);
    world.remove(device);
    const merge = world.activate('m', '0 64 snapshot-merge o c P 8 1 discard_zeroes_cow');
    world.reactor.runUntilIdle();
    origin.log.length = 0;
    cow.log.length = 0;
    expect(world.io(merge, 'discard', { sector: 0, sectorCount: 64 })).toBe(0);
    expect(world.io(merge, 'flush')).toBe(0);
    expect([origin.log, cow.log]).toEqual([['flush 0+0'], ['flush 0+0']]);
    expect(world.read(merge, 0, 1)).toEqual([0xaa]);
  });
});

describe('a merge that fails', () => {
  test.each([
    ['reading the store', 'c', 'read'],
    ['writing the origin', 'o', 'write'],
    ['flushing the origin', 'o', 'flush'],
    ['taking records out', 'c', 'write'],
  ])('in %s stops, and requests go on', (_what, name, op) => {
    const { origin, cow, world, device, line } = setup();
    world.write(device, 40, 1, 0xaa);
    world.remove(device);
    const failing = name === 'o' ? origin : cow;
    const numbers: Record<string, number> = { read: 0, write: 1, flush: 2 };
    const merge = world.mapper.create('m');
    world.load(merge, line('snapshot-merge'));
    failing.fail = (bio) => (bio.op === numbers[op] ? Errno.EIO : 0);
    world.resume(merge);
    world.reactor.runUntilIdle();
    failing.fail = () => 0;
    expect(status(merge)).toBe('Merge failed');
    expect(world.read(merge, 40, 2)).toEqual([0xaa, 42]);
    expect(world.write(merge, 40, 1, 0xab)).toBe(0);
    expect(world.read(merge, 40, 1)).toEqual([0xab]);
    world.remove(merge);
    const again = world.activate('m', line('snapshot-merge'));
    world.reactor.runUntilIdle();
    expect(status(again)).toBe('16/800 16');
    expect(origin.bytes[40 * 512]).toBe(0xab);
  });
});

test('an invalid store merges nothing, and everything goes to the origin', () => {
  const { cow, world, device, line } = setup();
  world.write(device, 0, 1, 0xaa);
  world.remove(device);
  cow.bytes[4] = 0;
  const merge = world.activate('m', line('snapshot-merge'));
  expect(status(merge)).toBe('Invalid');
  expect(world.read(merge, 0, 1)).toEqual([1]);
  expect(world.write(merge, 0, 1, 7)).toBe(0);
  expect(world.read(merge, 0, 1)).toEqual([7]);
});

test('what can’t be merged is refused', () => {
  const { world, line, device } = setup();
  const refuse = (text: string): string => {
    try {
      world.mapper.load(world.mapper.has('m') ? world.mapper.get('m') : world.mapper.create('m'), text);
      return 'accepted';
    } catch (error) {
      return (error as { reason: string }).reason;
    }
  };
  world.resolver.devices.set('n', new RecordingDevice('n', 800));
  const noStore = 'snapshot-merge: Snapshot exception store does not support snapshot-merge. (-EINVAL)';
  expect(refuse('0 64 snapshot-merge o n N 8')).toBe(noStore);
  world.activate('t', '0 64 snapshot o n N 8');
  expect(refuse('0 64 snapshot-merge o n P 8')).toBe(noStore);
  world.resolver.devices.set('c2', new RecordingDevice('c2', 800));
  const second = world.activate('u', '0 64 snapshot o c2 P 8');
  world.suspend(second);
  const merging = world.activate('m1', line('snapshot-merge', 'c2'));
  expect(merging.lines('table')).toEqual(['0 64 snapshot-merge o c2 P 8']);
  expect(refuse(line('snapshot-merge'))).toBe('snapshot-merge: A snapshot is already merging. (-EINVAL)');
  expect(device.lines('info')).toEqual(['0 64 snapshot 16/800 16']);
});
