// Every request below fails once, one after the other: what was acknowledged is there or the snapshot says that it is
// invalid, the origin takes every write, nothing waits for ever, and nothing is read that was never written there.
import { expect, test } from 'vitest';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { ByteModel, failEveryNth, issue, SimulatedDevice } from '../../src/testing/index.ts';
import { pattern, World } from './support.ts';

const SECTOR_COUNT = 48;

function freshModel(): ByteModel {
  const model = new ByteModel(SECTOR_COUNT);
  model.write(0, pattern(SECTOR_COUNT, 1));
  return model;
}

class Run {
  readonly world = new World();
  readonly models = new Map<MappedDevice, ByteModel>();

  write(device: MappedDevice, sector: number, count: number, fill: number): number {
    const data = pattern(count, fill);
    const errno = this.world.io(device, 'write', { sector, data });
    const model = this.models.get(device)!;
    if (errno === 0) model.write(sector, data);
    else model.mayWrite(sector, data);
    return errno;
  }

  /** What a read gives is right, or it fails. */
  check(device: MappedDevice): void {
    const read = issue(device, 'read', { sector: 0, sectorCount: SECTOR_COUNT });
    this.world.reactor.runUntilIdle();
    expect(read.ended).toBe(true);
    if (read.errno === 0) this.models.get(device)!.assertRead(0, read.data);
  }
}

test.each(['P 4', 'PO 4', 'N 4', 'P 4 1 lazy_commit', 'P 1'])('on a store %s', async (words) => {
  const { runCount } = await failEveryNth(
    async (context) => {
      const run = new Run();
      const { world, models } = run;
      const content = pattern(SECTOR_COUNT, 1);
      for (const [name, size] of [
        ['o', SECTOR_COUNT],
        ['c', 160],
      ] as const) {
        const options = name === 'o' ? { seed: context.seed, content } : { seed: context.seed };
        world.resolver.devices.set(name, context.wrap(new SimulatedDevice(name, size, options)));
      }
      const origin = world.activate('og', `0 ${SECTOR_COUNT} snapshot-origin o`);
      models.set(origin, freshModel());
      let snapshot: MappedDevice;
      try {
        snapshot = world.activate('s', `0 ${SECTOR_COUNT} snapshot o c ${words}`);
      } catch (error) {
        // A store that can't be made is no table.
        expect([context.injected, String(error)]).toEqual([true, expect.stringContaining('metadata')]);
        expect(world.resolver.openCount(world.resolver.devices.get('c')!)).toBe(0);
        return;
      }
      models.set(snapshot, freshModel());
      for (let step = 0; step < 6; step++) {
        run.write(snapshot, step * 7, 3, 40 + step);
        run.write(origin, step * 6 + 2, 9, 140 + step);
        run.check(snapshot);
        run.check(origin);
      }
      world.io(snapshot, 'flush');
      const valid = !snapshot.lines('info')[0]!.endsWith('Invalid');
      if (!context.injected) expect(valid).toBe(true);
      world.remove(snapshot);
      expect(world.resolver.openCount(world.resolver.devices.get('c')!)).toBe(0);
      if (words.startsWith('N')) return;
      mergeBack(run, origin, words, models.get(snapshot)!, valid);
    },
    { seed: 1 },
  );
  expect(runCount).toBeGreaterThan(20);
});

function mergeBack(run: Run, origin: MappedDevice, words: string, merged: ByteModel, valid: boolean): void {
  const { world, models } = run;
  try {
    world.load(origin, `0 ${SECTOR_COUNT} snapshot-merge o c ${words}`);
    world.resume(origin);
  } catch {
    return;
  }
  world.reactor.runUntilIdle();
  const status = origin.lines('info')[0]!;
  if (!valid) {
    expect(status).toMatch(/Invalid$/);
    run.check(origin);
    return;
  }
  models.set(origin, merged);
  run.check(origin);
  run.write(origin, 5, 20, 7);
  run.check(origin);
  expect(status).toMatch(/ (\d+)\/\d+ \1$|Merge failed$|Invalid$/);
}
