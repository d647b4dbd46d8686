// A merge is stopped after any number of runs, and the snapshot goes on with what is left of the store: nothing that was
// merged comes back, nothing that is left is written over, now and after the store was opened anew.
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { randomFromSeed, randomInteger, shuffled } from '../../src/testing/index.ts';
import { printSeedOnFailure, runs, seed } from '../support/seed.ts';
import { pattern, World } from './support.ts';

const SECTOR_COUNT = 160;
const STORE_SECTOR_COUNT = 1000;
const ORIGIN = `0 ${SECTOR_COUNT} snapshot-origin o`;

const contentsOf = (world: World, name: string): number[] => world.read(world.mapper.get(name), 0, SECTOR_COUNT);

/** Records with holes between their chunks, as writes leave them that found no room. */
function storeWithHoles(chunk: number, random: () => number): { store: MemoryDevice; expected: number[] } {
  const store = new MemoryDevice('c', STORE_SECTOR_COUNT);
  const expected = Array.from({ length: SECTOR_COUNT }, (_, sector) => (1 + sector) & 0xff);
  store.poke(0, new Uint8Array(new Uint32Array([0x70416e53, 1, 1, chunk]).buffer));
  const perArea = 32 * chunk;
  const olds = shuffled(random, [...Array(SECTOR_COUNT / chunk).keys()]).slice(0, Math.min(40, 120 / chunk));
  let next = 2 + randomInteger(random, 0, 2);
  for (const [index, old] of olds.entries()) {
    if (next % (perArea + 1) === 1) next++;
    const at = (1 + Math.floor(index / perArea) * (perArea + 1)) * chunk * 512 + (index % perArea) * 16;
    store.poke(Math.floor(at / 512), withRecord(store, at, old, next));
    const fill = randomInteger(random, 1, 255);
    store.poke(next * chunk, new Uint8Array(chunk * 512).fill(fill));
    expected.fill(fill, old * chunk, (old + 1) * chunk);
    next += 1 + (random() < 0.2 ? randomInteger(random, 1, 3) : 0);
  }
  return { store, expected };
}

function withRecord(store: MemoryDevice, at: number, oldChunk: number, newChunk: number): Uint8Array {
  const sector = store.peek(Math.floor(at / 512), 1).slice();
  const view = new DataView(sector.buffer);
  view.setUint32(at % 512, oldChunk, true);
  view.setUint32((at % 512) + 8, newChunk, true);
  return sector;
}

test.each([1, 2, 4])('chunks of %i', (chunk) => {
  printSeedOnFailure();
  for (let stop = 0; stop < runs(60); stop++) {
    const random = randomFromSeed(seed + 1000 * stop + chunk);
    const { store, expected } = storeWithHoles(chunk, random);
    const origin = new MemoryDevice('o', SECTOR_COUNT);
    origin.poke(0, pattern(SECTOR_COUNT, 1));
    const world = new World(origin, store);
    const words = `o c P ${chunk}`;
    const merge = world.mapper.create('m');
    world.load(merge, `0 ${SECTOR_COUNT} snapshot-merge ${words}`);
    merge.resume({}, () => {});
    for (let step = 0; step < stop; step++) world.reactor.step();
    world.suspend(merge);
    world.activate('t', `0 ${SECTOR_COUNT} snapshot ${words}`);
    world.remove(merge);
    const origins = world.activate('og', ORIGIN);
    expect(contentsOf(world, 't')).toEqual(expected);
    for (let write = 0; write < 20; write++) {
      const sector = randomInteger(random, 0, SECTOR_COUNT - 8);
      const onOrigin = random() < 0.3;
      world.write(onOrigin ? origins : world.mapper.get('t'), sector, 5, 200 + write);
      if (!onOrigin) expected.fill(200 + write, sector, sector + 5);
    }
    expect(contentsOf(world, 't')).toEqual(expected);
    world.remove(world.mapper.get('t'));
    world.activate('t', `0 ${SECTOR_COUNT} snapshot ${words}`);
    expect(contentsOf(world, 't')).toEqual(expected);
  }
});
