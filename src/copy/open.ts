// From the words of the command line to open devices, and what is refused before a byte moves.
import { closeSync, existsSync, ftruncateSync, openSync, rmSync } from 'node:fs';
import type { BlockDevice } from '../block/block-device.ts';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { isSector, SECTOR_SIZE } from '../block/sector.ts';
import type { DeviceRegistry } from '../devices/index.ts';
import type { AttachedNbd } from '../nbd/attach.ts';
import type { NodeLoop } from '../reactor/node-loop.ts';
import { MAX_DESTINATION_COUNT } from './bounds.ts';
import type { CopyRegion } from './request.ts';

/** A device and the sectors meant, as the user wrote them. */
export interface RegionArgument {
  readonly text: string;
  readonly device: string;
  readonly sector: number;
  /** Null: to the end of the device. */
  readonly sectorCount: number | null;
}

const MAPPER_FOLDER = '/dev/mapper/';
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

type OpenedDevice = Pick<OpenedRegion, 'device' | 'path' | 'isFile'>;

/** A region whose device is open. */
export interface OpenedRegion extends CopyRegion {
  /** What the device is, for reading it back: a path, or null for a remote one. */
  readonly path: string | null;
  /** A plain file, through the page cache. */
  readonly isFile: boolean;
}

/** An image that is not there is made, sparse and as large as it has to be. */
function createImage({ device, sector }: RegionArgument, sectorCount: number): boolean {
  const isNoPath = NBD_URI.test(device) || device.startsWith('/dev/') || /^\d+:\d+$/.test(device);
  if (isNoPath || existsSync(device)) return false;
  try {
    const fd = openSync(device, 'wx', 0o666);
    try {
      ftruncateSync(fd, (sector + sectorCount) * SECTOR_SIZE);
    } finally {
      closeSync(fd);
    }
    return true;
  } catch (error) {
    const errno = errnoFromException(error);
    throw refused(`${device} can't be made: ${errnoMessage(errno)}`, errno);
  }
}

/** Everything one copy has open. */
export class OpenedDevices {
  readonly #host: OpenHost;
  readonly #options: OpenOptions;
  readonly #open: { device: BlockDevice; readOnly: boolean }[] = [];
  readonly #created: string[] = [];
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
   * Opens (or, for an image that is not there, makes) a destination with room for `sectorCount`; null where its own
   * size counts.
   */
  async destination(argument: RegionArgument, sectorCount: number | null): Promise<OpenedRegion> {
    if (sectorCount !== null && !this.#isThere(argument.device) && createImage(argument, sectorCount)) {
      this.#created.push(argument.device);
    }
    const opened = await this.#openDevice(argument, false);
    if (opened.device.readOnly) throw refused(`${argument.text} is read-only`, Errno.EROFS);
    return this.#region(argument, opened, sectorCount);
  }

  /** Something answers to this name: a file, a device, one that the program has registered. */
  #isThere(name: string): boolean {
    try {
      this.#host.devices.close(this.#host.devices.open(name, true), true);
      return true;
    } catch {
      return false;
    }
  }

  #region(argument: RegionArgument, opened: OpenedDevice, wanted: number | null): OpenedRegion {
    const { device } = opened;
    const { text, sector } = argument;
    const available = Math.max(0, device.sectorCount - sector);
    const sectorCount = wanted ?? argument.sectorCount ?? available;
    if (sectorCount > available || (argument.sectorCount ?? sectorCount) < sectorCount) {
      const room = Math.min(available, argument.sectorCount ?? available);
      throw refused(
        `${text} is too small: ${sectorCount} sectors are wanted${sector > 0 ? ` from sector ${sector} on` : ''}, and there are ${room}`,
        Errno.ENOSPC,
      );
    }
    if (sectorCount === 0) throw refused(`${text} has no sectors`);
    return { ...opened, sector, sectorCount, label: text };
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
    return { device, path: info?.path ?? null, isFile: info?.kind === 'file' && !info.direct };
  }

  async #nameOf(device: string): Promise<string> {
    const { mapperUri } = this.#options;
    if (mapperUri === undefined || !device.startsWith(MAPPER_FOLDER) || existsSync(device)) return device;
    return mapperUri(device.slice(MAPPER_FOLDER.length));
  }

  /** Gives everything back, and takes away the images that were made: for a copy that does not begin. */
  async undo(): Promise<void> {
    await this.close();
    for (const path of this.#created.splice(0)) rmSync(path, { force: true });
  }

  /** Gives everything back. */
  async close(): Promise<void> {
    for (const { device, readOnly } of this.#open.splice(0)) this.#host.devices.close(device, readOnly);
    const attached = [...this.#attached.values()];
    this.#attached.clear();
    await Promise.all(attached.map((one) => one.close()));
  }
}

/** @throws DmError where a destination is the source, or another destination */
export function checkApart(source: CopyRegion | null, destinations: readonly CopyRegion[]): void {
  if (destinations.length < 1 || destinations.length > MAX_DESTINATION_COUNT) {
    throw refused(`${destinations.length} destinations; there can be 1 to ${MAX_DESTINATION_COUNT}`);
  }
  const seen = source === null ? [] : [source];
  for (const region of destinations) {
    const same = seen.find(
      (other) =>
        other.device === region.device &&
        other.sector < region.sector + region.sectorCount &&
        region.sector < other.sector + other.sectorCount,
    );
    if (same !== undefined) {
      const what = same === source ? 'the source' : `the destination ${same.label}`;
      throw refused(`${region.label} is ${what}, or a part of it`);
    }
    seen.push(region);
  }
}
