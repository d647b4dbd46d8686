// What the threads of an NBD server have to know, and which devices can be served by several of them.

import type { DeviceMapper } from '../api/device-mapper.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { HeldFile } from '../devices/index.ts';
import { MappedDevice } from '../mapper/mapped-device.ts';
import type { NbdTlsOptions } from './tls.ts';

/** Every thread builds its own table. A longer one takes too much memory and time for that. */
const MAX_TARGET_COUNT = 65_536;

/** A mapped device to be built again; those below come first. */
export interface PlannedDevice {
  readonly name: string;
  readonly minor: number;
  readonly lines: readonly string[];
  readonly readOnly: boolean;
}

/** What a thread is started with. */
export interface ThreadPlan {
  readonly devices: readonly PlannedDevice[];
  readonly files: readonly HeldFile[];
  /** The devices that are exports, by their names. */
  readonly names: readonly string[];
  readonly descriptions: Readonly<Record<string, string>>;
  readonly readOnly: boolean;
  readonly tls: NbdTlsOptions | null;
  readonly maxServerByteLength: number;
  readonly threadIndex: number;
  readonly threadCount: number;
  /** For each name the memory of its gate. */
  readonly gates: readonly SharedArrayBuffer[];
  /** Where the thread says that it holds still. */
  readonly held: Int32Array;
}

export type ToThread =
  /** A connection by its descriptor, which is the thread's from now on. */
  | { readonly kind: 'connection'; readonly fd: number; readonly peer: string }
  | { readonly kind: 'stop' }
  /** The process ends. */
  | { readonly kind: 'hold' };

export type FromThread =
  | { readonly kind: 'ready' }
  /** It can't serve these devices. */
  | { readonly kind: 'unable'; readonly reason: string }
  /** A connection that it was given has completed its handshake. */
  | { readonly kind: 'established' }
  /** A connection that it was given is no more. */
  | { readonly kind: 'gone'; readonly wasEstablished: boolean }
  | { readonly kind: 'error'; readonly error: Error; readonly isMalformed: boolean; readonly peer: string }
  | ({ readonly kind: 'stopped' } & ThreadEnd);

/** How a thread has stopped. */
export interface ThreadEnd {
  /** Why not as it should have; null where it did. */
  readonly reason: string | null;
  /** It has nothing open any more. Where that is not so, requests of it may still change what is below. */
  readonly hasEnded: boolean;
}

/** The devices that `names` need, in an order in which they can be built. */
export interface Graph {
  readonly devices: readonly MappedDevice[];
  readonly files: readonly HeldFile[];
}

/**
 * What lies below mapped devices, where every thread can have it for itself: image files and block devices, below lines
 * that keep no state.
 *
 * @returns the reason where it can't be so
 */
export function graphOf(dm: DeviceMapper, names: readonly string[]): Graph | string {
  const devices = new Set<MappedDevice>();
  /** By their names: the threads know them by nothing else. */
  const files = new Map<string, HeldFile>();
  let targetCount = 0;
  const visit = (device: BlockDevice): string | null => {
    if (!(device instanceof MappedDevice)) {
      const held = dm.devices.heldFile(device);
      if (held === null) return `${device.name} is a device of this thread alone`;
      const other = files.get(held.name);
      // The first was moved away before the second was opened.
      if (other !== undefined && other.key !== held.key) return `two files are named ${held.name}`;
      files.set(held.name, held);
      return null;
    }
    if (devices.has(device)) return null;
    const { table } = device;
    if (device.pinned !== null) return `${device.label}: ${device.pinned}`;
    if (table === null || device.suspended) return `${device.label} is suspended or has no table`;
    // It would become the live one here, and nowhere else.
    if (device.inactiveTable !== null) return `${device.label} has a table that waits for a resume`;
    if (device.building.size > 0) return `${device.label} is being given a table`;
    if (device.isChanging) return `${device.label} is being suspended, resumed or removed`;
    targetCount += table.targets.length;
    if (targetCount > MAX_TARGET_COUNT) return `there are more than ${MAX_TARGET_COUNT} lines`;
    for (const { type } of table.targets) if (type.stateless !== true) return `${device.label} has a ${type.name} line`;
    for (const lower of table.devices) {
      const reason = visit(lower);
      if (reason !== null) return reason;
    }
    devices.add(device);
    return null;
  };
  for (const name of names) {
    const reason = visit(dm.mapper.get(name));
    if (reason !== null) return reason;
  }
  return { devices: [...devices], files: [...files.values()] };
}

/** As a thread builds it again. */
export function planDevice(device: MappedDevice): PlannedDevice {
  return { name: device.dmName, minor: device.minor, lines: device.lines('table'), readOnly: device.readOnly };
}
