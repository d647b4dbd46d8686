// Children of a benchmark: none outlives its time or the harness. Everything is ended with SIGKILL at the latest, because
// fio's nbd engine ignores SIGTERM while its server is stalled.
import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { delimiter, join } from 'node:path';

const living = new Set();
/** Servers that left the process group they were started in. */
const daemons = new Set();

function killGroup(pid) {
  living.delete(pid);
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended.
  }
}

function signalDaemon(pid, signal) {
  try {
    process.kill(pid, signal);
    return true;
  } catch {
    daemons.delete(pid);
    return false;
  }
}

export function killAll() {
  for (const pid of living) killGroup(pid);
  for (const pid of daemons) signalDaemon(pid, 'SIGKILL');
}

process.on('exit', killAll);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(130));

function launch(command, args, seconds, env = {}) {
  const stdio = ['ignore', 'pipe', 'pipe'];
  const child = spawn(command, args, { detached: true, stdio, env: { ...process.env, ...env } });
  const output = { stdout: '', stderr: '' };
  child.stdout.on('data', (chunk) => {
    output.stdout += chunk;
  });
  child.stderr.on('data', (chunk) => {
    output.stderr += chunk;
  });
  const closed = new Promise((resolve) => {
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code, signal) => resolve(code ?? signal));
  });
  if (child.pid === undefined) return { child, output, closed };
  living.add(child.pid);
  const timer = setTimeout(killGroup, seconds * 1000, child.pid);
  child.on('close', () => {
    clearTimeout(timer);
    killGroup(child.pid);
  });
  return { child, output, closed };
}

/** The end of what a program said. Hundreds of clients say the same. */
function lastWords({ stdout, stderr }) {
  const lines = new Set((stderr || stdout).trim().split('\n'));
  return [...lines].slice(-3).join('; ').slice(-600);
}

/** Runs a program to its end and gives its standard output; anything but exit code 0 throws with what it said. */
export async function run(command, args, seconds) {
  const { output, closed } = launch(command, args, seconds);
  const code = await closed;
  if (code === 0) return output.stdout;
  throw new Error(`${command} ended with ${code}: ${lastWords(output)}`);
}

/** Whether somebody listens at a Unix socket's path or a TCP port of this machine. */
function canConnect(place) {
  return new Promise((resolve) => {
    const socket = typeof place === 'number' ? connect(place, '127.0.0.1') : connect(place);
    socket.on('connect', () => socket.end(() => resolve(true)));
    socket.on('error', () => resolve(false));
  });
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function stopDaemon(pid) {
  signalDaemon(pid, 'SIGTERM');
  for (const deadline = Date.now() + 2000; Date.now() < deadline; await pause(10)) if (!isRunning(pid)) break;
  signalDaemon(pid, 'SIGKILL');
  daemons.delete(pid);
}

/** A process that has ended and that nobody has waited for is none. */
function isRunning(pid) {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

function pidIn(file) {
  try {
    return Number(readFileSync(file, 'utf8')) || undefined;
  } catch {
    return undefined;
  }
}

/**
 * Starts a server that listens at `place`: a Unix socket's path, or a TCP port. The result has `stop()`, its `pid` and
 * what it printed. A server that cannot but go to the background says where in `pidFile`.
 */
export async function serve(command, args, place, options = {}) {
  const { ready = () => canConnect(place), lifeSeconds = 900, env, pidFile, pollMilliseconds = 25 } = options;
  if (pidFile !== undefined) rmSync(pidFile, { force: true });
  const { child, output, closed } = launch(command, args, lifeSeconds, env);
  let ended;
  void closed.then((code) => {
    ended = code;
  });
  const stop = async () => {
    const daemon = pidFile === undefined ? undefined : pidIn(pidFile);
    if (daemon !== undefined) await stopDaemon(daemon);
    child.kill('SIGTERM');
    const timer = setTimeout(killGroup, 2000, child.pid);
    await closed;
    clearTimeout(timer);
  };
  for (const deadline = Date.now() + 60_000; Date.now() < deadline; await pause(pollMilliseconds)) {
    const daemon = pidFile === undefined ? undefined : pidIn(pidFile);
    if (daemon !== undefined) daemons.add(daemon);
    if (ended !== undefined && !(ended === 0 && pidFile !== undefined)) break;
    if (pidFile !== undefined && daemon === undefined) continue;
    if (await ready(output)) return { stop, output, pid: daemon ?? child.pid };
  }
  await stop();
  throw new Error(`${command} did not come up (${ended ?? 'time is over'}): ${lastWords(output)}`);
}

/** The path of a program, or undefined. */
export function which(name) {
  for (const folder of [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin']) {
    try {
      accessSync(join(folder || '.', name), constants.X_OK);
      return join(folder || '.', name);
    } catch {
      // Not in this one.
    }
  }
  return undefined;
}

/** The first line of what a program says its version is. */
export function versionOf(name, args = ['--version']) {
  const path = which(name);
  if (path === undefined) return undefined;
  return spawnSync(path, args, { encoding: 'utf8', timeout: 10_000, killSignal: 'SIGKILL' }).stdout?.split('\n')[0];
}
