// Writes to the store find no room, at random and in part, and later there is room again: no chunk of the store is lost by
// that, and a crash at any moment finds nothing but what was written.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Bio, REQ_FUA } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { dataChunk, recordsPerArea } from '../../src/targets/snapshot/layout.ts';
import { type IssuedRequest, issue, type Random, randomFromSeed, randomInteger } from '../../src/testing/index.ts';
import { runs } from '../support/seed.ts';
import { World } from './support.ts';
import { type Refusal, TightDevice } from './tight-device.ts';

const CHUNK_COUNT = 70;

/** Flushes and FUA reach a target only where a device below has a cache. */
const LIMITS = { limits: { hasWriteCache: true, hasFua: true } };

interface Crash {
  store: Uint8Array;
  possible: Set<number>[];
}

class Scenario {
  readonly random: Random;
  readonly chunk: number;
  readonly word: string;
  readonly sectorCount: number;
  readonly origin: MemoryDevice;
  readonly memory: MemoryDevice;
  readonly store: TightDevice;
  readonly world: World;
  snapshot: MappedDevice;
  /** For each chunk the values that its first sector may have. */
  readonly possible: Set<number>[] = [];
  readonly crashes: Crash[] = [];
  /** Writes of the last burst. */
  #current: { request: IssuedRequest; index: number; value: number }[] = [];
  #value = 0;
  isTight = false;

  constructor(seed: number, word: string, chunk: number) {
    this.random = randomFromSeed(seed);
    this.word = word;
    this.chunk = chunk;
    this.sectorCount = CHUNK_COUNT * chunk;
    this.origin = new MemoryDevice('o', this.sectorCount, LIMITS);
    // As many chunks as the origin has, and not one more.
    const last = word.startsWith('N') ? CHUNK_COUNT - 1 : dataChunk(CHUNK_COUNT - 1, recordsPerArea(chunk));
    this.memory = new MemoryDevice('c', (last + 1) * chunk, LIMITS);
    this.store = new TightDevice(this.memory);
    this.world = new World(this.origin, this.store);
    for (let index = 0; index < CHUNK_COUNT; index++) this.possible.push(new Set([0]));
    this.snapshot = this.world.activate('s', this.table);
    this.store.slow = { reactor: this.world.reactor, random: this.random };
    this.store.refuse = (bio) => this.#refuse(bio);
    this.store.onWrite = () => {
      if (this.random() < 0.03 && this.crashes.length < 8) this.#crash();
    };
  }

  get table(): string {
    const [letters, lazy] = this.word.split(' ');
    return `0 ${this.sectorCount} snapshot o c ${letters} ${this.chunk}${lazy === undefined ? '' : ' 1 lazy_commit'}`;
  }

  #refuse(bio: Bio): Refusal | null {
    if (!this.isTight || this.random() < 0.3) return null;
    const written = this.random() < 0.5 ? 0 : randomInteger(this.random, 0, bio.sectorCount);
    return { errno: Errno.ENOSPC, sectorCount: written };
  }

  #crash(): void {
    this.learn();
    const store = this.memory.peek(0, this.memory.sectorCount).slice();
    this.crashes.push({ store, possible: this.possible.map((values) => new Set(values)) });
  }

  write(index: number, flags: number): IssuedRequest {
    const value = (this.#value++ % 255) + 1;
    const whole = this.random() < 0.5;
    const data = new Uint8Array((whole ? this.chunk : 1) * 512).fill(value);
    const possible = this.possible[index]!;
    possible.add(value);
    const request = issue(this.snapshot, 'write', { sector: index * this.chunk, data, flags });
    this.#current.push({ request, index, value });
    return request;
  }

  /** Forgets what can't be there any more: the old value where a write ended well. */
  learn(): void {
    for (const { request, index, value } of this.#current) {
      if (request.ended) expect([0, Errno.ENOSPC]).toContain(request.errno);
      if (request.errno === 0) this.possible[index] = new Set([value]);
    }
  }

  /** Writes to different chunks at the same time. */
  burst(): void {
    const chosen = new Set(Array.from({ length: 20 }, () => randomInteger(this.random, 0, CHUNK_COUNT - 1)));
    const requests = [...chosen].map((index) => this.write(index, this.random() < 0.2 ? REQ_FUA : 0));
    const flush = this.random() < 0.3 ? issue(this.snapshot, 'flush') : null;
    this.world.reactor.runUntilIdle();
    for (const request of requests) expect(request.ended).toBe(true);
    if (flush !== null) expect([0, Errno.ENOSPC]).toContain(flush.errno);
    this.learn();
    this.#current = [];
    this.check(this.snapshot, this.possible);
  }

  check(device: MappedDevice, possible: readonly Set<number>[]): void {
    const read = issue(device, 'read', { sector: 0, sectorCount: this.sectorCount });
    this.world.reactor.runUntilIdle();
    expect(read.errno).toBe(0);
    for (const [index, values] of possible.entries()) {
      expect([...values], `chunk ${index}`).toContain(read.data[index * this.chunk * 512]);
    }
  }

  get info(): string {
    return this.snapshot.lines('info').join();
  }
}

/** The store after a crash, in a world of its own. */
function checkCrash(scenario: Scenario, { store, possible }: Crash): void {
  const memory = new MemoryDevice('c', scenario.memory.sectorCount);
  memory.poke(0, store);
  const world = new World(new MemoryDevice('o', scenario.sectorCount), memory);
  const device = world.activate('s', scenario.table);
  const read = issue(device, 'read', { sector: 0, sectorCount: scenario.sectorCount });
  expect(read.errno).toBe(0);
  for (const [index, values] of possible.entries()) {
    expect([...values], `chunk ${index} after a crash`).toContain(read.data[index * scenario.chunk * 512]);
  }
}

describe.each(['P', 'PO', 'N', 'P lazy'])('a store of type %s', (word) => {
  test.each([1, 2, 8])('with chunks of %i sectors loses no chunk by writes that found no room', (chunk) => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 31 - 1 }), (seed) => {
        const scenario = new Scenario(seed, word, chunk);
        for (let round = 0; round < 8; round++) {
          scenario.isTight = scenario.random() < 0.8;
          scenario.burst();
          expect(scenario.info).not.toMatch(/Invalid|Overflow/);
        }
        scenario.isTight = false;
        const requests = Array.from({ length: CHUNK_COUNT }, (_, index) => scenario.write(index, 0));
        requests.push(issue(scenario.snapshot, 'flush'));
        scenario.world.reactor.runUntilIdle();
        expect(requests.map(({ errno }) => errno)).toEqual(requests.map(() => 0));
        scenario.learn();
        scenario.check(scenario.snapshot, scenario.possible);

        const calm = new Scenario(seed, word, chunk);
        for (let index = 0; index < CHUNK_COUNT; index++) calm.write(index, 0);
        calm.world.reactor.runUntilIdle();
        expect(scenario.info).toBe(calm.info);
        if (word === 'N') return;
        scenario.store.slow = null;
        scenario.world.remove(scenario.snapshot);
        scenario.snapshot = scenario.world.activate('s', scenario.table);
        expect(scenario.info).toBe(calm.info);
        scenario.check(scenario.snapshot, scenario.possible);
        // With lazy commit a crash may forget what no flush covered.
        if (word !== 'P lazy') for (const crash of scenario.crashes) checkCrash(scenario, crash);
      }),
      { numRuns: runs(25) },
    );
  });
});

test('chunks that failed before a reload are used after it', () => {
  const chunk = 8;
  const origin = new MemoryDevice('o', 20 * chunk);
  const store = new TightDevice(new MemoryDevice('c', 22 * chunk));
  const world = new World(origin, store);
  const table = `0 ${20 * chunk} snapshot o c P ${chunk}`;
  let snapshot = world.activate('s', table);
  store.slow = { reactor: world.reactor, random: randomFromSeed(1) };
  // Of the first ten chunks that are given out only the last keeps its record.
  store.refuse = ({ sector }) =>
    sector >= 2 * chunk && sector < 11 * chunk ? { errno: Errno.ENOSPC, sectorCount: 0 } : null;
  const requests = Array.from({ length: 10 }, (_, index) =>
    issue(snapshot, 'write', { sector: index * chunk, data: new Uint8Array(chunk * 512).fill(index + 1) }),
  );
  world.reactor.runUntilIdle();
  expect(requests.map(({ errno }) => errno)).toEqual([...Array(9).fill(Errno.ENOSPC), 0]);
  store.slow = null;
  store.refuse = () => null;
  world.remove(snapshot);
  snapshot = world.activate('s', table);
  for (let index = 0; index < 20; index++) expect(world.write(snapshot, index * chunk, chunk, index + 50)).toBe(0);
  expect(snapshot.lines('info').join()).toContain(` ${22 * chunk}/${22 * chunk} `);
  world.remove(snapshot);
  snapshot = world.activate('s', table);
  for (let index = 0; index < 20; index++) expect(world.read(snapshot, index * chunk, 1)).toEqual([index + 50]);
});

test.each(['P', 'PO', 'N', 'P lazy'])('a store that grew meanwhile is not full (%s)', (word) => {
  const chunk = 8;
  /** As a file whose size is asked for on demand. */
  class GrowingDevice extends TightDevice {
    shown = 4 * chunk;
    override get sectorCount(): number {
      return this.shown;
    }
    refreshSize(): number {
      this.shown = this.device.sectorCount;
      return this.shown;
    }
  }
  const store = new GrowingDevice(new MemoryDevice('c', 12 * chunk));
  const world = new World(new MemoryDevice('o', 10 * chunk), store);
  const [letters, lazy] = word.split(' ');
  const table = `0 ${10 * chunk} snapshot o c ${letters} ${chunk}${lazy === undefined ? '' : ' 1 lazy_commit'}`;
  const snapshot = world.activate('s', table);
  for (let index = 0; index < 2; index++) expect(world.write(snapshot, index * chunk, 1, 1)).toBe(0);
  expect(snapshot.lines('info').join()).toContain(`/${4 * chunk} `);
  for (let index = 2; index < 10; index++) expect(world.write(snapshot, index * chunk, 1, 1)).toBe(0);
  expect(snapshot.lines('info').join()).toContain(`/${12 * chunk} `);
});

test('a merge that stops half-way leaves a store in which every free chunk can be used', () => {
  const chunk = 1;
  const origin = new MemoryDevice('o', 60);
  const store = new TightDevice(new MemoryDevice('c', dataChunk(59, recordsPerArea(chunk)) + 1));
  const world = new World(origin, store);
  const table = `0 60 snapshot o c P ${chunk}`;
  let snapshot = world.activate('s', table);
  const random = randomFromSeed(7);
  store.slow = { reactor: world.reactor, random };
  store.refuse = ({ sector }) => (sector > 1 && sector % 3 === 0 ? { errno: Errno.ENOSPC, sectorCount: 0 } : null);
  for (let index = 0; index < 60; index += 2) {
    issue(snapshot, 'write', { sector: index, data: new Uint8Array(512).fill(index + 1) });
  }
  world.reactor.runUntilIdle();
  store.refuse = () => null;
  for (let index = 0; index < 60; index += 2) expect(world.write(snapshot, index, 1, index + 1)).toBe(0);
  store.slow = null;
  world.remove(snapshot);
  const merge = world.activate('m', table.replace('snapshot', 'snapshot-merge'));
  const suspended: unknown[] = [];
  merge.suspend({}, () => suspended.push(true));
  world.reactor.runUntilIdle();
  expect(suspended).toEqual([true]);
  world.load(merge, table);
  world.resume(merge);
  for (let index = 1; index < 60; index += 2) expect(world.write(merge, index, 1, index + 1)).toBe(0);
  for (let index = 0; index < 60; index++) expect(world.read(merge, index, 1)).toEqual([index + 1]);
  world.remove(merge);
  snapshot = world.activate('s', table);
  for (let index = 0; index < 60; index++) expect(world.read(snapshot, index, 1)).toEqual([index + 1]);
});
