// Children of a benchmark: none outlives its time or the harness. Everything is ended with SIGKILL at the latest, because
// fio's nbd engine ignores SIGTERM while its server is stalled.
import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { connect } from 'node:net';
import { delimiter, join } from 'node:path';

const living = new Set();

function killGroup(pid) {
  living.delete(pid);
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // It has ended.
  }
}

export function killAll() {
  for (const pid of living) killGroup(pid);
}

process.on('exit', killAll);
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => process.exit(130));

function launch(command, args, seconds) {
  const child = spawn(command, args, { detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
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

/** Runs a program to its end and gives its standard output; anything but exit code 0 throws with what it said. */
export async function run(command, args, seconds) {
  const { output, closed } = launch(command, args, seconds);
  const code = await closed;
  if (code === 0) return output.stdout;
  throw new Error(`${command} ended with ${code}: ${(output.stderr || output.stdout).trim().slice(-600)}`);
}

function canConnect(path) {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on('connect', () => socket.end(() => resolve(true)));
    socket.on('error', () => resolve(false));
  });
}

/** Starts a server that listens on the Unix socket `path`; the result has `stop()` and what it printed. */
export async function serve(command, args, path, { ready = () => canConnect(path), lifeSeconds = 900 } = {}) {
  const { child, output, closed } = launch(command, args, lifeSeconds);
  let ended;
  void closed.then((code) => {
    ended = code;
  });
  const stop = async () => {
    child.kill('SIGTERM');
    const timer = setTimeout(killGroup, 2000, child.pid);
    await closed;
    clearTimeout(timer);
  };
  for (const deadline = Date.now() + 20_000; Date.now() < deadline; ) {
    if (ended !== undefined) break;
    if (await ready(output)) return { stop, output };
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  await stop();
  throw new Error(`${command} did not come up (${ended ?? 'time is over'}): ${output.stderr.trim().slice(-600)}`);
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
