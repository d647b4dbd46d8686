// Which devices map an origin, and which use a store.
import type { BlockDevice } from '../block/block-device.ts';
import type { ControlHost } from '../control/core/host.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { mappedOriginOf, snapshotOf } from '../targets/snapshot/report.ts';

/** True for the devices that an argument names, by whatever path; the path is looked up once. */
function sameAs(host: ControlHost, argument: string): (device: BlockDevice) => boolean {
  const found = argument.startsWith('/') ? (host.devices?.openAt(argument) ?? null) : null;
  return (device) => device === found || device.name === argument;
}

function devicesWith(host: ControlHost, holds: (device: MappedDevice) => boolean): MappedDevice[] {
  const found: MappedDevice[] = [];
  for (const device of host.mapper.devices()) if (holds(device)) found.push(device);
  return found;
}

function namesOf(devices: readonly MappedDevice[]): string[] {
  return devices.map(({ dmName }) => dmName).sort();
}

/** The names of the devices that map an origin (snapshot-origin), named as tables print it. */
export function mappersOf(host: ControlHost, origin: string): string[] {
  const isOrigin = sameAs(host, origin);
  return namesOf(
    devicesWith(host, ({ table }) => {
      return (table?.targets ?? []).some((target) => {
        const mapped = mappedOriginOf(target);
        return mapped !== null && isOrigin(mapped);
      });
    }),
  );
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
  const isCow = sameAs(host, cow);
  return namesOf(
    devicesWith(host, ({ table, inactiveTable }) =>
      [table, inactiveTable].some((one) =>
        one?.targets.some((target) => {
          const snapshot = snapshotOf(target);
          return snapshot !== null && isCow(snapshot.cow);
        }),
      ),
    ),
  );
}
