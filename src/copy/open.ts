// From the words of the command line to open devices, and what is refused before a byte moves.
import { closeSync, existsSync, fstatSync, ftruncateSync, openSync, rmSync, statSync, truncateSync } from 'node:fs';
import { resolve } from 'node:path';
import type { BlockDevice } from '../block/block-device.ts';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { isSector, SECTOR_SIZE } from '../block/sector.ts';
import type { DiskIdentity } from '../devices/identity.ts';
import type { DeviceRegistry } from '../devices/index.ts';
import { lockForWriting } from '../devices/lock.ts';
import type { NbdDevice } from '../devices/nbd.ts';
import { loadLibc } from '../engine/libc.ts';
import type { AttachedNbd } from '../nbd/attach.ts';
import type { NodeLoop } from '../reactor/node-loop.ts';
import { MAX_DESTINATION_COUNT } from './bounds.ts';
import type { CopyRegion } from './request.ts';
import { sizeText } from './units.ts';

/** A device and the sectors meant, as the user wrote them. */
export interface RegionArgument {
  readonly text: string;
  readonly device: string;
  readonly sector: number;
  /** Null: to the end of the device. */
  readonly sectorCount: number | null;
}

const MAPPER_FOLDER = '/dev/mapper/';
/** The one place below /dev where files are made. */
const SHARED_MEMORY_FOLDER = '/dev/shm/';
const NBD_URI = /^nbds?(\+unix)?:\/\//;

function refused(message: string, errno: number = Errno.EINVAL): DmError {
  return new DmError(errno, message);
}

/** Reads `DEVICE[:sector+count]`. @throws DmError EINVAL for numbers that no device has */
export function parseRegion(text: string): RegionArgument {
  const parts = /^(.+):(\d+)\+(\d+)$/.exec(text);
  if (parts === null) return { text, device: text, sector: 0, sectorCount: null };
  const sector = Number(parts[2]);
  const sectorCount = Number(parts[3]);
  if (!isSector(sector) || !isSector(sector + sectorCount) || sectorCount === 0) {
    throw refused(`${text}: sector ${parts[2]}, count ${parts[3]} is no range of sectors`);
  }
  return { text, device: parts[1]!, sector, sectorCount };
}

export interface OpenHost {
  readonly loop: NodeLoop;
  readonly devices: DeviceRegistry;
}

export interface OpenOptions {
  /** The NBD URI of a device that is held by a daemon; without it `/dev/mapper/NAME` is a path like others. */
  mapperUri?: (name: string) => Promise<string>;
}

type OpenedDevice = Pick<OpenedRegion, 'device' | 'path' | 'isFile' | 'nbd' | 'disk'> & {
  /** Size of the whole device; no multiple of 512 for some files and exports. */
  readonly deviceByteLength: number;
  /** It takes single bytes behind its last whole sector, or anywhere. */
  readonly takesBytes: boolean;
};

/** A region whose device is open. */
export interface OpenedRegion extends CopyRegion {
  /** Path of the file or block device, for reading it back; null for a remote device. */
  readonly path: string | null;
  /** A plain file, through the page cache. */
  readonly isFile: boolean;
  /** An export of an NBD server, else null. */
  readonly nbd: NbdDevice | null;
  /** Bytes that follow the last whole sector of the region and belong to it: 0 to 511. */
  readonly tailByteLength: number;
  /** The tail can be written to the byte; else in a sector of its own. */
  readonly takesBytes: boolean;
  /** The marks by which the disk is known again. */
  readonly disk: DiskIdentity;
  /** Size of the whole device. */
  readonly deviceByteLength: number;
  /** The image was made for this copy. */
  readonly isNew: boolean;
}

/** Size of a region. */
export function byteLengthOf(region: Pick<OpenedRegion, 'sectorCount' | 'tailByteLength'>): number {
  return region.sectorCount * SECTOR_SIZE + region.tailByteLength;
}

/**
 * An image that is not there is made, sparse and as large as it has to be. So is an empty file: a copy that was killed right
 * here leaves one.
 *
 * @returns false for what is there, or no file
 */
export function createImage({ device, sector }: RegionArgument, byteLength: number): boolean {
  const path = resolve(device);
  const isDevice = path.startsWith('/dev/') && !path.startsWith(SHARED_MEMORY_FOLDER);
  const isNoPath = NBD_URI.test(device) || isDevice || /^\d+:\d+$/.test(device);
  if (isNoPath) return false;
  const stat = statSync(rawName(device), { throwIfNoEntry: false });
  if (stat !== undefined && !(stat.isFile() && stat.size === 0)) return false;
  try {
    const fd = openSync(rawName(device), stat === undefined ? 'wx' : 'r+', 0o666);
    try {
      const { libc } = loadLibc();
      if (libc !== null) lockForWriting(libc, fd, device);
      // Another copy may have made it meanwhile.
      if (fstatSync(fd).size > 0) return false;
      ftruncateSync(fd, sector * SECTOR_SIZE + byteLength);
    } finally {
      closeSync(fd);
    }
    return true;
  } catch (error) {
    if (error instanceof DmError) throw error;
    const errno = errnoFromException(error);
    throw refused(`${device} can't be made: ${errnoMessage(errno)}`, errno);
  }
}

/** Of an open file; the bytes behind its last whole sector count. */
function sizeOf(path: string, device: BlockDevice): number {
  const byteLength = device.sectorCount * SECTOR_SIZE;
  const { size } = statSync(rawName(path));
  // Cut or grown since it was opened: the device's word counts.
  return size >= byteLength && size < byteLength + SECTOR_SIZE ? size : byteLength;
}

/** Everything one copy has open. */
export class OpenedDevices {
  readonly #host: OpenHost;
  readonly #options: OpenOptions;
  readonly #open: { device: BlockDevice; readOnly: boolean }[] = [];
  readonly #created: string[] = [];
  /** Empty files that were lengthened. */
  readonly #filled: string[] = [];
  readonly #attached = new Map<string, AttachedNbd>();

  constructor(host: OpenHost, options: OpenOptions) {
    this.#host = host;
    this.#options = options;
  }

  /** @throws DmError as DeviceRegistry.open; ENOSPC or EINVAL for sectors that the device does not have */
  async source(argument: RegionArgument): Promise<OpenedRegion> {
    const opened = await this.#openDevice(argument, true);
    return this.#region(argument, opened, null);
  }

  /**
   * Opens (or, for an image that is not there, makes) a destination with room for `byteLength`; null where its own size
   * counts.
   */
  async destination(argument: RegionArgument, byteLength: number | null): Promise<OpenedRegion> {
    const wasEmpty = existsSync(argument.device);
    const isNew = byteLength !== null && !this.#isThere(argument.device) && createImage(argument, byteLength);
    if (isNew) (wasEmpty ? this.#filled : this.#created).push(argument.device);
    const opened = await this.#openDevice(argument, false);
    if (opened.device.readOnly) throw refused(`${argument.text} is read-only`, Errno.EROFS);
    return { ...this.#region(argument, opened, byteLength), isNew };
  }

  /** A file that is not empty, a device, or a device that the program has registered answers to this name. */
  #isThere(name: string): boolean {
    try {
      const device = this.#host.devices.open(name, true);
      const isEmpty = device.sectorCount === 0 && this.#host.devices.info(device)?.kind === 'file';
      this.#host.devices.close(device, true);
      return !isEmpty;
    } catch {
      return false;
    }
  }

  #region(argument: RegionArgument, opened: OpenedDevice, wanted: number | null): OpenedRegion {
    const { deviceByteLength, takesBytes } = opened;
    const { text, sector } = argument;
    const available = Math.max(0, deviceByteLength - sector * SECTOR_SIZE);
    const named = argument.sectorCount === null ? null : argument.sectorCount * SECTOR_SIZE;
    const byteLength = wanted ?? named ?? available;
    const room = Math.min(available, named ?? available);
    const tailByteLength = byteLength % SECTOR_SIZE;
    const needed = takesBytes ? byteLength : byteLength + ((SECTOR_SIZE - tailByteLength) % SECTOR_SIZE);
    if (needed > room) {
      const from = sector > 0 ? ` from sector ${sector} on` : '';
      throw refused(
        `${text} is too small: ${sizeText(byteLength)} are wanted${from}, and there are ${sizeText(room)}`,
        Errno.ENOSPC,
      );
    }
    if (byteLength === 0) throw refused(`${text} is empty`);
    const sectorCount = (byteLength - tailByteLength) / SECTOR_SIZE;
    return { ...opened, sector, sectorCount, tailByteLength, label: text, isNew: false };
  }

  async #openDevice(argument: RegionArgument, readOnly: boolean): Promise<OpenedDevice> {
    const name = await this.#nameOf(argument.device);
    const isRemote = NBD_URI.test(name);
    if (isRemote && !this.#attached.has(name)) {
      const { attachNbd } = await import('../nbd/attach.ts');
      this.#attached.set(name, await attachNbd(this.#host, name));
    }
    const device = this.#host.devices.open(name, readOnly);
    this.#open.push({ device, readOnly });
    const info = isRemote ? undefined : this.#host.devices.info(device);
    const path = info?.path ?? null;
    const nbd = this.#attached.get(name)?.device ?? null;
    const isAnyFile = info?.kind === 'file';
    let deviceByteLength = device.sectorCount * SECTOR_SIZE;
    if (nbd !== null) deviceByteLength = nbd.byteLength;
    else if (isAnyFile && path !== null) deviceByteLength = sizeOf(path, device);
    const takesBytes = isAnyFile || (nbd?.takesBytes ?? false);
    const disk = this.#host.devices.identity(device)!;
    return { device, path, isFile: isAnyFile && !info.direct, nbd, disk, deviceByteLength, takesBytes };
  }

  async #nameOf(device: string): Promise<string> {
    const { mapperUri } = this.#options;
    if (mapperUri === undefined || !device.startsWith(MAPPER_FOLDER) || existsSync(rawName(device))) return device;
    return mapperUri(device.slice(MAPPER_FOLDER.length));
  }

  /** Gives everything back, and takes away the images that were made: for a copy that does not begin. */
  async undo(): Promise<void> {
    await this.close();
    for (const path of this.#created.splice(0)) rmSync(rawName(path), { force: true });
    for (const path of this.#filled.splice(0)) if (existsSync(rawName(path))) truncateSync(rawName(path), 0);
  }

  /** Gives everything back. */
  async close(): Promise<void> {
    for (const { device, readOnly } of this.#open.splice(0)) this.#host.devices.close(device, readOnly);
    const attached = [...this.#attached.values()];
    this.#attached.clear();
    await Promise.all(attached.map((one) => one.close()));
  }
}

/** Behind the last sector of which a part belongs to the region. */
function endOf({ sector, sectorCount, tailByteLength }: OpenedRegion): number {
  return sector + sectorCount + (tailByteLength > 0 ? 1 : 0);
}

/** @throws DmError where a destination is the source, or another destination */
export function checkApart(source: OpenedRegion | null, destinations: readonly OpenedRegion[]): void {
  if (destinations.length < 1 || destinations.length > MAX_DESTINATION_COUNT) {
    throw refused(`${destinations.length} destinations; there can be 1 to ${MAX_DESTINATION_COUNT}`);
  }
  const seen = source === null ? [] : [source];
  for (const region of destinations) {
    const same = seen.find(
      (other) => other.device === region.device && other.sector < endOf(region) && region.sector < endOf(other),
    );
    if (same !== undefined) {
      const what = same === source ? 'the source' : `the destination ${same.label}`;
      throw refused(`${region.label} is ${what}, or a part of it`);
    }
    seen.push(region);
  }
}
