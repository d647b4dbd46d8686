// The journal's words: mapped devices as plain data, with the identity of each disk that their tables name.
import { randomBytes } from 'node:crypto';
import type { DiskIdentity } from '../../devices/identity.ts';
import { MappedDevice } from '../../mapper/mapped-device.ts';
import { type Table, tablePieces } from '../../table/table.ts';
import type { ClientInfo, ControlHost } from './host.ts';

/** A disk that a table names, and what it is known by. */
export interface LowerRecord {
  /** As the table prints it, unescaped. */
  argument: string;
  /** Null in journals of version 0.1, which kept none. */
  identity: DiskIdentity | null;
}

export interface TableRecord {
  readOnly: boolean;
  /** Table text in pieces of at most 64 KiB. */
  text: string[];
  lower: LowerRecord[];
}

/** The client that suspended a device, and when. */
export interface Suspension {
  client: ClientInfo | null;
  /** Milliseconds since 1970. */
  since: number;
  /** Why it stays suspended, where that was no client's wish. */
  reason: string | null;
}

export interface DeviceRecord {
  /** Of this device alone: names and minors are given again. */
  id: string;
  name: string;
  uuid: string;
  minor: number;
  suspended: boolean;
  suspension: Suspension | null;
  /** It goes when its last user does. */
  deferredRemove: boolean;
  live: TableRecord | null;
  inactive: TableRecord | null;
}

/** A merge that is under way. */
export interface MergeRecord {
  /** The overlay's name: the name under which the merge is asked for again. */
  name: string;
  /** The device that merges: the overlay itself, or the one that maps the origin, which goes on afterwards. */
  deviceId: string;
  mapsOrigin: boolean;
  cow: string;
  deleteCow: boolean;
}

/** A store's file that was kept when its overlay went. */
export interface KeptStore {
  path: string;
  /** Of the origin's identity. */
  originKey: string;
  originLabel: string;
}

/** Files that an operation makes: what it did not come to the end of is taken away at the next start. */
export interface IntentRecord {
  files: { temporary: string; path: string }[];
  /** Stores that grow, as they were. */
  grown?: { path: string; dev: string; inode: string; byteLength: number }[];
  /** The operation is for good: only the names go under which the files were made. */
  isDone?: true;
}

export const DEVICE_PREFIX = 'device/';
export const LOST_PREFIX = 'lost/';
export const MERGE_PREFIX = 'merge/';
export const STORE_PREFIX = 'store/';
export const ORIGIN_PREFIX = 'origin/';
export const INTENT_PREFIX = 'intent/';
export const UNLINK_PREFIX = 'unlink/';

const ID_BYTE_LENGTH = 8;

const ids = new WeakMap<MappedDevice, string>();

let random = Buffer.alloc(0);

/** A new random id, in hexadecimal. */
export function newId(): string {
  // Drawn many at a time: one by one they would cost more than the rest of a record.
  if (random.byteLength < ID_BYTE_LENGTH) random = randomBytes(4096);
  const id = random.toString('hex', 0, ID_BYTE_LENGTH);
  random = random.subarray(ID_BYTE_LENGTH);
  return id;
}

export function idOf(device: MappedDevice): string {
  let id = ids.get(device);
  if (id === undefined) {
    id = newId();
    ids.set(device, id);
  }
  return id;
}

/** For a device that is made again: it keeps its id. */
export function setId(device: MappedDevice, id: string): void {
  ids.set(device, id);
}

const tables = new WeakMap<Table, TableRecord>();

/** A table as the journal has it; made once, because a table says the same for as long as it lives. */
export async function describeTable(table: Table | null, host: ControlHost): Promise<TableRecord | null> {
  if (table === null) return null;
  let record = tables.get(table);
  if (record === undefined) {
    const text: string[] = [];
    for (const piece of tablePieces(table, 'table')) {
      // Others get their turn between the pieces of a long table.
      if (text.length > 0) await new Promise((resolve) => setImmediate(resolve));
      text.push(piece);
    }
    const lower = table.devices.map((device): LowerRecord => {
      if (device instanceof MappedDevice) {
        return { argument: device.name, identity: { kind: 'mapped', id: idOf(device), name: device.dmName } };
      }
      const { name } = device;
      return { argument: name, identity: host.devices?.identity(device) ?? { kind: 'program', name } };
    });
    record = { readOnly: table.readOnly, text, lower };
    tables.set(table, record);
  }
  return record;
}

export async function describeDevice(
  device: MappedDevice,
  host: ControlHost,
  suspension: Suspension | null,
): Promise<DeviceRecord> {
  const live = await describeTable(device.table, host);
  const inactive = await describeTable(device.inactiveTable, host);
  const { dmName: name, uuid, minor, suspended, deferredRemove } = device;
  return { id: idOf(device), name, uuid, minor, suspended, suspension, deferredRemove, live, inactive };
}
