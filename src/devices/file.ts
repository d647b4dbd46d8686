// An image file as a device.
import fs from 'node:fs';
import { dirname } from 'node:path';
import type { BlockDevice } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { decodeName, rawName } from '../block/file-name.ts';
import { defaultLimits, type QueueLimits, UNLIMITED_SECTOR_COUNT } from '../block/limits.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { EngineFile, Libc } from '../engine/index.ts';
import { EngineDevice } from './engine-device.ts';

const FALLOC_FL_PUNCH_HOLE_KEEP_SIZE = 3;
/** With O_DIRECTORY, as Linux wants it. */
const O_TMPFILE = 0o20_000_000 | fs.constants.O_DIRECTORY;
const PROBE_BYTE_LENGTH = 4096n;
const MAX_FILE_OFFSET = 2n ** 63n - 1n;

/**
 * True unless the file system says that it makes no holes. A nameless file beside this one is asked: a question to the file
 * itself changes its time of modification, by which a store knows that its origin was written. Only where there can be no
 * such file, it is asked itself, behind its end, where nothing is.
 */
export function takesHoles(libc: Libc, fd: number): boolean {
  const answers = answersOf.get(libc) ?? new Map<number, boolean>();
  answersOf.set(libc, answers);
  const { dev } = fs.fstatSync(fd);
  const known = answers.get(dev);
  if (known !== undefined) return known;
  const nameless = openNameless(fd);
  if (nameless === null) return punches(libc, fd);
  try {
    const answer = punches(libc, nameless);
    answers.set(dev, answer);
    return answer;
  } finally {
    fs.closeSync(nameless);
  }
}

/** By st_dev: file systems do not change their mind. */
const answersOf = new WeakMap<Libc, Map<number, boolean>>();

/** A file without a name on the file system of `fd`; null where that can't be. */
function openNameless(fd: number): number | null {
  let nameless: number | null = null;
  try {
    const folder = dirname(decodeName(fs.readlinkSync(`/proc/self/fd/${fd}`, 'buffer')));
    nameless = fs.openSync(rawName(folder), O_TMPFILE | fs.constants.O_RDWR, 0o600);
    if (fs.fstatSync(nameless, { bigint: true }).dev === fs.fstatSync(fd, { bigint: true }).dev) return nameless;
  } catch {
    // No such system, no such file system, or a folder that is not ours to write.
  }
  if (nameless !== null) fs.closeSync(nameless);
  return null;
}

function punches(libc: Libc, fd: number): boolean {
  const { size } = fs.fstatSync(fd, { bigint: true });
  const offset = ((size + PROBE_BYTE_LENGTH - 1n) / PROBE_BYTE_LENGTH) * PROBE_BYTE_LENGTH;
  if (offset + PROBE_BYTE_LENGTH > MAX_FILE_OFFSET) return true;
  if (libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE_KEEP_SIZE, offset, PROBE_BYTE_LENGTH) === 0) return true;
  const errno = libc.errno();
  return errno !== Errno.EOPNOTSUPP && errno !== Errno.ENOSYS;
}

function limitsOf(file: EngineFile, libc: Libc | null, readOnly: boolean): QueueLimits {
  const limits = defaultLimits();
  // The page cache is one: only fdatasync makes a write durable.
  limits.hasWriteCache = true;
  if (file.directIo !== null) {
    limits.logicalBlockSize = file.directIo.blockByteLength;
    limits.physicalBlockSize = Math.max(limits.physicalBlockSize, limits.logicalBlockSize);
    limits.ioMin = Math.max(limits.ioMin, limits.logicalBlockSize);
  }
  if (libc === null || !file.engine.capabilities.fallocate) return limits;
  limits.maxWriteZeroesSectorCount = UNLIMITED_SECTOR_COUNT;
  // A descriptor for reading can't be asked; it is asked when the device is opened for writing.
  if (!readOnly && !takesHoles(libc, file.fd)) return limits;
  limits.maxDiscardSectorCount = UNLIMITED_SECTOR_COUNT;
  limits.discardGranularity = fs.fstatSync(file.fd).blksize;
  return limits;
}

/**
 * A regular file as a device: its whole sectors; bytes behind the last whole sector are out of reach. Its name is the
 * absolute path it was opened by. A file that is cut while it is open gives EIO for what is missing.
 */
export class FileDevice extends EngineDevice implements BlockDevice {
  /** Bytes behind the last whole sector. */
  cutByteLength: number;
  readonly allocate?: (sector: number, sectorCount: number, done: (errno: number) => void) => void;

  /** @param file open, and from now on the device's */
  constructor(file: EngineFile, libc: Libc | null, readOnly: boolean) {
    super(file.path, file, readOnly, wholeSectors(file.fd), limitsOf(file, libc, readOnly));
    this.cutByteLength = cutBytes(file.fd);
    if (file.engine.gainsFromAllocation(file)) {
      this.allocate = (sector, sectorCount, done) => this.allocateInFile(sector, sectorCount, done);
    }
  }

  /** Takes over the size that the file has now. @returns sectorCount */
  refreshSize(): number {
    this.sectorCount = wholeSectors(this.descriptor);
    this.cutByteLength = cutBytes(this.descriptor);
    return this.sectorCount;
  }
}

function wholeSectors(fd: number): number {
  // 2^63 bytes are 2^54 sectors, one bit more than a device here can have.
  const count = fs.fstatSync(fd, { bigint: true }).size / BigInt(SECTOR_SIZE);
  return Math.min(Number(count), Number.MAX_SAFE_INTEGER);
}

function cutBytes(fd: number): number {
  return Number(fs.fstatSync(fd, { bigint: true }).size % BigInt(SECTOR_SIZE));
}
