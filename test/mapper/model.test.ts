// Random stacks of tables over image files, and random I/O on every device of them, against a model that knows for each
// sector where it ends up: computed sector by sector from the text of the tables, with none of the code under test.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import type { Disk } from '../../src/api/disk.ts';
import { IoError } from '../../src/block/errors.ts';
import { ENGINES } from '../engine/harness.ts';
import { runs } from '../support/seed.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

type Place = { file: number; sector: number } | 'zero' | 'error';

/** A device of the model: what each of its sectors is, and which range operations its lines allow. */
interface ModelDevice {
  argument: string;
  places: Place[];
  ranges: boolean;
}

interface Line {
  kind: 'linear' | 'striped' | 'zero' | 'error';
  picks: number[];
  length: number;
  chunk: number;
  stripes: number;
}

const line: fc.Arbitrary<Line> = fc.record({
  kind: fc.constantFrom('linear', 'linear', 'striped', 'striped', 'zero', 'error'),
  picks: fc.array(fc.nat(), { minLength: 8, maxLength: 8 }),
  length: fc.integer({ min: 1, max: 60 }),
  chunk: fc.integer({ min: 1, max: 9 }),
  stripes: fc.integer({ min: 1, max: 4 }),
});

const operation = fc.record({
  kind: fc.constantFrom('read', 'read', 'write', 'write', 'write', 'discard', 'zeroes', 'flush'),
  device: fc.nat(),
  from: fc.nat(),
  count: fc.nat(),
  fua: fc.boolean(),
});

const scenario = fc.record({
  fileSizes: fc.array(fc.integer({ min: 16, max: 200 }), { minLength: 1, maxLength: 3 }),
  devices: fc.array(fc.array(line, { minLength: 1, maxLength: 6 }), { minLength: 1, maxLength: 4 }),
  operations: fc.array(operation, { minLength: 1, maxLength: 40 }),
});

/** Adds one line's sectors to a device, and gives the line's words; null where the devices are too small for it. */
function addLine(
  shape: Line,
  below: readonly ModelDevice[],
  places: Place[],
): { words: string; length: number; ranges: boolean } | null {
  const pick = (index: number) => below[shape.picks[index]! % below.length]!;
  if (shape.kind === 'zero' || shape.kind === 'error') {
    for (let i = 0; i < shape.length; i++) places.push(shape.kind);
    return { words: shape.kind, length: shape.length, ranges: false };
  }
  const stripes = shape.kind === 'linear' ? 1 : shape.stripes;
  const rows = Math.ceil(shape.length / shape.chunk / stripes);
  const width = shape.kind === 'linear' ? shape.length : rows * shape.chunk;
  const legs = Array.from({ length: stripes }, (_, index) => {
    const device = pick(index);
    const room = device.places.length - width;
    return room < 0 ? null : { device, offset: shape.picks[index + 4]! % (room + 1) };
  });
  if (legs.some((leg) => leg === null)) return null;
  const length = width * stripes;
  for (let sector = 0; sector < length; sector++) {
    const chunk = Math.floor(sector / shape.chunk);
    const leg = shape.kind === 'linear' ? legs[0]! : legs[chunk % stripes]!;
    const at = shape.kind === 'linear' ? sector : Math.floor(chunk / stripes) * shape.chunk + (sector % shape.chunk);
    places.push(leg.device.places[leg.offset + at]!);
  }
  const pairs = legs.map((leg) => `${leg!.device.argument} ${leg!.offset}`).join(' ');
  const words = shape.kind === 'linear' ? `linear ${pairs}` : `striped ${stripes} ${shape.chunk} ${pairs}`;
  return { words, length, ranges: legs.every((leg) => leg!.device.ranges) };
}

interface World {
  dm: DeviceMapper;
  files: Uint8Array[];
  paths: string[];
  disks: { disk: Disk; model: ModelDevice }[];
}

async function build(shape: { fileSizes: number[]; devices: Line[][] }, ranges: boolean): Promise<World> {
  const folder = tempDir('model');
  const paths = shape.fileSizes.map((_, index) => join(folder, `f${index}.img`));
  const files = shape.fileSizes.map((size, index) => Uint8Array.from(makeImage(paths[index]!, size, index + 1)));
  const below: ModelDevice[] = paths.map((argument, file) => ({
    argument,
    places: Array.from({ length: shape.fileSizes[file]! }, (_, sector) => ({ file, sector })),
    ranges,
  }));
  const dm = new DeviceMapper();
  const disks: World['disks'] = [];
  for (const [index, lines] of shape.devices.entries()) {
    const places: Place[] = [];
    const text: string[] = [];
    let allowed = true;
    for (const one of lines) {
      const start = places.length;
      const added = addLine(one, below, places);
      if (added === null) continue;
      text.push(`${start} ${added.length} ${added.words}`);
      allowed &&= added.ranges;
    }
    if (text.length === 0) continue;
    const model = { argument: `/dev/mapper/d${index}`, places, ranges: allowed };
    disks.push({ disk: await dm.create(`d${index}`, text.join('\n')), model });
    await checkRoundTrip(dm, `d${index}`);
    below.push(model);
  }
  return { dm, files, paths, disks };
}

/** The table that is printed makes the same device. */
async function checkRoundTrip(dm: DeviceMapper, name: string): Promise<void> {
  const lines = dm.lines(name, 'table');
  (await dm.create('copy', lines.join('\n'))).close();
  expect(dm.lines('copy', 'table')).toEqual(lines);
  await dm.remove('copy');
}

/** True where one request reaches a sector below twice: the order of its own pieces is nobody's promise. */
function overlapsItself(places: readonly Place[]): boolean {
  const keys = places.flatMap((place) => (typeof place === 'string' ? [] : [`${place.file}:${place.sector}`]));
  return new Set(keys).size !== keys.length;
}

/** Reads or writes the model; gives the first failing sector, or -1. */
function applyToModel(world: World, places: readonly Place[], data: Uint8Array, write: boolean): number {
  let failed = -1;
  places.forEach((place, index) => {
    const piece = data.subarray(index * 512, (index + 1) * 512);
    if (place === 'error') {
      if (failed < 0) failed = index;
    } else if (place === 'zero') {
      if (!write) piece.fill(0);
    } else {
      const stored = world.files[place.file]!.subarray(place.sector * 512, (place.sector + 1) * 512);
      if (write) stored.set(piece);
      else piece.set(stored);
    }
  });
  return failed;
}

/** The failure of a promise, or null. */
async function failure(work: Promise<unknown>): Promise<IoError | null> {
  try {
    await work;
    return null;
  } catch (error) {
    if (error instanceof IoError) return error;
    throw error;
  }
}

type Operation = { kind: string; device: number; from: number; count: number; fua: boolean };

async function perform(world: World, op: Operation, step: number): Promise<void> {
  const { disk, model } = world.disks[op.device % world.disks.length]!;
  const from = op.from % model.places.length;
  const count = 1 + (op.count % (model.places.length - from));
  const places = model.places.slice(from, from + count);
  if (op.kind === 'flush') {
    await disk.flush();
    return;
  }
  if (op.kind === 'read') {
    const expected = new Uint8Array(count * 512);
    const failed = applyToModel(world, places, expected, false);
    const data = new Uint8Array(count * 512).fill(0xee);
    const error = await failure(disk.readInto(from, data));
    expect(error === null ? -1 : error.sector - from).toBe(failed);
    if (failed < 0) expect(Buffer.compare(data, expected)).toBe(0);
    return;
  }
  if (overlapsItself(places)) return;
  if (op.kind === 'write') {
    const data = Uint8Array.from({ length: count * 512 }, (_, i) => (step * 31 + (i >> 9) * 7 + i) & 0xff);
    const error = await failure(disk.write(from, data, { fua: op.fua }));
    expect(error === null ? -1 : error.sector - from).toBe(applyToModel(world, places, data, true));
    return;
  }
  const work =
    op.kind === 'discard' ? disk.discard(from, count) : disk.writeZeroes(from, count, { keepProvisioned: op.fua });
  const error = await failure(work);
  if (!model.ranges) {
    expect(error?.code).toBe('EOPNOTSUPP');
  } else if (error?.code === 'EOPNOTSUPP') {
    // Not every file system can keep a zeroed range provisioned; then nothing may have changed, which the reads check.
    expect(op.kind === 'zeroes' && op.fua).toBe(true);
  } else {
    expect(error).toBeNull();
    applyToModel(world, places, new Uint8Array(count * 512), true);
  }
}

describe.each(ENGINES)('on the %s engine', (engine) => {
  const before = process.env.DMKIT_ENGINE;
  afterEach(() => {
    if (before === undefined) delete process.env.DMKIT_ENGINE;
    else process.env.DMKIT_ENGINE = before;
  });

  test('what is read is what the model says, and so are the files in the end', async () => {
    process.env.DMKIT_ENGINE = engine;
    await fc.assert(
      fc.asyncProperty(scenario, async ({ fileSizes, devices, operations }) => {
        const world = await build({ fileSizes, devices }, engine !== 'portable');
        try {
          if (world.disks.length === 0) return;
          for (const [step, op] of operations.entries()) await perform(world, op, step);
        } finally {
          await world.dm.close();
        }
        world.paths.forEach((path, index) => {
          expect(readFileSync(path).equals(world.files[index]!)).toBe(true);
        });
      }),
      { numRuns: runs(120) },
    );
  });
});
