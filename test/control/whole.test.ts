// Whole or not at all, in a daemon of this process: batches with a step that fails, clients that go away in the middle of a
// request, and steps that are done as one or one by one.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { DaemonClient } from '../../src/client/index.ts';
import type { BatchStep } from '../../src/control/requests.ts';
import { runs } from '../support/seed.ts';
import { eventually, World, type WorldState, writeSectors } from './kill-support.ts';

type Step = { name: BatchStep; args: object };

const NAMES = ['p', 'q', 'r', 's'];

/** Steps of which many make sense and many do not. */
function steps(world: World): fc.Arbitrary<Step> {
  const name = fc.constantFrom(...NAMES);
  const table = fc.constantFrom(
    '0 256 zero',
    `0 256 linear ${world.image('a')} 0`,
    `0 128 linear ${world.image('b')} 128`,
    '0 256 linear dm:p 0',
    '0 256 error',
  );
  const device = name.map((one) => ({ device: { name: one } }));
  return fc.oneof(
    fc.record({ name, table }).map((args) => ({ name: 'create' as const, args })),
    fc.record({ name }).map((args) => ({ name: 'create' as const, args })),
    fc.tuple(device, table).map(([one, text]) => ({ name: 'load' as const, args: { ...one, table: text } })),
    device.map((args) => ({ name: 'clear' as const, args })),
    device.map((args) => ({ name: 'suspend' as const, args })),
    device.map((args) => ({ name: 'resume' as const, args })),
    device.map((args) => ({ name: 'remove' as const, args })),
    fc.tuple(name, name).map(([one, newName]) => ({ name: 'rename' as const, args: { name: one, newName } })),
    name.map((one) => ({ name: 'setUuid' as const, args: { name: one, uuid: `U-${one}` } })),
    fc.tuple(name, fc.boolean()).map(([one, mapped]) => ({
      name: 'overlayCreate' as const,
      args: {
        overlays: [
          { origin: world.image('a'), name: one, folder: world.images, ...(mapped ? { originName: 'p' } : {}) },
        ],
      },
    })),
    fc.tuple(name, fc.boolean()).map(([one, deleteCow]) => ({
      name: 'overlayDrop' as const,
      args: { names: [one], deleteCow },
    })),
  );
}

/** A step that no state of devices accepts. */
const IMPOSSIBLE: readonly Step[] = [
  { name: 'create', args: { name: 'x', table: '0 256 nosuch' } },
  { name: 'create', args: { name: 'x', table: '0 256 linear /nosuch/file 0' } },
  { name: 'remove', args: { device: { name: 'nosuch' } } },
  { name: 'overlayCreate', args: { overlays: [{ origin: '/nosuch', name: 'x', folder: '/' }] } },
];

/** Beside the state what `info` shows: event numbers, minors, and uses. */
async function everything(client: DaemonClient, world: World) {
  const infos = (await client.list()).map((info) => ({ ...info, suspendedBy: null }));
  return { infos, ...(await world.state(client)) };
}

/** A few devices to begin with. */
async function begin(client: DaemonClient, world: World): Promise<void> {
  await client.create('p', `0 256 linear ${world.image('b')} 0`);
  await client.create('q', '0 256 zero');
  await client.snapshots.create({ origin: world.image('a'), name: 'r' });
  await writeSectors(client, 'r', [3, 99], 5);
}

describe('a batch', () => {
  test(
    'in which one step fails leaves everything as it was',
    async () => {
      const model = new World(['a', 'b']);
      await fc.assert(
        fc.asyncProperty(
          fc.array(steps(model), { maxLength: 8 }),
          fc.constantFrom(...IMPOSSIBLE),
          async (before, impossible) => {
            const { daemon, client } = await model.daemon();
            await begin(client, model);
            const first = await everything(client, model);
            // Steps that fail themselves are left out one by one, until all but the last one succeed.
            for (const list = [...before]; ; ) {
              const { stepIndex } = await client.requests.batch({ steps: [...list, impossible] }).then(
                () => ({ stepIndex: -1 }),
                (error: { stepIndex: number }) => error,
              );
              expect(await everything(client, model)).toEqual(first);
              expect(stepIndex).toBeGreaterThanOrEqual(0);
              if (stepIndex === list.length) break;
              list.splice(stepIndex, 1);
            }
            await client.requests.batch({ steps: [{ name: 'overlayDrop', args: { names: ['r'], deleteCow: true } }] });
            await client.removeAll();
            expect(Object.keys(model.files())).toEqual(['a.img', 'b.img']);
            await daemon.stop('shutdown');
          },
        ),
        { numRuns: runs(15) },
      );
    },
    runs(300_000),
  );

  test(
    'that is done is the same as its steps one by one',
    async () => {
      const [whole, single] = [new World(['a', 'b']), new World(['a', 'b'])];
      const there = (step: Step): Step => JSON.parse(JSON.stringify(step).replaceAll(whole.path, single.path)) as Step;
      let stepCount = 0;
      await fc.assert(
        fc.asyncProperty(fc.array(steps(whole), { minLength: 1, maxLength: 8 }), async (list) => {
          const one = await whole.daemon();
          const other = await single.daemon();
          await begin(one.client, whole);
          await begin(other.client, single);
          for (let isDone = false; !isDone; ) {
            const failed = await one.client.requests.batch({ steps: list }).then(
              () => null,
              (error: { stepIndex: number }) => error.stepIndex,
            );
            if (failed === null) isDone = true;
            else list.splice(failed, 1);
          }
          stepCount += list.length;
          for (const { name, args } of list.map(there)) {
            await (other.client.requests[name] as (args: object) => Promise<unknown>)(args);
          }
          expect(await whole.state(one.client)).toEqual(await single.state(other.client));
          for (const [world, { daemon, client }] of [
            [whole, one],
            [single, other],
          ] as const) {
            for (const { name, suspended } of await client.list()) if (suspended) await client.resume(name);
            await client.removeAll();
            await daemon.stop('shutdown');
            world.clearStores();
          }
        }),
        { numRuns: runs(15) },
      );
      expect(stepCount).toBeGreaterThan(0);
    },
    runs(300_000),
  );
});

describe('a client that goes away', () => {
  const requests: Record<string, (client: DaemonClient, world: World) => Promise<unknown>> = {
    create: (client, world) => client.create('d', `0 256 linear ${world.image('b')} 0`),
    'snapshot create': (client, world) =>
      client.snapshots.createAll([
        { origin: world.image('a'), name: 'v' },
        { origin: world.image('a'), name: 'w' },
      ]),
    'snapshot drop': (client) => client.snapshots.dropAll(['old', 'older'], { deleteCow: true }),
    'remove of everything': (client) => client.removeAll(),
    batch: (client, world) =>
      client.requests.batch({
        steps: [
          { name: 'overlayDrop', args: { names: ['old'] } },
          { name: 'create', args: { name: 'd', table: `0 256 linear ${world.image('b')} 0` } },
          {
            name: 'overlayCreate',
            args: { overlays: [{ origin: world.image('a'), name: 'v', folder: world.images }] },
          },
        ],
      }),
  };
  for (const [title, request] of Object.entries(requests)) {
    test(
      `in the middle of ${title} leaves it whole or not begun, and no origin suspended`,
      async () => {
        const counts = { before: 0, after: 0 };
        let after: WorldState | null = null;
        for (let turns = -1; turns < runs(12); turns++) {
          const world = new World(['a', 'b']);
          const { daemon, client } = await world.daemon();
          await client.create('o', `0 256 snapshot-origin ${world.image('a')}`);
          for (const name of ['old', 'older']) {
            await client.snapshots.create({ origin: world.image('a'), name });
            await writeSectors(client, name, [1], 2);
          }
          const before = await world.state(client);
          if (after === null) {
            await request(client, world);
            after = await world.state(client);
          } else {
            const other = world.client();
            await other.list();
            const asked = request(other, world).catch(() => null);
            for (let turn = 0; turn < turns ** 2; turn++) await new Promise((resolve) => setImmediate(resolve));
            await other.close();
            await asked;
            let last: WorldState = before;
            await eventually(async () => {
              last = await world.state(client).catch(() => ({ devices: {}, files: {} }));
              return [before, after].some((one) => JSON.stringify(one) === JSON.stringify(last));
            }).catch(() => expect(last).toEqual(before));
            counts[JSON.stringify(last) === JSON.stringify(after) ? 'after' : 'before']++;
            if (JSON.stringify(last) === JSON.stringify(before)) {
              await request(client, world);
              expect(await world.state(client)).toEqual(after);
            }
          }
          await daemon.stop('shutdown');
        }
        expect(counts.before + counts.after).toBeGreaterThan(0);
      },
      runs(300_000),
    );
  }
});
