// The steps of a merge as dmkit snapshot takes them, with every request below failing once: it says that it failed, and
// goes on when it is asked again.
import { expect, test } from 'vitest';
import { Snapshots } from '../../src/api/snapshots.ts';
import { LocalControl } from '../../src/control/local-control.ts';
import { Targets } from '../../src/targets/index.ts';
import { failEveryNth, SimulatedDevice } from '../../src/testing/index.ts';
import { pattern, World } from './support.ts';

const SECTOR_COUNT = 64;

test.each([['the overlay itself'], ['the device that maps the origin']])('merges in %s', async (place) => {
  const mapsOrigin = place !== 'the overlay itself';
  const { runCount } = await failEveryNth(
    async (context) => {
      const world = new World();
      const content = pattern(SECTOR_COUNT, 1);
      const golden = new SimulatedDevice('golden', SECTOR_COUNT, { seed: context.seed, content });
      const cow = new SimulatedDevice('cow', 4 * SECTOR_COUNT, { seed: context.seed });
      const disks = { golden: context.wrap(golden), cow: context.wrap(cow) };
      // Made without faults.
      world.resolver.devices.set('golden', golden);
      world.resolver.devices.set('cow', cow);
      const made = world.activate('overlay', `0 ${SECTOR_COUNT} snapshot golden cow P 4`);
      const expected = Uint8Array.from(content);
      for (const sector of [5, 6, 20, 40, 44]) {
        expect(world.write(made, sector, 2, 9)).toBe(0);
        expected.fill(9, sector * 512, (sector + 2) * 512);
      }
      world.remove(made);
      for (const [name, disk] of Object.entries(disks)) world.resolver.devices.set(name, disk);
      try {
        if (mapsOrigin) world.activate('disk', `0 ${SECTOR_COUNT} snapshot-origin golden`);
        world.activate('overlay', `0 ${SECTOR_COUNT} snapshot golden cow P 4`);
      } catch {
        expect(context.injected).toBe(true);
        return;
      }
      const { mapper } = world;
      const snapshots = new Snapshots(new LocalControl({ mapper, targets: new Targets() }));
      const pump = setInterval(() => world.reactor.runUntilIdle(), 1);
      try {
        const outcome = await snapshots.merge('overlay').catch((error: Error) => error);
        if (outcome instanceof Error) {
          expect([context.injected, outcome.message]).toEqual([true, expect.stringMatching(/Merge failed|metadata/)]);
          await snapshots.merge('overlay');
        }
      } finally {
        clearInterval(pump);
      }
      expect(Buffer.from(golden.crashImage('all').read(0, SECTOR_COUNT)).equals(expected)).toBe(true);
      expect(mapper.list().map((device) => [device.dmName, ...device.lines('table')])).toEqual(
        mapsOrigin ? [['disk', `0 ${SECTOR_COUNT} snapshot-origin golden`]] : [],
      );
      mapper.removeAll();
    },
    { when: 'before' },
  );
  expect(runCount).toBeGreaterThan(10);
});
