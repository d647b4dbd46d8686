// What is on a disk at one moment, sparse and unchangeable: the state that a crash leaves.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';

/** Sector number to its 512 bytes, which nobody changes; a sector that is missing is zeroes. */
export type SectorMap = Map<number, Uint8Array>;

export const ZERO_SECTOR: Uint8Array = new Uint8Array(SECTOR_SIZE);

/** True for the same bytes. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a === b || Buffer.compare(a, b) === 0;
}

/**
 * The content of a disk: `sectorCount` sectors of 512 bytes.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { DiskImage } from 'dmkit/testing';
 *
 * const image = DiskImage.fromBytes(new Uint8Array(1024).fill(1, 512));
 * assert.equal(image.sectorCount, 2);
 * assert.deepEqual(image.read(1, 1), new Uint8Array(512).fill(1));
 * assert.ok(!image.equals(DiskImage.fromBytes(new Uint8Array(1024))));
 * ```
 */
export class DiskImage {
  readonly sectorCount: number;
  readonly #sectors: ReadonlyMap<number, Uint8Array>;

  /** @param sectors the image keeps it: nobody may change it afterwards */
  constructor(sectorCount: number, sectors: ReadonlyMap<number, Uint8Array>) {
    this.sectorCount = sectorCount;
    this.#sectors = sectors;
  }

  /** An image with a copy of `bytes`. @throws DmError EINVAL for what is no whole number of 512-byte sectors */
  static fromBytes(bytes: Uint8Array): DiskImage {
    if (bytes.byteLength % SECTOR_SIZE !== 0) {
      throw new DmError(Errno.EINVAL, `${bytes.byteLength} bytes are no whole number of sectors`);
    }
    const sectors: SectorMap = new Map();
    for (let start = 0; start < bytes.byteLength; start += SECTOR_SIZE) {
      const content = bytes.slice(start, start + SECTOR_SIZE);
      if (!equalBytes(content, ZERO_SECTOR)) sectors.set(start / SECTOR_SIZE, content);
    }
    return new DiskImage(bytes.byteLength / SECTOR_SIZE, sectors);
  }

  /** A copy of `sectorCount` sectors from `sector` on. @throws RangeError past the end */
  read(sector: number, sectorCount: number): Uint8Array {
    if (sector < 0 || sectorCount < 0 || sector + sectorCount > this.sectorCount) {
      throw new RangeError(`sectors ${sector}+${sectorCount} of an image of ${this.sectorCount}`);
    }
    const bytes = new Uint8Array(sectorCount * SECTOR_SIZE);
    for (let i = 0; i < sectorCount; i++) bytes.set(this.#sectors.get(sector + i) ?? ZERO_SECTOR, i * SECTOR_SIZE);
    return bytes;
  }

  /** The sectors that are stored, in no order; all others are zeroes. */
  entries(): IterableIterator<[number, Uint8Array]> {
    return this.#sectors.entries();
  }

  /** True where every sector reads the same. */
  equals(other: DiskImage): boolean {
    return this.sectorCount === other.sectorCount && this.differences(other, 1).length === 0;
  }

  /** Numbers of the sectors that differ, ascending, the first `maxCount`; images are compared up to the shorter one's end. */
  differences(other: DiskImage, maxCount = Number.POSITIVE_INFINITY): number[] {
    const end = Math.min(this.sectorCount, other.sectorCount);
    const candidates = new Set([...this.#sectors.keys(), ...other.#sectors.keys()]);
    const found: number[] = [];
    for (const sector of [...candidates].sort((a, b) => a - b)) {
      if (found.length >= maxCount || sector >= end) break;
      const [mine, theirs] = [this.#sectors.get(sector), other.#sectors.get(sector)];
      if (!equalBytes(mine ?? ZERO_SECTOR, theirs ?? ZERO_SECTOR)) found.push(sector);
    }
    return found;
  }
}
