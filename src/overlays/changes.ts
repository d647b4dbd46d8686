// What snapshot lines say of themselves, and where they differ from their origin.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { type ChangedExtent, type ChangesPage, changesPage } from '../targets/snapshot/changes.ts';
import { reportOf, type SnapshotReport, snapshotOf } from '../targets/snapshot/report.ts';

export type { ChangedExtent, ChangesPage } from '../targets/snapshot/changes.ts';
export type { SnapshotCondition, SnapshotCounters, SnapshotReport } from '../targets/snapshot/report.ts';

/** What the snapshot lines of a device's live table say of themselves; none for a device without any. */
export function snapshotReports(device: MappedDevice): SnapshotReport[] {
  return (device.table?.targets ?? []).flatMap((target) => reportOf(target) ?? []);
}

/**
 * A part of {@link changedExtents}, from `sector` on.
 *
 * @throws DmError EINVAL for a device without a snapshot line, EIO for a snapshot that is invalid or was handed over
 */
export function changedExtentsPage(device: MappedDevice, sector: number): ChangesPage {
  const targets = (device.table?.targets ?? []).filter((target) => snapshotOf(target) !== null);
  if (targets.length === 0) {
    throw new DmError(Errno.EINVAL, `${device.dmName} is no overlay: its table has no snapshot line`);
  }
  const target = targets.find(({ begin, sectorCount }) => begin + sectorCount > sector);
  if (target === undefined) return { extents: [], nextSector: null };
  const { state } = snapshotOf(target)!;
  if (state === null || !state.valid) {
    const why = state === null ? 'another line has its store' : 'it is invalid';
    throw new DmError(Errno.EIO, `${device.dmName}: what differs from the origin is not known: ${why}`);
  }
  const { chunkSectorCount, exceptions } = state;
  const endSector = target.begin + target.sectorCount;
  const page = changesPage(exceptions, { chunkSectorCount, startSector: target.begin, endSector }, sector);
  // The next line may be another snapshot.
  if (page.nextSector === null && target !== targets.at(-1)) page.nextSector = endSector;
  return page;
}

/**
 * Where an overlay (a device with a `snapshot` line) differs from its origin, in ascending order: what was written to it,
 * and what was copied because the origin was. In whole chunks; a chunk that was written with what it had counts. What
 * changes meanwhile may be there or not.
 *
 * @throws DmError as {@link changedExtentsPage}
 */
export async function* changedExtents(device: MappedDevice): AsyncGenerator<ChangedExtent> {
  yield* joined(async (sector) => changedExtentsPage(device, sector));
}

/** Pages to extents, joined where a page cut one. */
export async function* joined(ask: (sector: number) => Promise<ChangesPage>): AsyncGenerator<ChangedExtent> {
  let last: ChangedExtent | null = null;
  for (let sector: number | null = 0; sector !== null; ) {
    const page: ChangesPage = await ask(sector);
    for (const extent of page.extents) {
      if (last !== null && last.sector + last.sectorCount === extent.sector) {
        last.sectorCount += extent.sectorCount;
        continue;
      }
      if (last !== null) yield last;
      last = extent;
    }
    sector = page.nextSector;
  }
  if (last !== null) yield last;
}
