// `dmkit copy` with a map is killed at each of its system calls that touch a file. What the map says is done is done, and
// the same command with --retry copies the rest: then the destination is the source, byte for byte.
// Each run takes some of the points, and `npm run test:soak` all of them (DMKIT_RUNS).
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished } from 'vitest';
import { eventually, type KillPoint, killingAt, pointsFrom, sampleSize, some } from '../control/kill-support.ts';
import { itPeer, run, start } from '../support/peers.ts';
import { makeRandom, printSeedOnFailure, runs } from '../support/seed.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

const main = new URL('../../dist/cli/main.js', import.meta.url).pathname;
/** Several blocks, and an end that is no whole sector. */
const SECTORS = 10_000;
const THREADS_CALL = 'copy_file_range';
const FIRST_CALLS = [
  'pwrite64',
  'pwritev',
  'fsync',
  'fdatasync',
  'ftruncate',
  'fallocate',
  'rename',
  'unlink',
  'openat',
  'io_uring_enter',
];
// strace counts for each thread.
const env = { UV_THREADPOOL_SIZE: '1' };

const random = makeRandom();

class Copying {
  readonly folder = tempDir('copy-kills');
  readonly source: Buffer;

  constructor() {
    makeImage(join(this.folder, 'source'), SECTORS);
    this.source = readFileSync(join(this.folder, 'source'));
  }

  get words(): string[] {
    const retry = existsSync(join(this.folder, 'map')) ? ['--retry'] : [];
    return [main, 'copy', 'source', 'destination', '--mapfile', 'map', ...retry];
  }

  run(wrapper: readonly string[] = []) {
    const [program, ...args] = [...wrapper, process.execPath, ...this.words];
    return run(program!, args, { cwd: this.folder, env });
  }

  /** Stopped by ctrl-C when some blocks are there: the map has them, and lacks the others. */
  async half(): Promise<void> {
    const copying = await start(process.execPath, [...this.words, '--rate', '4M'], { cwd: this.folder, env });
    onTestFinished(async () => void (await copying.stop()));
    const destination = join(this.folder, 'destination');
    await eventually(() => (statSync(destination, { throwIfNoEntry: false })?.blocks ?? 0) > 0);
    process.kill(copying.pid, 'SIGINT');
    await copying.exited;
    expect(this.checkMap()).toBeGreaterThan(0);
  }

  /** @returns how many bytes the map says are done; each of them is the source's */
  checkMap(): number {
    const path = join(this.folder, 'map');
    if (!existsSync(path)) return 0;
    const destination = readFileSync(join(this.folder, 'destination'));
    let doneCount = 0;
    for (const [, at, size] of readFileSync(path, 'utf8').matchAll(/^(0x\w+) +(0x\w+) +\+$/gm)) {
      const [from, to] = [Number(at), Number(at) + Number(size)];
      const isSame = destination.subarray(from, to).equals(this.source.subarray(from, to));
      expect([from, to, isSame]).toEqual([from, to, true]);
      doneCount += to - from;
    }
    return doneCount;
  }

  async finish(where: string): Promise<void> {
    this.checkMap();
    const { code, stderr } = await this.run();
    expect([where, code], stderr).toEqual([where, 0]);
    expect(readFileSync(join(this.folder, 'destination')).equals(this.source), where).toBe(true);
    expect(this.checkMap(), where).toBe(this.source.byteLength);
    expect(readdirSync(this.folder).sort(), where).toEqual(['destination', 'map', 'source']);
  }
}

/** Every point of a copy: of its first thread, and of those that copy_file_range runs on. */
async function pointsOfCopy(copying: Copying): Promise<(KillPoint & { isThreads: boolean })[]> {
  const log = join(tempDir('log'), 'calls');
  const calls = [...FIRST_CALLS, THREADS_CALL];
  const words = ['strace', '-f', '-qq', '-o', log, '-e', `trace=${calls.join()}`];
  expect((await copying.run(words)).code).toBe(0);
  const lines = readFileSync(log, 'utf8').split('\n');
  const [, first] = /^(\d+)/.exec(lines[0]!)!;
  const own = lines.filter((line) => line.startsWith(`${first} `)).map((line) => line.replace(/^\d+ +/, ''));
  writeFileSync(log, own.join('\n'));
  const threads = lines.filter((line) => line.includes(`${THREADS_CALL}(`));
  return [
    // What comes before are Node's own files.
    ...pointsFrom(log, '/source"').map((point) => ({ ...point, isThreads: false })),
    ...threads.map((_, index) => ({ call: THREADS_CALL, nth: index + 1, isThreads: true })),
  ];
}

for (const [title, begins] of [
  ['from its beginning', false],
  ['that goes on by its map', true],
] as const) {
  itPeer(
    ['strace'],
    `a copy ${title} is killed at a system call: its map is true, and the next run finishes the copy`,
    async () => {
      printSeedOnFailure();
      const killed: boolean[] = [];
      const begin = async (): Promise<Copying> => {
        const copying = new Copying();
        if (begins) await copying.half();
        return copying;
      };
      for (const { call, nth, isThreads } of some(await pointsOfCopy(await begin()), sampleSize(1), random)) {
        const copying = await begin();
        const strace = ['strace', '-qq', ...killingAt({ call, nth }), ...(isThreads ? ['-f'] : [])];
        const { code } = await copying.run(strace);
        await copying.finish(`killed at ${call} ${nth}`);
        killed.push(code === null);
      }
      if (killed.length > 5) expect(killed).toContain(true);
    },
    runs(300_000),
  );
}
