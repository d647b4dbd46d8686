// The unit of the field: a sector is 512 bytes, whatever the logical block size of the device below.
// Sector numbers are plain numbers up to 2^53 - 1; a byte offset is exact as a number while the sector is below 2^44,
// and past that too (a sector times 512 is a shift of the exponent), but arithmetic on it is not: keep sectors.

/** Bytes in a sector. */
export const SECTOR_SIZE = 512;
/** log2 of {@link SECTOR_SIZE}. */
export const SECTOR_SHIFT = 9;
/** Sectors in a page of 4096 bytes. */
export const PAGE_SECTOR_COUNT = 8;
/** Bytes in a page. */
export const PAGE_SIZE = 4096;
/** The highest sector count that a device here can have: 2^53 - 1 (the kernel's bound is one bit higher). */
export const MAX_SECTOR_COUNT = Number.MAX_SAFE_INTEGER;

/** True for a whole number of sectors that a device could have. */
export function isSector(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 0;
}
