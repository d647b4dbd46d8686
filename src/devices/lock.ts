// One writer for one file: the lock, and who has it when it can't be had.
import fs from 'node:fs';
import { endianness } from 'node:os';
import { Errno, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Libc } from '../engine/index.ts';
import { formatDeviceNumber } from './block.ts';
import { describeProcess, findProcess, textOf } from './usage.ts';

const F_OFD_SETLK = 37;
const F_WRLCK = 1;
const FLOCK_BYTE_LENGTH = 32;

/** Tries to lock the whole of an open file for writing. @returns 0, or the errno of the refusal */
export function tryLock(libc: Libc, fd: number): number {
  // struct flock: type and whence as 16-bit numbers, then start, length (0: to the end) and pid, all 0 here.
  const flock = new DataView(new ArrayBuffer(FLOCK_BYTE_LENGTH));
  flock.setInt16(0, F_WRLCK, endianness() === 'LE');
  const result = libc.fcntl(fd, F_OFD_SETLK, libc.addressOf(flock.buffer));
  const errno = result < 0 ? libc.errno() : 0;
  // Read after the call, so that the memory is not collected before it.
  return flock.byteLength > 0 ? errno : Errno.EIO;
}

/**
 * Takes the write lock on the whole of an open file; it goes with the descriptor (OFD: fork, dup and other opens of this
 * process don't disturb it).
 *
 * @returns false where the file system has no locks
 * @throws DmError EBUSY with the holder's name
 */
export function lockForWriting(libc: Libc, fd: number, path: string): boolean {
  const errno = tryLock(libc, fd);
  if (errno === 0) return true;
  if (errno === Errno.EAGAIN || errno === Errno.EACCES) {
    const holder = holderOfFile(fd) ?? 'a process that can not be seen from here';
    throw new DmError(
      Errno.EBUSY,
      `${path} is open for writing elsewhere: its lock is held by ${holder}. Stop that first, or open it read-only.`,
    );
  }
  // ENOLCK, EINVAL, EOPNOTSUPP: a file system without locks. It has served everybody without them so far.
  if (errno === Errno.EBADF) throw new DmError(errno, `${path}: lock failed: ${errnoMessage(errno)}`);
  return false;
}

/** Who holds a lock on this open file; null where nothing can be found. */
function holderOfFile(fd: number): string | null {
  const { dev, ino } = fs.fstatSync(fd, { bigint: true });
  const identity = `${hexDeviceNumber(dev)}:${ino}`;
  for (const line of textOf('/proc/locks').split('\n')) {
    // 1: OFDLCK ADVISORY  WRITE -1 fe:00:1234 0 EOF
    const words = line.split(/\s+/);
    if (words[5] !== identity || words[1] === 'FLOCK') continue;
    const pid = Number(words[4]);
    if (pid > 0) return describeProcess(pid);
    const holder = findProcess((pidText, fdText) => {
      return textOf(`/proc/${pidText}/fdinfo/${fdText}`)
        .split('\n')
        .some((info) => info.startsWith('lock:') && info.includes(identity) && isOther(pidText, fdText, fd));
    });
    if (holder !== null) return holder;
  }
  return null;
}

function isOther(pidText: string, fdText: string, fd: number): boolean {
  return Number(pidText) !== process.pid || Number(fdText) !== fd;
}

/** As /proc/locks prints it: both numbers in hexadecimal, two digits at least. */
function hexDeviceNumber(dev: bigint): string {
  return formatDeviceNumber(dev)
    .split(':')
    .map((part) => Number(part).toString(16).padStart(2, '0'))
    .join(':');
}
