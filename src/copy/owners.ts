// The disks that a map belongs to, written into its comment lines, where GNU ddrescue looks over them.

import { SECTOR_SIZE } from '../block/sector.ts';
import { compareIdentities, type DiskIdentity, describeIdentity } from '../devices/identity.ts';

/** One side of a copy. */
export interface MapSide {
  readonly disk: DiskIdentity;
  /** Where the copy begins on it. */
  readonly sector: number;
}

/** Both sides of the copy that a map tells of. */
export interface MapOwners {
  /** Null for zeroes. */
  readonly source: MapSide | null;
  readonly destination: MapSide;
  /** Of the copy. */
  readonly byteLength: number;
}

const LINE = 'dmkit copies: ';
const KINDS: readonly unknown[] = ['file', 'block', 'nbd', 'mapped', 'program'];

export function ownersLine(owners: MapOwners): string {
  return LINE + JSON.stringify(owners);
}

/** Null for a map that does not tell: one that ddrescue wrote last. */
export function ownersOf(text: string): MapOwners | null {
  for (const line of text.split('\n')) {
    if (!line.startsWith(`# ${LINE}`)) continue;
    try {
      const owners = JSON.parse(line.slice(LINE.length + 2)) as MapOwners;
      const isWhole = isSide(owners.destination) && (owners.source === null || isSide(owners.source));
      return isWhole && typeof owners.byteLength === 'number' ? owners : null;
    } catch {
      return null;
    }
  }
  return null;
}

function isSide(value: unknown): boolean {
  const { disk, sector } = (value ?? {}) as { disk?: { kind?: unknown }; sector?: unknown };
  return KINDS.includes(disk?.kind) && typeof sector === 'number';
}

/** Why the map is not one of this destination; null where it is. */
export function otherDestination(owners: MapOwners, found: MapSide): string | null {
  return otherSide(owners.destination, found);
}

/** Why the map is not one of this source and this length; null where it is. */
export function otherSource(owners: MapOwners, source: MapSide | null, byteLength: number): string | null {
  const was = owners.source;
  if (source === null || was === null) {
    if (source === was) return owners.byteLength === byteLength ? null : otherLength(owners, byteLength);
    const [from, instead] = [was, source].map((side) => (side === null ? 'zeroes' : describeIdentity(side.disk)));
    return `it is the map of a copy of ${from}, and not of ${instead}`;
  }
  const other = otherSide(was, source);
  if (other !== null) return other;
  const [wasLength, isLength] = [lengthOf(was.disk), lengthOf(source.disk)];
  if (wasLength !== isLength) {
    return `${describeIdentity(source.disk)} is there, and ${describeIdentity(was.disk)} was expected`;
  }
  return owners.byteLength === byteLength ? null : otherLength(owners, byteLength);
}

function otherLength(owners: MapOwners, byteLength: number): string {
  return `it is the map of a copy of ${owners.byteLength} bytes, and not of ${byteLength}`;
}

function lengthOf(disk: DiskIdentity): number | null {
  return 'byteLength' in disk ? disk.byteLength : null;
}

function otherSide(was: MapSide, is: MapSide): string | null {
  const mismatch = compareIdentities(was.disk, is.disk);
  if (mismatch !== null) return mismatch.text;
  if (was.sector === is.sector) return null;
  return `it is the map of a copy from byte ${was.sector * SECTOR_SIZE} on of ${describeIdentity(is.disk)}, and not from byte ${is.sector * SECTOR_SIZE} on`;
}

/** Both have one name, whatever stands behind it. */
export function haveOneName(a: MapSide, b: MapSide): boolean {
  return a.sector === b.sector && nameOf(a.disk) === nameOf(b.disk);
}

function nameOf(disk: DiskIdentity): string {
  if (disk.kind === 'nbd') return disk.uri;
  return disk.kind === 'file' || disk.kind === 'block' ? disk.path : disk.name;
}
