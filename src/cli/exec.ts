// dmkit exec: runs a command in whose PATH dmsetup and blockdev are dmkit's.
import { spawn } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { delimiter, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { daemonFolder } from '../daemon/folder.ts';
import { canonicalNbdUri, isNbdUri } from '../devices/nbd-uri.ts';
import { MAP_VARIABLE } from './process-io.ts';

const ANSWERED = ['dmsetup', 'blockdev'] as const;
/** What a shell gives for a process that a signal ended, less the signal's number. */
const EXIT_SIGNAL = 128;

/** As a shell's word. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A folder with a program for each name, which calls dmkit. */
function makePrograms(): string {
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-exec-'));
  const main = fileURLToPath(new URL('./main.js', import.meta.url));
  for (const name of ANSWERED) {
    const path = join(folder, name);
    writeFileSync(path, `#!/bin/sh\nexec ${quoted(process.execPath)} ${quoted(main)} ${name} "$@"\n`);
    chmodSync(path, 0o755);
  }
  return folder;
}

function imageOf(text: string): string {
  return isNbdUri(text) ? canonicalNbdUri(text, process.cwd()) : resolve(text);
}

/** `/dev/sdb1=disk.img` to a table of paths. @throws DmError EINVAL for anything else */
function parseMaps(maps: readonly string[]): Record<string, string> {
  const result: Record<string, string> = {};
  for (const text of maps) {
    const equals = text.indexOf('=');
    if (!text.startsWith('/') || equals < 0 || equals === text.length - 1) {
      throw new DmError(
        Errno.EINVAL,
        `--map ${text}: it takes the form /dev/PATH=IMAGE, an image being a path or an NBD URI`,
      );
    }
    result[text.slice(0, equals)] = imageOf(text.slice(equals + 1));
  }
  return result;
}

/** Runs `command` and waits. @returns its exit code, or 128 and the number of the signal that ended it */
export async function execCommand(command: readonly string[], maps: readonly string[]): Promise<number> {
  const map = parseMaps(maps);
  const programs = makePrograms();
  try {
    const env = {
      ...process.env,
      DMKIT_DIR: daemonFolder().path,
      [MAP_VARIABLE]: JSON.stringify(map),
      PATH: `${programs}${delimiter}${process.env.PATH ?? ''}`,
    };
    return await run(command, env);
  } finally {
    rmSync(programs, { recursive: true, force: true });
  }
}

function run([program, ...args]: readonly string[], env: NodeJS.ProcessEnv): Promise<number> {
  return new Promise((resolveExit, reject) => {
    const child = spawn(program!, args, { stdio: 'inherit', env });
    const pass = (signal: NodeJS.Signals): void => void child.kill(signal);
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, pass);
    child.once('error', (error) => {
      reject(new DmError(errnoFromException(error), `cannot run ${program}: ${error.message}`));
    });
    child.once('exit', (code, signal) => resolveExit(code ?? EXIT_SIGNAL + constants.signals[signal!]));
  });
}
