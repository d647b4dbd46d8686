// The devices of a daemon on disk, so that they can be made again after a crash. The file is replaced as a whole, by a
// rename, at each change: a reader finds the state before or after it, never half of one.
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { Table } from '../table/table.ts';
import type { TableEntry } from '../table/text.ts';
import { linesOf } from './status.ts';

const FORMAT = 1;

export interface JournalTable {
  readOnly: boolean;
  lines: TableEntry[];
}

export interface JournalDevice {
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

function describe(device: MappedDevice): JournalDevice {
  return {
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

/** Keeps of a lost journal what could not be restored, for another try; nothing is left of one without devices. */
export function writeLostJournal(path: string, state: JournalState): void {
  if (state.devices.length === 0) rmSync(path, { force: true });
  else replace(path, state);
}

function replace(path: string, state: JournalState): void {
  const fresh = `${path}.new`;
  writeFileSync(fresh, JSON.stringify({ format: FORMAT, ...state }), { mode: 0o600 });
  renameSync(fresh, path);
}

/** Null where there is none, or one that cannot be read. */
export function readJournal(path: string): JournalState | null {
  try {
    const state = JSON.parse(readFileSync(path, 'utf8')) as JournalState & { format: number };
    return state.format === FORMAT && Array.isArray(state.devices) ? state : null;
  } catch {
    return null;
  }
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
