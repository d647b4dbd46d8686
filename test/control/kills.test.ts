// The daemon is killed at every system call of each compound request; the next daemon restores. Then everything is as it
// was before the request, or as it is after it: devices, tables, contents and files. The same request works afterwards.
// Each run takes some of the points, and `npm run test:soak` all of them (DMKIT_RUNS).
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect } from 'vitest';
import type { DaemonClient } from '../../src/client/index.ts';
import { itPeer } from '../support/peers.ts';
import { makeRandom, printSeedOnFailure, runs } from '../support/seed.ts';
import {
  CHANGING_CALLS,
  type KillPoint,
  killedAt,
  killingAt,
  pointsIn,
  pointsOf,
  restoreAll,
  some,
  World,
  type WorldState,
  writeSectors,
} from './kill-support.ts';

interface Scenario {
  title: string;
  images?: string[];
  prepare?(client: DaemonClient, world: World): Promise<void>;
  request(client: DaemonClient, world: World): Promise<unknown>;
  /** The request goes on after a restore: asked for again, it is waited for. */
  goesOn?: true;
}

const linear = (world: World, name: string): string => `0 256 linear ${world.image(name)} 0`;
const mapping = (world: World, name: string): string => `0 256 snapshot-origin ${world.image(name)}`;

async function overlay(client: DaemonClient, world: World, image: string, name: string, seed: number): Promise<void> {
  await client.snapshots.create({ origin: world.image(image), name });
  await writeSectors(client, name, [0, 9, 100, 200, 255], seed);
}

const SCENARIOS: Scenario[] = [
  {
    title: 'create with a table',
    request: (client, world) => client.create('d', linear(world, 'a'), { uuid: 'U' }),
  },
  {
    title: 'snapshot create',
    request: (client, world) => client.snapshots.create({ origin: world.image('a'), name: 'v' }),
  },
  {
    title: 'snapshot create with a device for its origin',
    request: (client, world) => client.snapshots.create({ origin: world.image('a'), name: 'v', originName: 'o' }),
  },
  {
    title: 'snapshot create of several origins that are in use',
    images: ['a', 'b'],
    prepare: async (client, world) => {
      await client.create('oa', mapping(world, 'a'));
      await client.create('ob', mapping(world, 'b'));
      await overlay(client, world, 'a', 'first', 1);
      await writeSectors(client, 'oa', [3, 77], 500);
    },
    request: (client, world) =>
      client.snapshots.createAll([
        { origin: world.image('a'), name: 'va' },
        { origin: world.image('b'), name: 'vb' },
        { origin: world.image('b'), name: 'wb' },
      ]),
  },
  {
    title: 'snapshot create with a store that goes on and grows',
    prepare: async (client, world) => {
      await overlay(client, world, 'a', 'v', 1);
      await client.snapshots.drop('v');
    },
    request: (client, world) =>
      client.snapshots.create({ origin: world.image('a'), name: 'v', cow: world.cow('v'), cowByteLength: 1 << 20 }),
  },
  {
    title: 'snapshot merge of the overlay itself',
    prepare: (client, world) => overlay(client, world, 'a', 'v', 1),
    request: (client) => client.snapshots.merge('v'),
    goesOn: true,
  },
  {
    title: 'snapshot merge in the device of the origin, with its store deleted',
    prepare: async (client, world) => {
      await client.create('o', mapping(world, 'a'));
      await overlay(client, world, 'a', 'v', 1);
      await writeSectors(client, 'o', [3, 77], 500);
    },
    request: (client) => client.snapshots.merge('v', { deleteCow: true }),
    goesOn: true,
  },
  {
    title: 'snapshot merge beside another overlay',
    prepare: async (client, world) => {
      await client.create('o', mapping(world, 'a'));
      await overlay(client, world, 'a', 'other', 300);
      await overlay(client, world, 'a', 'v', 1);
    },
    request: (client) => client.snapshots.merge('v', { deleteCow: true }),
    goesOn: true,
  },
  {
    title: 'snapshot drop with the stores deleted',
    prepare: async (client, world) => {
      await client.create('o', mapping(world, 'a'));
      await overlay(client, world, 'a', 'v', 1);
      await overlay(client, world, 'a', 'w', 2);
    },
    request: (client) => client.snapshots.dropAll(['v', 'w'], { deleteCow: true }),
  },
  {
    title: 'rename',
    prepare: async (client, world) => void (await client.create('d', linear(world, 'a'))),
    request: (client) => client.rename('d', 'e'),
  },
  {
    title: 'remove',
    prepare: (client, world) => overlay(client, world, 'a', 'v', 1),
    request: (client) => client.remove('v'),
  },
  {
    title: 'remove_all',
    images: ['a', 'b'],
    prepare: async (client, world) => {
      await client.create('low', linear(world, 'b'));
      await client.create('top', '0 256 linear dm:low 0');
      await overlay(client, world, 'a', 'v', 1);
    },
    request: (client) => client.removeAll(),
  },
  {
    title: 'resume of another table',
    images: ['a', 'b'],
    prepare: async (client, world) => {
      await client.create('d', linear(world, 'a'));
      await client.load('d', linear(world, 'b'));
    },
    request: (client) => client.resume('d'),
  },
  {
    title: 'batch',
    images: ['a', 'b'],
    prepare: async (client, world) => {
      await client.create('d', linear(world, 'b'));
      await client.create('gone', '0 256 zero');
      await overlay(client, world, 'a', 'old', 1);
    },
    request: (client, world) =>
      client.requests.batch({
        steps: [
          { name: 'rename', args: { name: 'd', newName: 'e' } },
          { name: 'create', args: { name: 'top', table: '0 256 linear dm:e 0' } },
          { name: 'remove', args: { device: { name: 'gone' } } },
          { name: 'overlayDrop', args: { names: ['old'], deleteCow: true } },
          {
            name: 'overlayCreate',
            args: { overlays: [{ origin: world.image('a'), name: 'v', originName: 'o', folder: world.images }] },
          },
        ],
      }),
  },
];

const random = makeRandom();

/** A world in which the scenario can begin. */
async function begin({ images = ['a'], prepare }: Scenario) {
  const world = new World(images);
  const daemon = await world.daemonProcess();
  await prepare?.(daemon.client, world);
  return { world, daemon };
}

/** The state that a new daemon makes of what is there. */
async function restored(
  world: World,
  where = '',
): Promise<{ client: DaemonClient; state: WorldState; stop(): Promise<void> }> {
  const { daemon, client } = await world.daemon();
  const results = await restoreAll(client);
  expect(
    results.filter(({ error }) => error !== null),
    where,
  ).toEqual([]);
  expect((await client.lost()).damage).toEqual([]);
  const state = await world.state(client);
  return { client, state, stop: () => daemon.stop('shutdown').then(() => {}) };
}

describe('a daemon that is killed at a system call leaves each request whole or not begun:', () => {
  for (const scenario of SCENARIOS) {
    itPeer(
      ['strace'],
      scenario.title,
      async () => {
        printSeedOnFailure();
        const first = await begin(scenario);
        const before = await first.world.state(first.daemon.client);
        const log = join(first.world.path, 'calls');
        const points = await pointsOf(first.daemon.started.pid, log, () =>
          scenario.request(first.daemon.client, first.world),
        );
        const after = await first.world.state(first.daemon.client);
        expect(after).not.toEqual(before);
        await first.daemon.kill();
        const reference = await restored(first.world);
        expect(reference.state).toEqual(after);
        await reference.stop();
        for (const point of some(points, runs(2), random)) {
          const { world, daemon } = await begin(scenario);
          expect(await world.state(daemon.client)).toEqual(before);
          await killedAt(daemon, point, () => scenario.request(daemon.client, world));
          const where = `${scenario.title}, killed at ${point.call} ${point.nth}`;
          const { client, state, stop } = await restored(world, where);
          const isAfter = isSame(state, after);
          if (!scenario.goesOn && !isAfter) expect(state, where).toEqual(before);
          for (const [name, { suspended, table }] of Object.entries(state.devices)) {
            expect([where, name, suspended, table.length > 0]).toEqual([where, name, false, true]);
          }
          if (!isAfter) {
            await scenario.request(client, world).catch((error: { code?: string }) => {
              // It has gone on to its end meanwhile.
              if (!scenario.goesOn || error.code !== 'ENXIO') throw error;
            });
            expect(await world.state(client), `${where}, and done again`).toEqual(after);
          }
          expect(world.leftovers()).toEqual([]);
          await stop();
        }
      },
      runs(60_000),
    );
  }
});

describe('a daemon that is killed while it', () => {
  const devices = async (client: DaemonClient, world: World): Promise<void> => {
    await client.create('low', linear(world, 'b'));
    await client.create('top', '0 256 linear dm:low 0');
    await client.create('o', mapping(world, 'a'));
    await overlay(client, world, 'a', 'v', 1);
    await overlay(client, world, 'a', 'w', 2);
    await writeSectors(client, 'o', [3, 77], 500);
    await client.suspend('top');
  };
  const scenario: Scenario = { title: '', images: ['a', 'b'], prepare: devices, request: async () => {} };

  itPeer(
    ['strace'],
    'restores has restored nothing for good, or everything',
    async () => {
      printSeedOnFailure();
      const lost = async () => {
        const { world, daemon } = await begin(scenario);
        const before = await world.state(daemon.client);
        await daemon.kill();
        return { world, before, second: await world.daemonProcess() };
      };
      const first = await lost();
      const log = join(first.world.path, 'calls');
      const points = await pointsOf(first.second.started.pid, log, () => restoreAll(first.second.client));
      expect(await first.world.state(first.second.client)).toEqual(first.before);
      for (const point of some(points, runs(4), random)) {
        const { world, before, second } = await lost();
        await killedAt(second, point, () => restoreAll(second.client));
        const { state, stop } = await restored(world);
        expect(state, `killed at ${point.call} ${point.nth}`).toEqual(before);
        expect(world.leftovers()).toEqual([]);
        await stop();
      }
    },
    runs(60_000),
  );

  for (const [title, version] of [
    ['starts', 2],
    ['starts for the first time with the journals of version 0.1', 1],
  ] as const) {
    itPeer(
      ['strace'],
      `${title} loses no device and makes none twice`,
      async () => {
        printSeedOnFailure();
        const world = async () => {
          const { world, daemon } = await begin(version === 1 ? { ...scenario, prepare: async () => {} } : scenario);
          const before = await world.state(daemon.client);
          await daemon.kill();
          if (version === 1) writeJournalsOfVersion1(world);
          return { world, before };
        };
        const names = version === 1 ? ['now', 'then'] : ['low', 'o', 'top', 'v', 'w'];
        const first = await world();
        const log = join(first.world.path, 'calls');
        const calls = CHANGING_CALLS.filter((call) => !['openat', 'write', 'io_uring_enter'].includes(call));
        const traced = ['strace', '-f', '-qq', '-o', log, '-e', `trace=${calls.join()}`];
        const daemon = await first.world.daemonProcess(traced);
        await daemon.kill();
        const points = pointsIn(log);
        expect(points.length).toBeGreaterThan(0);
        // Old journals are taken away last of all.
        const isLast = ({ call }: KillPoint): boolean => version === 1 && call === 'unlink';
        const rest = points.filter((point) => !isLast(point));
        for (const point of [...points.filter(isLast), ...some(rest, runs(2), random)]) {
          const { world: there } = await world();
          const killed = ['strace', '-f', '-qq', ...killingAt(point)];
          await (await there.daemonProcess(killed).catch(() => null))?.kill();
          const { daemon, client } = await there.daemon();
          const { devices: lost, damage } = await client.lost();
          expect({ point, damage, names: lost.map(({ name }) => name) }).toEqual({ point, damage: [], names });
          expect(there.leftovers()).toEqual([]);
          await daemon.stop('signal');
        }
      },
      runs(60_000),
    );
  }
});

/** A device in the journal and a lost one, in the bytes of that version. */
function writeJournalsOfVersion1({ folder }: World): void {
  const live = { readOnly: false, lines: [{ sector: 0, sectorCount: 8, type: 'zero', params: '' }] };
  const journal = (name: string, minor: number): string => {
    const device = { id: 1, name, uuid: '', minor, suspended: false, live, inactive: null };
    return `${JSON.stringify({ format: 1, major: 252, devices: [] })}\n${JSON.stringify({ device })}\n`;
  };
  writeFileSync(folder.journal, journal('now', 0));
  writeFileSync(folder.lostJournal, journal('then', 1));
}

function isSame(a: WorldState, b: WorldState): boolean {
  try {
    expect(a).toEqual(b);
    return true;
  } catch {
    return false;
  }
}
