// The devices of a daemon on disk, so that they can be made again after a crash.
//
// The first line is the state at some moment, each line behind it one device that has changed since, or is gone. A line
// without its end was never written. Now and then the file is replaced as a whole, by a rename: a reader finds the state
// before or after a change, never half of one, and a change costs the same however many devices there are.
import {
  closeSync,
  constants,
  existsSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { Table } from '../table/table.ts';
import type { TableEntry } from '../table/text.ts';
import { linesOf } from './status.ts';

const FORMAT = 1;
/** A file that somebody took away is not begun without its first line. */
const APPEND_ONLY = constants.O_WRONLY | constants.O_APPEND;

export interface JournalTable {
  readOnly: boolean;
  lines: TableEntry[];
}

export interface JournalDevice {
  /** Of this device alone, as long as its daemon lives: a minor number may be another's soon. */
  id: number;
  name: string;
  uuid: string;
  minor: number;
  suspended: boolean;
  live: JournalTable | null;
  inactive: JournalTable | null;
}

export interface JournalState {
  /** Our devices' numbers in the tables begin with it. */
  major: number;
  devices: JournalDevice[];
}

const tableTexts = new WeakMap<Table, JournalTable>();

/** A table says the same for as long as it lives. */
function tableText(table: Table | null): JournalTable | null {
  if (table === null) return null;
  let text = tableTexts.get(table);
  if (text === undefined) {
    text = { readOnly: table.readOnly, lines: linesOf(table, 'table') };
    tableTexts.set(table, text);
  }
  return text;
}

const ids = new WeakMap<MappedDevice, number>();
let lastId = 0;

function idOf(device: MappedDevice): number {
  const id = ids.get(device) ?? ++lastId;
  ids.set(device, id);
  return id;
}

function describe(device: MappedDevice): JournalDevice {
  return {
    id: idOf(device),
    name: device.dmName,
    uuid: device.uuid,
    minor: device.minor,
    suspended: device.suspended,
    live: tableText(device.table),
    inactive: tableText(device.inactiveTable),
  };
}

/** Writes the state; without devices the file is taken away. @throws what the file system says */
export function writeJournal(path: string, major: number, devices: readonly MappedDevice[]): void {
  if (devices.length === 0) {
    rmSync(path, { force: true });
    return;
  }
  replace(path, { major, devices: devices.map(describe) });
}

/** Lines behind the first one, beyond two for each device, with which the file is written anew. */
const MAX_SPARE_LINE_COUNT = 64;

/** What is behind the first line: a device as it is now, or one that is gone. */
type Change = { device: JournalDevice } | { removed: Pick<JournalDevice, 'id' | 'minor'> };

/** The journal of a daemon that lives. */
export class Journal {
  readonly #path: string;
  readonly #major: number;
  readonly #known = new Set<MappedDevice>();
  #lineCount = 0;
  /** What the file holds is not known: it is not there yet, or a write of it has failed. */
  #isStale = true;

  constructor(path: string, major: number) {
    this.#path = path;
    this.#major = major;
  }

  /** Notes that a device has changed, or is not among `devices` any more. @throws what the file system says */
  note(device: MappedDevice, isThere: boolean, devices: () => readonly MappedDevice[]): void {
    if (isThere) this.#known.add(device);
    else if (!this.#known.delete(device)) return;
    const isLong = this.#lineCount > 2 * this.#known.size + MAX_SPARE_LINE_COUNT;
    const { id, minor } = { id: idOf(device), minor: device.minor };
    const change: Change = isThere ? { device: describe(device) } : { removed: { id, minor } };
    if (this.#isStale || isLong || this.#known.size === 0 || !this.#append(change)) this.#replace(devices());
  }

  /** False where that failed: what is in the file now is not known. */
  #append(change: Change): boolean {
    let fd = -1;
    try {
      fd = openSync(this.#path, APPEND_ONLY);
      const line = Buffer.from(`${JSON.stringify(change)}\n`);
      this.#lineCount++;
      return writeSync(fd, line) === line.byteLength;
    } catch {
      return false;
    } finally {
      if (fd >= 0) closeSync(fd);
    }
  }

  #replace(devices: readonly MappedDevice[]): void {
    this.#isStale = true;
    writeJournal(this.#path, this.#major, devices);
    this.#lineCount = 0;
    this.#isStale = devices.length === 0;
  }
}

/** Keeps of a lost journal what could not be restored, for another try; nothing is left of one without devices. */
export function writeLostJournal(path: string, state: JournalState): void {
  if (state.devices.length === 0) rmSync(path, { force: true });
  else replace(path, state);
}

function replace(path: string, state: JournalState): void {
  const fresh = `${path}.new`;
  writeFileSync(fresh, `${JSON.stringify({ format: FORMAT, ...state })}\n`, { mode: 0o600 });
  renameSync(fresh, path);
}

/** Null where there is none, or one that cannot be read. */
export function readJournal(path: string): JournalState | null {
  try {
    const [first, ...lines] = readFileSync(path, 'utf8').split('\n');
    const state = JSON.parse(first!) as JournalState & { format: number };
    if (state.format !== FORMAT || !Array.isArray(state.devices)) return null;
    // What stands behind the last line's end is nothing, or was being written.
    return lines.length < 2 ? state : { ...state, devices: changed(state.devices, lines.slice(0, -1)) };
  } catch {
    return null;
  }
}

function changed(devices: readonly JournalDevice[], lines: readonly string[]): JournalDevice[] {
  const byMinor = new Map(devices.map((device) => [device.minor, device]));
  for (const line of lines) {
    const change = JSON.parse(line) as Change;
    if ('device' in change) byMinor.set(change.device.minor, change.device);
    else if (byMinor.get(change.removed.minor)?.id === change.removed.id) byMinor.delete(change.removed.minor);
  }
  return [...byMinor.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** The journal of a daemon that is gone becomes the lost one: the next daemon writes its own. */
export function setJournalAside(path: string, lostPath: string): void {
  if (existsSync(path)) renameSync(path, lostPath);
}

/** The table with our devices' numbers under another major number. */
export function withMajor(table: JournalTable, from: number, to: number): JournalTable {
  if (from === to) return table;
  const pattern = new RegExp(`(?<!\\S)${from}:(\\d+)(?!\\S)`, 'g');
  const lines = table.lines.map((line) => ({ ...line, params: line.params.replace(pattern, `${to}:$1`) }));
  return { ...table, lines };
}
