// Sizes as people read them.
import { SECTOR_SIZE } from '../block/sector.ts';

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** `1.5 GiB`. */
export function bytesText(byteLength: number): string {
  let value = byteLength;
  let unit = 0;
  // 1023.6 KiB would be rounded to 1024 KiB.
  while (value >= (unit === 0 ? 1024 : 1023.5) && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

/** Exact, and readable: `200 sectors (100 KiB)`, or bytes where the size is no multiple of a sector. */
export function sizeText(byteLength: number): string {
  if (byteLength % SECTOR_SIZE !== 0) return `${byteLength} bytes`;
  const count = byteLength / SECTOR_SIZE;
  return `${count} sector${count === 1 ? '' : 's'} (${bytesText(byteLength)})`;
}
