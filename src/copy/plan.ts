// What of the source is data and what is zeroes, and from that the pieces of work, in order.
import { type BlockDevice, EXTENT_ZERO, queryExtent } from '../block/block-device.ts';
import { BLOCK_SECTOR_COUNT, MAX_ZERO_SECTOR_COUNT } from './bounds.ts';
import { BAD, FAILED, type Range, type RangeMap, UNTRIED } from './ranges.ts';
import type { CopyRegion } from './request.ts';

export interface SourceExtent extends Range {
  /** It reads as zeroes, and nothing need be read to know it. */
  zero: boolean;
}

export interface Piece extends Range {
  zero: boolean;
}

function extentAt(device: BlockDevice, sector: number, count: number): Promise<{ count: number; zero: boolean }> {
  return new Promise((resolve) => {
    queryExtent(device, sector, count, (errno, extentCount, flags) => {
      // A map that can't be had is no failure: then all is data.
      if (errno !== 0 || extentCount <= 0) resolve({ count, zero: false });
      else resolve({ count: Math.min(extentCount, count), zero: (flags & EXTENT_ZERO) !== 0 });
    });
  });
}

/** The map of a region or of a part of it, neighbours that are alike joined. */
export async function extentsOf(
  source: CopyRegion,
  within: Range = { start: 0, end: source.sectorCount },
): Promise<SourceExtent[]> {
  const extents: SourceExtent[] = [];
  for (let at = within.start; at < within.end; ) {
    const { count, zero } = await extentAt(source.device, source.sector + at, within.end - at);
    const last = extents.at(-1);
    if (last !== undefined && last.zero === zero) last.end += count;
    else extents.push({ start: at, end: at + count, zero });
    at += count;
  }
  return extents;
}

/** A range cut at multiples of `size`, so that destinations ask for the same parts. */
export function* cut(range: Range, size: number): Generator<Range> {
  for (let start = range.start; start < range.end; ) {
    const end = Math.min(range.end, (Math.floor(start / size) + 1) * size);
    yield { start, end };
    start = end;
  }
}

/** What the map lacks, data in pieces of `dataSectorCount` at the most. */
export function* piecesOf(
  extents: readonly SourceExtent[],
  map: RangeMap,
  dataSectorCount: number = BLOCK_SECTOR_COUNT,
): Generator<Piece> {
  for (const { start, end, zero } of extents) {
    const size = zero ? MAX_ZERO_SECTOR_COUNT : dataSectorCount;
    for (const range of map.ranges([UNTRIED, FAILED, BAD], { start, end })) {
      for (const part of cut(range, size)) yield { ...part, zero };
    }
  }
}
