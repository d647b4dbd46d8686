// A system call of the daemon fails while it does a command: once, or from then on until the trouble is over. The command
// is refused with a sentence and nothing has changed, or it is done; so after a kill of the daemon and a restore. When
// the trouble is over the same command works. The daemon's end always comes.
// The calls one by one are tried by `npm run test:soak` (DMKIT_RUNS): some 400 of them, at some seconds each.
import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, mkdirSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { basename, join } from 'node:path';
import { describe, expect, onTestFinished } from 'vitest';
import { connectNbd } from '../../src/nbd/index.ts';
import { find, itPeer } from '../support/peers.ts';
import type { RunResult } from '../support/process.ts';
import { makeRandom, printSeedOnFailure, runs } from '../support/seed.ts';
import { tempDir } from '../support/tmp.ts';
import { begin, check, expectations, SCENARIOS } from './client-scenarios.ts';
import { attached, type DaemonProcess, eventually, restoreAll, sampleSize, some, World } from './kill-support.ts';

const ERRORS = ['EIO', 'ENOSPC', 'EDQUOT', 'EROFS'] as const;
/** Calls that Node makes for itself, or that no file system refuses. */
const OTHERS: readonly string[] = ['io_uring_enter', 'write'];

const random = makeRandom();
const oneOf = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)]!;

/** What a user reads when a command is refused. */
function isSentence(text: string): boolean {
  return /\w{3}/.test(text) && !/unexpected|fault of dmkit|^ +at /m.test(text);
}

describe.skipIf(runs(1) === 1)(
  'a command is refused, and nothing has changed, where a system call of the daemon fails:',
  () => {
    for (const scenario of some(SCENARIOS, runs(2), random)) {
      itPeer(
        ['strace'],
        scenario.title,
        async () => {
          printSeedOnFailure();
          const expected = await expectations(scenario);
          const points = expected.points.daemon.filter(({ call }) => !OTHERS.includes(call));
          for (const { call, nth } of some(points, sampleSize(1), random)) {
            const error = oneOf(ERRORS);
            const when = `${nth}${oneOf(['', '+'])}`;
            const where = `${scenario.title}, ${error} from ${call} ${when}`;
            const { world, daemon } = await begin(scenario);
            const inject = `inject=${call}:error=${error}:when=${when}`;
            const tracing = await attached(daemon.started.pid, [
              '-o',
              '/dev/null',
              '-e',
              `trace=${call}`,
              '-e',
              inject,
            ]);
            const { code, stderr } = await world.command(scenario.words(world));
            await tracing.stop();
            if (code !== 0) expect([where, code, isSentence(stderr)], stderr).toEqual([where, 1, true]);
            const outcome = code === 0 ? 'done' : 'refused';
            await check(scenario, expected, { world, daemon }, { outcome, isSoon: random() < 0.5, where });
          }
        },
        runs(300_000),
      );
    }
  },
);

/** Everything that changes a file fails, as on a file system that went read-only or a disk that broke. */
async function broken(daemon: DaemonProcess, error: string) {
  // Not fsync: at its end koffi syncs standard output, here a pipe, and no pipe's sync fails in the real world.
  const calls = 'pwrite64,pwritev,ftruncate,fallocate,fdatasync,rename,link,unlink,mkdir';
  const args = ['-o', '/dev/null', '-e', `trace=${calls}`, '-e', `inject=${calls}:error=${error}`];
  return attached(daemon.started.pid, args);
}

describe('a daemon for which every change of a file fails', () => {
  for (const words of [['shutdown'], ['shutdown', '--force'], ['SIGTERM']]) {
    const error = oneOf(ERRORS);
    itPeer(['strace'], `refuses changes, and ends by ${words.join(' ')} all the same (${error})`, async () => {
      printSeedOnFailure();
      const { world, daemon } = await begin(SCENARIOS.find(({ title }) => title === 'remove_all')!);
      const before = await world.state(daemon.client);
      const isForced = words.includes('--force');
      const disk = isForced ? await connectNbd(await daemon.client.uri('low')) : null;
      const tracing = await broken(daemon, error);
      for (const refused of [
        ['create', 'd', '--table', '0 8 zero'],
        ['rename', 'top', 'other'],
        ['remove', 'top'],
        ['snapshot', 'create', 'a.img', 'w'],
      ]) {
        const { code, stderr } = await world.command(refused);
        expect([refused, code, isSentence(stderr)], stderr).toEqual([refused, 1, true]);
      }
      if (words[0] === 'SIGTERM') process.kill(daemon.started.pid, 'SIGTERM');
      else {
        const { code, stderr } = await world.command(words);
        expect([words, code], stderr).toEqual([words, 0]);
      }
      await daemon.started.exited;
      await tracing.stop();
      await disk?.close().catch(() => {});
      // Told to forget its devices it could not: they are lost ones, as after SIGTERM, and none is another.
      const next = await world.daemonProcess();
      expect((await next.client.lost()).damage).toEqual([]);
      await restoreAll(next.client);
      expect((await world.state(next.client)).devices).toEqual(before.devices);
      expect(world.leftovers()).toEqual([]);
    });
  }
});

function tool(...words: string[]): string {
  const { status, stdout, stderr } = spawnSync(words[0]!, words.slice(1), { encoding: 'utf8', timeout: 240_000 });
  if (status !== 0) throw new Error(`${words.join(' ')}: ${stderr}`);
  return stdout.trim();
}

/** A world whose daemon has its folder on a file system of its own. @param mount mounts it there */
async function mounted(mount: (folder: string) => void): Promise<World> {
  const world = new World(['a', 'b']);
  mkdirSync(world.folder.path, { mode: 0o700 });
  mount(world.folder.path);
  chmodSync(world.folder.path, 0o700);
  onTestFinished(() => void spawnSync('umount', ['-l', world.folder.path], { timeout: 240_000 }));
  return world;
}

const REFUSED = SCENARIOS.filter(({ lose, isByParts }) => lose === undefined && !isByParts);

describe('commands are refused, nothing has changed, and they work later, where the daemon’s folder', () => {
  itPeer(['root'], 'is on a file system that is full', async () => {
    printSeedOnFailure();
    for (const scenario of some(REFUSED, sampleSize(1), random)) {
      const world = await mounted((folder) => void tool('mount', '-t', 'tmpfs', '-o', 'size=192k', 'none', folder));
      const daemon = await world.daemonProcess();
      await scenario.prepare(daemon.client, world);
      const ballast = join(world.folder.path, 'ballast');
      fillUp(ballast);
      // What is left of the last page takes a few records. They stay: a journal with nothing but old ones is written anew.
      let refused: RunResult | null = null;
      for (let attempt = 0; attempt < 60 && refused === null; attempt++) {
        const told = await world.command(['create', `d${attempt}`, '--table', '0 8 zero']);
        if (told.code !== 0) refused = told;
      }
      expect(refused?.stderr).toMatch(/No space left on device/);
      const before = await world.state(daemon.client);
      const { code, stderr } = await world.command(scenario.words(world));
      expect([scenario.title, code, isSentence(stderr)], stderr).toEqual([scenario.title, 1, true]);
      expect(await world.state(daemon.client)).toEqual(before);
      await daemon.kill();
      // None starts on a full disk, where it could not keep what it is told; the devices wait.
      await expect(world.daemonProcess()).rejects.toThrow(/journal\.json: No space left on device/);
      rmSync(ballast);
      const next = await world.daemonProcess();
      await restoreAll(next.client);
      expect(await world.state(next.client)).toEqual(before);
      expect((await world.command(scenario.words(world))).code).toBe(0);
      expect(await world.state(next.client)).not.toEqual(before);
      await next.kill();
      tool('umount', '-l', world.folder.path);
    }
  });

  itPeer(
    ['root', 'loop', 'mkfs.ext4', 'e2fsck'],
    'is on a file system that goes read-only after an error',
    async () => {
      printSeedOnFailure();
      for (const scenario of some(REFUSED, sampleSize(1), random)) {
        const disk = join(tempDir('disk'), 'ext4.img');
        writeFileSync(disk, '');
        truncateSync(disk, 16 << 20);
        tool(find('mkfs.ext4')!, '-q', disk);
        const loop = tool(find('losetup')!, '--find', '--show', disk);
        onTestFinished(() => void spawnSync(find('losetup')!, ['--detach', loop], { timeout: 240_000 }));
        const mount = (folder: string): void => void tool('mount', '-o', 'errors=remount-ro', loop, folder);
        const world = await mounted(mount);
        const daemon = await world.daemonProcess();
        await scenario.prepare(daemon.client, world);
        const before = await world.state(daemon.client);
        // The kernel's own way to let an ext4 fail: it takes no write from now on.
        writeFileSync(`/sys/fs/ext4/${basename(loop)}/trigger_fs_error`, '1');
        await eventually(() => isReadOnly(world.folder.path));
        const { code, stderr } = await world.command(scenario.words(world));
        expect([scenario.title, code, isSentence(stderr)], stderr).toEqual([scenario.title, 1, true]);
        expect(await world.state(daemon.client)).toEqual(before);
        await daemon.kill();
        tool('umount', world.folder.path);
        spawnSync(find('e2fsck')!, ['-f', '-y', loop], { timeout: 240_000 });
        mount(world.folder.path);
        const next = await world.daemonProcess();
        await restoreAll(next.client);
        expect(await world.state(next.client)).toEqual(before);
        expect((await world.command(scenario.words(world))).code).toBe(0);
        await next.kill();
        tool('umount', world.folder.path);
        tool(find('losetup')!, '--detach', loop);
      }
    },
  );
});

function fillUp(path: string): void {
  const fd = openSync(path, 'w');
  try {
    for (const size of [65_536, 4096]) for (;;) writeSync(fd, Buffer.alloc(size, 1));
  } catch (error) {
    expect((error as NodeJS.ErrnoException).code).toBe('ENOSPC');
  } finally {
    closeSync(fd);
  }
}

function isReadOnly(folder: string): boolean {
  try {
    writeFileSync(join(folder, 'probe'), '');
    rmSync(join(folder, 'probe'));
    return false;
  } catch {
    return true;
  }
}
