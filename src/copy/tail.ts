// The last bytes of a source whose length is no multiple of 512. dm-io moves whole sectors; these bytes go by themselves:
// to the byte where the other side is a file or an NBD export, in a sector filled up with zeroes where it has whole
// sectors alone.
import { closeSync, fdatasyncSync, openSync, readSync, writeSync } from 'node:fs';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { NbdDevice } from '../devices/nbd.ts';
import type { DmIoClient } from '../dm-io/index.ts';
import { type CopyRegion, flush, transfer } from './request.ts';

/** Bytes at a place that is no whole sector. */
export interface Tail {
  /** @throws DmError */
  read(): Promise<Uint8Array>;
  /** Durable when it is over. @throws DmError */
  write(bytes: Uint8Array): Promise<void>;
}

/** Where the bytes after the last whole sector of a region are, or go. */
export interface TailPlace {
  readonly region: CopyRegion;
  readonly byteLength: number;
  /** A plain file's path, else null. */
  readonly filePath: string | null;
  /** An export that takes single bytes, else null. */
  readonly nbd: NbdDevice | null;
}

export function openTail(io: DmIoClient, place: TailPlace): Tail {
  const { region, byteLength, filePath, nbd } = place;
  const offset = (region.sector + region.sectorCount) * SECTOR_SIZE;
  if (filePath !== null) return new FileTail(filePath, offset, byteLength, region.label);
  if (nbd !== null) return new NbdTail(io, region, nbd, offset, byteLength);
  return new SectorTail(io, region, byteLength);
}

function failed(what: string, label: string, errno: number, cause?: unknown): DmError {
  const message = `${what} of the last bytes of ${label}: ${errnoMessage(errno)}`;
  return new DmError(errno, message, undefined, cause === undefined ? {} : { cause });
}

class FileTail implements Tail {
  readonly #path: string;
  readonly #offset: number;
  readonly #byteLength: number;
  readonly #label: string;

  constructor(path: string, offset: number, byteLength: number, label: string) {
    this.#path = path;
    this.#offset = offset;
    this.#byteLength = byteLength;
    this.#label = label;
  }

  async read(): Promise<Uint8Array> {
    const bytes = new Uint8Array(this.#byteLength);
    this.#with('read', 'r', (fd) => {
      for (let at = 0; at < bytes.byteLength; ) {
        const count = readSync(fd, bytes, at, bytes.byteLength - at, this.#offset + at);
        // The file was cut meanwhile.
        if (count === 0) throw failed('read', this.#label, Errno.EIO);
        at += count;
      }
    });
    return bytes;
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#with('write', 'r+', (fd) => {
      for (let at = 0; at < bytes.byteLength; ) {
        at += writeSync(fd, bytes, at, bytes.byteLength - at, this.#offset + at);
      }
      fdatasyncSync(fd);
    });
  }

  #with(what: string, flags: string, work: (fd: number) => void): void {
    try {
      const fd = openSync(rawName(this.#path), flags);
      try {
        work(fd);
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      throw error instanceof DmError ? error : failed(what, this.#label, errnoFromException(error), error);
    }
  }
}

class NbdTail implements Tail {
  readonly #io: DmIoClient;
  readonly #region: CopyRegion;
  readonly #device: NbdDevice;
  readonly #offset: number;
  readonly #byteLength: number;

  constructor(io: DmIoClient, region: CopyRegion, device: NbdDevice, offset: number, byteLength: number) {
    this.#io = io;
    this.#region = region;
    this.#device = device;
    this.#offset = offset;
    this.#byteLength = byteLength;
  }

  async read(): Promise<Uint8Array> {
    const bytes = new Uint8Array(this.#byteLength);
    const errno = await new Promise<number>((resolve) => this.#device.readBytes(this.#offset, bytes, resolve));
    if (errno !== 0) throw failed('read', this.#region.label, errno);
    return bytes;
  }

  async write(bytes: Uint8Array): Promise<void> {
    const errno = await new Promise<number>((resolve) => this.#device.writeBytes(this.#offset, bytes, resolve));
    if (errno !== 0) throw failed('write', this.#region.label, errno);
    const cause = await flush(this.#io, this.#region);
    if (cause !== null) throw cause;
  }
}

/** On a device of whole sectors. What follows the bytes in their sector is zeroed. */
class SectorTail implements Tail {
  readonly #io: DmIoClient;
  readonly #region: CopyRegion;
  readonly #byteLength: number;

  constructor(io: DmIoClient, region: CopyRegion, byteLength: number) {
    this.#io = io;
    this.#region = region;
    this.#byteLength = byteLength;
  }

  async read(): Promise<Uint8Array> {
    const sector = new Uint8Array(SECTOR_SIZE);
    const cause = await transfer(this.#io, 'read', this.#region, this.#region.sectorCount, sector);
    if (cause !== null) throw cause;
    // Whole, so that a comparison sees whether the rest was zeroed: it is cut only if it was.
    const isClean = sector.subarray(this.#byteLength).every((byte) => byte === 0);
    return isClean ? sector.subarray(0, this.#byteLength) : sector;
  }

  async write(bytes: Uint8Array): Promise<void> {
    const sector = new Uint8Array(SECTOR_SIZE);
    sector.set(bytes);
    const cause =
      (await transfer(this.#io, 'write', this.#region, this.#region.sectorCount, sector)) ??
      (await flush(this.#io, this.#region));
    if (cause !== null) throw cause;
  }
}
