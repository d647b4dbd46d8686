// A mapped device in the words of the control socket.
import type { BlockDevice } from '../block/block-device.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { Table } from '../table/table.ts';
import type { Suspension } from './core/records.ts';
import type { Dependency, DeviceStatus, StatusLine } from './types.ts';

/** The kernel's default, in sectors. */
const MIN_READ_AHEAD = 256;
const PAGE_SECTOR_COUNT = 8;

/** Twice the preferred request, in whole pages, and at least the default. */
function ownReadAhead(device: MappedDevice): number {
  const wanted = (2 * device.limits.ioOpt) / SECTOR_SIZE;
  return Math.max(MIN_READ_AHEAD, wholePages(wanted));
}

function wholePages(sectorCount: number): number {
  return Math.floor(sectorCount / PAGE_SECTOR_COUNT) * PAGE_SECTOR_COUNT;
}

/** Read-ahead that was set by hand: it does nothing here, but is kept and told. */
export class ReadAheads {
  readonly #byDevice = new WeakMap<MappedDevice, number>();

  get(device: MappedDevice): number | null {
    if (!device.everLoaded) return null;
    return this.#byDevice.get(device) ?? ownReadAhead(device);
  }

  /** Null: the device's own. */
  set(device: MappedDevice, sectorCount: number | null, atLeast: boolean): void {
    if (sectorCount === null) {
      this.#byDevice.delete(device);
      return;
    }
    const value = wholePages(sectorCount);
    if (!atLeast || value > ownReadAhead(device)) this.#byDevice.set(device, value);
  }
}

/** What the control plane knows of a device beside the mapper. */
export interface DeviceNotes {
  readAheads: ReadAheads;
  suspensionOf(device: MappedDevice): Suspension | null;
}

/** @param inactive tell of the inactive table instead of the live one */
export function statusOf(device: MappedDevice, notes: DeviceNotes, inactive = false): DeviceStatus {
  const { table, inactiveTable } = device;
  const told: Table | null = inactive ? inactiveTable : table;
  return {
    name: device.dmName,
    uuid: device.uuid,
    major: device.major,
    minor: device.minor,
    suspended: device.suspended,
    suspendedBy: suspendedBy(device, notes),
    readOnly: told === null ? device.readOnly : told.readOnly,
    deferredRemove: device.deferredRemove,
    live: table !== null,
    inactive: inactiveTable !== null,
    openCount: device.openCount,
    inFlightCount: device.inFlightCount,
    eventNumber: device.eventNumber,
    targetCount: told?.targets.length ?? 0,
    readAhead: notes.readAheads.get(device),
    sectorCount: device.sectorCount,
    logicalBlockSize: device.limits.logicalBlockSize,
    physicalBlockSize: device.limits.physicalBlockSize,
  };
}

function suspendedBy(device: MappedDevice, notes: DeviceNotes): DeviceStatus['suspendedBy'] {
  const suspension = notes.suspensionOf(device);
  if (suspension === null || !(device.suspended || suspension.reason !== null)) return null;
  return { ...suspension.client, since: suspension.since, reason: suspension.reason };
}

/** Lines `from` to `end` of a table, all of them unless given. */
export function linesOf(
  table: Table | null,
  type: 'table' | 'info',
  from = 0,
  end = Number.POSITIVE_INFINITY,
): StatusLine[] {
  if (table === null) return [];
  return table.targets.slice(from, end).map((target) => ({
    sector: target.begin,
    sectorCount: target.sectorCount,
    type: target.type.name,
    params: target.type.status?.(target, type) ?? '',
  }));
}

/** In reverse order of first use, as the kernel lists them. */
export function depsOf(table: Table | null): Dependency[] {
  return [...(table?.devices ?? [])].reverse().map(dependency);
}

function dependency(device: BlockDevice): Dependency {
  const numbers = /^(\d+):(\d+)$/.exec(device.name);
  if (numbers === null) return { name: device.name };
  return { name: device.name, major: Number(numbers[1]), minor: Number(numbers[2]) };
}
