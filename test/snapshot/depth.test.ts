// How deep data lies: on the overlay itself, on what it overlays, through stacks of them.
import { describe, expect, test } from 'vitest';
import { type BlockDevice, extentDepth, queryExtent } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { pattern, World } from './support.ts';

const SECTOR_COUNT = 512;

/** The whole device, neighbours of one depth joined; an errno where the map can't be read. */
function depths(device: BlockDevice): [sectorCount: number, depth: number][] | number {
  const found: [number, number][] = [];
  for (let sector = 0; sector < device.sectorCount; ) {
    let [errno, count, depth] = [-1, 0, 0];
    queryExtent(device, sector, device.sectorCount - sector, (status, sectorCount, flags, told) => {
      [errno, count, depth] = [status, sectorCount, extentDepth(flags, told)];
    });
    if (errno !== 0) return errno;
    const last = found.at(-1);
    if (last?.[1] === depth) last[0] += count;
    else found.push([count, depth]);
    sector += count;
  }
  return found;
}

function world() {
  // The first 128 sectors are data, the rest was never written (memory comes in pieces of 128 sectors).
  const golden = new MemoryDevice('golden', SECTOR_COUNT);
  golden.poke(0, pattern(128, 1));
  const stores = ['cow1', 'cow2', 'cow3'].map((name) => new MemoryDevice(name, 2 * SECTOR_COUNT));
  return { golden, stores, all: new World(golden, ...stores) };
}

describe('the depth of an extent', () => {
  test('is 1 in the overlay, 2 below it, 0 where neither has anything', () => {
    const { all } = world();
    const overlay = all.activate('o', `0 ${SECTOR_COUNT} snapshot golden cow1 P 8`);
    expect(depths(overlay)).toEqual([
      [128, 2],
      [384, 0],
    ]);
    expect(all.write(overlay, 16, 8, 7)).toBe(0);
    expect(all.write(overlay, 200, 1, 7)).toBe(0);
    expect(depths(overlay)).toEqual([
      [16, 2],
      [8, 1],
      [104, 2],
      [72, 0],
      [8, 1],
      [304, 0],
    ]);
  });

  test('counts the layers of a stack, through lines that overlay nothing', () => {
    const { all } = world();
    const first = all.activate('first', `0 ${SECTOR_COUNT} snapshot golden cow1 P 8`);
    all.write(first, 0, 8, 1);
    all.activate('between', `0 ${SECTOR_COUNT} linear /dev/mapper/first 0`);
    const second = all.activate('second', `0 ${SECTOR_COUNT} snapshot /dev/mapper/between cow2 N 16`);
    all.write(second, 32, 16, 2);
    const third = all.activate('third', `0 ${SECTOR_COUNT} snapshot /dev/mapper/second cow3 P 8`);
    all.write(third, 256, 8, 3);
    expect(depths(third)).toEqual([
      [8, 4 - 1],
      [24, 4],
      [16, 2],
      [80, 4],
      [128, 0],
      [8, 1],
      [248, 0],
    ]);
  });

  test('is that of the device itself without overlays', () => {
    const { all, golden } = world();
    const expected = [
      [128, 1],
      [384, 0],
    ];
    expect(depths(golden)).toEqual(expected);
    expect(depths(all.activate('l', `0 ${SECTOR_COUNT} linear golden 0`))).toEqual(expected);
    expect(depths(all.activate('o', `0 ${SECTOR_COUNT} snapshot-origin golden`))).toEqual(expected);
    expect(depths(all.activate('z', `0 ${SECTOR_COUNT} zero`))).toEqual([[SECTOR_COUNT, 0]]);
  });

  test('is told of nothing on an invalid overlay', () => {
    const small = new MemoryDevice('small', 24);
    const all = new World(new MemoryDevice('golden', SECTOR_COUNT), small);
    const overlay = all.activate('o', `0 ${SECTOR_COUNT} snapshot golden small P 8`);
    expect(all.write(overlay, 0, 16, 1)).toBe(Errno.EIO);
    expect(depths(overlay)).toBe(Errno.EIO);
    // A merge of it has nothing to merge, and is the origin.
    all.remove(overlay);
    const merge = all.activate('m', `0 ${SECTOR_COUNT} snapshot-merge golden small P 8`);
    expect(merge.lines('info')).toEqual([`0 ${SECTOR_COUNT} snapshot-merge Invalid`]);
    expect(depths(merge)).toEqual([[SECTOR_COUNT, 0]]);
  });
});
