// A dmsetup command in a process of its own: standard streams, files, the host's devices.
import { spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
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
    return statSync(path).isBlockDevice();
  } catch {
    return false;
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
    stdout: (text) => void process.stdout.write(text),
    stderr: (text) => void process.stderr.write(text),
    note: (text) => void process.stderr.write(text),
    readStdin: () => readFileSync(0, 'utf8'),
    readFile: (path) => readFileSync(path, 'utf8'),
    folder: process.cwd(),
    columns: process.stdout.columns,
    utf8: isUtf8(process.env),
    sleep: (milliseconds) => sleep(milliseconds),
    run: (command) => void spawnSync(command, { shell: true, stdio: ['ignore', 'inherit', 'inherit'] }),
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
