// What differs from the origin: the chunks with an exception, in order, neighbours joined.
import type { ExceptionTable } from './exception-table.ts';

/** Exceptions in one answer, about: whoever asks gets the rest with another question, so that no turn is long. */
const PAGE_EXCEPTION_COUNT = 65_536;
/** The range is looked at in so many parts, to find where an answer ends without sorting everything. */
const PART_COUNT = 4096;

/** A stretch that was changed. */
export interface ChangedExtent {
  sector: number;
  sectorCount: number;
}

export interface ChangesPage {
  extents: ChangedExtent[];
  /** Where the next answer starts; null where this was the last. */
  nextSector: number | null;
}

/** The sectors that count: those of a table line, or everything that the store knows. */
export interface ChangesRange {
  chunkSectorCount: number;
  startSector: number;
  endSector: number;
}

/** Chunks from `first` to `end` that have an exception, in ascending order. */
function chunksWithin(exceptions: ExceptionTable, first: number, end: number): Float64Array {
  let count = 0;
  const chunks = new Float64Array(exceptions.size);
  exceptions.forEach((chunk) => {
    if (chunk >= first && chunk < end) chunks[count++] = chunk;
  });
  return chunks.subarray(0, count).sort();
}

/** Where to stop, from `first` on, to have about a page: a chunk number. */
function pageEnd(exceptions: ExceptionTable, first: number, end: number, pageCount: number): number {
  if (exceptions.size <= pageCount) return end;
  const width = Math.ceil((end - first) / PART_COUNT);
  const counts = new Uint32Array(PART_COUNT);
  exceptions.forEach((chunk) => {
    if (chunk < first || chunk >= end) return;
    const part = Math.floor((chunk - first) / width);
    counts[part] = counts[part]! + 1;
  });
  let sum = 0;
  for (let part = 0; part < PART_COUNT; part++) {
    sum += counts[part]!;
    if (sum >= pageCount) return Math.min(end, first + (part + 1) * width);
  }
  return end;
}

/** The changes from `fromSector` on: a page of them. An extent may be cut at a page's end. */
export function changesPage(
  exceptions: ExceptionTable,
  range: ChangesRange,
  fromSector: number,
  pageCount: number = PAGE_EXCEPTION_COUNT,
): ChangesPage {
  const { chunkSectorCount: size } = range;
  const start = Math.max(range.startSector, fromSector);
  const [first, end] = [Math.floor(start / size), Math.ceil(range.endSector / size)];
  if (first >= end) return { extents: [], nextSector: null };
  const stop = pageEnd(exceptions, first, end, pageCount);
  const extents: ChangedExtent[] = [];
  for (const chunk of chunksWithin(exceptions, first, stop)) {
    const sector = Math.max(start, chunk * size);
    const sectorEnd = Math.min(range.endSector, (chunk + 1) * size);
    const last = extents.at(-1);
    if (last !== undefined && last.sector + last.sectorCount === sector) last.sectorCount += sectorEnd - sector;
    else extents.push({ sector, sectorCount: sectorEnd - sector });
  }
  return { extents, nextSector: stop < end ? stop * size : null };
}
