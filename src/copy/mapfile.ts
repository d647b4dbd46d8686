// GNU ddrescue's mapfile: which bytes of the source are copied, which failed, which were not tried. Lines of
// "position size status", without gaps, after one line that says where the copy stands.
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { placeOf, removeLeftovers, replaceFile } from '../files/replace-file.ts';
import { BAD, DONE, FAILED, RangeMap, type Status, UNTRIED } from './ranges.ts';

const STATUSES = new Map<string, Status>([
  ['?', UNTRIED],
  ['*', FAILED],
  // ddrescue's "failed, not scraped": looked at closer than ours, not to the end.
  ['/', FAILED],
  ['-', BAD],
  ['+', DONE],
]);

function hex(byte: bigint): string {
  return `0x${byte.toString(16).toUpperCase().padStart(8, '0')}`;
}

/**
 * @param firstSector where the copy begins on the source: positions are the source's
 * @param byteLength of the copy; the map's last sector may be there in part
 * @param comment lines for people
 */
export function formatMapfile(
  map: RangeMap,
  firstSector: number,
  byteLength: number,
  comment: readonly string[],
): string {
  const base = BigInt(firstSector) * BigInt(SECTOR_SIZE);
  const at = (sector: number): bigint => BigInt(Math.min(sector * SECTOR_SIZE, byteLength));
  const open = map.entries.find(({ status }) => status !== DONE);
  const position = hex(base + at(open?.start ?? map.sectorCount));
  const lines = [
    ...comment.map((line) => `# ${line}`),
    '# current_pos  current_status  current_pass',
    `${position}     ${open === undefined ? '+' : '?'}               1`,
    '#      pos        size  status',
    ...map.entries.map(({ start, end, status }) => `${hex(base + at(start))}  ${hex(at(end) - at(start))}  ${status}`),
  ];
  return `${lines.join('\n')}\n`;
}

function refused(path: string, line: number, reason: string): DmError {
  return new DmError(Errno.EINVAL, `${path}, line ${line}: ${reason}`);
}

// Numbers as C reads them, which ddrescue does: 0x… is hexadecimal, 0… octal. 08 is refused there, and here.
const NUMBER = '(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)';
const HEAD_LINE = new RegExp(`^${NUMBER}\\s+[?*/+\\-FG](?:\\s+0*[1-9][0-9]*)?$`);
const RANGE_LINE = new RegExp(`^${NUMBER}\\s+${NUMBER}\\s+([?*/+-])$`);
const MAX_POSITION = 2n ** 63n - 1n;

function numberOf(text: string): bigint {
  return BigInt(/^0[0-7]+$/.test(text) ? `0o${text}` : text);
}

/**
 * Reads a mapfile. Sectors outside the copy are left out; sectors that it does not mention were not tried; of a sector
 * that lies on a border the worse status counts.
 *
 * @param byteLength of the copy
 * @param endByte of the source: a map that has more rescued is that of another disk
 * @throws DmError EINVAL naming the line
 */
export function parseMapfile(
  text: string,
  path: string,
  firstSector: number,
  byteLength: number,
  endByte: number = Number.POSITIVE_INFINITY,
): RangeMap {
  const map = new RangeMap(Math.ceil(byteLength / SECTOR_SIZE));
  const base = BigInt(firstSector) * BigInt(SECTOR_SIZE);
  let hasHead = false;
  let next: bigint | null = null;
  for (const [index, raw] of text.split('\n').entries()) {
    const line = raw.replace(/#.*/, '').trim();
    if (line === '') continue;
    if (!hasHead) {
      if (!HEAD_LINE.test(line)) throw refused(path, index + 1, 'not the line of a mapfile that says where it stands');
      hasHead = true;
      continue;
    }
    const parts = RANGE_LINE.exec(line);
    if (parts === null) throw refused(path, index + 1, 'not "position size status"');
    const start = numberOf(parts[1]!);
    const size = numberOf(parts[2]!);
    if (next !== null && start !== next) throw refused(path, index + 1, 'a gap, or ranges that overlap');
    next = start + size;
    if (next > MAX_POSITION) throw refused(path, index + 1, 'a range that ends behind 2^63');
    const status = STATUSES.get(parts[3]!)!;
    if (status !== UNTRIED && next > endByte) {
      throw refused(
        path,
        index + 1,
        `it knows of byte ${next - 1n}, and the source ends at ${endByte}: another source's map`,
      );
    }
    apply(map, start - base, size, status, BigInt(byteLength));
  }
  if (!hasHead) throw refused(path, 1, 'this file is not a mapfile');
  return map;
}

function apply(map: RangeMap, start: bigint, size: bigint, status: Status, byteLength: bigint): void {
  const sector = BigInt(SECTOR_SIZE);
  const from = start < 0n ? 0n : start;
  const to = start + size < byteLength ? start + size : byteLength;
  if (from >= to) return;
  // Whole sectors alone are done (the last one is whole at the end of the copy); one that failed in part has failed.
  const up = (byte: bigint): bigint => (byte + sector - 1n) / sector;
  const first = status === DONE ? up(from) : from / sector;
  const last = status === DONE && to < byteLength ? to / sector : up(to);
  if (first < last) map.set(Number(first), Number(last), status);
}

/** Whole or not at all. The map that is there stays where that fails. @throws DmError */
export function saveMapfile(path: string, text: string): void {
  try {
    replaceFile(path, [text]);
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    throw new DmError(error.errno, `cannot write the mapfile ${error.message}`, undefined, { cause: error.cause });
  }
}

/** Removes what copies that were killed in `saveMapfile` left beside the map. For the one copy that writes it alone. */
export function clearMapfileLeftovers(path: string): void {
  try {
    removeLeftovers(placeOf(path));
  } catch (error) {
    // A map that can't be written is told of when it is saved.
    if (errnoFromException(error) === 0) throw error;
  }
}
