// Commands for tests that kill them, or let their calls fail: worlds to give them in, the states before and after them, and
// what must be there when they have gone.
import { copyFileSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import type { DaemonClient } from '../../src/client/index.ts';
import {
  type DaemonProcess,
  eventually,
  type KillPoint,
  pointsFrom,
  pointsOf,
  restoreAll,
  World,
  type WorldState,
  writeSectors,
} from './kill-support.ts';

export interface Scenario {
  title: string;
  images?: string[];
  prepare(client: DaemonClient, world: World): Promise<void>;
  /** The devices of the preparation are lost ones when the command comes; done in between. */
  lose?: (world: World) => void;
  words(world: World): string[];
  /** Where it fails some of it may be done; given again, the command does the rest. */
  isByParts?: true;
}

/** Calls of the command by which it acts on the daemon, waits for it, tells its user, or ends. */
export const CLIENT_CALLS = ['connect', 'read', 'write', 'writev', 'shutdown', 'close', 'epoll_pwait', 'exit_group'];

const linear = (world: World, name: string): string => `0 256 linear ${world.image(name)} 0`;
const mapping = (world: World, name: string): string => `0 256 snapshot-origin ${world.image(name)}`;

async function overlay(client: DaemonClient, world: World, image: string, name: string, seed: number): Promise<void> {
  await client.snapshots.create({ origin: world.image(image), name });
  await writeSectors(client, name, [0, 9, 100, 200, 255], seed);
}

async function stack(client: DaemonClient, world: World): Promise<void> {
  await client.create('low', linear(world, 'b'));
  await client.create('top', '0 256 linear dm:low 0');
  await client.create('o', mapping(world, 'a'));
  await overlay(client, world, 'a', 'v', 1);
}

export const SCENARIOS: Scenario[] = [
  {
    title: 'create',
    prepare: async () => {},
    words: (world) => ['create', 'd', '--table', linear(world, 'a')],
  },
  {
    title: 'snapshot create',
    prepare: async () => {},
    words: () => ['snapshot', 'create', 'a.img', 'v', '--origin-name', 'o'],
  },
  {
    title: 'snapshot create --and',
    images: ['a', 'b'],
    prepare: async (client, world) => {
      await client.create('oa', mapping(world, 'a'));
      await client.create('ob', mapping(world, 'b'));
      await overlay(client, world, 'a', 'first', 1);
    },
    words: () => ['snapshot', 'create', 'a.img', 'va', 'wa', '--and', 'b.img', 'vb'],
  },
  {
    title: 'snapshot merge',
    prepare: async (client, world) => {
      await client.create('o', mapping(world, 'a'));
      await overlay(client, world, 'a', 'other', 300);
      await overlay(client, world, 'a', 'v', 1);
    },
    words: () => ['snapshot', 'merge', 'v', '--delete-cow'],
    isByParts: true,
  },
  {
    title: 'snapshot drop',
    prepare: async (client, world) => {
      await client.create('o', mapping(world, 'a'));
      await overlay(client, world, 'a', 'v', 1);
      await overlay(client, world, 'a', 'w', 2);
    },
    words: () => ['snapshot', 'drop', 'v', 'w', '--delete-cow'],
  },
  {
    title: 'rename',
    prepare: async (client, world) => void (await client.create('d', linear(world, 'a'))),
    words: () => ['rename', 'd', 'e'],
  },
  {
    title: 'resume of another table',
    images: ['a', 'b'],
    prepare: async (client, world) => {
      await client.create('d', linear(world, 'a'));
      await client.load('d', linear(world, 'b'));
    },
    words: () => ['resume', 'd'],
  },
  { title: 'remove_all', images: ['a', 'b'], prepare: stack, words: () => ['remove_all'] },
  {
    title: 'batch',
    images: ['a', 'b'],
    prepare: async (client, world) => {
      await client.create('d', linear(world, 'b'));
      await client.create('gone', '0 256 zero');
      await overlay(client, world, 'a', 'old', 1);
      const lines = [
        'rename d e',
        "create top --table '0 256 linear /dev/mapper/e 0'",
        'remove gone',
        'snapshot drop old --delete-cow',
        'snapshot create a.img v --origin-name o',
      ];
      writeFileSync(join(world.path, 'lines'), `${lines.join('\n')}\n`);
    },
    words: () => ['batch', '../lines'],
  },
  { title: 'restore', images: ['a', 'b'], prepare: stack, lose: () => {}, words: () => ['restore'], isByParts: true },
  { title: 'forget', images: ['a', 'b'], prepare: stack, lose: () => {}, words: () => ['forget', 'top', 'v'] },
  {
    title: 'adopt',
    prepare: async (client, world) => void (await client.create('d', linear(world, 'a'))),
    lose: (world) => {
      copyFileSync(world.image('a'), join(world.path, 'copy'));
      renameSync(join(world.path, 'copy'), world.image('a'));
    },
    words: () => ['adopt', 'd'],
  },
];

export interface State extends WorldState {
  lost: { name: string; hasFailed: boolean }[];
}

/** What can be told without opening a device: a command that is being undone must not find it in use. */
async function briefState(client: DaemonClient, world: World) {
  const devices = (await client.list()).map(({ name, suspended, live, inactive }) => [name, suspended, live, inactive]);
  const lost = (await client.lost()).devices.map(({ name, error }) => ({ name, hasFailed: error !== null }));
  return { devices, lost, files: world.files() };
}

/** A state in full, and what `briefState` tells of it. */
export interface Reference {
  state: State;
  brief: Awaited<ReturnType<typeof briefState>>;
}

export async function look(client: DaemonClient, world: World): Promise<Reference> {
  const brief = await briefState(client, world);
  return { brief, state: { ...(await world.state(client)), lost: brief.lost } };
}

const isSame = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b);

/** Without files that could not be taken away, and that `of` has not: the next daemon takes them away. */
function withoutLeftFiles<Named extends { files: Record<string, string> }>(state: Named, of: Named): Named {
  const files = Object.entries(state.files).filter(([name]) => Object.hasOwn(of.files, name));
  return { ...state, files: Object.fromEntries(files) };
}

/** Connections that clients have to the daemon, its side. */
function connectionCount(world: World): number {
  const lines = readFileSync('/proc/net/unix', 'utf8').split('\n');
  return lines.filter((line) => line.endsWith(` ${world.folder.controlSocket}`) && / 0001 03 /.test(line)).length;
}

/** The state when the daemon has undone or finished all that the killed command asked for: one of `references`. */
export async function settled(
  client: DaemonClient,
  world: World,
  references: readonly Reference[],
  where: string,
  sees: <Named extends { files: Record<string, string> }>(state: Named, of: Named) => Named = (state) => state,
): Promise<Reference> {
  await client.list();
  // This client's own one stays.
  await eventually(() => connectionCount(world) <= 1);
  let last: Reference['brief'] | null = null;
  await eventually(async () => {
    // A file may go between the look at its folder and the look at it: the daemon is still at work.
    const brief = await briefState(client, world).catch((error: Error) => error);
    if (brief instanceof Error) return false;
    last = brief;
    return references.some((reference) => isSame(reference.brief, sees(brief, reference.brief)));
  }).catch(() => expect(last, where).toEqual(references[0]!.brief));
  const found = await look(client, world);
  const reference = references.find(({ state }) => isSame(state, sees(found.state, state)));
  if (reference === undefined) expect(found.state, where).toEqual(references[0]!.state);
  return reference!;
}

/** A world in which the command can be given. */
export async function begin({ images = ['a'], prepare, lose }: Scenario) {
  const world = new World(images);
  let daemon = await world.daemonProcess();
  await prepare(daemon.client, world);
  if (lose !== undefined) {
    await daemon.kill();
    lose(world);
    daemon = await world.daemonProcess();
  }
  return { world, daemon };
}

/** The next daemon's restore. */
export async function restored(world: World): Promise<{ client: DaemonClient; stop(): Promise<void> }> {
  const { daemon, client } = await world.daemon();
  await restoreAll(client);
  expect((await client.lost()).damage).toEqual([]);
  return { client, stop: () => daemon.stop('shutdown').then(() => {}) };
}

/** The states that are allowed, and those that a restore makes of them. */
export interface Expected {
  before: Reference;
  after: Reference;
  restoredBefore: Reference;
  restoredAfter: Reference;
  /** Of the command, and of the daemon at work for it. */
  points: { client: KillPoint[]; daemon: KillPoint[] };
}

export async function expectations(scenario: Scenario): Promise<Expected> {
  const first = await begin(scenario);
  const before = await look(first.daemon.client, first.world);
  const client = join(first.world.path, 'client-calls');
  const daemon = join(first.world.path, 'daemon-calls');
  const strace = ['strace', '-qq', '-o', client, '-e', `trace=${CLIENT_CALLS.join()}`];
  const daemonPoints = await pointsOf(first.daemon.started.pid, daemon, async () => {
    const { code, stderr } = await first.world.command(scenario.words(first.world), strace);
    expect([code, stderr]).toEqual([0, stderr]);
  });
  const after = await look(first.daemon.client, first.world);
  expect(scenario.lose === undefined ? after : null).not.toEqual(before);
  await first.daemon.kill();
  const last = await restored(first.world);
  const restoredAfter = await look(last.client, first.world);
  await last.stop();
  let restoredBefore = before;
  if (scenario.lose !== undefined) {
    const { world, daemon } = await begin(scenario);
    await daemon.kill();
    const again = await restored(world);
    restoredBefore = await look(again.client, world);
    await again.stop();
  } else expect(restoredAfter).toEqual(after);
  return {
    before,
    after,
    restoredBefore,
    restoredAfter,
    points: { client: pointsFrom(client, 'connect('), daemon: daemonPoints },
  };
}

export type Outcome = 'done' | 'refused' | 'unknown';

/**
 * After a command that was killed or failed: what is there, and what the next daemon makes of it.
 *
 * @param outcome what the command has told: a killed one may have told nothing
 * @param isSoon whether the same daemon is given the command again, or the next one: nothing may be locked or taken still
 */
export async function check(
  scenario: Scenario,
  { before, after, restoredBefore, restoredAfter }: Expected,
  { world, daemon }: { world: World; daemon: DaemonProcess },
  { outcome, isSoon, where }: { outcome: Outcome; isSoon: boolean; where: string },
): Promise<void> {
  const words = scenario.words(world);
  // No assertion about its code: what went on by itself has nothing left to do.
  if (outcome === 'refused' && scenario.isByParts) await world.command(words);
  let now = await settled(
    daemon.client,
    world,
    { done: [after], refused: scenario.isByParts ? [after] : [before], unknown: [before, after] }[outcome],
    where,
    withoutLeftFiles,
  );
  const isAgain = scenario.lose === undefined && now === before;
  if (isAgain && isSoon) {
    const { code, stderr } = await world.command(words);
    expect([where, code], stderr).toEqual([where, 0]);
    now = await settled(daemon.client, world, [after], `${where}, and done again`);
  }
  await daemon.kill();
  const { client, stop } = await restored(world);
  const allowed = now === after ? [restoredAfter] : [restoredBefore, restoredAfter];
  const last = await settled(client, world, allowed, `${where}, and restored`);
  if (isAgain && last === restoredBefore) {
    const { code, stderr } = await world.command(words);
    expect([where, code], stderr).toEqual([where, 0]);
    await settled(client, world, [after], `${where}, and done again after a restore`);
  }
  expect(world.leftovers()).toEqual([]);
  await stop();
}
