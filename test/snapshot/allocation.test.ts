// The store's file takes room ahead of use: in growing steps, never past its end, and nothing depends on it.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MAX_ALLOCATED_AHEAD_BYTE_LENGTH, MIN_ALLOCATED_AHEAD_BYTE_LENGTH } from '../../src/block/bounds.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { itPeer, peer } from '../support/peers.ts';
import { runs } from '../support/seed.ts';
import { tempDir } from '../support/tmp.ts';
import { EngineWorld } from './engine-world.ts';
import { World } from './support.ts';

const MIN_STEP = MIN_ALLOCATED_AHEAD_BYTE_LENGTH / 512;
const TMPFS_MAGIC = 0x01021994;
const MAX_STEP = MAX_ALLOCATED_AHEAD_BYTE_LENGTH / 512;

/** Memory that remembers what was asked for; `answer` says with what errno each request ends, null for never. */
class AllocatingDevice extends MemoryDevice {
  readonly ranges: { sector: number; end: number }[] = [];
  answer: (index: number) => number | null = () => 0;

  allocate(sector: number, sectorCount: number, done: (errno: number) => void): void {
    this.ranges.push({ sector, end: sector + sectorCount });
    const errno = this.answer(this.ranges.length - 1);
    if (errno !== null) done(errno);
  }
}

/** Writes each of `count` chunks of a snapshot with that store for the first time. */
function writeChunks(cow: AllocatingDevice, words: string, chunk: number, count: number): string {
  const world = new World(new MemoryDevice('o', chunk * count), cow);
  const device = world.activate('s', `0 ${chunk * count} snapshot o c ${words} ${chunk}`);
  for (let index = 0; index < count; index++) expect(world.write(device, index * chunk, 1, index & 0xff)).toBe(0);
  for (let index = 0; index < count; index += 7) expect(world.read(device, index * chunk, 1)).toEqual([index & 0xff]);
  return device.lines('info')[0]!;
}

describe.each(['P', 'N'])('with a store %s', (words) => {
  it('asks for what comes next, each sector once, no more than a step ahead and never past the end', () => {
    fc.assert(
      fc.property(fc.constantFrom(8, 32, 128), fc.integer({ min: 1, max: 300 }), fc.nat(40), (chunk, count, spare) => {
        const cow = new AllocatingDevice('c', (count + Math.ceil(count / (32 * chunk)) + 2 + spare) * chunk);
        writeChunks(cow, words, chunk, count);
        let before = words === 'P' ? 2 * chunk : 0;
        for (const { sector, end } of cow.ranges) {
          expect(sector).toBe(before);
          expect(end - sector).toBeLessThanOrEqual(MAX_STEP + chunk);
          before = end;
        }
        const used = (count + (words === 'P' ? 2 : 0)) * chunk;
        expect(before).toBeGreaterThanOrEqual(used);
        expect(before).toBeLessThanOrEqual(cow.sectorCount);
        expect(before - used).toBeLessThanOrEqual(Math.max(MIN_STEP, MAX_STEP) + 2 * chunk);
      }),
      { numRuns: runs(20) },
    );
  });

  it('goes on as before where the room is refused, whichever request it is and however often', () => {
    const [chunk, count] = [512, 60];
    const makeStore = (): AllocatingDevice => new AllocatingDevice('c', (count + 4) * chunk);
    const calm = makeStore();
    const status = writeChunks(calm, words, chunk, count);
    const stepCount = calm.ranges.length;
    expect(stepCount).toBeGreaterThan(3);
    for (let failing = 0; failing < stepCount; failing++) {
      for (const errno of [Errno.ENOSPC, Errno.EIO, null]) {
        const cow = makeStore();
        cow.answer = (index) => (index === failing ? errno : 0);
        expect(writeChunks(cow, words, chunk, count)).toBe(status);
        // The next step is asked for all the same.
        expect(cow.ranges).toEqual(calm.ranges);
      }
      const never = makeStore();
      never.answer = (index) => (index >= failing ? Errno.EOPNOTSUPP : 0);
      expect(writeChunks(never, words, chunk, count)).toBe(status);
      expect(never.ranges).toHaveLength(failing + 1);
    }
  });
});

it('asks for nothing as long as nothing is written', () => {
  const cow = new AllocatingDevice('c', 4096);
  const world = new World(new MemoryDevice('o', 1024), cow);
  const device = world.activate('s', '0 1024 snapshot o c P 8');
  world.read(device, 0, 8);
  expect(cow.ranges).toEqual([]);
});

describe('a file', () => {
  it('has room behind what is used, reads as before, and keeps its size', async () => {
    const folder = tempDir('allocation');
    const path = join(folder, 'cow');
    fs.writeFileSync(path, '');
    fs.truncateSync(path, 64 << 20);
    fs.writeFileSync(join(folder, 'origin'), Buffer.alloc(1 << 20, 5));
    const world = new EngineWorld('direct', folder);
    onTestFinished(() => world.close());
    const disk = await world.create('s', '0 2048 snapshot origin cow P 8');
    const before = fs.statSync(path).blocks;
    await disk.write(16, Buffer.alloc(512, 9));
    await disk.flush();
    await world.close();
    expect(fs.statSync(path).size).toBe(64 << 20);
    const taken = (fs.statSync(path).blocks - before) * 512;
    // In memory there is nothing to gain.
    const least = fs.statfsSync(folder).type === TMPFS_MAGIC ? 0 : MIN_ALLOCATED_AHEAD_BYTE_LENGTH;
    expect(taken).toBeGreaterThanOrEqual(least);
    expect(taken).toBeLessThan(2 * MIN_ALLOCATED_AHEAD_BYTE_LENGTH);
    expect(
      fs
        .readFileSync(path)
        .subarray(4 * 4096)
        .every((byte) => byte === 0),
    ).toBe(true);
  });

  itPeer(
    ['root', 'loop', 'mkfs.ext4'],
    'on a full file system fails writes, and goes on when there is room',
    async () => {
      const folder = tempDir('allocation');
      const mount = join(folder, 'mnt');
      fs.mkdirSync(mount);
      fs.writeFileSync(join(folder, 'disk'), '');
      fs.truncateSync(join(folder, 'disk'), 8 << 20);
      execFileSync(peer('mkfs.ext4'), ['-q', '-F', '-m', '0', join(folder, 'disk')]);
      execFileSync('mount', ['-o', 'loop', join(folder, 'disk'), mount]);
      onTestFinished(() => void execFileSync('umount', ['--lazy', mount]));
      fs.writeFileSync(join(mount, 'ballast'), Buffer.alloc(1 << 20, 1));
      fs.writeFileSync(join(mount, 'cow'), '');
      fs.truncateSync(join(mount, 'cow'), 64 << 20);
      fs.writeFileSync(join(folder, 'origin'), '');
      fs.truncateSync(join(folder, 'origin'), 32 << 20);
      const world = new EngineWorld('direct', folder);
      onTestFinished(() => world.close());
      const disk = await world.create('s', '0 65536 snapshot origin mnt/cow P 32');
      const write = (chunk: number): Promise<number> =>
        disk.write(chunk * 32, Buffer.alloc(16_384, chunk & 0xff)).then(
          () => 0,
          (error: { errno: number }) => error.errno,
        );
      let count = 0;
      let errno = await write(count);
      while (errno === 0 && count < 2000) errno = await write(++count);
      expect(Math.abs(errno)).toBe(Errno.ENOSPC);
      expect(world.status('s')).toMatch(/snapshot \d+\/131072 \d+$/);
      fs.rmSync(join(mount, 'ballast'));
      expect(await write(count)).toBe(0);
      const back = await disk.read(0, (count + 1) * 32);
      for (let chunk = 0; chunk <= count; chunk++) expect(back[chunk * 16_384]).toBe(chunk & 0xff);
    },
  );
});
