// Kills writers at random moments, and opens what they left. The moment is counted in lines of the writer's log and not in
// milliseconds: on a busy machine a writer may have done nothing after 40 of them, and its death would show nothing.
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** As long as a test that hangs may take. */
const PATIENCE_MILLISECONDS = 150_000;

const pause = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * Runs a program, whose log is its standard output, and kills it a moment after a line of that log.
 *
 * @param args the program and its arguments
 * @param random gives the line and the moment
 * @param lineCount the last line it may be
 * @returns the log
 */
export async function killedAtLine(
  args: readonly string[],
  folder: string,
  random: () => number,
  lineCount: number,
): Promise<string> {
  const path = join(folder, 'log');
  const log = openSync(path, 'w');
  const child = spawn(process.execPath, args, { stdio: ['ignore', log, 'inherit'] });
  const exited = new Promise((resolve) => child.once('exit', resolve));
  const wanted = 1 + Math.floor(random() * lineCount);
  const end = performance.now() + PATIENCE_MILLISECONDS;
  while (
    readFileSync(path, 'utf8').split('\n').length <= wanted &&
    child.exitCode === null &&
    performance.now() < end
  ) {
    await pause(2);
  }
  await pause(random() * 3);
  child.kill('SIGKILL');
  await exited;
  closeSync(log);
  return readFileSync(path, 'utf8');
}

/**
 * Opens a device on files of a killed process. The kernel takes its time to give back what a ring of that process held, its
 * locks included: until then they are busy.
 */
export async function afterKill<T>(open: () => Promise<T>): Promise<T> {
  for (const end = performance.now() + PATIENCE_MILLISECONDS; ; ) {
    try {
      return await open();
    } catch (error) {
      const { message = '' } = ((error as Error).cause ?? {}) as { message?: string };
      const isBusy = (error as { code?: string }).code === 'EBUSY' || message.includes('can not be seen');
      if (!isBusy || performance.now() > end) throw error;
    }
    await pause(50);
  }
}
