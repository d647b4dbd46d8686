// The requests about snapshots: what they say, what differs from their origins, and who uses what.
import { statSync } from 'node:fs';
import type { BlockDevice } from '../block/block-device.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { Mapper } from '../mapper/mapper.ts';
import { changedExtentsPage, snapshotReports } from '../reactor/snapshots.ts';
import { mappedOriginOf, snapshotOf } from '../targets/snapshot/report.ts';
import type { DeviceAddress, Reply, RequestArgs, SnapshotStatus } from './control.ts';

type SnapshotRequest = 'snapshots' | 'snapshotChanges' | 'snapshotUsers';

function statusesOf(device: MappedDevice, mapper: Mapper): SnapshotStatus[] {
  const { dmName, uuid, openCount, suspended, table } = device;
  return snapshotReports(device).map((report) => ({
    name: dmName,
    uuid,
    openCount,
    suspended,
    targetCount: table!.targets.length,
    originName: nameOf(report.origin, mapper),
    ...report,
  }));
}

/** `252:3` by its name, where it is one of ours. */
function nameOf(printed: string, mapper: Mapper): string | null {
  const [major, minor] = printed.split(':');
  if (Number(major) !== mapper.major) return null;
  return mapper.getByNumber(mapper.major, Number(minor)).dmName;
}

/** Both lead to the same file, by whatever path. */
function isSameFile(a: string, b: string): boolean {
  if (a === b) return true;
  if (!a.startsWith('/') || !b.startsWith('/')) return false;
  try {
    const [one, other] = [statSync(a), statSync(b)];
    return one.dev === other.dev && one.ino === other.ino;
  } catch {
    return false;
  }
}

/** Devices whose live or waiting table satisfies `holds`. */
function devicesWith(mapper: Mapper, holds: (device: MappedDevice) => boolean | undefined): string[] {
  const names: string[] = [];
  for (const device of mapper.list()) if (holds(device)) names.push(device.dmName);
  return names;
}

function hasOriginLine(device: MappedDevice, origin: string): boolean {
  const targets = device.table?.targets ?? [];
  return targets.some((target) => {
    const mapped: BlockDevice | null = mappedOriginOf(target);
    return mapped !== null && isSameFile(mapped.name, origin);
  });
}

/** The handlers, for {@link LocalControl}. */
export function snapshotHandlers(
  mapper: Mapper,
  find: (address: DeviceAddress) => MappedDevice,
): { [Name in SnapshotRequest]: (args: RequestArgs<Name>) => Reply<Name> } {
  return {
    snapshots: ({ device }) =>
      (device === undefined ? mapper.list() : [find(device)]).flatMap((one) => statusesOf(one, mapper)),
    snapshotChanges: ({ device, sector }) => changedExtentsPage(find(device), sector),
    snapshotUsers: ({ origin, cow }) => ({
      origins: origin === undefined ? [] : devicesWith(mapper, (device) => hasOriginLine(device, origin)),
      overlays:
        cow === undefined
          ? []
          : devicesWith(mapper, ({ table }) => table?.targets.some((target) => snapshotOf(target)?.cow.name === cow)),
    }),
  };
}
