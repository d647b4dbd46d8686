import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { REQ_FUA } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import {
  ByteModel,
  checkedDevice,
  issue,
  randomBytes,
  randomFromSeed,
  randomRegion,
  randomRequest,
  randomVecs,
  SimulatedDevice,
  SimulatedReactor,
} from '../../src/testing/index.ts';
import { seed as runSeed, runs } from '../support/seed.ts';

const filled = (value: number, sectorCount = 1) => new Uint8Array(sectorCount * 512).fill(value);

describe('ByteModel', () => {
  test('is zeroes at first, or anything', () => {
    expect(new ByteModel(8).check(0, filled(0, 8))).toBeNull();
    expect(new ByteModel(8).check(3, filled(1))).toBe('sector 3: byte 0 is 1 and should be 0');
    expect(new ByteModel(8, { content: 'anything' }).check(3, filled(1))).toBeNull();
  });

  test('knows what must be, what may be and what nobody knows', () => {
    const model = new ByteModel(8);
    model.write(0, filled(1, 4));
    model.mayWrite(1, filled(2));
    model.discard(2, 1);
    model.writeZeroes(3, 1);
    for (const byte of [1, 2]) expect(model.check(1, filled(byte))).toBeNull();
    expect(model.check(1, filled(3))).toBe('sector 1: byte 0 is 3 and should be 1; or byte 0 is 3 and should be 2');
    expect(model.check(2, filled(77))).toBeNull();
    expect(() => model.assertRead(3, filled(1))).toThrow('wrong data at sector 3');
    expect(model.expected(0, 1)).toEqual(filled(1));
    expect([model.expected(1, 1), model.expected(2, 1)]).toEqual([null, null]);
    model.mayWriteZeroes(0, 1);
    expect(model.check(0, filled(0))).toBeNull();
    model.write(2, filled(5));
    expect(model.expected(2, 2)).toEqual(new Uint8Array([...filled(5), ...filled(0)]));
  });

  test('knows what a crash may leave', () => {
    const model = new ByteModel(8);
    model.write(0, filled(1));
    model.flush();
    model.write(0, filled(2));
    model.write(0, filled(3));
    model.write(1, filled(4), { durable: true });
    expect(model.check(0, filled(2))).not.toBeNull();
    model.crash();
    for (const byte of [1, 2, 3]) expect(model.check(0, filled(byte))).toBeNull();
    expect(model.check(0, filled(0))).not.toBeNull();
    expect(model.expected(1, 1)).toEqual(filled(4));
  });

  test('keeps its own copy, and refuses what is outside', () => {
    const model = new ByteModel(2);
    const data = filled(1);
    model.write(0, data);
    data.fill(2);
    expect(model.check(0, filled(1))).toBeNull();
    expect(() => model.write(1, filled(1, 2))).toThrow('of a model of 2');
    expect(() => model.check(0, new Uint8Array(3))).toThrow('whole number');
  });
});

describe('generators', () => {
  test('regions are inside the device, and reach its edges', () => {
    const random = randomFromSeed(1);
    const ends = new Set<string>();
    for (let i = 0; i < 1000; i++) {
      const { sector, sectorCount } = randomRegion(random, 10, 100);
      expect(sector >= 0 && sectorCount >= 1 && sector + sectorCount <= 10).toBe(true);
      if (sector === 0) ends.add('first');
      if (sector + sectorCount === 10) ends.add('last');
    }
    expect(ends.size).toBe(2);
  });

  test('memory in pieces has the length asked for', () => {
    const random = randomFromSeed(2);
    for (let i = 0; i < 200; i++) {
      const vecs = randomVecs(random, 2048);
      expect(vecs.reduce((sum, vec) => sum + vec.byteLength, 0)).toBe(2048);
      for (const { page, offset, byteLength } of vecs) expect(offset + byteLength).toBeLessThanOrEqual(page.byteLength);
    }
    expect(randomBytes(random, 7).byteLength).toBe(7);
  });
});

/** Random requests one after the other; a failed write leaves old or new. */
function exercise(device: BlockDevice, model: ByteModel, seed: number): void {
  const random = randomFromSeed(seed);
  const checked = checkedDevice(device);
  for (let i = 0; i < 60; i++) {
    const { op, ...request } = randomRequest(random, {
      sectorCount: model.sectorCount,
      flagProbability: 0.2,
      operations: ['read', 'write', 'write', 'discard', 'write-zeroes', 'flush'],
    });
    const { errno, data } = issue(checked, op, request);
    settle(model, op, request, errno!, data);
  }
  checked.check();
}

function settle(
  model: ByteModel,
  op: string,
  { sector, sectorCount, flags }: { sector: number; sectorCount: number; flags: number },
  errno: number,
  data: Uint8Array,
): void {
  if (op === 'read' && errno === 0) model.assertRead(sector, data);
  if (op === 'write' && errno === 0) model.write(sector, data, { durable: (flags & REQ_FUA) !== 0 });
  if (op === 'write' && errno !== 0) model.mayWrite(sector, data);
  if (op === 'write-zeroes' && errno === 0) model.writeZeroes(sector, sectorCount);
  if (op === 'write-zeroes' && errno !== 0) model.mayWriteZeroes(sector, sectorCount);
  if (op === 'discard') model.discard(sector, sectorCount);
  if (op === 'flush' && errno === 0) model.flush();
}

describe('devices and the model agree', () => {
  test('in memory', () => {
    fc.assert(fc.property(fc.integer(), (seed) => exercise(new MemoryDevice('memory', 48), new ByteModel(48), seed)));
  });

  test('simulated, with errors that write a part, and crash after crash', () => {
    const property = fc.property(fc.integer(), fc.boolean(), (seed, cached) => {
      const model = new ByteModel(48);
      let disk = new SimulatedDevice('disk', 48, {
        seed,
        faults: [{ kind: 'error', probability: 0.1, written: 'some' }],
        ...(cached ? { cacheSectorCount: 20 } : {}),
      });
      for (let round = 0; round < 4; round++) {
        exercise(disk, model, seed + round);
        disk.crash();
        disk = disk.reopen();
        model.crash();
        model.assertRead(0, disk.peek(0, 48));
      }
    });
    fc.assert(property, { numRuns: runs(40) });
  });

  test('not on a disk that ignores flushes', () => {
    const run = (seed: number): void => {
      const model = new ByteModel(48);
      const disk = new SimulatedDevice('disk', 48, { seed, faults: [{ kind: 'ignored-flush' }] });
      exercise(disk, model, seed);
      model.crash();
      model.assertRead(0, disk.crash().read(0, 48));
    };
    expect(() => {
      for (let i = 0; i < 50; i++) run(runSeed + i);
    }).toThrow('wrong data');
  });

  test('simulated, in every recorded crash', () => {
    const property = fc.property(fc.integer(), (seed) => {
      const disk = new SimulatedDevice('disk', 32, { seed });
      const recording = disk.record();
      const random = randomFromSeed(seed);
      // The model as it is between two requests: what a crash there may leave.
      const allowed = new Map<number, ByteModel>();
      const replay = (count: number): ByteModel => {
        const model = new ByteModel(32);
        for (const { op, data, sector, flags } of done.slice(0, count)) {
          if (op === 'flush') model.flush();
          else model.write(sector, data, { durable: (flags & REQ_FUA) !== 0 });
        }
        model.crash();
        return model;
      };
      const done: { op: string; data: Uint8Array; sector: number; flags: number }[] = [];
      for (let i = 0; i < 12; i++) {
        const { op, ...request } = randomRequest(random, { sectorCount: 32, operations: ['write', 'write', 'flush'] });
        const { data } = issue(disk, op, request);
        done.push({ op, data, sector: request.sector, flags: request.flags });
        allowed.set(recording.eventCount, replay(done.length));
      }
      for (const state of recording.crashStates()) {
        allowed.get(state.eventIndex)?.assertRead(0, state.image.read(0, 32));
      }
    });
    fc.assert(property, { numRuns: runs(30) });
  });

  test('simulated with many requests in flight: reads of the quiet part are exact', () => {
    const property = fc.property(fc.integer(), (seed) => {
      const reactor = new SimulatedReactor({ seed });
      const disk = new SimulatedDevice('disk', 64, { seed, reactor, latency: [1, 20], queueDepth: 4 });
      const random = randomFromSeed(seed);
      const model = new ByteModel(64);
      // Each slot of eight sectors has its own writer, one request at a time, and is read when it is quiet.
      const rounds = Array.from({ length: 8 }, () => 0);
      const next = (slot: number): void => {
        if (rounds[slot]!++ === 10) return;
        const data = randomBytes(random, 8 * 512);
        const write = issue(disk, 'write', { sector: slot * 8, data }).bio;
        write.onEnd = () => {
          model.write(slot * 8, data);
          const read = issue(disk, 'read', { sector: slot * 8, sectorCount: 8 });
          read.bio.onEnd = () => {
            model.assertRead(slot * 8, read.data);
            next(slot);
          };
        };
      };
      for (let slot = 0; slot < 8; slot++) next(slot);
      reactor.runUntilIdle();
      expect(rounds).toEqual(Array.from({ length: 8 }, () => 11));
      expect(disk.stats().maxInFlightCount).toBe(8);
    });
    fc.assert(property, { numRuns: runs(30) });
  });
});
