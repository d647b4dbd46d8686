// A store that keeps nothing but data: chunk after chunk from 0 on, and the exceptions in memory alone, where they are gone
// with the table. Nothing is written for an exception (drivers/md/dm-snap-transient.c).
import type { BlockDevice } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { AllocationAhead, hasSectors } from './allocation.ts';
import { ChunkNumbers } from './chunk-numbers.ts';
import { type Committable, type ExceptionStore, holdNothing, StoreError, type StoreUsage } from './store.ts';

export class TransientStore implements ExceptionStore {
  readonly word = 'N';
  readonly device: BlockDevice;
  overflowAware = false;
  readonly commitCount = 0;
  chunkSectorCount: number;
  holdDevices = holdNothing;
  readonly #ahead: AllocationAhead;
  readonly #numbers = new ChunkNumbers();
  #valid = true;

  constructor(device: BlockDevice, chunkSectorCount: number) {
    this.device = device;
    this.chunkSectorCount = chunkSectorCount;
    this.#ahead = new AllocationAhead(device);
  }

  load(): boolean {
    if (this.chunkSectorCount === 0) throw new StoreError(Errno.EINVAL, 'Chunk size not set');
    return true;
  }

  allocate(isHole: boolean): number {
    const end = (this.#numbers.first + 1) * this.chunkSectorCount;
    if (!hasSectors(this.device, end)) return -1;
    if (!isHole) this.#ahead.use(end - this.chunkSectorCount, end, this.holdDevices);
    return this.#numbers.take();
  }

  commit(exception: Committable): void {
    exception.committed(this.#valid ? 0 : Errno.EIO);
  }

  abandon(newChunk: number): void {
    this.#numbers.give(newChunk);
  }

  /** No record names a chunk: each one that came back is free at once. */
  readonly isReclaimable = false;

  reclaim(done: (errno: number) => void): void {
    done(0);
  }

  hurry(): void {}

  invalidate(done: () => void): void {
    this.#valid = false;
    done();
  }

  usage(): StoreUsage {
    return {
      allocatedSectorCount: this.#numbers.next * this.chunkSectorCount,
      totalSectorCount: this.device.sectorCount,
      metadataSectorCount: 0,
    };
  }
}
