// From a table's argument to an open descriptor, with the errors that the kernel's look-up of a device gives.
import fs from 'node:fs';
import { resolve } from 'node:path';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { directIoOf, type EngineFile, type EngineSet, type FileKind } from '../engine/index.ts';
import { formatDeviceNumber } from './block.ts';
import { lockForWriting } from './lock.ts';
import { holderOfBlockDevice, loopUseOf } from './usage.ts';

/** What a path leads to: the same for every path to the same file or device. */
export interface Found {
  readonly path: string;
  readonly kind: FileKind;
  /** Of the file's (st_dev, st_ino), or of the block device's number. */
  readonly key: string;
  /** The number of a block device; 0n for a file. */
  readonly rdev: bigint;
  /** It is to be opened around the page cache (O_DIRECT). */
  readonly direct?: boolean;
  /**
   * Another thread of this process has it open under this descriptor: it is opened through that, whatever the path leads
   * to by now, and without a lock of its own, for that one's is this process's.
   */
  readonly heldFd?: number;
}

/** A file or block device that another thread of this process has open. */
export interface HeldFile extends Found {
  /** As tables print it: an absolute path, or `major:minor` for a block device. */
  readonly name: string;
  readonly heldFd: number;
}

/** An open file with its engine. */
export interface Opened {
  readonly file: EngineFile;
  /** Nobody else can open it for writing. */
  readonly locked: boolean;
}

/**
 * Finds what a table's argument names: a path (relative ones start at `baseFolder`) or `major:minor`.
 *
 * @throws DmError ENODEV for a path that leads to nothing of use, ENXIO for a number without a device, EACCES
 */
export function findDevice(argument: string, baseFolder: string): Found {
  if (/^\d+:\d+$/.test(argument)) return findByNumber(argument);
  if (argument === '') throw new DmError(Errno.ENODEV, 'the path of a device is empty');
  return findByPath(resolve(baseFolder, argument));
}

function findByPath(path: string): Found {
  let stat: fs.BigIntStats;
  try {
    stat = fs.statSync(rawName(path), { bigint: true });
  } catch (error) {
    throw notFound(path, errnoFromException(error));
  }
  return describe(path, stat);
}

function notFound(path: string, errno: number): DmError {
  if (errno === Errno.EACCES) {
    return new DmError(errno, `${path} can't be looked up: permission denied on a folder of this path`);
  }
  const what =
    errno === Errno.ENOENT || errno === Errno.ENOTDIR
      ? 'does not exist'
      : `can't be looked up (${errnoMessage(errno)})`;
  let hint = '';
  if (path.includes(' (deleted)/')) hint = ': the working folder was deleted; name files by absolute paths';
  return new DmError(
    Errno.ENODEV,
    `${path} ${what}${hint}; a device is an image file, a block device, or one of dmkit's own`,
  );
}

/** {@link Found.key} of a file. */
export function fileKey(dev: bigint, ino: bigint): string {
  return `file ${dev}:${ino}`;
}

function describe(path: string, stat: fs.BigIntStats): Found {
  if (stat.isFile()) return { path, kind: 'file', key: fileKey(stat.dev, stat.ino), rdev: 0n };
  if (stat.isBlockDevice()) return { path, kind: 'block', key: `block ${stat.rdev}`, rdev: stat.rdev };
  throw new DmError(Errno.ENODEV, `${path} is ${kindOf(stat)}; a device is an image file or a block device`);
}

function kindOf(stat: fs.BigIntStats): string {
  if (stat.isDirectory()) return 'a directory';
  if (stat.isCharacterDevice()) return 'a character device';
  if (stat.isFIFO()) return 'a pipe';
  if (stat.isSocket()) return 'a socket';
  return 'of a kind that has no blocks';
}

const MAX_MAJOR = 2 ** 12 - 1;
const MAX_MINOR = 2 ** 20 - 1;

/** `7:0` without leading zeros. @throws DmError EOVERFLOW for a number that no device can have */
function canonicalNumber(argument: string): string {
  // The kernel reads both as 32 bits: what is above them is lost.
  const [major, minor] = argument.split(':').map((digits) => Number(BigInt.asUintN(32, BigInt(digits))));
  if (major! > MAX_MAJOR || minor! > MAX_MINOR) {
    throw new DmError(Errno.EOVERFLOW, `${argument}: a device has at most the number ${MAX_MAJOR}:${MAX_MINOR}`);
  }
  return `${major}:${minor}`;
}

/** By sysfs, where there is one: it knows the node's name. */
function findByNumber(argument: string): Found {
  const number = canonicalNumber(argument);
  const names: string[] = [];
  try {
    const uevent = fs.readFileSync(`/sys/dev/block/${number}/uevent`, 'utf8');
    const name = /^DEVNAME=(.+)$/m.exec(uevent)?.[1];
    if (name !== undefined) names.push(`/dev/${name}`);
  } catch {
    // No sysfs, or no such device.
  }
  names.push(`/dev/block/${number}`);
  for (const path of names) {
    try {
      const stat = fs.statSync(path, { bigint: true });
      if (stat.isBlockDevice() && formatDeviceNumber(stat.rdev) === number) return describe(path, stat);
    } catch {
      // The next.
    }
  }
  const why =
    names.length > 1 ? `there is such a device, but no node ${names[0]} for it` : 'there is no such block device';
  throw new DmError(Errno.ENXIO, `${argument}: ${why}`);
}

export interface HowToOpen {
  /**
   * A descriptor of it in this registry: it is opened through that, with a lock of its own, and by its path only where
   * there is no /proc.
   */
  readonly openFd?: number | undefined;
  /** Writes may go to a file behind a loop device that is in use. */
  readonly allowMounted?: boolean;
}

/**
 * Opens what was found. Writing takes a lock: an OFD lock on a file, O_EXCL on a block device. Reading takes none: an
 * image may be read by others while it is written, as the kernel allows.
 *
 * @throws DmError EACCES, EROFS, EBUSY (with the holder's name), ENODEV when it was replaced meanwhile …
 */
export function openFound(engines: EngineSet, found: Found, readOnly: boolean, how: HowToOpen = {}): Opened {
  const { O_RDONLY, O_RDWR, O_EXCL, O_DIRECT } = fs.constants;
  const isHeld = found.heldFd !== undefined;
  const exclusive = found.kind === 'block' && !isHeld ? O_EXCL : 0;
  // The engine is asked for first: one that can't be had is no reason to touch the file.
  const libc = engines.libc;
  const direct = found.direct === true;
  if (direct && libc === null) {
    throw new DmError(
      Errno.EOPNOTSUPP,
      `${found.path}: direct I/O needs to know where memory is: ${engines.portableReason}`,
    );
  }
  let fd: number;
  try {
    const flags = (readOnly ? O_RDONLY : O_RDWR | exclusive) | (direct ? O_DIRECT : 0);
    fd = openThrough(how.openFd ?? found.heldFd ?? null, isHeld ? null : found.path, flags);
  } catch (error) {
    throw openFailure(found, readOnly, errnoFromException(error));
  }
  try {
    const isSame = describe(found.path, fs.fstatSync(fd, { bigint: true })).key === found.key;
    if (!isSame) throw new DmError(Errno.ENODEV, `${found.path} was replaced while it was opened; try again`);
    if (!readOnly && !isHeld && found.kind === 'file' && how.allowMounted !== true) checkLoopUse(fd, found.path);
    let locked = !readOnly && (found.kind === 'block' || isHeld);
    if (!readOnly && !locked && libc !== null) locked = lockForWriting(libc, fd, found.path);
    const directIo = direct && libc !== null ? directIoOf(libc, fd) : null;
    return { file: engines.open(fd, found.kind, found.path, directIo), locked };
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

/** A file system that is mounted from the file through a loop device does not notice another writer, and is damaged. */
function checkLoopUse(fd: number, path: string): void {
  const use = loopUseOf(fd);
  if (use === null) return;
  throw new DmError(
    Errno.EBUSY,
    `${path} is the file behind ${use}; a second writer would damage it. Stop that first, or open ${path} read-only, or ` +
      'insist with DMKIT_ALLOW_MOUNTED=1 in the environment.',
  );
}

/** By a descriptor's link in /proc; by the path where there is no such descriptor, or no /proc. */
function openThrough(openFd: number | null, path: string | null, flags: number): number {
  if (openFd === null) return fs.openSync(rawName(path!), flags);
  try {
    return fs.openSync(`/proc/self/fd/${openFd}`, flags);
  } catch (error) {
    if (path === null || errnoFromException(error) !== Errno.ENOENT) throw error;
    return fs.openSync(rawName(path), flags);
  }
}

function openFailure(found: Found, readOnly: boolean, errno: number): DmError {
  const { path } = found;
  const purpose = readOnly ? 'reading' : 'writing';
  switch (errno) {
    case Errno.ENOENT:
      return notFound(path, errno);
    case Errno.EACCES:
    case Errno.EPERM:
      return new DmError(
        errno,
        `${path}: no permission to open it for ${purpose}${readOnly ? '' : '; a read-only table needs less'}`,
      );
    case Errno.EROFS:
      return new DmError(errno, `${path} is on a read-only file system; use a read-only table`);
    case Errno.EINVAL:
      if (found.direct !== true) break;
      return new DmError(errno, `${path} is on a file system without direct I/O (O_DIRECT); open it without that`);
    case Errno.EBUSY: {
      const holder = found.kind === 'block' ? holderOfBlockDevice(found.rdev) : null;
      return new DmError(
        errno,
        `${path} is in use${holder === null ? '' : ` by ${holder}`}; stop that first, or open it read-only`,
      );
    }
    default:
  }
  return new DmError(errno, `${path} can't be opened for ${purpose}: ${errnoMessage(errno)}`);
}
