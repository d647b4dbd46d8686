// What differs from the origin, told in pages; and the counters, by what was done.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { changedExtents, changedExtentsPage, joined, snapshotReports } from '../../src/overlays/changes.ts';
import { type ChangedExtent, changesPage } from '../../src/targets/snapshot/changes.ts';
import { ExceptionTable } from '../../src/targets/snapshot/exception-table.ts';
import { readStore } from '../../src/targets/snapshot/read-store.ts';
import { failEveryNth, SimulatedDevice } from '../../src/testing/index.ts';
import { pattern, World } from './support.ts';

const SECTOR_COUNT = 256;

async function all(extents: AsyncIterable<ChangedExtent>): Promise<[number, number][]> {
  const found: [number, number][] = [];
  for await (const { sector, sectorCount } of extents) found.push([sector, sectorCount]);
  return found;
}

describe('pages of changes', () => {
  test('together are every chunk once, in order, whatever their size', async () => {
    const chunk = fc.oneof(fc.nat(60), fc.nat(2 ** 33));
    const check = async (chunks: number[], sizeShift: number, pageCount: number, cut: number): Promise<void> => {
      const size = 2 ** sizeShift;
      const exceptions = new ExceptionTable();
      for (const [index, old] of new Set(chunks).entries()) exceptions.add(old, index);
      const range = { chunkSectorCount: size, startSector: cut % 100, endSector: 40 * size + cut };
      let pages = 0;
      const found = await all(
        joined(async (sector) => {
          pages++;
          return changesPage(exceptions, range, sector, pageCount);
        }),
      );
      const expected: [number, number][] = [];
      for (const old of [...new Set(chunks)].sort((a, b) => a - b)) {
        const start = Math.max(range.startSector, old * size);
        const end = Math.min(range.endSector, (old + 1) * size);
        if (end <= start) continue;
        const last = expected.at(-1);
        if (last !== undefined && last[0] + last[1] === start) last[1] += end - start;
        else expected.push([start, end - start]);
      }
      expect(found).toEqual(expected);
      expect(pages).toBeLessThanOrEqual(Math.ceil(exceptions.size / pageCount) + 1);
    };
    await fc.assert(
      fc.asyncProperty(
        fc.array(chunk, { maxLength: 80 }),
        fc.integer({ min: 0, max: 12 }),
        fc.integer({ min: 1, max: 100 }),
        fc.oneof(fc.nat(100), fc.nat(2 ** 45)),
        check,
      ),
    );
  });

  test('of a million exceptions cost no more than their number', async () => {
    const exceptions = new ExceptionTable();
    for (let i = 0; i < 1_000_000; i++) exceptions.add((i * 2_654_435) % 4_000_037, i);
    const range = { chunkSectorCount: 8, startSector: 0, endSector: 4_000_037 * 8 };
    let sum = 0;
    let last = -1;
    for await (const { sector, sectorCount } of joined(async (from) => changesPage(exceptions, range, from))) {
      if (sector <= last) throw new Error(`${sector} after ${last}`);
      last = sector + sectorCount;
      sum += sectorCount;
    }
    expect(sum).toBe(exceptions.size * 8);
  });
});

describe('changed extents', () => {
  test('are those of a live device and of its store alone, after any writes to either side', async () => {
    const write = fc.record({
      toOrigin: fc.boolean(),
      sector: fc.nat(SECTOR_COUNT - 1),
      count: fc.integer({ min: 1, max: 40 }),
    });
    const check = async (
      writes: { toOrigin: boolean; sector: number; count: number }[],
      chunk: number,
    ): Promise<void> => {
      const [golden, cow] = [new MemoryDevice('golden', SECTOR_COUNT), new MemoryDevice('cow', 4 * SECTOR_COUNT)];
      golden.poke(0, pattern(SECTOR_COUNT, 1));
      const world = new World(golden, cow);
      const origin = world.activate('origin', `0 ${SECTOR_COUNT} snapshot-origin golden`);
      const overlay = world.activate('overlay', `0 ${SECTOR_COUNT} snapshot golden cow P ${chunk}`);
      const changed = new Set<number>();
      for (const { toOrigin, sector, count } of writes) {
        const sectorCount = Math.min(count, SECTOR_COUNT - sector);
        expect(world.write(toOrigin ? origin : overlay, sector, sectorCount, 9)).toBe(0);
        for (let at = sector; at < sector + sectorCount; at++) changed.add(Math.floor(at / chunk));
      }
      const live = await all(changedExtents(overlay));
      expect(
        live.flatMap(([sector, count]) => Array.from({ length: count / chunk }, (_, i) => sector / chunk + i)),
      ).toEqual([...changed].sort((a, b) => a - b));
      world.remove(overlay);
      const before = cow.peek(0, cow.sectorCount);
      const { exceptions, chunkSectorCount } = readStore(cow, world.services);
      const range = { chunkSectorCount, startSector: 0, endSector: SECTOR_COUNT };
      expect(await all(joined(async (sector) => changesPage(exceptions, range, sector)))).toEqual(live);
      expect(Buffer.compare(cow.peek(0, cow.sectorCount), before)).toBe(0);
    };
    await fc.assert(fc.asyncProperty(fc.array(write, { maxLength: 20 }), fc.constantFrom(1, 4, 8, 32), check));
  });

  test('of several lines are those of each, and other devices have none', async () => {
    const devices = ['a', 'b', 'c1', 'c2'].map((name) => new MemoryDevice(name, SECTOR_COUNT));
    const world = new World(...devices);
    const table = '0 64 snapshot a c1 P 4\n64 64 linear a 64\n128 64 snapshot b c2 P 8';
    const device = world.activate('both', table);
    for (const sector of [60, 70, 130]) world.write(device, sector, 1, 3);
    expect(await all(changedExtents(device))).toEqual([
      [60, 4],
      [128, 8],
    ]);
    expect(snapshotReports(device).map(({ sector, cow }) => [sector, cow])).toEqual([
      [0, 'c1'],
      [128, 'c2'],
    ]);
    const plain = world.activate('plain', '0 8 linear a 0');
    expect(() => changedExtentsPage(plain, 0)).toThrow(/plain is no overlay/);
    expect(snapshotReports(plain)).toEqual([]);
  });

  test('of a store fail with the request that fails, and never tell half', async () => {
    const { runCount } = await failEveryNth(async (context) => {
      const raw = new SimulatedDevice('cow', 1024, { seed: context.seed });
      const golden = new MemoryDevice('golden', SECTOR_COUNT);
      const world = new World(golden);
      world.resolver.devices.set('cow', raw);
      const overlay = world.activate('overlay', `0 ${SECTOR_COUNT} snapshot golden cow P 1`);
      // More than one area of 32 records.
      for (let sector = 0; sector < 80; sector += 2) world.write(overlay, sector, 1, 7);
      world.remove(overlay);
      try {
        const { exceptions } = readStore(context.wrap(raw), world.services);
        expect([context.injected, exceptions.size]).toEqual([false, 40]);
      } catch (error) {
        expect([context.injected, (error as { errno: number }).errno]).toEqual([true, Errno.EIO]);
      }
    });
    expect(runCount).toBeGreaterThan(4);
  });
});

describe('counters', () => {
  test('tell what was done', () => {
    const world = new World(new MemoryDevice('golden', SECTOR_COUNT), new MemoryDevice('cow', 1024));
    const origin = world.activate('origin', `0 ${SECTOR_COUNT} snapshot-origin golden`);
    const overlay = world.activate('overlay', `0 ${SECTOR_COUNT} snapshot golden cow P 8`);
    const counters = () => snapshotReports(overlay)[0]!.counters;
    const none = { exceptionCount: 0, copyCount: 0, copiedByteLength: 0, commitCount: 0 };
    expect(counters()).toEqual({ ...none, exceptionsInMemoryCount: 0, memoryByteLength: 512 });
    world.write(overlay, 0, 8, 1);
    expect(counters()).toMatchObject({ exceptionCount: 1, copyCount: 0, copiedByteLength: 0, commitCount: 1 });
    world.write(overlay, 18, 2, 1);
    // What lies between the first and the last sector that the write leaves is read in one piece.
    expect(counters()).toMatchObject({ exceptionCount: 2, copyCount: 1, commitCount: 2, copiedByteLength: 8 * 512 });
    world.write(overlay, 18, 2, 2);
    expect(counters()).toMatchObject({ exceptionCount: 2, copyCount: 1, commitCount: 2 });
    world.write(origin, 32, 16, 2);
    expect(counters()).toMatchObject({ exceptionCount: 4, copyCount: 3, copiedByteLength: 3 * 8 * 512 });
    expect(snapshotReports(overlay)[0]).toMatchObject({
      condition: 'Active',
      usedChunkCount: 6,
      totalChunkCount: 128,
      metadataChunkCount: 2,
    });
    world.suspend(overlay);
    world.load(overlay, `0 ${SECTOR_COUNT} snapshot golden cow P 8`);
    world.resume(overlay);
    expect(counters().exceptionsInMemoryCount).toBe(4);
  });
});
