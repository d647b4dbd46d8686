// The changes that a store holds, whether a device uses it or not.
import { DmError } from '../block/errors.ts';
import { type ChangedExtent, joined } from '../overlays/changes.ts';
import { changesPage } from '../targets/snapshot/changes.ts';
import { readStore } from '../targets/snapshot/read-store.ts';
import { StoreError } from '../targets/snapshot/store.ts';
import type { DeviceMapper } from './device-mapper.ts';

/**
 * The same of a COW that no table has to name, such as a file that was kept. Chunks at the origin's end are whole, because
 * the store does not know how long the origin is.
 *
 * @throws DmError ENXIO where the device holds no store, EIO where the store is invalid or unreadable, EINVAL where it is damaged
 */
export async function* changedExtentsOfStore(dm: DeviceMapper, argument: string): AsyncGenerator<ChangedExtent> {
  const device = dm.mapper.open(argument, true);
  let contents: ReturnType<typeof readStore>;
  try {
    contents = readStore(device, { reactor: dm.loop, engines: dm.devices.engines });
  } catch (error) {
    if (!(error instanceof StoreError)) throw error;
    throw new DmError(error.errno, error.message, undefined, { cause: error.cause });
  } finally {
    dm.mapper.close(device, true);
  }
  const { chunkSectorCount, exceptions } = contents;
  const range = { chunkSectorCount, startSector: 0, endSector: Number.MAX_SAFE_INTEGER };
  let lastChunk = 0;
  exceptions.forEach((chunk) => {
    lastChunk = Math.max(lastChunk, chunk);
  });
  range.endSector = (lastChunk + 1) * chunkSectorCount;
  yield* joined(async (sector) => changesPage(exceptions, range, sector));
}
