// The time limit of one test file. vitest's own limits rely on the fork's event loop turning; a synchronous call that
// never returns (a ring wait, a spinning loop) would hang the run. So the killer is a process of its own. It is a shell
// that sleeps, and a Node.js only when the time is up: one starts for every test file.
import { spawn } from 'node:child_process';

const limitSeconds = Number(process.env.DMKIT_FILE_LIMIT ?? 1800);

const killer = `
  const fs = require('node:fs');
  const [pid, seconds, what] = [Number(process.argv[1]), Number(process.argv[2]), process.argv[3]];
  const kill = (pid) => { try { process.kill(pid, 'SIGKILL'); } catch {} };
  // Its servers and clients would live on: each leads a process group of its own.
  const parents = () => {
    const map = new Map();
    for (const name of fs.existsSync('/proc') ? fs.readdirSync('/proc') : []) {
      try {
        const stat = fs.readFileSync('/proc/' + name + '/stat', 'utf8');
        map.set(Number(name), Number(stat.slice(stat.lastIndexOf(')') + 1).trim().split(' ')[1]));
      } catch {}
    }
    return map;
  };
  const descendants = (of, map) =>
    [...map].filter(([, parent]) => parent === of).flatMap(([child]) => [child, ...descendants(child, map)]);
  process.stderr.write('\\ndmkit: ' + what + ' ran longer than ' + seconds + ' s, killing its process ' + pid + '\\n');
  for (const child of descendants(pid, parents())) if (child !== process.pid) kill(child);
  kill(pid);
`;

// The reader of standard input ends the sleep when the process that it watches goes, and then the shell ends too. A shell
// gives its background jobs /dev/null as standard input, hence descriptor 3; it tells of a job that was killed, hence 4.
const watchdog = `
  PATH="$PATH:/usr/bin:/bin"
  exec 3<&0 4>&2 2>/dev/null
  sleep "$3" 3<&- 4>&- & sleeper=$!
  (cat <&3 >/dev/null 4>&-; kill $sleeper) & reader=$!
  wait $sleeper || exit 0
  kill $reader
  exec "$0" -e "$1" "$2" "$3" "$4" 2>&4
`;

/** Starts the watchdog. It ends by itself when this process goes: its standard input closes. */
export function startFileLimit(seconds: number, pid = process.pid, what = 'a test file'): () => void {
  const args = ['-c', watchdog, process.execPath, killer, String(pid), String(seconds), what];
  const child = spawn('/bin/sh', args, { stdio: ['pipe', 'ignore', 'inherit'] });
  child.unref();
  (child.stdin as unknown as { unref(): void }).unref();
  child.stdin.on('error', () => {});
  return () => child.stdin.end();
}

if (process.env.VITEST !== undefined && limitSeconds > 0) {
  const { afterAll, expect } = await import('vitest');
  const stop = startFileLimit(limitSeconds, process.pid, expect.getState().testPath);
  afterAll(stop);
}
