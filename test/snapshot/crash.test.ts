// The power fails at every moment of a recorded run. Origin and store lie on one simulated disk, which forgets, tears and
// reorders what was not flushed, so that both are seen at the same moment. What is opened afterwards holds what the model
// allows: everything that a flush covered, of each sector one of the contents that it had since, and of a snapshot never
// anything of the origin that is newer than itself.
import { describe, expect, test } from 'vitest';
import { REQ_FUA } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import {
  ByteModel,
  issue,
  mixSeed,
  type Random,
  randomFromSeed,
  randomInteger,
  SimulatedDevice,
} from '../../src/testing/index.ts';
import { seed as runSeed, runs } from '../support/seed.ts';
import { SlowDevice } from './slow-device.ts';
import { pattern, World } from './support.ts';

const ORIGIN_SECTOR_COUNT = 64;
const STORE_SECTOR_COUNT = 256;

interface Op {
  on: 'snapshot' | 'origin';
  kind: 'write' | 'flush';
  sector: number;
  data: Uint8Array;
  fua: boolean;
}

function randomOp(random: Random, fill: number): Op {
  const sector = randomInteger(random, 0, ORIGIN_SECTOR_COUNT - 1);
  const count = randomInteger(random, 1, Math.min(12, ORIGIN_SECTOR_COUNT - sector));
  return {
    on: random() < 0.6 ? 'snapshot' : 'origin',
    kind: random() < 0.25 ? 'flush' : 'write',
    sector,
    data: pattern(count, fill),
    fua: random() < 0.2,
  };
}

/** The disk's two parts as devices, and what is on top of them. */
function stack(disk: BlockDevice, chunk: number, features: string, top: 'both' | 'merge') {
  const world = new World(disk);
  world.activate('o', `0 ${ORIGIN_SECTOR_COUNT} linear disk 0`);
  world.activate('c', `0 ${STORE_SECTOR_COUNT} linear disk ${ORIGIN_SECTOR_COUNT}`);
  const words = `/dev/mapper/o /dev/mapper/c P ${chunk}${features}`;
  if (top === 'merge') {
    return { world, origin: null, snapshot: world.activate('m', `0 ${ORIGIN_SECTOR_COUNT} snapshot-merge ${words}`) };
  }
  const origin = world.activate('og', `0 ${ORIGIN_SECTOR_COUNT} snapshot-origin /dev/mapper/o`);
  return { world, origin, snapshot: world.activate('s', `0 ${ORIGIN_SECTOR_COUNT} snapshot ${words}`) };
}

function freshModels(): { snapshot: ByteModel; origin: ByteModel } {
  const models = { snapshot: new ByteModel(ORIGIN_SECTOR_COUNT), origin: new ByteModel(ORIGIN_SECTOR_COUNT) };
  for (const model of [models.snapshot, models.origin]) {
    model.write(0, pattern(ORIGIN_SECTOR_COUNT, 1));
    model.flush();
  }
  return models;
}

/** The models after `count` batches, with the next one under way, and after the crash. */
function modelsAfter(batches: readonly Op[][], count: number): { snapshot: ByteModel; origin: ByteModel } {
  const models = freshModels();
  for (const batch of batches.slice(0, count)) {
    for (const op of batch) {
      // In one batch no two requests go to one device.
      if (op.kind === 'flush') models[op.on].flush();
      else models[op.on].write(op.sector, op.data, { durable: op.fua });
    }
  }
  for (const op of batches[count] ?? []) if (op.kind === 'write') models[op.on].mayWrite(op.sector, op.data);
  models.snapshot.crash();
  models.origin.crash();
  return models;
}

function submitOp(op: Op, device: MappedDevice) {
  if (op.kind === 'flush') return issue(device, 'flush');
  return issue(device, 'write', { sector: op.sector, data: op.data, flags: op.fua ? REQ_FUA : 0 });
}

/** An origin with a pattern; a store whose first word alone is blank. */
function contentOf(random: Random): Uint8Array {
  const content = new Uint8Array((ORIGIN_SECTOR_COUNT + STORE_SECTOR_COUNT) * 512);
  content.set(pattern(ORIGIN_SECTOR_COUNT, 1));
  for (let at = ORIGIN_SECTOR_COUNT * 512 + 4; at < content.byteLength; at++) content[at] = Math.floor(random() * 256);
  return content;
}

/** Some requests on a fresh snapshot, recorded. */
function record(seed: number, chunk: number, features: string) {
  const random = randomFromSeed(seed);
  const content = contentOf(random);
  const disk = new SimulatedDevice('disk', ORIGIN_SECTOR_COUNT + STORE_SECTOR_COUNT, { seed, content });
  const holder = new World();
  const slow = new SlowDevice(disk, holder.reactor, random);
  const { world, origin, snapshot } = stack(slow, chunk, features, 'both');
  const recording = disk.record();
  slow.slow = true;
  const batches: Op[][] = [];
  for (let round = 0; round < 14; round++) {
    const ops = [randomOp(random, 16 * round + 7), randomOp(random, 16 * round + 99)];
    if (ops[0]!.on === ops[1]!.on) ops.pop();
    batches.push(ops);
    const requests = ops.map((op) => submitOp(op, op.on === 'origin' ? origin! : snapshot));
    while (requests.some((request) => !request.ended)) {
      holder.reactor.run(1);
      world.reactor.run(1);
    }
    for (const request of requests) expect(request.errno).toBe(0);
    recording.note(round);
  }
  return { recording, batches };
}

function read(world: World, device: BlockDevice): Uint8Array {
  const request = issue(device, 'read', { sector: 0, sectorCount: ORIGIN_SECTOR_COUNT });
  world.reactor.runUntilIdle();
  expect(request.errno).toBe(0);
  return request.data;
}

describe.each([
  ['each batch committed', ''],
  ['lazy commit', ' 1 lazy_commit'],
])('%s', (_what, features) => {
  test('every crash of a run leaves a store that can be opened, with everything in it that must be', () => {
    let stateCount = 0;
    for (let round = 0; round < runs(3); round++) {
      const seed = mixSeed(runSeed, round, features.length);
      const chunk = [1, 2, 4, 8, 16][seed % 5]!;
      const { recording, batches } = record(seed, chunk, features);
      for (const state of recording.crashStates({ statesPerEvent: 3 })) {
        const { world, origin, snapshot } = stack(state.open(), chunk, features, 'both');
        const models = modelsAfter(batches, state.notes.length);
        const problem = models.snapshot.check(0, read(world, snapshot)) ?? models.origin.check(0, read(world, origin!));
        if (problem !== null) throw new Error(`${state}, chunk ${chunk}: wrong data at ${problem}`);
        stateCount++;
        if (stateCount % 10 > 0) continue;
        // And it goes on: what is written now has nothing to do with what was there.
        const before = read(world, snapshot);
        expect(world.write(origin!, 0, ORIGIN_SECTOR_COUNT, 0xee)).toBe(0);
        expect(Buffer.compare(read(world, snapshot), before)).toBe(0);
      }
    }
    expect(stateCount).toBeGreaterThan(200);
  });
});

test('every crash of a merge leaves a merge that can be gone on with', () => {
  let stateCount = 0;
  for (let round = 0; round < runs(3); round++) {
    const seed = mixSeed(runSeed, round, 77);
    const random = randomFromSeed(seed);
    const chunk = [1, 2, 4, 8, 16][seed % 5]!;
    const content = contentOf(random);
    const model = pattern(ORIGIN_SECTOR_COUNT, 1);
    const first = new SimulatedDevice('disk', ORIGIN_SECTOR_COUNT + STORE_SECTOR_COUNT, { seed, content });
    const before = stack(first, chunk, '', 'both');
    for (let i = 0; i < 10; i++) {
      const op = randomOp(random, 20 * i + 3);
      before.world.io(before.snapshot, 'write', op);
      model.set(op.data, op.sector * 512);
    }
    first.crash({ choice: 'all' });
    const disk = first.reopen();
    const recording = disk.record();
    const merging = stack(disk, chunk, '', 'merge');
    merging.world.reactor.runUntilIdle();
    expect(merging.snapshot.lines('info')[0]).toMatch(/ (\d+)\/\d+ \1$/);
    for (const state of recording.crashStates({ statesPerEvent: 3 })) {
      const after = stack(state.open(), chunk, '', 'merge');
      expect([`${state}`, Buffer.compare(read(after.world, after.snapshot), model)]).toEqual([`${state}`, 0]);
      expect(after.snapshot.lines('info')[0]).toMatch(/ (\d+)\/\d+ \1$/);
      expect(Buffer.compare(read(after.world, after.world.mapper.get('o')), model)).toBe(0);
      stateCount++;
    }
  }
  expect(stateCount).toBeGreaterThan(50);
});
