// kcopyd on image files, moved by each engine: the jobs of the model, faults and cancellations among them; every single
// failure; and the memory that a client set aside is all there again afterwards.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { DeviceRegistry } from '../../src/devices/index.ts';
import { KCOPYD_IGNORE_ERROR, KCOPYD_WRITE_SEQ, KcopydClient } from '../../src/kcopyd/index.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { failEveryNth } from '../../src/testing/index.ts';
import { ENGINES, FOLDERS, folderIn, type TestedEngine } from '../engine/harness.ts';
import { FaultyDevice } from '../support/faulty-device.ts';
import { runs, seed } from '../support/seed.ts';
import { apart, arbitraryPlan, check, DEVICE_COUNT, PART, type Plan, SIZE } from './plan.ts';
import { expectOne, pattern, region, sameBytes } from './support.ts';

/** Files that an engine has open, written anew before each run. */
class Images {
  readonly loop = new NodeLoop();
  readonly registry: DeviceRegistry;
  readonly paths: string[];

  constructor(engine: TestedEngine, folder: string, count: number) {
    this.registry = new DeviceRegistry({ reactor: this.loop, engine });
    this.paths = Array.from({ length: count }, (_, i) => join(folder, `d${i}.img`));
    for (const path of this.paths) writeFileSync(path, new Uint8Array(SIZE * 512));
    const opened = this.paths.map((path) => this.registry.open(path, false));
    onTestFinished(() => {
      for (const device of opened) this.registry.close(device, false);
    });
    for (const device of opened) expect(this.registry.info(device)!.engine).toBe(engine);
  }

  /** Contents that differ. */
  refill(): void {
    for (const [i, path] of this.paths.entries()) writeFileSync(path, pattern(SIZE, i), { flag: 'r+' });
  }

  device(index: number) {
    const device = this.registry.open(this.paths[index]!, false);
    this.registry.close(device, false);
    return device;
  }

  contents(): Uint8Array[] {
    return this.paths.map((path) => new Uint8Array(readFileSync(path)));
  }
}

async function runPlan(images: Images, plan: Plan): Promise<void> {
  images.refill();
  const before = images.contents();
  const dests = apart(plan);
  const devices = plan.bad.map((bad, i) => {
    return new FaultyDevice(images.device(i), bad === null ? [] : [{ op: 'any', sector: bad, sectorCount: 1 }]);
  });
  const { splitCount, pageCount } = plan;
  const { loop, registry } = images;
  const options = { reactor: loop, engines: registry.engines, splitCount, pageCount, subJobSectorCount: PART };
  const client = new KcopydClient(options);
  const from = region(devices[plan.from.device]!, plan.from.sector, plan.count);
  const regions = dests.map(({ device, sector }) => region(devices[device]!, sector, plan.count));
  const flags = (plan.ignore ? 1 << KCOPYD_IGNORE_ERROR : 0) | (plan.sequence ? 1 << KCOPYD_WRITE_SEQ : 0);
  const result = { readErr: -1, writeErr: -1, error: null as unknown };
  let cancelled = false;
  try {
    if (plan.sync) client.copySync(plan.kind === 'copy' ? from : null, regions, flags, result as never);
    else {
      const { outcome, fn } = expectOne();
      let endedCount = 0;
      await new Promise<void>((resolve) => {
        const told: typeof fn = (...args) => {
          fn(...args);
          resolve();
        };
        const job = plan.kind === 'copy' ? client.copy(from, regions, flags, told) : client.zero(regions, flags, told);
        const cancel = (): void => {
          if (endedCount++ !== plan.cancelAfter) return;
          cancelled = true;
          job.cancel();
        };
        for (const device of devices) device.onEnd = () => loop.wake(cancel);
      });
      // Whoever calls twice does so in a later turn.
      await new Promise((resolve) => setImmediate(resolve));
      expect(outcome.callCount).toBe(1);
      Object.assign(result, { readErr: outcome.readErr, writeErr: outcome.writeErr, error: outcome.error });
    }
  } catch (error) {
    // What no order of copying can serve; everything else is a bug.
    expect((error as Error).message).toMatch(/both of its sides|written backwards/);
    expect(client.unfinishedCount).toBe(0);
    return;
  }
  check({ plan, dests, before, after: images.contents(), result, cancelled });
  expect(devices.map(({ inFlightCount }) => inFlightCount)).toEqual(devices.map(() => 0));
  expect([client.usedPageCount, client.unfinishedCount]).toEqual([0, 0]);
  expect(client.pageHighWater).toBeLessThanOrEqual(pageCount);
}

describe.each(ENGINES)('kcopyd on files of the engine %s', (engine) => {
  it.each(FOLDERS)('agrees with the model in %s', async (_, parent) => {
    const images = new Images(engine, folderIn(parent), DEVICE_COUNT);
    await fc.assert(
      fc.asyncProperty(arbitraryPlan, (plan) => runPlan(images, plan)),
      { numRuns: runs(150) },
    );
  });

  it.each([
    ['plainly', 0],
    ['ignoring errors', 1 << KCOPYD_IGNORE_ERROR],
    ['in sequence', 1 << KCOPYD_WRITE_SEQ],
  ])('has every page back whatever request fails (%s)', async (_, flags) => {
    const COUNT = 5 * PART + 3;
    const images = new Images(engine, folderIn(undefined), 3);
    const { loop, registry } = images;
    for (const when of ['before', 'after'] as const) {
      const { runCount } = await failEveryNth(
        async (context) => {
          images.refill();
          const options = { reactor: loop, engines: registry.engines, splitCount: 3, pageCount: 4 };
          const client = new KcopydClient({ ...options, subJobSectorCount: PART });
          const from = region(context.wrap(images.device(0)), 1, COUNT);
          const dests = [1, 2].map((i) => region(context.wrap(images.device(i)), 7, COUNT));
          const { outcome, fn } = expectOne();
          await new Promise<void>((resolve) => {
            client.copy(from, dests, flags, (...args) => {
              fn(...args);
              resolve();
            });
          });
          expect(outcome.readErr + outcome.writeErr > 0).toBe(context.injected);
          expect([client.usedPageCount, client.unfinishedCount]).toEqual([0, 0]);
          const wanted = pattern(SIZE, 0).subarray(512, (1 + COUNT) * 512);
          for (const [i, bytes] of images.contents().slice(1).entries()) {
            const isComplete = sameBytes(bytes.subarray(7 * 512, (7 + COUNT) * 512), wanted);
            const isNoted = (outcome.writeErr & (1 << i)) !== 0 || outcome.readErr !== 0;
            // A job that stops at an error says of the others only that it stopped.
            if (!context.injected || flags === 1 << KCOPYD_IGNORE_ERROR) expect(isComplete || isNoted).toBe(true);
          }
          // The same client goes on, with all of its pages.
          const again = expectOne();
          const plain = images.device(1);
          await new Promise<void>((resolve) => {
            client.copy(region(images.device(0), 0, 64), [region(plain, 64, 64)], 0, (...args) => {
              again.fn(...args);
              resolve();
            });
          });
          expect([again.outcome.readErr, again.outcome.writeErr, client.usedPageCount]).toEqual([0, 0, 0]);
        },
        { seed, when },
      );
      expect(runCount).toBe(6 * 3 + 1);
    }
  });
});
