// Sizes that people have: the sparse device of ten terabytes, a million exceptions.
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { ExceptionTable } from '../../src/targets/snapshot/exception-table.ts';
import { randomFromSeed, randomInteger } from '../../src/testing/index.ts';
import { seed } from '../support/seed.ts';
import { World } from './support.ts';

test('ten terabytes over a small store: what was written is there, the rest is zero, and it fills up', () => {
  const size = 21_474_836_480;
  const world = new World(new MemoryDevice('cow', 131_072));
  world.activate('zero1', `0 ${size} zero`);
  const table = `0 ${size} snapshot /dev/mapper/zero1 cow P 128`;
  const device = world.activate('sparse', table);
  expect(device.lines('info')).toEqual([`0 ${size} snapshot 256/131072 256`]);
  expect(world.write(device, 21_474_836_000, 8, 0xaa)).toBe(0);
  expect(world.write(device, 10_737_418_240, 16, 0xbb)).toBe(0);
  expect(device.lines('info')).toEqual([`0 ${size} snapshot 512/131072 256`]);
  world.remove(device);
  const again = world.activate('sparse', table);
  expect(world.read(again, 21_474_835_999, 10)).toEqual([0, ...Array(8).fill(0xaa), 0]);
  expect(world.read(again, 10_737_418_240, 17)).toEqual([...Array(16).fill(0xbb), 0]);
  expect(world.read(again, 0, 4)).toEqual([0, 0, 0, 0]);
  let errno = 0;
  for (let chunk = 0; errno === 0 && chunk < 2000; chunk++) errno = world.write(again, chunk * 12_800, 1, 1);
  expect(errno).toBe(5);
  expect(again.lines('info')).toEqual([`0 ${size} snapshot Invalid`]);
});

test('a million exceptions take less than 24 MiB, and are there again after the table was loaded anew', () => {
  const count = 1_000_000;
  const origin = new MemoryDevice('o', 8 * count);
  const cow = new MemoryDevice('c', 8 * (count + count / 256 + 16));
  const world = new World(origin, cow);
  // Records alone: written as the kernel would have.
  const header = new Uint8Array(4096);
  new DataView(header.buffer).setUint32(0, 0x70416e53, true);
  for (const [at, value] of [
    [4, 1],
    [8, 1],
    [12, 8],
  ] as const) {
    new DataView(header.buffer).setUint32(at, value, true);
  }
  cow.poke(0, header);
  const area = new Uint8Array(4096);
  const view = new DataView(area.buffer);
  for (let index = 0; index < count; index++) {
    const slot = index % 256;
    if (slot === 0) area.fill(0);
    view.setUint32(16 * slot, (index * 7919) % count, true);
    view.setUint32(16 * slot + 8, 2 + index + Math.floor(index / 256), true);
    if (slot === 255 || index === count - 1) cow.poke((1 + Math.floor(index / 256) * 257) * 8, area);
  }
  const device = world.activate('s', `0 ${8 * count} snapshot o c P 8`);
  expect(device.lines('info')[0]).toMatch(/ 31264$/);
  const { state } = (device.table!.targets[0] as { context: { state: { exceptions: ExceptionTable } } }).context;
  expect(state.exceptions.size).toBe(count);
  expect(state.exceptions.byteLength).toBeLessThan(24 << 20);
});

test('the table of exceptions is a map, past 2^32 too, whatever is taken out', () => {
  const random = randomFromSeed(seed);
  for (const bound of [200, 2 ** 31, 2 ** 40, 2 ** 53 - 2]) {
    const table = new ExceptionTable();
    const model = new Map<number, number>();
    for (let step = 0; step < 4000; step++) {
      const old =
        random() < 0.7 ? randomInteger(random, 0, 200) * Math.floor(bound / 200) : randomInteger(random, 0, bound);
      if (random() < 0.6) {
        const value = randomInteger(random, 0, bound);
        expect(table.add(old, value)).toBe(!model.has(old));
        if (!model.has(old)) model.set(old, value);
      } else {
        expect(table.delete(old)).toBe(model.delete(old));
      }
      expect(table.get(old)).toBe(model.get(old) ?? -1);
    }
    expect(table.size).toBe(model.size);
    const found = new Map<number, number>();
    table.forEach((old, value) => void found.set(old, value));
    expect(found).toEqual(model);
  }
});
