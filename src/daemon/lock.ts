// One daemon a folder: a lock that goes with the process, however it ends.
import { closeSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs';
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { lockForWriting } from '../devices/lock.ts';
import { loadLibc } from '../engine/libc.ts';

export interface DaemonLock {
  release(): void;
}

function refused(path: string): DmError {
  return new DmError(Errno.EBUSY, `another daemon has ${path}`);
}

/** @throws DmError EBUSY where another daemon lives */
export function takeLock(path: string): DaemonLock {
  const { libc } = loadLibc();
  if (libc === null) return takePidFile(path);
  const fd = openSync(path, 'a', 0o600);
  try {
    if (!lockForWriting(libc, fd, path)) {
      closeSync(fd);
      return takePidFile(path);
    }
  } catch (error) {
    closeSync(fd);
    throw error instanceof DmError && error.errno === Errno.EBUSY ? refused(path) : error;
  }
  // The file stays: whoever took it away could take one that a third has locked already.
  return { release: () => closeSync(fd) };
}

/** Where there are no such locks: a file with the process's number, and one of a dead process counts for nothing. */
function takePidFile(path: string): DaemonLock {
  const pidPath = `${path}.pid`;
  for (let attempt = 0; attempt < 2; attempt++) {
    try {
      const fd = openSync(pidPath, 'wx', 0o600);
      writeSync(fd, String(process.pid));
      closeSync(fd);
      return { release: () => unlinkSync(pidPath) };
    } catch (error) {
      if (errnoFromException(error) !== Errno.EEXIST || isAlive(pidPath)) throw refused(path);
      unlinkSync(pidPath);
    }
  }
  throw refused(path);
}

function isAlive(pidPath: string): boolean {
  try {
    process.kill(Number(readFileSync(pidPath, 'utf8')), 0);
    return true;
  } catch (error) {
    return errnoFromException(error) === Errno.EPERM;
  }
}
