// The command is killed at each of its own system calls from its connection on, and at each system call that the daemon
// makes for it. The daemon lives on: when it has heard of the kill, everything is as it was before the command or as it is
// after it, and so after a kill of the daemon and a restore. The same command works afterwards.
// Each run takes some of the points, and `npm run test:soak` all of them (DMKIT_RUNS).
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished } from 'vitest';
import { itPeer } from '../support/peers.ts';
import { makeRandom, printSeedOnFailure, runs } from '../support/seed.ts';
import { begin, CLIENT_CALLS, check, expectations, type Outcome, SCENARIOS } from './client-scenarios.ts';
import {
  attached,
  type DaemonProcess,
  eventually,
  type KillPoint,
  killingAt,
  pointsFrom,
  sampleSize,
  some,
  World,
} from './kill-support.ts';

const random = makeRandom();

/** The command, killed when the daemon stands before the call `point` of its. */
async function killedBeside(
  world: World,
  daemon: DaemonProcess,
  words: string[],
  { call, nth }: KillPoint,
): Promise<Outcome> {
  const log = join(world.path, 'stops');
  const { pid } = daemon.started;
  const tracing = await attached(pid, [
    '-o',
    log,
    '-e',
    `trace=${call}`,
    '-e',
    `inject=${call}:signal=STOP:when=${nth}`,
  ]);
  const command = await world.startCommand(words);
  let code: number | null | undefined;
  void command.exited.then((ended) => {
    code = ended;
  });
  const isStopped = (): boolean => readFileSync(log, 'utf8').includes('stopped by SIGSTOP');
  await eventually(() => code !== undefined || isStopped());
  if (code === undefined) process.kill(command.pid, 'SIGKILL');
  await command.exited;
  process.kill(pid, 'SIGCONT');
  await tracing.stop();
  return code === 0 ? 'done' : 'unknown';
}

describe('a command that is killed leaves its change whole or not begun, and the daemon as it should be:', () => {
  for (const scenario of some(SCENARIOS, runs(2), random)) {
    itPeer(
      ['strace'],
      scenario.title,
      async () => {
        printSeedOnFailure();
        const expected = await expectations(scenario);
        for (const point of some(expected.points.client, sampleSize(1), random)) {
          const there = await begin(scenario);
          const { code } = await there.world.command(scenario.words(there.world), [
            'strace',
            '-qq',
            ...killingAt(point),
          ]);
          const where = `${scenario.title}, killed at its ${point.call} ${point.nth}`;
          await check(scenario, expected, there, {
            outcome: code === 0 ? 'done' : 'unknown',
            isSoon: random() < 0.5,
            where,
          });
        }
        for (const point of some(expected.points.daemon, sampleSize(1), random)) {
          const there = await begin(scenario);
          const outcome = await killedBeside(there.world, there.daemon, scenario.words(there.world), point);
          const where = `${scenario.title}, killed at the daemon's ${point.call} ${point.nth}`;
          await check(scenario, expected, there, { outcome, isSoon: random() < 0.5, where });
        }
      },
      runs(300_000),
    );
  }
});

itPeer(
  ['strace'],
  'a command that starts the daemon and is killed leaves one daemon, which does what the next command says',
  async () => {
    printSeedOnFailure();
    const begin = (): World => {
      const world = new World(['a']);
      onTestFinished(async () => void (await world.command(['shutdown'])));
      return world;
    };
    const words = (world: World) => ['create', 'd', '--table', `0 256 linear ${world.image('a')} 0`];
    const first = begin();
    const log = join(first.path, 'calls');
    const calls = [...CLIENT_CALLS, 'clone', 'clone3', 'vfork', 'pipe2', 'mkdir'];
    await first.command(words(first), ['strace', '-qq', '-o', log, '-e', `trace=${calls.join()}`]);
    for (const point of some(pointsFrom(log, 'connect('), sampleSize(1), random)) {
      const world = begin();
      await world.command(words(world), ['strace', '-qq', ...killingAt(point)]);
      const where = `killed at ${point.call} ${point.nth}`;
      // What the killed one asked for may be done or undone meanwhile.
      const client = world.client();
      for (let attempt = 0; attempt < 3; attempt++) {
        const { code, stderr } = await world.command(words(world));
        expect([where, code, code === 0 || /busy|exists/i.test(stderr)], stderr).toEqual([where, code, true]);
        if ((await client.list()).length === 1) break;
      }
      expect((await client.list()).map(({ name, suspended }) => ({ name, suspended }))).toEqual([
        { name: 'd', suspended: false },
      ]);
      expect([where, (await world.command(['shutdown'])).code]).toEqual([where, 0]);
    }
  },
  runs(60_000),
);
