// Which devices map an origin, and which use a store.
import type { BlockDevice } from '../block/block-device.ts';
import type { AnyTarget } from '../block/target.ts';
import type { ControlHost } from '../control/core/host.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { Table } from '../table/table.ts';
import { isMapped, mappedOrigins } from '../targets/snapshot/origin.ts';
import { mappedOriginOf, snapshotOf } from '../targets/snapshot/report.ts';

/** True for the devices that an argument names, by whatever path; the path is looked up once. */
function sameAs(host: ControlHost, argument: string): (device: BlockDevice) => boolean {
  const found = argument.startsWith('/') ? (host.devices?.openAt(argument) ?? null) : null;
  return (device) => device === found || device.name === argument;
}

/** Devices whose live table has `lower` open, in a line that satisfies `holds`. */
function devicesOn(host: ControlHost, lower: BlockDevice, holds: (target: AnyTarget) => boolean): MappedDevice[] {
  const found: MappedDevice[] = [];
  for (const device of host.mapper.devicesOn(lower)) if (hasLine(device.table, holds)) found.push(device);
  return found;
}

function hasLine(table: Table | null, holds: (target: AnyTarget) => boolean): boolean {
  // Lines of the snapshots' types keep state.
  if (table === null || table.isStateless) return false;
  for (const target of table.targets) if (holds(target)) return true;
  return false;
}

function namesOf(devices: readonly MappedDevice[]): string[] {
  return devices.map(({ dmName }) => dmName).sort();
}

/** The names of the devices that map an origin (snapshot-origin), named as tables print it. */
export function mappersOf(host: ControlHost, origin: string): string[] {
  const origins = [...mappedOrigins()];
  // Before the path is looked up: most origins of a farm are not mapped.
  if (origins.length === 0) return [];
  return namesOf(origins.filter(sameAs(host, origin)).flatMap((device) => mappersOfDevice(host, device)));
}

/** The devices that map `origin` (snapshot-origin): the very device. */
export function mappersOfDevice(host: ControlHost, origin: BlockDevice): MappedDevice[] {
  if (!isMapped(origin)) return [];
  return devicesOn(host, origin, (target) => mappedOriginOf(target) === origin);
}

/** The devices whose live table uses a store: the very device. */
export function overlaysOnDevice(host: ControlHost, cow: BlockDevice): MappedDevice[] {
  return devicesOn(host, cow, (target) => snapshotOf(target)?.cow === cow);
}

/** The names of the devices whose live or waiting table uses a store, named as tables print it. */
export function overlaysOn(host: ControlHost, cow: string): string[] {
  const isCow = sameAs(host, cow);
  const holds = (target: AnyTarget): boolean => {
    const snapshot = snapshotOf(target);
    return snapshot !== null && isCow(snapshot.cow);
  };
  const found: MappedDevice[] = [];
  for (const device of host.mapper.devices()) {
    if (hasLine(device.table, holds) || hasLine(device.inactiveTable, holds)) found.push(device);
  }
  return namesOf(found);
}
