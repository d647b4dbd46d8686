// Builds dist/ from src/. The compiler writes into a folder beside dist/ that takes its place only when everything
// compiled, so a failed build leaves the last good one and a process that starts meanwhile never meets half a build.
// `--if-stale` builds only where dist/ is not that of the sources as they are; `--watch` builds after every change of src/.
// One build runs at a time: a second one waits for the first.
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  watch,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { hashSources, isFresh, STAMP } from './sources.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = join(root, 'dist');
const fresh = join(root, `dist-new-${process.pid}`);
const old = join(root, `dist-old-${process.pid}`);
const lock = join(root, 'dist-lock');

const LOCK_POLL_MILLISECONDS = 50;
/** A build takes seconds. A lock that is older than this was left behind, even if its number is a process again. */
const MAX_LOCK_AGE_MILLISECONDS = 600_000;
/** An editor's save is several events. */
const SETTLE_MILLISECONDS = 100;

// The lock: a file with the builder's process number.

function takeLock() {
  try {
    writeFileSync(lock, String(process.pid), { flag: 'wx' });
    return true;
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
    return false;
  }
}

function isRunning(pid) {
  // 0 and negative numbers are groups of processes.
  if (!(pid > 0)) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

/** Takes away the lock of a build that was killed. */
function removeDeadLock() {
  try {
    const age = Date.now() - statSync(lock).mtimeMs;
    const owner = readFileSync(lock, 'utf8');
    // Without a number: it is being written at this moment.
    const isAlive = owner === '' ? age < 20 * LOCK_POLL_MILLISECONDS : isRunning(Number(owner));
    if (isAlive && age < MAX_LOCK_AGE_MILLISECONDS) return;
    const taken = `${lock}-${process.pid}`;
    renameSync(lock, taken);
    // Another build may have removed the dead lock, and made its own, since this one looked.
    if (readFileSync(taken, 'utf8') === owner) rmSync(taken);
    else renameSync(taken, lock);
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
}

async function withLock(work) {
  while (!takeLock()) {
    removeDeadLock();
    await sleep(LOCK_POLL_MILLISECONDS);
  }
  try {
    return work();
  } finally {
    rmSync(lock, { force: true });
  }
}

// A build

/** Folders of builds that were killed: only the lock's owner makes any. */
function removeLeftovers() {
  for (const name of readdirSync(root)) {
    if (/^dist-(?:new|old)-\d+$/.test(name)) rmSync(join(root, name), { recursive: true, force: true });
  }
}

function compile() {
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const args = [tsc, '-p', join(root, 'tsconfig.build.json'), '--outDir', fresh];
  return spawnSync(process.execPath, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] }).status ?? 1;
}

function makeBinExecutable() {
  const bin = join(fresh, 'cli', 'main.js');
  if (existsSync(bin)) chmodSync(bin, 0o755);
}

function swap() {
  if (existsSync(dist)) renameSync(dist, old);
  renameSync(fresh, dist);
  rmSync(old, { recursive: true, force: true });
}

/** @returns the exit code */
function build() {
  removeLeftovers();
  // Before the compiler reads them: sources that change meanwhile make this build a stale one.
  const sources = hashSources(root);
  const status = compile();
  if (status === 0) {
    makeBinExecutable();
    writeFileSync(join(fresh, STAMP), sources);
    swap();
  } else {
    rmSync(fresh, { recursive: true, force: true });
  }
  return status;
}

/** Builds where dist/ is stale. @returns the exit code; null where nothing was to be done */
function buildIfStale() {
  return withLock(() => (isFresh(root) ? null : build()));
}

// Watching

async function buildAndTell() {
  const begin = performance.now();
  const status = await buildIfStale();
  if (status === null) return;
  const seconds = ((performance.now() - begin) / 1000).toFixed(1);
  const outcome = status === 0 ? `dist/ is built (${seconds} s)` : 'dist/ is still the last good build';
  process.stdout.write(`${new Date().toTimeString().slice(0, 8)} ${outcome}\n`);
}

async function watchSources() {
  let wake = () => {};
  let isChanged = true;
  watch(join(root, 'src'), { recursive: true }, () => {
    isChanged = true;
    wake();
  });
  process.stdout.write('watching src/; ctrl-C ends it\n');
  for (;;) {
    while (isChanged) {
      isChanged = false;
      await buildAndTell();
      await sleep(SETTLE_MILLISECONDS);
    }
    await new Promise((resolve) => {
      wake = resolve;
    });
    await sleep(SETTLE_MILLISECONDS);
  }
}

const [option, ...others] = process.argv.slice(2);
if (others.length > 0 || ![undefined, '--if-stale', '--watch'].includes(option)) {
  process.stderr.write('usage: node scripts/build.mjs [--if-stale | --watch]\n');
  process.exitCode = 2;
} else if (option === '--watch') await watchSources();
else process.exitCode = (await (option === undefined ? withLock(build) : buildIfStale())) ?? 0;
