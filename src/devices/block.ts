// A real block device. Requests go through its page cache, like those to a file, unless it is opened around it.
import fs from 'node:fs';
import { Errno, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits, UNLIMITED_SECTOR_COUNT } from '../block/limits.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { EngineFile, Libc } from '../engine/index.ts';
import { EngineDevice } from './engine-device.ts';

const BLKROGET = 0x125e;
const BLKSSZGET = 0x1268;
const BLKIOMIN = 0x1278;
const BLKIOOPT = 0x1279;
const BLKPBSZGET = 0x127b;
const BLKGETSIZE64 = 0x80081272;

/** `major:minor` of a device number as stat gives it, with glibc's bits. */
export function formatDeviceNumber(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn);
  return `${major}:${minor}`;
}

/** A file of the device's folder in sysfs, as text; null where there is none. A partition's queue is its disk's. */
function sysfsText(number: string, attribute: string): string | null {
  for (const path of [attribute, `../${attribute}`]) {
    try {
      return fs.readFileSync(`/sys/dev/block/${number}/${path}`, 'utf8').trim();
    } catch {
      // The next, or none.
    }
  }
  return null;
}

function sysfsNumber(number: string, attribute: string): number | null {
  const text = sysfsText(number, attribute);
  return text === null || !/^\d+$/.test(text) ? null : Number(text);
}

/** Size and block sizes of a device; byte lengths unless the name says sectors. */
interface Geometry {
  sectorCount: number;
  readOnly: boolean;
  logicalBlockSize: number;
  physicalBlockSize: number;
  ioMin: number;
  ioOpt: number;
}

function askDevice(libc: Libc, fd: number, path: string): Geometry {
  const words = new BigUint64Array(1);
  const address = libc.addressOf(words.buffer);
  const ask = (request: number, isWide = false): number => {
    words[0] = 0n;
    if (libc.ioctl(fd, request, address) < 0) {
      const errno = libc.errno();
      throw new DmError(errno, `${path}: ioctl ${request.toString(16)} failed: ${errnoMessage(errno)}`);
    }
    return isWide ? Number(words[0]) : new Uint32Array(words.buffer)[0]!;
  };
  return {
    sectorCount: Math.floor(ask(BLKGETSIZE64, true) / SECTOR_SIZE),
    readOnly: ask(BLKROGET) !== 0,
    logicalBlockSize: ask(BLKSSZGET),
    physicalBlockSize: ask(BLKPBSZGET),
    ioMin: ask(BLKIOMIN),
    ioOpt: ask(BLKIOOPT),
  };
}

function askSysfs(number: string, path: string): Geometry {
  const sectorCount = sysfsNumber(number, 'size');
  if (sectorCount === null) {
    throw new DmError(
      Errno.EOPNOTSUPP,
      `${path}: the size of this block device can't be found out: there is no /sys/dev/block/${number}/size, and the ` +
        'portable engine has no ioctl. Use the direct engine (DMKIT_ENGINE=direct) or an image file.',
    );
  }
  const logicalBlockSize = sysfsNumber(number, 'queue/logical_block_size') ?? 512;
  return {
    sectorCount,
    readOnly: sysfsNumber(number, 'ro') === 1,
    logicalBlockSize,
    physicalBlockSize: sysfsNumber(number, 'queue/physical_block_size') ?? logicalBlockSize,
    ioMin: sysfsNumber(number, 'queue/minimum_io_size') ?? logicalBlockSize,
    ioOpt: sysfsNumber(number, 'queue/optimal_io_size') ?? 0,
  };
}

function limitsOf(file: EngineFile, number: string, geometry: Geometry): QueueLimits {
  const { logicalBlockSize, physicalBlockSize, ioMin, ioOpt } = geometry;
  const limits: QueueLimits = { ...defaultLimits(), logicalBlockSize, physicalBlockSize, ioMin, ioOpt };
  // Even where the disk has no cache: ours are in the page cache until fdatasync.
  limits.hasWriteCache = true;
  if (!file.engine.capabilities.ioctl) return limits;
  // Without sysfs it is tried, and the first refusal sets the limit to 0.
  limits.maxDiscardSectorCount = bytesToSectors(sysfsNumber(number, 'queue/discard_max_bytes'));
  limits.discardGranularity = sysfsNumber(number, 'queue/discard_granularity') ?? logicalBlockSize;
  limits.maxWriteZeroesSectorCount = bytesToSectors(sysfsNumber(number, 'queue/write_zeroes_max_bytes'));
  return limits;
}

function bytesToSectors(byteLength: number | null): number {
  return byteLength === null ? UNLIMITED_SECTOR_COUNT : Math.floor(byteLength / SECTOR_SIZE);
}

/** What sysfs says about a device that can't be opened for writing; false where it says nothing. */
export function isWriteProtected(rdev: bigint): boolean {
  return sysfsNumber(formatDeviceNumber(rdev), 'ro') === 1;
}

/** A block device of this machine; its name is `major:minor`. */
export class HostBlockDevice extends EngineDevice {
  /** The kernel lets nobody write to it, whatever it was opened for. */
  readonly writeProtected: boolean;
  readonly #libc: Libc | null;

  /**
   * @param file open, and from now on the device's
   * @throws DmError when the size can't be found out; the file stays open
   */
  constructor(file: EngineFile, rdev: bigint, libc: Libc | null, readOnly: boolean) {
    const number = formatDeviceNumber(rdev);
    const geometry = libc === null ? askSysfs(number, file.path) : askDevice(libc, file.fd, file.path);
    super(number, file, readOnly || geometry.readOnly, geometry.sectorCount, limitsOf(file, number, geometry));
    this.writeProtected = geometry.readOnly;
    this.#libc = libc;
  }

  /** Takes over the size that the device has now. @returns sectorCount */
  refreshSize(): number {
    const geometry =
      this.#libc === null ? askSysfs(this.name, this.path) : askDevice(this.#libc, this.descriptor, this.path);
    this.sectorCount = geometry.sectorCount;
    return this.sectorCount;
  }
}
