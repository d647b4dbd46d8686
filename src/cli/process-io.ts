// A dmsetup command in a process of its own: standard streams, files, the host's devices.
import { spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { decodeName, rawName } from '../block/file-name.ts';
import { workingFolder } from '../files/working-folder.ts';
import type { DmsetupIo } from './dmsetup/io.ts';

/** Images in the place of devices, for scripts that name devices: set by `dmkit exec --map`. */
export const MAP_VARIABLE = 'DMKIT_MAP';

/** The path of an image that stands for a device; the argument itself where none does. */
export function mapDevice(argument: string): string {
  const text = process.env[MAP_VARIABLE];
  if (text === undefined || text === '') return argument;
  const map = JSON.parse(text) as Record<string, string>;
  return Object.hasOwn(map, argument) ? map[argument]! : argument;
}

export function isHostDevice(path: string): boolean {
  try {
    return statSync(rawName(path)).isBlockDevice();
  } catch {
    return false;
  }
}

function readStdin(): string {
  try {
    return decodeName(readFileSync(0));
  } catch (error) {
    const errno = errnoFromException(error);
    throw new DmError(errno, `cannot read standard input: ${errnoMessage(errno)}`);
  }
}

/** Not by a shell: what is in a device's name is for the program alone. */
function runProgram([program, ...args]: readonly string[]): void {
  const { error } = spawnSync(program!, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (error !== undefined) {
    process.stderr.write(rawName(`dmkit: cannot run ${program}: ${errnoMessage(errnoFromException(error))}\n`));
  }
}

/** `vdb` for 254:16, by sysfs. */
function blockDeviceName(major: number, minor: number): string | null {
  try {
    const uevent = readFileSync(`/sys/dev/block/${major}:${minor}/uevent`, 'utf8');
    return /^DEVNAME=(.+)$/m.exec(uevent)?.[1] ?? null;
  } catch {
    return null;
  }
}

function isUtf8(env: NodeJS.ProcessEnv): boolean {
  return /utf-?8/i.test(env.LC_ALL || env.LC_CTYPE || env.LANG || '');
}

export function processIo(programName: string, versionLines: () => string[]): DmsetupIo {
  return {
    programName,
    stdout: (text) => void process.stdout.write(rawName(text)),
    stderr: (text) => void process.stderr.write(rawName(text)),
    note: (text) => void process.stderr.write(rawName(text)),
    readStdin,
    readFile: (path) => decodeName(readFileSync(rawName(path))),
    folder: workingFolder(),
    columns: process.stdout.columns,
    utf8: isUtf8(process.env),
    sleep: (milliseconds) => sleep(milliseconds),
    run: runProgram,
    blockDeviceName,
    isHostDevice,
    mapDevice: (argument) => escapeMapped(argument),
    versionLines,
  };
}

/** An image's path among a table's words, where it needs protection. */
function escapeMapped(argument: string): string {
  const mapped = mapDevice(argument);
  return mapped === argument ? argument : mapped.replace(/[ \t#\\]/g, '\\$&');
}
