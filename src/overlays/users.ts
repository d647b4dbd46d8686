// Which devices map an origin, and which use a store.
import { statSync } from 'node:fs';
import type { BlockDevice } from '../block/block-device.ts';
import type { ControlHost } from '../control/core/host.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { mappedOriginOf, snapshotOf } from '../targets/snapshot/report.ts';

/** Both lead to the same file, by whatever path. */
function isSameFile(a: string, b: string): boolean {
  if (a === b) return true;
  if (!a.startsWith('/') || !b.startsWith('/')) return false;
  try {
    const [one, other] = [statSync(a, { bigint: true }), statSync(b, { bigint: true })];
    return one.dev === other.dev && one.ino === other.ino;
  } catch {
    return false;
  }
}

/** Devices whose live table satisfies `holds`. */
function devicesWith(host: ControlHost, holds: (device: MappedDevice) => boolean): MappedDevice[] {
  return host.mapper.list().filter(holds);
}

/** The names of the devices that map an origin (snapshot-origin), named as tables print it. */
export function mappersOf(host: ControlHost, origin: string): string[] {
  const found = devicesWith(host, ({ table }) => {
    return (table?.targets ?? []).some((target) => {
      const mapped = mappedOriginOf(target);
      return mapped !== null && isSameFile(mapped.name, origin);
    });
  });
  return found.map(({ dmName }) => dmName);
}

/** The devices that map `origin` (snapshot-origin): the very device. */
export function mappersOfDevice(host: ControlHost, origin: BlockDevice): MappedDevice[] {
  return devicesWith(host, ({ table }) => (table?.targets ?? []).some((target) => mappedOriginOf(target) === origin));
}

/** The devices whose live table uses a store: the very device. */
export function overlaysOnDevice(host: ControlHost, cow: BlockDevice): MappedDevice[] {
  return devicesWith(host, ({ table }) => (table?.targets ?? []).some((target) => snapshotOf(target)?.cow === cow));
}

/** The names of the devices whose live or waiting table uses a store, named as tables print it. */
export function overlaysOn(host: ControlHost, cow: string): string[] {
  const found = devicesWith(host, ({ table, inactiveTable }) =>
    [table, inactiveTable].some((one) =>
      one?.targets.some((target) => {
        const name = snapshotOf(target)?.cow.name;
        return name !== undefined && isSameFile(name, cow);
      }),
    ),
  );
  return found.map(({ dmName }) => dmName);
}
