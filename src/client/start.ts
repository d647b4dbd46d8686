// Starting a daemon in the background, and waiting until it listens.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { DmError } from '../block/errors.ts';
import type { DaemonFolder } from '../daemon/folder.ts';

/** The descriptor over which a daemon says that it listens, or why it does not. */
export const READY_DESCRIPTOR = 3;
export const READY_TEXT = 'ready';
const START_SECONDS = 20;
/**
 * A small young generation: collecting it stops the daemon's thread for as long as it takes to copy what lives, which while
 * a long table is loaded is most of it; 16 MiB, the default, take 20 to 50 ms. Requests of clients allocate next to nothing.
 */
const HEAP_OPTIONS = ['--max-semi-space-size=1'];

/**
 * Starts a daemon that outlives this process. It inherits no standard input, output or error, so that whatever waits for
 * their end does not wait for the daemon.
 *
 * @returns true when the new one listens, false when another one was there first
 * @throws DmError with what the daemon said
 */
export function startInBackground(folder: DaemonFolder): Promise<boolean> {
  const program = fileURLToPath(new URL('../cli/main.js', import.meta.url));
  if (!existsSync(program)) throw new DmError(0, `${program} is missing: the daemon can't be started`, 'DM_NO_DAEMON');
  const child = spawn(
    process.execPath,
    [...HEAP_OPTIONS, program, 'daemon', '--ready-descriptor', String(READY_DESCRIPTOR)],
    {
      cwd: '/',
      detached: true,
      env: { ...process.env, DMKIT_DIR: folder.path },
      stdio: ['ignore', 'ignore', 'ignore', 'pipe'],
    },
  );
  child.unref();
  const pipe = child.stdio[READY_DESCRIPTOR] as NodeJS.ReadableStream & { destroy(): void };
  return new Promise((resolve, reject) => {
    let said = '';
    const timer = setTimeout(() => finish(`it did not listen within ${START_SECONDS} seconds`), START_SECONDS * 1000);
    const finish = (problem: string | null): void => {
      clearTimeout(timer);
      pipe.destroy();
      if (problem === null) resolve(true);
      else reject(new DmError(0, `the daemon could not be started: ${problem}; see ${folder.logFile}`, 'DM_NO_DAEMON'));
    };
    child.once('error', (error) => finish(error.message));
    pipe.on('data', (chunk: Buffer) => {
      said += chunk.toString();
    });
    pipe.on('end', () => {
      const text = said.trim();
      if (text === READY_TEXT) finish(null);
      else if (text.startsWith('EBUSY')) {
        clearTimeout(timer);
        pipe.destroy();
        resolve(false);
      } else finish(text === '' ? 'it ended at once' : text);
    });
  });
}
