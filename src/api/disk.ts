// The promise edge: one opened device, as a program uses it. Below here nothing knows a promise.

import {
  Bio,
  type BioVec,
  REQ_FUA,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
} from '../block/bio.ts';
import { type BlockDevice, EXTENT_HOLE, EXTENT_ZERO, queryExtent, submitBio } from '../block/block-device.ts';
import type { CutEnd } from '../block/cut-end.ts';
import { Errno } from '../block/errno.ts';
import { DmError, IoError } from '../block/errors.ts';
import { isSector, SECTOR_SIZE } from '../block/sector.ts';
import { giveMemoryAway, ownMemory } from '../engine/address.ts';
import { MappedDevice } from '../mapper/mapped-device.ts';
import { cutEndOf, cutEndSteps } from '../table/cut-ends.ts';
import { runSteps } from '../table/steps.ts';
import { endsTurn } from './turn-budget.ts';

export interface WriteOptions {
  /** Resolve only when the data is durable. */
  fua?: boolean;
}

export interface WriteZeroesOptions {
  /** Keep the range provisioned (no holes). */
  keepProvisioned?: boolean;
}

/** A stretch of a device that is alike. */
export interface Extent {
  sector: number;
  sectorCount: number;
  /** Nothing is allocated for it. */
  hole: boolean;
  /** It reads as zeros. */
  zero: boolean;
}

/**
 * An open device: an image, a block device, memory or a mapped device. Sectors are 512 bytes; a buffer holds a whole
 * number of them. Requests that are in flight at the same time have no order among themselves.
 */
export class Disk {
  /** The device itself, for the layers that work with bios. */
  readonly device: BlockDevice;
  /** Called once. */
  #close: () => void;
  #open = true;
  #inFlightCount = 0;

  constructor(device: BlockDevice, close: () => void) {
    this.device = device;
    this.#close = close;
  }

  /** As tables print it. */
  get name(): string {
    return this.device.name;
  }

  get sectorCount(): number {
    return this.device.sectorCount;
  }

  get byteLength(): number {
    return this.device.sectorCount * SECTOR_SIZE;
  }

  /**
   * The files and NBD exports whose last bytes this disk does not show, because their length is no multiple of 512: itself,
   * or those whose end its live table reaches. Empty where every byte is in a sector.
   */
  get cutEnds(): readonly CutEnd[] {
    const { device } = this;
    if (device instanceof MappedDevice) return device.table === null ? [] : runSteps(cutEndSteps(device.table));
    const end = cutEndOf(device);
    return end === null ? [] : [end];
  }

  get readOnly(): boolean {
    return this.device.readOnly;
  }

  /**
   * Reads `sectorCount` sectors into a new buffer.
   *
   * @throws IoError with errno, device and first failing sector; EIO past the end
   */
  async read(sector: number, sectorCount: number): Promise<Buffer> {
    checkRange(sector, sectorCount);
    // The caller gets it when nothing uses it any more.
    const buffer = ownMemory(Buffer.allocUnsafeSlow(sectorCount * SECTOR_SIZE));
    await this.readInto(sector, buffer);
    return giveMemoryAway(buffer);
  }

  /**
   * Reads into `memory`, as many sectors as it holds. After a failure its content is undefined.
   *
   * @throws IoError; DmError EINVAL for memory that is no whole number of sectors
   */
  readInto(sector: number, memory: Uint8Array): Promise<void> {
    return this.#submit(REQ_OP_READ, 0, sector, sectorsOf(memory), memory);
  }

  /**
   * Writes `data`, a whole number of sectors. Durable after a later flush, or at once with `fua`.
   *
   * @throws IoError; EPERM on a read-only device; DmError EINVAL for data that is no whole number of sectors
   */
  write(sector: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    return this.#submit(REQ_OP_WRITE, options.fua ? REQ_FUA : 0, sector, sectorsOf(data), data);
  }

  /** Makes every write that has resolved durable. */
  flush(): Promise<void> {
    return this.#submit(REQ_OP_FLUSH, 0, 0, 0);
  }

  /** Gives the sectors back; what they read as afterwards is undefined. @throws IoError EOPNOTSUPP where it can't be done */
  discard(sector: number, sectorCount: number): Promise<void> {
    return this.#submit(REQ_OP_DISCARD, 0, sector, sectorCount);
  }

  /** Makes the sectors read as zeros without sending zeros. @throws IoError EOPNOTSUPP where it can't be done */
  writeZeroes(sector: number, sectorCount: number, options: WriteZeroesOptions = {}): Promise<void> {
    return this.#submit(REQ_OP_WRITE_ZEROES, options.keepProvisioned ? REQ_NOUNMAP : 0, sector, sectorCount);
  }

  /** The allocation map of a range, neighbours that are alike joined. */
  async *extents(sector = 0, sectorCount: number = this.sectorCount - sector): AsyncGenerator<Extent> {
    checkRange(sector, sectorCount);
    const end = sector + sectorCount;
    if (end > this.sectorCount) throw new IoError(Errno.EIO, 'map', this.name, this.sectorCount);
    let pending: Extent | null = null;
    for (let at = sector; at < end; ) {
      const next = await this.#extentAt(at, end - at);
      if (pending !== null && pending.hole === next.hole && pending.zero === next.zero) {
        pending.sectorCount += next.sectorCount;
      } else {
        if (pending !== null) yield pending;
        pending = next;
      }
      at += next.sectorCount;
    }
    if (pending !== null) yield pending;
  }

  #extentAt(sector: number, sectorCount: number): Promise<Extent> {
    this.#checkOpen();
    return new Promise((resolve, reject) => {
      this.#inFlightCount++;
      let isAsking = true;
      queryExtent(this.device, sector, sectorCount, (errno, count, flags) => {
        this.#ended();
        if (errno !== 0) reject(new IoError(errno, 'map', this.name, sector));
        else {
          const hole = (flags & EXTENT_HOLE) !== 0;
          const extent = { sector, sectorCount: count, hole, zero: (flags & EXTENT_ZERO) !== 0 };
          if (isAsking && endsTurn(0)) setImmediate(resolve, extent);
          else resolve(extent);
        }
      });
      isAsking = false;
    });
  }

  /** Lets go of the device. What is in flight ends as it would, and a file stays open (and locked) until then. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    // A mapped device sees to its requests itself: one that is suspended ends them when it goes, and must not wait for them.
    if (this.#inFlightCount === 0 || this.device instanceof MappedDevice) this.#letGo();
  }

  #letGo(): void {
    const close = this.#close;
    this.#close = () => {};
    close();
  }

  /** A request has ended. */
  #ended(): void {
    if (--this.#inFlightCount === 0 && !this.#open) this.#letGo();
  }

  #checkOpen(): void {
    if (!this.#open) throw new DmError(Errno.EBADF, `${this.name} was closed by this program`);
  }

  async #submit(op: number, flags: number, sector: number, sectorCount: number, memory?: Uint8Array): Promise<void> {
    this.#checkOpen();
    checkRange(sector, sectorCount);
    const bio = new Bio();
    bio.reset(op, flags, this.device, sector, sectorCount);
    if (memory !== undefined) bio.vecs = wholeOf(memory);
    await new Promise<void>((resolve, reject) => {
      this.#inFlightCount++;
      let isSubmitting = true;
      bio.onEnd = (ended) => {
        this.#ended();
        if (ended.status !== 0) reject(ended.toError(this.device));
        else if (isSubmitting && endsTurn(sectorCount)) setImmediate(resolve);
        else resolve();
      };
      submitBio(bio);
      isSubmitting = false;
    });
  }
}

function wholeOf(memory: Uint8Array): readonly BioVec[] {
  return [{ page: memory, offset: 0, byteLength: memory.byteLength }];
}

function sectorsOf(memory: Uint8Array): number {
  const sectorCount = memory.byteLength / SECTOR_SIZE;
  if (!Number.isInteger(sectorCount)) {
    throw new DmError(Errno.EINVAL, `${memory.byteLength} bytes are no whole number of ${SECTOR_SIZE}-byte sectors`);
  }
  return sectorCount;
}

function checkRange(sector: number, sectorCount: number): void {
  if (!isSector(sector) || !isSector(sectorCount) || !isSector(sector + sectorCount)) {
    throw new DmError(Errno.EINVAL, `sector ${sector}, count ${sectorCount}: not a range of sectors`);
  }
}
