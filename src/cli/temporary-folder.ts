// Folders for the time of one command, among the temporary files. A command that was killed leaves its folder; the next one
// removes it when its lock proves that no process has it. The lock goes with the process, or with the last of its children
// that was given the descriptor; a process's number proves nothing, for numbers are used again.
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  unlinkSync,
} from 'node:fs';
import { join } from 'node:path';
import { tryLock } from '../devices/lock.ts';
import { type Libc, loadLibc } from '../engine/libc.ts';

const LOCK_FILE = 'lock';
const OWNER_BITS = 0o700;
const PERMISSION_BITS = 0o777;

export interface TemporaryFolder {
  readonly path: string;
  /** Keeps the lock in a child too; null where the system has no locks. */
  readonly lockFd: number | null;
  remove(): void;
}

function openLock(path: string, flags: number): number | null {
  try {
    return openSync(path, constants.O_RDWR | constants.O_NOFOLLOW | flags, 0o600);
  } catch {
    return null;
  }
}

/** The lock of a new folder; null on a file system without locks. */
function makeLock(libc: Libc, folder: string): number | null {
  const path = join(folder, LOCK_FILE);
  // Under its name it is locked from the first moment: no other command can take the folder for a leftover.
  const fd = openLock(`${path}.new`, constants.O_CREAT | constants.O_EXCL);
  if (fd === null) return null;
  if (tryLock(libc, fd) === 0) {
    renameSync(`${path}.new`, path);
    return fd;
  }
  unlinkSync(`${path}.new`);
  closeSync(fd);
  return null;
}

/** The lock of a folder that a killed command has left; null where a process has it. */
function takeLock(libc: Libc, folder: string): number | null {
  const fd = openLock(join(folder, LOCK_FILE), 0);
  if (fd === null) return null;
  // One that another process has removed meanwhile locks nothing.
  if (tryLock(libc, fd) === 0 && fstatSync(fd).nlink > 0) return fd;
  closeSync(fd);
  return null;
}

function isOwn(path: string): boolean {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  return (
    stat?.isDirectory() === true && stat.uid === process.getuid?.() && (stat.mode & PERMISSION_BITS) === OWNER_BITS
  );
}

/** Removes the folders of commands that were killed. One without the lock's file is left: it may be in the making. */
function sweep(libc: Libc, parent: string, prefix: string): void {
  for (const name of readdirSync(parent)) {
    const path = join(parent, name);
    if (!name.startsWith(prefix) || !/^[A-Za-z0-9]{6}$/.test(name.slice(prefix.length)) || !isOwn(path)) continue;
    const fd = takeLock(libc, path);
    if (fd === null) continue;
    try {
      rmSync(path, { recursive: true, force: true });
    } finally {
      closeSync(fd);
    }
  }
}

/**
 * Makes `PREFIXxxxxxx` in `parent`, for this user alone, after it has removed what killed commands have left there.
 *
 * @throws what the file system says
 */
export function makeTemporaryFolder(parent: string, prefix: string): TemporaryFolder {
  const { libc } = loadLibc();
  if (libc !== null) {
    try {
      sweep(libc, parent, prefix);
    } catch {
      // A folder that can't be listed, or a leftover that can't be removed: not what was asked for.
    }
  }
  const path = mkdtempSync(join(parent, prefix));
  const lockFd = libc === null ? null : makeLock(libc, path);
  return {
    path,
    lockFd,
    remove: () => {
      rmSync(path, { recursive: true, force: true });
      if (lockFd !== null) closeSync(lockFd);
    },
  };
}
