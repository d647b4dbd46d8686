// What can be asked of the devices, whoever holds them: the words of the control socket, and of everything above it. They
// follow the kernel's control node (drivers/md/dm-ioctl.c), one request for each of its calls.
import type { ChangesPage, SnapshotReport } from '../reactor/snapshots.ts';
import type { TableEntry } from '../table/text.ts';

/** Which device: one of the three. */
export type DeviceAddress = { name: string } | { uuid: string } | { major: number; minor: number };

/** A device as it stands. */
export interface DeviceStatus {
  name: string;
  /** `''` for none. */
  uuid: string;
  major: number;
  minor: number;
  suspended: boolean;
  /** Of the live table; of the inactive one where that was asked for. */
  readOnly: boolean;
  deferredRemove: boolean;
  live: boolean;
  inactive: boolean;
  openCount: number;
  /** Requests that have been mapped and have not ended. */
  inFlightCount: number;
  eventNumber: number;
  /** Lines of the live table (or the inactive one); 0 without. */
  targetCount: number;
  /** In sectors; null for a device that was never loaded, for which the kernel has no node. */
  readAhead: number | null;
  sectorCount: number;
  /** Bytes. */
  logicalBlockSize: number;
  physicalBlockSize: number;
}

/** One line of a table or of its status. */
export interface StatusLine {
  sector: number;
  sectorCount: number;
  type: string;
  params: string;
}

/** A device below: `254:16` with its numbers, or an image's path. */
export interface Dependency {
  name: string;
  major?: number;
  minor?: number;
}

/** A target type. */
export interface TargetVersion {
  name: string;
  version: readonly [number, number, number];
}

/** What `table` and `status` give. */
export interface TableReply {
  status: DeviceStatus;
  lines: StatusLine[];
}

/** What became of one device of the journal. */
export interface Restored {
  name: string;
  /** Why it could not be made; null where it was. */
  error: string | null;
}

/** A snapshot line of a device's live table. */
export interface SnapshotStatus extends SnapshotReport {
  name: string;
  /** `''` for none. */
  uuid: string;
  openCount: number;
  suspended: boolean;
  /** Lines of its table. */
  targetCount: number;
  /** The origin's name where that is one of dmkit's devices. */
  originName: string | null;
}

/** Who answers. */
export interface DaemonInfo {
  /** dmkit's version. */
  version: string;
  pid: number;
  major: number;
  nbdSocket: string;
  logFile: string;
}

/** Each request: what it takes and what it gives. */
export interface Requests {
  /** Who answers. */
  daemon: [args: Record<string, never>, reply: DaemonInfo];
  targets: [args: Record<string, never>, reply: TargetVersion[]];
  /** By name, in the order of their names. */
  list: [args: Record<string, never>, reply: DeviceStatus[]];
  info: [args: { device: DeviceAddress; inactive?: boolean }, reply: DeviceStatus];
  create: [args: { name: string; uuid?: string; major?: number; minor?: number }, reply: DeviceStatus];
  load: [
    args: {
      device: DeviceAddress;
      table: TableEntry[];
      readOnly?: boolean;
      /** Where relative paths start. */
      folder?: string;
      /** /dev/mapper/NAME is the host's, not ours. */
      host?: boolean;
    },
    reply: DeviceStatus,
  ];
  clear: [args: { device: DeviceAddress }, reply: DeviceStatus];
  suspend: [args: { device: DeviceAddress; noflush?: boolean }, reply: DeviceStatus];
  resume: [args: { device: DeviceAddress; noflush?: boolean }, reply: DeviceStatus];
  remove: [args: { device: DeviceAddress; deferred?: boolean }, reply: null];
  /** Gives the names of those that are left. */
  removeAll: [args: { deferred?: boolean }, reply: string[]];
  rename: [args: { name: string; newName: string }, reply: DeviceStatus];
  setUuid: [args: { name: string; uuid: string }, reply: DeviceStatus];
  table: [args: { device: DeviceAddress; type: 'table' | 'info'; inactive?: boolean }, reply: TableReply];
  deps: [args: { device: DeviceAddress; inactive?: boolean }, reply: Dependency[]];
  /** Waits while the event number is `eventNumber`. The name of the reply is the one it had at the start. */
  wait: [args: { device: DeviceAddress; eventNumber: number }, reply: DeviceStatus];
  message: [args: { device: DeviceAddress; sector: number; text: string }, reply: string | null];
  /** `atLeast`: only where it is larger than the device's own. Null sectors: the device's own. */
  setReadAhead: [args: { device: DeviceAddress; sectorCount: number | null; atLeast?: boolean }, reply: DeviceStatus];
  /** The snapshot lines of one device, or of all. */
  snapshots: [args: { device?: DeviceAddress }, reply: SnapshotStatus[]];
  /** From `sector` on. */
  snapshotChanges: [args: { device: DeviceAddress; sector: number }, reply: ChangesPage];
  /** The names of devices that map an origin (snapshot-origin), and of those that use a COW, both as tables print them. */
  snapshotUsers: [args: { origin?: string; cow?: string }, reply: { origins: string[]; overlays: string[] }];
  /** Makes the devices of the last daemon's journal again. */
  restore: [args: Record<string, never>, reply: Restored[]];
  /** Ends the daemon. Without `force` only where nobody uses a device. */
  shutdown: [args: { force?: boolean }, reply: null];
}

export type RequestName = keyof Requests;
export type RequestArgs<Name extends RequestName> = Requests[Name][0];
export type Reply<Name extends RequestName> = Requests[Name][1];

/**
 * Somebody who can be asked. `signal` interrupts what waits (a suspend, a resume, a wait): it is undone.
 *
 * Rejects with DmError, TableError where a table is refused: the same whether the devices are in this process or not.
 */
export interface Control {
  call<Name extends RequestName>(name: Name, args: RequestArgs<Name>, signal?: AbortSignal): Promise<Reply<Name>>;
}
