// One writer for one file: the lock, and who has it when it can't be had.
import fs from 'node:fs';
import { endianness } from 'node:os';
import { basename } from 'node:path';
import { Errno, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Libc } from '../engine/index.ts';
import { formatDeviceNumber } from './block.ts';

const F_OFD_SETLK = 37;
const F_WRLCK = 1;
const FLOCK_BYTE_LENGTH = 32;

/**
 * Takes the write lock on the whole of an open file; it goes with the descriptor (OFD: fork, dup and other opens of this
 * process don't disturb it).
 *
 * @returns false where the file system has no locks
 * @throws DmError EBUSY with the holder's name
 */
export function lockForWriting(libc: Libc, fd: number, path: string): boolean {
  // struct flock: type and whence as 16-bit numbers, then start, length (0: to the end) and pid, all 0 here.
  const flock = new DataView(new ArrayBuffer(FLOCK_BYTE_LENGTH));
  flock.setInt16(0, F_WRLCK, endianness() === 'LE');
  const result = libc.fcntl(fd, F_OFD_SETLK, libc.addressOf(flock.buffer));
  const errno = result < 0 ? libc.errno() : 0;
  // Read after the call, so that the memory is not collected before it.
  if (result >= 0) return flock.byteLength > 0;
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

/** Who uses a block device exclusively: a mount, swap, a device on top of it, a process; null where nothing is found. */
export function holderOfBlockDevice(rdev: bigint): string | null {
  const number = formatDeviceNumber(rdev);
  for (const line of textOf('/proc/self/mountinfo').split('\n')) {
    const words = line.split(' ');
    if (words[2] === number) return `the file system mounted at ${words[4]}`;
  }
  const holders = namesIn(`/sys/dev/block/${number}/holders`);
  if (holders.length > 0) return `the block device ${holders.join(', ')} on top of it`;
  for (const line of textOf('/proc/swaps').split('\n').slice(1)) {
    const path = line.split(/\s+/)[0]!;
    if (path !== '' && rdevOf(path) === rdev) return 'swap';
  }
  return findProcess((pidText, fdText) => rdevOf(`/proc/${pidText}/fd/${fdText}`) === rdev);
}

/** The first process with a descriptor that `matches`. Only what this user may look at is seen. */
function findProcess(matches: (pid: string, fd: string) => boolean): string | null {
  for (const pid of namesIn('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    for (const fd of namesIn(`/proc/${pid}/fd`)) if (matches(pid, fd)) return describeProcess(Number(pid));
  }
  return null;
}

function describeProcess(pid: number): string {
  const itself = pid === process.pid ? ', which is this one' : '';
  return `process ${pid} (${programOf(pid)})${itself}`;
}

/** `qemu-system-x86_64`, `node server.js`: enough to recognise it, and none of its options. */
function programOf(pid: number): string {
  const [program = '', script = ''] = textOf(`/proc/${pid}/cmdline`).split('\0');
  if (program === '') return textOf(`/proc/${pid}/comm`).trim() || 'its name can not be read';
  return script === '' || script.startsWith('-') ? basename(program) : `${basename(program)} ${basename(script)}`;
}

/** As /proc/locks prints it: both numbers in hexadecimal, two digits at least. */
function hexDeviceNumber(dev: bigint): string {
  return formatDeviceNumber(dev)
    .split(':')
    .map((part) => Number(part).toString(16).padStart(2, '0'))
    .join(':');
}

function rdevOf(path: string): bigint | null {
  try {
    const stat = fs.statSync(path, { bigint: true });
    return stat.isBlockDevice() ? stat.rdev : null;
  } catch {
    return null;
  }
}

function textOf(path: string): string {
  try {
    return fs.readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function namesIn(path: string): string[] {
  try {
    return fs.readdirSync(path);
  } catch {
    return [];
  }
}
