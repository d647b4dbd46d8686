import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { HoldingDevice, issue } from '../../src/testing/index.ts';
import { pattern, World } from '../snapshot/support.ts';
import { RecordingDevice } from '../support/stack.ts';

function setup(...chunks: number[]) {
  const origin = new RecordingDevice('o', 128);
  origin.bytes.set(pattern(128, 1));
  const world = new World(origin);
  const device = world.activate('og', '0 128 snapshot-origin o');
  const cows = chunks.map((_, index) => new RecordingDevice(`c${index}`, 800));
  for (const cow of cows) world.resolver.devices.set(cow.name, cow);
  const snapshots = chunks.map((chunk, index) => world.activate(`s${index}`, `0 128 snapshot o c${index} P ${chunk}`));
  origin.log.length = 0;
  for (const cow of cows) cow.log.length = 0;
  return { origin, world, device, cows, snapshots };
}

test.each([
  ['', 'origin: incorrect number of arguments (-EINVAL)'],
  ['o 0', 'origin: incorrect number of arguments (-EINVAL)'],
  ['nosuch', 'Cannot get target device (-ENODEV)'],
])('refuses "%s" with the words of the kernel', (words, text) => {
  const { world } = setup();
  expect(() => world.activate('x', `0 128 snapshot-origin ${words}`)).toThrow(`snapshot-origin: ${text}`);
});

describe('a write to the origin', () => {
  test('without snapshots goes out as it is', () => {
    const { origin, world, device } = setup();
    expect(world.write(device, 5, 50, 0xaa)).toBe(0);
    expect(world.io(device, 'flush')).toBe(0);
    expect(world.read(device, 5, 1)).toEqual([0xaa]);
    expect(origin.log).toEqual(['write 5+50', 'flush 0+0', 'read 5+1']);
    expect([device.lines('table'), device.lines('info')]).toEqual([
      ['0 128 snapshot-origin o'],
      ['0 128 snapshot-origin '],
    ]);
  });

  test('makes every snapshot whole first, whatever its chunk size', () => {
    const { origin, world, device, cows, snapshots } = setup(8, 32);
    expect(world.write(device, 40, 32, 0xaa)).toBe(0);
    expect(origin.log.at(-1)).toBe('write 40+32');
    expect(snapshots.map((snapshot) => snapshot.lines('info')[0])).toEqual([
      '0 128 snapshot 48/800 16',
      '0 128 snapshot 128/800 64',
    ]);
    for (const snapshot of snapshots) {
      expect(world.read(snapshot, 32, 48)).toEqual(Array.from({ length: 48 }, (_, index) => 33 + index));
    }
    expect(cows[0]!.log.filter((line) => line === 'write 8+8')).toHaveLength(1);
    expect(world.read(device, 39, 34)).toEqual([40, ...Array(32).fill(0xaa), 73]);
    origin.log.length = 0;
    expect(world.write(device, 44, 2, 0xab)).toBe(0);
    expect(origin.log).toEqual(['write 44+2']);
  });

  test('waits until the copy and its record are durable', () => {
    const { origin, world, device } = setup();
    const cow = new HoldingDevice(new RecordingDevice('c', 800));
    cow.holding = false;
    world.resolver.devices.set('c', cow);
    world.activate('s', '0 128 snapshot o c P 8');
    cow.holding = true;
    origin.log.length = 0;
    const write = issue(device, 'write', { sector: 9, data: new Uint8Array(512) });
    world.reactor.runUntilIdle();
    expect([origin.log, cow.heldRequests]).toEqual([['read 8+8'], ['write 16+8']]);
    cow.release();
    world.reactor.runUntilIdle();
    expect([write.ended, cow.heldRequests]).toEqual([false, ['write 8+8 preflush fua']]);
    cow.release();
    expect(write.errno).toBe(0);
    expect(origin.log.at(-1)).toBe('write 9+1');
  });

  test('waits for reads that a snapshot sent to the origin', () => {
    const lower = new RecordingDevice('o', 128);
    lower.bytes.set(pattern(128, 1));
    const origin = new HoldingDevice(lower, { op: 'read', where: (bio) => bio.sectorCount === 3 });
    const cow = new RecordingDevice('c', 800);
    const world = new World(cow);
    world.resolver.devices.set('o', origin);
    const device = world.activate('og', '0 128 snapshot-origin o');
    const snapshot = world.activate('s', '0 128 snapshot o c P 8');
    const read = issue(snapshot, 'read', { sector: 8, sectorCount: 3 });
    expect(read.ended).toBe(false);
    const write = issue(device, 'write', { sector: 8, data: new Uint8Array(4096).fill(0xff) });
    world.reactor.runUntilIdle();
    expect(write.ended).toBe(false);
    origin.release();
    world.reactor.runUntilIdle();
    expect([read.errno, write.errno]).toEqual([0, 0]);
    expect([...new Set(read.data)]).toEqual([9, 10, 11]);
  });

  test('does not wait for a snapshot that was not resumed, has what it needs, or ends before', () => {
    const { origin, world, device } = setup();
    const [short, loaded] = [new RecordingDevice('short', 800), new RecordingDevice('loaded', 800)];
    for (const cow of [short, loaded]) world.resolver.devices.set(cow.name, cow);
    world.activate('s', '0 64 snapshot o short P 8');
    world.load(world.mapper.create('l'), '0 128 snapshot o loaded P 8');
    origin.log.length = 0;
    expect(world.write(device, 64, 64, 0xaa)).toBe(0);
    expect(origin.log).toEqual(['write 64+64']);
  });

  test('is one with the snapshot’s own first write of the chunk', () => {
    const { origin, world, device, snapshots } = setup(8);
    const first = issue(snapshots[0]!, 'write', { sector: 9, data: new Uint8Array(512).fill(0x11) });
    const second = issue(device, 'write', { sector: 9, data: new Uint8Array(512).fill(0x22) });
    world.reactor.runUntilIdle();
    expect([first.errno, second.errno]).toEqual([0, 0]);
    expect(origin.log).toEqual(['read 8+8', 'write 9+1']);
    expect(world.read(snapshots[0]!, 8, 3)).toEqual([9, 0x11, 11]);
    expect(world.read(device, 8, 3)).toEqual([9, 0x22, 11]);
  });

  test('a copy that fails ends its snapshot alone, and that is durable before the origin changes', () => {
    const { origin, world, device, cows, snapshots } = setup(8, 8);
    const order: string[] = [];
    cows[0]!.fail = (bio) => {
      order.push(`c0 ${bio.sector}`);
      return bio.sector === 16 ? Errno.EIO : 0;
    };
    origin.fail = (bio) => {
      order.push(`o ${bio.op}`);
      return 0;
    };
    expect(world.write(device, 0, 1, 0xaa)).toBe(0);
    expect(order).toEqual(['o 0', 'c0 16', 'c0 0', 'o 0', 'o 1']);
    expect(snapshots.map((snapshot) => snapshot.lines('info')[0])).toEqual([
      '0 128 snapshot Invalid',
      '0 128 snapshot 24/800 16',
    ]);
    expect(world.read(snapshots[1]!, 0, 1)).toEqual([1]);
  });

  test('no room below is the end of a snapshot that the origin can’t wait for', () => {
    const { world, device, cows, snapshots } = setup(8);
    cows[0]!.fail = (bio) => (bio.sector >= 8 ? Errno.ENOSPC : 0);
    expect(world.write(device, 0, 1, 0xaa)).toBe(0);
    expect(snapshots[0]!.lines('info')).toEqual(['0 128 snapshot Invalid']);
  });
});

test('a snapshot that is removed while it copies for the origin keeps its devices until it is done', () => {
  const origin = new RecordingDevice('o', 128);
  const cow = new HoldingDevice(new RecordingDevice('c', 800));
  cow.holding = false;
  const world = new World(origin);
  world.resolver.devices.set('c', cow);
  const device = world.activate('og', '0 128 snapshot-origin o');
  const snapshot = world.activate('s', '0 128 snapshot o c P 8');
  cow.holding = true;
  const write = issue(device, 'write', { sector: 0, data: new Uint8Array(512) });
  world.remove(snapshot);
  expect(world.resolver.openCount(cow)).toBe(1);
  cow.open();
  world.reactor.runUntilIdle();
  expect(write.errno).toBe(0);
  expect(world.resolver.openCount(cow)).toBe(0);
});

test('origin and snapshots may be stacks: the mapped device is what counts', () => {
  const { world } = setup();
  const base = world.activate('base', '0 64 linear o 0\n64 64 linear o 64');
  world.resolver.devices.set('c', new RecordingDevice('c', 800));
  const origin = world.activate('top', '0 128 snapshot-origin /dev/mapper/base');
  const snapshot = world.activate('s', `0 128 snapshot ${base.name} c P 8`);
  expect(world.write(origin, 60, 10, 0xaa)).toBe(0);
  expect(world.read(snapshot, 60, 10)).toEqual(Array.from({ length: 10 }, (_, index) => 61 + index));
});
