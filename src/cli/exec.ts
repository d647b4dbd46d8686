// dmkit exec: runs a command in whose PATH dmsetup and blockdev are dmkit's.
import { type StdioOptions, spawn } from 'node:child_process';
import { accessSync, chmodSync, constants, writeFileSync } from 'node:fs';
import { constants as osConstants, tmpdir } from 'node:os';
import { delimiter, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { daemonFolder } from '../daemon/folder.ts';
import { canonicalNbdUri, isNbdUri } from '../devices/nbd-uri.ts';
import { workingFolder } from '../files/working-folder.ts';
import { MAP_VARIABLE } from './process-io.ts';
import { rawCommand } from './raw-command.ts';
import { makeTemporaryFolder, type TemporaryFolder } from './temporary-folder.ts';

const ANSWERED = ['dmsetup', 'blockdev'] as const;
/** As env and sh have it. */
const EXIT_NOT_RUN = 126;
const EXIT_NOT_FOUND = 127;
/** Without a PATH; an empty entry would name the working folder. */
const DEFAULT_PATH = '/usr/sbin:/usr/bin:/sbin:/bin';
/** What a shell gives for a process that a signal ended, less the signal's number. */
const EXIT_SIGNAL = 128;

/** In the command, out of the way of a script's own descriptors. */
const LOCK_DESCRIPTOR = 63;

/** As a shell's word. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Folders that every Linux has. */
const COMMON_PLACES = ['tmp', 'var/tmp', 'dev/shm'].map((path) => `/${path}`);

/** Where the programs may lie, the first that can be used. */
function places(): string[] {
  const runtime = process.env.XDG_RUNTIME_DIR;
  return [tmpdir(), ...(runtime === undefined || runtime === '' ? [] : [runtime]), ...COMMON_PLACES];
}

function writePrograms(folder: string): void {
  const main = fileURLToPath(new URL('./main.js', import.meta.url));
  for (const name of ANSWERED) {
    const path = join(folder, name);
    writeFileSync(path, `#!/bin/sh\nexec ${quoted(process.execPath)} ${quoted(main)} ${name} "$@"\n`);
    chmodSync(path, 0o755);
    // Refused on a file system that runs no programs (noexec): shells would go on to the next dmsetup in PATH.
    accessSync(path, constants.X_OK);
  }
}

/**
 * A folder with a program for each name, which calls dmkit. PATH must lead to it from every folder: a path that is
 * relative or has a colon would leave the names to the kernel's programs.
 *
 * @throws DmError where no place will do
 */
function makePrograms(): TemporaryFolder {
  const reasons: string[] = [];
  for (const place of new Set(places().map((path) => resolve(workingFolder(), path)))) {
    if (place.includes(delimiter)) {
      reasons.push(`${place} has a colon, which PATH can't name`);
      continue;
    }
    let folder: TemporaryFolder | null = null;
    try {
      folder = makeTemporaryFolder(place, 'dmkit-exec-');
      writePrograms(folder.path);
      return folder;
    } catch (error) {
      folder?.remove();
      reasons.push(`${place}: ${errnoMessage(errnoFromException(error))}`);
    }
  }
  const reason = `no folder for the programs dmsetup and blockdev; TMPDIR names one: ${reasons.join('; ')}`;
  throw new DmError(Errno.EACCES, reason);
}

function imageOf(text: string): string {
  return isNbdUri(text) ? canonicalNbdUri(text, workingFolder()) : resolve(workingFolder(), text);
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

/** Runs `command` and waits. @returns its exit code, 128 and the number of the signal that ended it, or 126 or 127 */
export async function execCommand(command: readonly string[], maps: readonly string[]): Promise<number> {
  const map = parseMaps(maps);
  const programs = makePrograms();
  try {
    const env = {
      ...process.env,
      DMKIT_DIR: daemonFolder().path,
      [MAP_VARIABLE]: JSON.stringify(map),
      PATH: `${programs.path}${delimiter}${process.env.PATH || DEFAULT_PATH}`,
    };
    return await run(command, env, programs.lockFd);
  } finally {
    programs.remove();
  }
}

function run([program, ...args]: readonly string[], env: NodeJS.ProcessEnv, lockFd: number | null): Promise<number> {
  return new Promise((resolveExit) => {
    const raw = rawCommand({ program: program!, args });
    const stdio: StdioOptions = ['inherit', 'inherit', 'inherit'];
    // The command goes on when this process is killed, and needs the programs still: it keeps their folder's lock.
    if (lockFd !== null) {
      while (stdio.length < LOCK_DESCRIPTOR) stdio.push('ignore');
      stdio.push(lockFd);
    }
    const child = spawn(raw.program, raw.args, { stdio, env });
    const pass = (signal: NodeJS.Signals): void => void child.kill(signal);
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, pass);
    child.once('error', (error) => {
      const errno = errnoFromException(error);
      process.stderr.write(rawName(`dmkit: cannot run ${program}: ${errnoMessage(errno)}\n`));
      resolveExit(errno === Errno.ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_RUN);
    });
    child.once('exit', (code, signal) => resolveExit(code ?? EXIT_SIGNAL + osConstants.signals[signal!]));
  });
}
