// Reads the journal of dmkit 0.1 (journal.json, journal.lost.json). Its first line is the state at some moment, each line
// behind it one device that has changed since, or is gone; a last line without its end was never written. A line that is
// damaged costs that line alone. Writes nothing.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { readIfThere } from '../files/replace-file.ts';
import type { Damage } from './record-file.ts';

const FORMAT = 1;

export interface JournalV1Line {
  sector: number;
  sectorCount: number;
  type: string;
  params: string;
}

export interface JournalV1Table {
  readOnly: boolean;
  lines: JournalV1Line[];
}

/** A device as version 0.1 wrote it. */
export interface JournalV1Device {
  /** Of this device alone, as long as its daemon lived: a minor number may have been another's before. */
  id: number;
  name: string;
  uuid: string;
  minor: number;
  suspended: boolean;
  live: JournalV1Table | null;
  inactive: JournalV1Table | null;
}

export interface JournalV1 {
  /** The devices' numbers in the tables begin with it; null where the line that says it is damaged. */
  major: number | null;
  /** In the order of their names. */
  devices: JournalV1Device[];
  damage: Damage[];
}

type Line = { major: number; devices: JournalV1Device[] } | { device: JournalV1Device } | { removed: Removed };
type Removed = Pick<JournalV1Device, 'id' | 'minor'>;

const isObject = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null;

function isTable(value: unknown): boolean {
  if (value === null) return true;
  return isObject(value) && Array.isArray(value.lines) && value.lines.every(isTableLine);
}

function isTableLine(value: unknown): boolean {
  return (
    isObject(value) &&
    Number.isSafeInteger(value.sector) &&
    Number.isSafeInteger(value.sectorCount) &&
    typeof value.type === 'string' &&
    typeof value.params === 'string'
  );
}

function isDevice(value: unknown): value is JournalV1Device {
  return (
    isObject(value) &&
    typeof value.name === 'string' &&
    typeof value.uuid === 'string' &&
    Number.isSafeInteger(value.minor) &&
    isTable(value.live) &&
    isTable(value.inactive)
  );
}

/** Null for a line that is damaged. */
function parseLine(text: string): Line | null {
  try {
    const value = JSON.parse(text) as unknown;
    if (!isObject(value)) return null;
    if (value.format === FORMAT) {
      const { major, devices } = value;
      const isWhole = Number.isSafeInteger(major) && Array.isArray(devices) && devices.every(isDevice);
      return isWhole ? { major: major as number, devices } : null;
    }
    if (isDevice(value.device)) return { device: value.device };
    if (isObject(value.removed) && Number.isSafeInteger(value.removed.minor)) {
      return { removed: value.removed as unknown as Removed };
    }
  } catch {
    // Not JSON.
  }
  return null;
}

function namesIn(text: string): string[] {
  const names = new Set<string>();
  for (const [, quoted] of text.matchAll(/"name":("(?:[^"\\]|\\.)*")/g)) {
    try {
      names.add(JSON.parse(quoted!) as string);
    } catch {
      // The damage is inside.
    }
  }
  return [...names];
}

/**
 * Reads a journal of version 0.1; null where there is none.
 *
 * @throws DmError EINVAL for a file that has no line of such a journal; and what the file system says
 */
export function readJournalV1(path: string): JournalV1 | null {
  const bytes = readIfThere(path);
  if (bytes === null) return null;
  const byMinor = new Map<number, JournalV1Device>();
  const damage: Damage[] = [];
  let major: number | null = null;
  let goodCount = 0;
  for (let start = 0; start < bytes.byteLength; ) {
    const found = bytes.indexOf(0x0a, start);
    const end = found < 0 ? bytes.byteLength : found + 1;
    const text = bytes.toString('utf8', start, end);
    const line = parseLine(text);
    // Behind the last end of a line: it was being written. The first line alone was written whole, by a rename.
    const isTorn = found < 0 && start > 0;
    if (line !== null && !isTorn) {
      goodCount++;
      if ('devices' in line) {
        major = line.major;
        for (const device of line.devices) byMinor.set(device.minor, device);
      } else if ('device' in line) byMinor.set(line.device.minor, line.device);
      else if (byMinor.get(line.removed.minor)?.id === line.removed.id) byMinor.delete(line.removed.minor);
    } else if (!isTorn) damage.push({ start, end, names: namesIn(text) });
    start = end;
  }
  if (goodCount === 0 && !bytes.includes(`"format":${FORMAT},`)) {
    throw new DmError(Errno.EINVAL, `${path} is not a journal of dmkit 0.1. Move it away.`);
  }
  const devices = [...byMinor.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  return { major, devices, damage };
}
