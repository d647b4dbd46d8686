// GNU ddrescue's mapfile: which bytes of the source are copied, which failed, which were not tried. Lines of
// "position size status", without gaps, after one line that says where the copy stands.
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { BAD, DONE, FAILED, RangeMap, type Status, UNTRIED } from './ranges.ts';

const STATUSES = new Map<string, Status>([
  ['?', UNTRIED],
  ['*', FAILED],
  // ddrescue's "failed, not scraped": looked at closer than ours, not to the end.
  ['/', FAILED],
  ['-', BAD],
  ['+', DONE],
]);

function hex(sector: number): string {
  return `0x${(BigInt(sector) * BigInt(SECTOR_SIZE)).toString(16).toUpperCase().padStart(8, '0')}`;
}

/**
 * @param firstSector where the copy begins on the source: positions are the source's
 * @param comment lines for people
 */
export function formatMapfile(map: RangeMap, firstSector: number, comment: readonly string[]): string {
  const open = map.entries.find(({ status }) => status !== DONE);
  const position = hex(firstSector + (open?.start ?? map.sectorCount));
  const lines = [
    ...comment.map((line) => `# ${line}`),
    '# current_pos  current_status  current_pass',
    `${position}     ${open === undefined ? '+' : '?'}               1`,
    '#      pos        size  status',
    ...map.entries.map(({ start, end, status }) => `${hex(firstSector + start)}  ${hex(end - start)}  ${status}`),
  ];
  return `${lines.join('\n')}\n`;
}

function refused(path: string, line: number, reason: string): DmError {
  return new DmError(Errno.EINVAL, `${path}, line ${line}: ${reason}`);
}

const NUMBER = '(0[xX][0-9a-fA-F]+|[0-9]+)';
const HEAD_LINE = new RegExp(`^${NUMBER}\\s+([?*/+\\-FG])(?:\\s+[0-9]+)?$`);
const RANGE_LINE = new RegExp(`^${NUMBER}\\s+${NUMBER}\\s+([?*/+-])$`);

/**
 * Reads a mapfile. What it says about sectors outside the copy is left out; what it does not mention was not tried; of a
 * sector that lies on a border the worse status counts.
 *
 * @throws DmError EINVAL naming the line
 */
export function parseMapfile(text: string, path: string, firstSector: number, sectorCount: number): RangeMap {
  const map = new RangeMap(sectorCount);
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
    const start = BigInt(parts[1]!);
    const size = BigInt(parts[2]!);
    if (next !== null && start !== next) throw refused(path, index + 1, 'a gap, or ranges that overlap');
    next = start + size;
    const status = STATUSES.get(parts[3]!)!;
    apply(map, start - BigInt(firstSector) * BigInt(SECTOR_SIZE), size, status);
  }
  if (!hasHead) throw refused(path, 1, 'this is no mapfile');
  return map;
}

function apply(map: RangeMap, start: bigint, size: bigint, status: Status): void {
  const sector = BigInt(SECTOR_SIZE);
  // Whole sectors alone are done; a sector that failed in part has failed.
  const up = (byte: bigint): bigint => (byte + sector - 1n) / sector;
  const first = status === DONE ? up(start < 0n ? 0n : start) : (start < 0n ? 0n : start) / sector;
  const last = status === DONE ? (start + size) / sector : up(start + size < 0n ? 0n : start + size);
  const end = Number(last < BigInt(map.sectorCount) ? last : BigInt(map.sectorCount));
  if (first < BigInt(end)) map.set(Number(first), end, status);
}

/** Null where there is no such file. @throws DmError for one that can't be read, or is no mapfile */
export function loadMapfile(path: string, firstSector: number, sectorCount: number): RangeMap | null {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    const errno = errnoFromException(error);
    if (errno === Errno.ENOENT) return null;
    throw new DmError(errno, `cannot read the mapfile ${path}: ${errnoMessage(errno)}`);
  }
  return parseMapfile(text, path, firstSector, sectorCount);
}

/** Whole or not at all: written beside its place, then moved there. */
export function saveMapfile(path: string, text: string): void {
  const temporary = `${path}.new`;
  try {
    const fd = openSync(temporary, 'w');
    try {
      writeSync(fd, text);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(temporary, path);
  } catch (error) {
    const errno = errnoFromException(error);
    throw new DmError(errno, `cannot write the mapfile ${path}: ${errnoMessage(errno)}`, undefined, { cause: error });
  }
}
