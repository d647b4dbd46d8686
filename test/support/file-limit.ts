// The time limit of one test file. vitest's own limits rely on the fork's event loop turning; a synchronous call that
// never returns (a ring wait, a spinning loop) would hang the run. So the killer is a process of its own.
import { spawn } from 'node:child_process';

const limitSeconds = Number(process.env.DMKIT_FILE_LIMIT ?? 300);

const killer = `
  const [pid, seconds] = [Number(process.argv[1]), Number(process.argv[2])];
  process.stdin.resume();
  process.stdin.on('end', () => process.exit(0));
  process.stdin.on('error', () => process.exit(0));
  setTimeout(() => {
    process.stderr.write('\\ndmkit: a test file ran longer than ' + seconds + ' s, killing its process ' + pid + '\\n');
    try { process.kill(pid, 'SIGKILL'); } catch {}
    process.exit(1);
  }, seconds * 1000);
`;

/** Starts the watchdog. It ends by itself when this process goes: its standard input closes. */
export function startFileLimit(seconds: number, pid = process.pid): () => void {
  const child = spawn(process.execPath, ['-e', killer, String(pid), String(seconds)], {
    stdio: ['pipe', 'ignore', 'inherit'],
  });
  child.unref();
  (child.stdin as unknown as { unref(): void }).unref();
  child.stdin.on('error', () => {});
  return () => child.stdin.end();
}

if (process.env.VITEST !== undefined && limitSeconds > 0) {
  const { afterAll } = await import('vitest');
  const stop = startFileLimit(limitSeconds);
  afterAll(stop);
}
