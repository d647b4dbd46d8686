// The words in which requests are answered.

import type { SnapshotReport } from '../overlays/changes.ts';
import type { ClientInfo } from './core/host.ts';

export type { DeviceAddress } from './schema.ts';

/** The client that suspended a device, and when. */
export interface SuspendedBy extends Partial<ClientInfo> {
  /** Milliseconds since 1970. */
  since: number;
  /** Why it stays suspended, where no client asked for that. */
  reason: string | null;
}

/** A device as it stands. */
export interface DeviceStatus {
  name: string;
  /** `''` for none. */
  uuid: string;
  major: number;
  minor: number;
  suspended: boolean;
  /** Null where it is not suspended, or nothing is known of it. */
  suspendedBy: SuspendedBy | null;
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

/** The answer to `table`. */
export interface TableReply {
  status: DeviceStatus;
  lines: StatusLine[];
}

/** The answer to `load`. */
export interface LoadReply extends DeviceStatus {
  /** Sentences for the caller, such as a path that leads to another file now. */
  notices: string[];
}

/** The outcome of a restore for one device. */
export interface Restored {
  name: string;
  /** Why it could not be made; null where it was. */
  error: string | null;
  /** Sentences beside it: it stays suspended and why, or its store was not detached cleanly. */
  notices: string[];
}

/** A device that a daemon lost when it ended. */
export interface LostDevice {
  name: string;
  uuid: string;
  minor: number;
  /** Table lines, without newlines. */
  table: string[];
  /** Why the last restore could not make it; null where none was tried. */
  error: string | null;
}

/** What the journal lost, and where. */
export interface LostReply {
  devices: LostDevice[];
  /** Sentences about damaged records. */
  damage: string[];
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

/** The daemon that answers. */
export interface DaemonInfo {
  /** dmkit's version. */
  version: string;
  pid: number;
  major: number;
  nbdSocket: string;
  logFile: string;
}
