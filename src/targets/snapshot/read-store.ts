// A store looked at without its snapshot: what a COW holds, and nothing is written to it.
import type { BlockDevice } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import type { TargetServices } from '../../block/target.ts';
import { ExceptionTable } from './exception-table.ts';
import { readHeader, SNAP_MAGIC } from './layout.ts';
import { openStore } from './persistent-load.ts';
import { StoreError } from './store.ts';
import { SyncIo } from './sync-io.ts';

export interface StoreContents {
  chunkSectorCount: number;
  exceptions: ExceptionTable;
}

/** @throws StoreError ENXIO where the device holds no store, EIO where the store is invalid or unreadable, EINVAL where it is damaged */
export function readStore(device: BlockDevice, services: TargetServices): StoreContents {
  const io = new SyncIo(device, services);
  try {
    checkMagic(io, device);
    const exceptions = new ExceptionTable();
    // No more than a block is needed to find the chunk size: a small store may have little more.
    const block = device.limits.logicalBlockSize / SECTOR_SIZE;
    const found = openStore(io, device, block, (oldChunk, newChunk) => exceptions.add(oldChunk, newChunk));
    if (!found.valid) {
      throw new StoreError(
        Errno.EIO,
        `${device.name} says that its snapshot is invalid: what it holds is not all there`,
      );
    }
    return { chunkSectorCount: found.chunkSectorCount, exceptions };
  } finally {
    io.close();
  }
}

/** A blank device would be made a store by who opens it. */
function checkMagic(io: SyncIo, device: BlockDevice): void {
  const { logicalBlockSize } = device.limits;
  const first = new Uint8Array(logicalBlockSize);
  if (device.sectorCount > 0) io.read(0, first);
  if (readHeader(first).magic === SNAP_MAGIC) return;
  throw new StoreError(Errno.ENXIO, `${device.name} holds no store of a snapshot: it does not begin with SnAp`);
}
