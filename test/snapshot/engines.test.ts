// An origin and three snapshots on image files, with each engine, against arrays of bytes: in this process with a look at
// everything after each batch, and in one that is killed at random moments, often in the middle of a merge.
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import type { Disk } from '../../src/api/disk.ts';
import { mixSeed, randomFromSeed } from '../../src/testing/index.ts';
import { ENGINES } from '../engine/harness.ts';
import { printSeedOnFailure, seed as runSeed, runs } from '../support/seed.ts';
import { tempDir } from '../support/tmp.ts';
// @ts-expect-error: plain JavaScript, shared with the process that is killed
import * as plans from './engine-plan.mjs';
import { EngineWorld } from './engine-world.ts';
import { afterKill, killedAtLine } from './kill-child.ts';

const { SECTOR_COUNT, STORE_SECTOR_COUNT, ORIGIN } = plans as {
  SECTOR_COUNT: number;
  STORE_SECTOR_COUNT: number;
  ORIGIN: string;
};
const writer = fileURLToPath(new URL('engine-writer.mjs', import.meta.url));

interface Line {
  name: string;
  store: string;
  words: string;
}

interface Batch {
  ops: { on: string; kind: 'write' | 'discard'; sector: number; count: number; fill: number }[];
  then: { kind: 'merge' | 'settle'; line: Line } | null;
}

interface Plan {
  lines: Line[];
  batches: Batch[];
}

/** Of each sector the bytes that may fill it. */
type Sectors = Set<number>[];

const copied = (sectors: Sectors): Sectors => sectors.map((allowed) => new Set(allowed));

class Model {
  merging: Line | null = null;
  readonly contents = new Map<string, Sectors>();

  constructor(lines: readonly Line[]) {
    const first = Array.from({ length: SECTOR_COUNT }, (_, sector) => new Set<number>([plans.firstFill(sector)]));
    for (const name of [ORIGIN, ...lines.map((line) => line.name)]) this.contents.set(name, copied(first));
  }

  /** What a batch does; `isOver`: everything of it has ended, else any part of it may have happened. */
  apply({ ops, then }: Batch, isOver: boolean): void {
    for (const { on, kind, sector, count, fill } of ops) {
      const sectors = this.contents.get(on)!;
      for (let at = sector; at < sector + count; at++) {
        if (isOver && kind === 'write') sectors[at] = new Set([fill]);
        else sectors[at]!.add(kind === 'write' ? fill : 0);
      }
    }
    // Whether a merge has begun or not, merging shows what the snapshot held.
    if (then?.kind === 'merge') {
      this.merging = then.line;
      this.contents.set(ORIGIN, this.contents.get(then.line.name)!);
      this.contents.delete(then.line.name);
    } else if (then?.kind === 'settle' && isOver) {
      this.merging = null;
      this.contents.set(then.line.name, copied(this.contents.get(ORIGIN)!));
    }
  }

  check(name: string, bytes: Buffer): void {
    for (const [sector, allowed] of this.contents.get(name)!.entries()) {
      const found = bytes.subarray(sector * 512, sector * 512 + 512);
      if (allowed.has(found[0]!) && found.every((byte) => byte === found[0])) continue;
      throw new Error(`${name}: sector ${sector} holds ${found[0]} … ${found[511]}, not ${[...allowed].join(' or ')}`);
    }
  }

  async checkAll(disks: ReadonlyMap<string, Disk>): Promise<void> {
    for (const name of this.contents.keys()) this.check(name, await disks.get(name)!.read(0, SECTOR_COUNT));
  }
}

function makeImages(lines: readonly Line[]): string {
  const folder = tempDir('engines');
  const content = Buffer.alloc(SECTOR_COUNT * 512);
  for (let at = 0; at < SECTOR_COUNT; at++) content.fill(plans.firstFill(at), at * 512, at * 512 + 512);
  writeFileSync(join(folder, 'o.img'), content);
  for (const { store } of lines) {
    closeSync(openSync(join(folder, store), 'w'));
    truncateSync(join(folder, store), STORE_SECTOR_COUNT * 512);
  }
  return folder;
}

/** Opens what a killed process left: a merge that may have begun is gone on with, under the others' eyes. */
async function checkLeft(folder: string, plan: Plan, model: Model): Promise<void> {
  const world = new EngineWorld('direct', folder);
  const disks = new Map<string, Disk>();
  for (const line of plan.lines) {
    if (line.name !== model.merging?.name)
      disks.set(line.name, await afterKill(() => world.create(line.name, plans.snapshotTable(line))));
  }
  const { merging } = model;
  const table = merging === null ? plans.originTable : plans.snapshotTable(merging, 'snapshot-merge');
  disks.set(ORIGIN, await afterKill(() => world.create(ORIGIN, table)));
  await model.checkAll(disks);
  if (merging !== null) {
    await plans.mergeEnded(world);
    await model.checkAll(disks);
    model.check(ORIGIN, readFileSync(join(folder, 'o.img')));
  }
  await world.close();
}

describe.each(ENGINES)('with the %s engine', (engine) => {
  test('every device holds what was written to it, and nothing of the others', async () => {
    printSeedOnFailure();
    for (let round = 0; round < runs(4); round++) {
      const plan: Plan = plans.planOf(mixSeed(runSeed, round, 5), 40, round % 2 === 0);
      const model = new Model(plan.lines);
      const world = new EngineWorld(engine, makeImages(plan.lines));
      await plans.runPlan(world, plan, async (what: string, number: number, disks: Map<string, Disk>) => {
        if (what === 'begin') return;
        model.apply(plan.batches[number]!, true);
        await model.checkAll(disks);
      });
      await world.close();
    }
  });

  test('what had ended is there after a SIGKILL, in the middle of a merge too', async () => {
    printSeedOnFailure();
    let endedCount = 0;
    for (let round = 0; round < runs(10); round++) {
      const seed = mixSeed(runSeed, round, 6);
      const plan: Plan = plans.planOf(seed, 300, true);
      const folder = makeImages(plan.lines);
      const log = await killedAtLine([writer, folder, String(seed), engine], folder, randomFromSeed(seed), 150);
      const numbers = (word: string) => log.match(new RegExp(`^${word} `, 'gm'))?.length ?? 0;
      const model = new Model(plan.lines);
      for (const batch of plan.batches.slice(0, numbers('end'))) model.apply(batch, true);
      if (numbers('begin') > numbers('end')) model.apply(plan.batches[numbers('end')]!, false);
      endedCount += numbers('end');
      await checkLeft(folder, plan, model);
    }
    expect(endedCount).toBeGreaterThan(0);
  });
});
