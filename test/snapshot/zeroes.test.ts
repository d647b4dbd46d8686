// Zeroes over whole chunks: holes in the store, whatever lay there, and the same contents as written zeroes.
import { statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import type { Reactor } from '../../src/block/reactor.ts';
import { RangeRequest } from '../../src/block/zeroout.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { issue, type Random, randomFromSeed, randomInteger } from '../../src/testing/index.ts';
import { ENGINES } from '../engine/harness.ts';
import { runs } from '../support/seed.ts';
import { makeImage, tempDir } from '../support/tmp.ts';
import { EngineWorld } from './engine-world.ts';
import { World } from './support.ts';
import { TightDevice } from './tight-device.ts';

const CHUNK = 8;
const CHUNK_COUNT = 40;
/** The last chunk is cut. */
const SECTOR_COUNT = CHUNK_COUNT * CHUNK - 3;

function zeroOut(reactor: Reactor, device: BlockDevice, sector: number, sectorCount: number): { errno: number } {
  const result = { errno: -1 };
  new RangeRequest(reactor).zeroOut(device, sector, sectorCount, {}, (errno) => {
    result.errno = errno;
  });
  return result;
}

/** How the store's device makes zeroes. */
type Zeroes = 'at once' | 'not at all' | 'refused';

function scenario(word: string, zeroes: Zeroes, random: Random) {
  const limits = zeroes === 'not at all' ? { maxWriteZeroesSectorCount: 0 } : {};
  const origin = new MemoryDevice('o', SECTOR_COUNT);
  const memory = new MemoryDevice('c', 50 * CHUNK, { limits });
  origin.poke(0, new Uint8Array(SECTOR_COUNT * 512).fill(0xaa));
  // Stale bytes where the chunks will be.
  memory.poke(2 * CHUNK, new Uint8Array(48 * CHUNK * 512).fill(0xbb));
  const store = new TightDevice(memory);
  if (zeroes === 'refused') {
    store.refuse = ({ vecs }) => (vecs.length === 0 ? { errno: Errno.EOPNOTSUPP, sectorCount: 0 } : null);
  }
  const world = new World(origin, store);
  const [letters, lazy] = word.split(' ');
  const table = `0 ${SECTOR_COUNT} snapshot o c ${letters} ${CHUNK}${lazy === undefined ? '' : ' 1 lazy_commit'}`;
  const snapshot = world.activate('s', table);
  store.slow = { reactor: world.reactor, random };
  return { world, store, memory, snapshot, table };
}

describe.each(['P', 'PO', 'N', 'P lazy'])('a store of type %s', (word) => {
  test.each<Zeroes>(['at once', 'not at all', 'refused'])('shows zeroes where its device makes them %s', (zeroes) => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 31 - 1 }), (seed) => {
        const random = randomFromSeed(seed);
        const { world, store, snapshot, table } = scenario(word, zeroes, random);
        const expected = Buffer.alloc(SECTOR_COUNT * 512, 0xaa);
        for (let round = 0; round < 8; round++) {
          // Ranges that do not touch go out at the same time.
          const results: { errno?: number | undefined }[] = [];
          for (let sector = randomInteger(random, 0, 40); sector < SECTOR_COUNT; ) {
            const count = Math.min(randomInteger(random, 1, 100), SECTOR_COUNT - sector);
            const fill = random() < 0.6 ? 0 : randomInteger(random, 1, 255);
            const data = Buffer.alloc(count * 512, fill);
            if (fill === 0) results.push(zeroOut(world.reactor, snapshot, sector, count));
            else results.push(issue(snapshot, 'write', { sector, data }));
            data.copy(expected, sector * 512);
            sector += count + randomInteger(random, 0, 40);
          }
          world.reactor.runUntilIdle();
          expect(results.map(({ errno }) => errno)).toEqual(results.map(() => 0));
          const read = issue(snapshot, 'read', { sector: 0, sectorCount: SECTOR_COUNT });
          world.reactor.runUntilIdle();
          expect(Buffer.compare(read.data, expected)).toBe(0);
        }
        if (word === 'N') return;
        store.slow = null;
        world.remove(snapshot);
        const again = world.activate('s', table);
        const read = issue(again, 'read', { sector: 0, sectorCount: SECTOR_COUNT });
        expect(Buffer.compare(read.data, expected)).toBe(0);
      }),
      { numRuns: runs(20) },
    );
  });

  test('is sent no data for whole chunks, new or old', () => {
    const { world, store, snapshot } = scenario(word, 'at once', () => 0.5);
    expect(world.write(snapshot, 0, 20 * CHUNK, 9)).toBe(0);
    let dataSectorCount = 0;
    store.refuse = ({ vecs, sector, sectorCount }) => {
      if (vecs.length > 0 && (word === 'N' || sector >= 2 * CHUNK)) dataSectorCount += sectorCount;
      return null;
    };
    const result = zeroOut(world.reactor, snapshot, 0, SECTOR_COUNT);
    world.reactor.runUntilIdle();
    expect([result.errno, dataSectorCount]).toEqual([0, 0]);
  });

  test('that can make no zeroes for lack of room fails that request alone', () => {
    const { world, store, snapshot } = scenario(word, 'at once', () => 0.5);
    store.refuse = ({ vecs }) => (vecs.length === 0 ? { errno: Errno.ENOSPC, sectorCount: 0 } : null);
    const result = zeroOut(world.reactor, snapshot, 0, SECTOR_COUNT);
    world.reactor.runUntilIdle();
    expect(result.errno).toBe(Errno.ENOSPC);
    expect(snapshot.lines('info').join()).not.toContain('Invalid');
    store.refuse = () => null;
    const again = zeroOut(world.reactor, snapshot, 0, SECTOR_COUNT);
    world.reactor.runUntilIdle();
    expect(again.errno).toBe(0);
  });
});

describe.each(ENGINES)('with the %s engine', (engine) => {
  test('64 MiB of zeroes cost the file of a store next to nothing, twice over', async () => {
    const sectorCount = 131_072;
    const folder = tempDir('zeroes');
    const file = join(folder, 'c.img');
    makeImage(join(folder, 'o.img'), sectorCount, 5);
    writeFileSync(file, '');
    truncateSync(file, 2 * sectorCount * 512);
    let world = new EngineWorld(engine, folder);
    const table = `0 ${sectorCount} snapshot o.img c.img P 32`;
    let snapshot = await world.create('s', table);
    // Chunks that hold data become holes as well.
    await snapshot.write(0, Buffer.alloc(8 << 20, 7));
    for (let time = 0; time < 2; time++) {
      const errno = await new Promise<number>((resolve) => {
        new RangeRequest(world.loop).zeroOut(world.mapper.get('s'), 0, sectorCount, {}, resolve);
      });
      expect(errno).toBe(0);
    }
    await snapshot.flush();
    // Room that was allocated ahead may be left. The portable engine has no fallocate, and writes the zeroes.
    if (engine !== 'portable') expect(statSync(file).blocks * 512).toBeLessThan(24 << 20);
    await world.close();
    world = new EngineWorld(engine, folder);
    snapshot = await world.create('s', table);
    expect((await snapshot.read(0, sectorCount)).every((byte) => byte === 0)).toBe(true);
    await world.close();
  });
});
