// The driver of dmkit copy on image files, moved by each engine: regions, several destinations, regions that overlap,
// faults, stops; every single failure; and no memory, page or request is left behind.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { MAX_BLOCK_COUNT } from '../../src/copy/bounds.ts';
import { Copy, type CopyOptions } from '../../src/copy/copy.ts';
import { DONE } from '../../src/copy/ranges.ts';
import { SourceReader } from '../../src/copy/reader.ts';
import { DeviceRegistry, MemoryDevice } from '../../src/devices/index.ts';
import { DmIoClient } from '../../src/dm-io/index.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { failEveryNth } from '../../src/testing/index.ts';
import { ENGINES, FOLDERS, folderIn, type TestedEngine } from '../engine/harness.ts';
import { type BadSectors, FaultyDevice } from '../support/faulty-device.ts';
import { runs, seed } from '../support/seed.ts';
import { randomBytes } from '../support/tmp.ts';

/** Two and a half blocks of the driver. */
const SIZE = 5 * 1024;
const FILE_COUNT = 3;

interface Place {
  file: number;
  sector: number;
}

interface Plan {
  /** Null: zeroing. */
  from: Place | null;
  dests: Place[];
  count: number;
  keepGoing: boolean;
  skipHoles: boolean;
  verify: boolean;
  bad: BadSectors[][];
  /** Without faults the files themselves are named, and copy_file_range may do it. */
  plainFiles: boolean;
  /** It is told to stop when so many requests have ended. */
  stopAfter: number | null;
}

const place = fc.record({ file: fc.nat(FILE_COUNT - 1), sector: fc.nat(SIZE / 2) });
const badSectors: fc.Arbitrary<BadSectors> = fc.record({
  op: fc.constantFrom('read', 'write', 'any'),
  sector: fc.nat(SIZE - 1),
  sectorCount: fc.integer({ min: 1, max: 40 }),
});
const arbitraryPlan: fc.Arbitrary<Plan> = fc.record({
  from: fc.option(place, { freq: 6 }),
  dests: fc.array(place, { minLength: 1, maxLength: 3 }),
  count: fc.integer({ min: 1, max: SIZE / 2 }),
  keepGoing: fc.boolean(),
  skipHoles: fc.boolean(),
  verify: fc.boolean(),
  bad: fc.array(fc.array(badSectors, { maxLength: 2 }), { minLength: FILE_COUNT, maxLength: FILE_COUNT }),
  plainFiles: fc.boolean(),
  stopAfter: fc.option(fc.nat(8), { freq: 3 }),
});

function overlap(a: Place, b: Place, count: number): boolean {
  return a.file === b.file && a.sector < b.sector + count && b.sector < a.sector + count;
}

/** Files of one folder, in a registry whose engine is chosen. */
class Files {
  readonly paths: string[];
  readonly engine: TestedEngine;

  constructor(engine: TestedEngine, folder: string) {
    this.engine = engine;
    this.paths = Array.from({ length: FILE_COUNT }, (_, i) => join(folder, `f${i}.img`));
  }

  /** Data, and a hole in the middle of each. */
  refill(): Buffer[] {
    return this.paths.map((path, i) => {
      const content = randomBytes(SIZE * 512, 40 + i).fill(0, 1000 * 512, 2000 * 512);
      writeFileSync(path, content);
      return content;
    });
  }

  host() {
    const loop = new NodeLoop();
    return { loop, devices: new DeviceRegistry({ reactor: loop, engine: this.engine }) };
  }

  contents(): Buffer[] {
    return this.paths.map((path) => readFileSync(path));
  }
}

async function runPlan(files: Files, plan: Plan): Promise<void> {
  const before = files.refill();
  const host = files.host();
  const isPlain = plan.plainFiles && plan.bad.every((bad) => bad.length === 0);
  const opened = files.paths.map((path) => host.devices.open(path, false));
  const devices = opened.map((device, i) => new FaultyDevice(device, plan.bad[i]!));
  if (!isPlain) for (const [i, device] of devices.entries()) host.devices.register(`f${i}`, device);
  const text = ({ file, sector }: Place): string =>
    `${isPlain ? files.paths[file]! : `f${file}`}:${sector}+${plan.count}`;
  const aborter = new AbortController();
  let endedCount = 0;
  for (const device of devices) {
    device.onEnd = () => {
      if (endedCount++ === plan.stopAfter) aborter.abort();
    };
  }
  const { keepGoing, skipHoles, verify, from, dests } = plan;
  const options: CopyOptions = { keepGoing, verify, skipHoles: skipHoles && from !== null, signal: aborter.signal };
  const opening = Copy.open(host, from === null ? null : text(from), dests.map(text), options);
  try {
    const all = from === null ? dests : [from, ...dests];
    if (all.some((one, i) => all.slice(i + 1).some((other) => overlap(one, other, plan.count)))) {
      await expect(opening).rejects.toMatchObject({ code: 'EINVAL' });
      expect(files.contents().every((bytes, i) => bytes.equals(before[i]!))).toBe(true);
      return;
    }
    const copy = await opening;
    await copy.run();
    await copy.close();
    checkCopy(plan, copy, devices, before, files.contents());
  } finally {
    for (const device of opened) host.devices.close(device, false);
  }
  for (const { inFlightCount } of devices) expect(inFlightCount).toBe(0);
  for (const info of host.devices.list()) expect([info.readerCount, info.writerCount]).toEqual([0, 0]);
}

function checkCopy(plan: Plan, copy: Copy, devices: FaultyDevice[], before: Buffer[], after: Buffer[]): void {
  const { from, dests, count } = plan;
  const wanted =
    from === null
      ? Buffer.alloc(count * 512)
      : before[from.file]!.subarray(from.sector * 512, (from.sector + count) * 512);
  const isBad = (op: number, file: number, sector: number): boolean =>
    devices[file]!.fails({ op, sector, sectorCount: 1 });
  const expected = before.map((bytes) => Buffer.from(bytes));
  for (const [i, dest] of dests.entries()) {
    const { map, io, dead } = copy.destinations[i]!;
    expect([io.pagesInFlight, io.unfinishedCount]).toEqual([0, 0]);
    const start = dest.sector * 512;
    // What is called done is there.
    for (const range of map.ranges([DONE])) {
      const there = after[dest.file]!.subarray(start + range.start * 512, start + range.end * 512);
      expect(there.equals(wanted.subarray(range.start * 512, range.end * 512))).toBe(true);
    }
    // The rest holds what it held, or what was to come.
    for (let at = 0; at < count * 512; at += 512) {
      const now = after[dest.file]!.subarray(start + at, start + at + 512);
      if (now.equals(wanted.subarray(at, at + 512))) now.copy(expected[dest.file]!, start + at);
    }
    if (copy.stopped) continue;
    let badCount = 0;
    let isVerifiable = true;
    for (let at = 0; at < count; at++) {
      const isUnread = from !== null && isBad(REQ_OP_READ, from.file, from.sector + at);
      const isUnwritten = isBad(REQ_OP_WRITE, dest.file, dest.sector + at);
      const isUnverified = plan.verify && isBad(REQ_OP_READ, dest.file, dest.sector + at);
      if (isUnread || isUnwritten || isUnverified) badCount++;
      if (isUnverified) isVerifiable = false;
    }
    // What is a hole is not read, and where it is to be skipped not written either.
    const holes = plan.skipHoles && from !== null;
    if (badCount === 0 && !holes && copy.failure === null) expect([map.count(DONE), dead]).toEqual([count, null]);
    // A verification that cannot read a block takes nothing of it for done.
    if (plan.keepGoing && !holes && dead === null && isVerifiable)
      expect(map.count(DONE)).toBeGreaterThanOrEqual(count - badCount);
  }
  expect(after.every((bytes, i) => bytes.equals(expected[i]!))).toBe(true);
  if (copy.complete && !plan.skipHoles) {
    for (const { map } of copy.destinations) expect(map.count(DONE)).toBe(count);
  }
}

describe.each(ENGINES)('a copy of files by the engine %s', (engine) => {
  it.each(FOLDERS)('does what the model says in %s', async (_, parent) => {
    const files = new Files(engine, folderIn(parent));
    await fc.assert(
      fc.asyncProperty(arbitraryPlan, (plan) => runPlan(files, plan)),
      { numRuns: runs(40) },
    );
  });

  it('leaves no page and no request behind, whatever request fails', async () => {
    const files = new Files(engine, folderIn(undefined));
    for (const keepGoing of [false, true]) {
      for (const when of ['before', 'after'] as const) {
        await failEveryNth(
          async (context) => {
            const before = files.refill();
            const host = files.host();
            const opened = files.paths.map((path) => host.devices.open(path, false));
            for (const [i, device] of opened.entries()) host.devices.register(`f${i}`, context.wrap(device));
            const copy = await Copy.open(host, 'f0', ['f1', 'f2'], { keepGoing, verify: true });
            await copy.run();
            await copy.close();
            for (const device of opened) host.devices.close(device, false);
            for (const { io } of copy.destinations) expect([io.pagesInFlight, io.unfinishedCount]).toEqual([0, 0]);
            expect([...host.devices.list()].filter(({ kind }) => kind !== 'registered')).toEqual([]);
            if (!context.injected) expect(copy.complete).toBe(true);
            for (const [i, { map }] of copy.destinations.entries()) {
              const bytes = files.contents()[i + 1]!;
              for (const { start, end } of map.ranges([DONE])) {
                expect(bytes.subarray(start * 512, end * 512).equals(before[0]!.subarray(start * 512, end * 512))).toBe(
                  true,
                );
              }
            }
          },
          { seed, when },
        );
      }
    }
  });
});

describe('the memory of the source', () => {
  it('is all there again, whichever read fails', async () => {
    const { runCount } = await failEveryNth(
      async (context) => {
        const loop = new NodeLoop();
        const device = new MemoryDevice('source', 4096);
        const io = new DmIoClient({ reactor: loop, pageCount: 64 });
        const source = { device: context.wrap(device), sector: 0, sectorCount: 4096, label: 'source' };
        const reader = new SourceReader(io, source, false);
        const uses = await Promise.allSettled([0, 0, 8, 16, 24].map((at) => reader.use(at, at + 8, async () => at)));
        expect(uses.some(({ status }) => status === 'rejected')).toBe(context.injected);
        expect([io.pagesInFlight, io.unfinishedCount]).toEqual([0, 0]);
        // As many at one time as there can be, and one more that has to wait: it would for ever if one were lost.
        let release = (): void => {};
        const held = new Promise<void>((resolve) => {
          release = resolve;
        });
        let inUse = 0;
        const all = Array.from({ length: MAX_BLOCK_COUNT }, (_, i) =>
          reader.use(1000 + i, 1001 + i, () => {
            if (++inUse === MAX_BLOCK_COUNT) setImmediate(release);
            return held;
          }),
        );
        const oneMore = reader.use(2000, 2001, async () => inUse);
        await Promise.all(all);
        expect(await oneMore).toBe(MAX_BLOCK_COUNT);
        expect(reader.highWater).toBe(MAX_BLOCK_COUNT);
      },
      // The reads of the first part.
      { seed, where: ({ sector }) => sector < 1000 },
    );
    expect(runCount).toBe(4 + 1);
  });
});
