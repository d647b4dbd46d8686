// A daemon's place for a test: a folder with an image in it, and commands that mean the daemon of that folder.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import { dmkit } from './cli.ts';
import { type RunResult, run } from './process.ts';
import { makeImage, tempDir } from './tmp.ts';

/** The built program. */
export const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

export interface Home {
  /** Has a.img of 128 sectors. */
  folder: string;
  env: Record<string, string>;
  /** Runs `dmkit ARGS`. */
  call(args: string[], input?: string | Uint8Array): Promise<RunResult>;
  /** Runs a shell command in which $dmkit is the program. */
  shell(command: string): Promise<RunResult>;
  daemonPid(): Promise<number>;
}

/**
 * A folder with an image, and a daemon's place in it; a daemon that was started there ends with the test.
 *
 * @param program runs a command
 */
export function home(program: typeof dmkit = dmkit): Home {
  const folder = tempDir('c');
  makeImage(join(folder, 'a.img'), 128);
  const env = { DMKIT_DIR: join(folder, 'd'), LC_ALL: 'C' };
  const call: Home['call'] = (args, input) =>
    program(args, { env, cwd: folder, timeoutSeconds: 240, ...(input === undefined ? {} : { input }) });
  const daemonPid = async (): Promise<number> => {
    const log = readFileSync(join(env.DMKIT_DIR, 'daemon.log'), 'utf8').trim().split('\n');
    return Number(JSON.parse(log.findLast((line) => line.includes('"listening"'))!).pid);
  };
  onTestFinished(async () => {
    await call(['shutdown', '--force']);
  });
  return {
    folder,
    env,
    call,
    daemonPid,
    shell: (command) =>
      run('sh', ['-c', command], {
        env: { ...env, dmkit: `${process.execPath} ${main}` },
        cwd: folder,
        timeoutSeconds: 240,
      }),
  };
}
