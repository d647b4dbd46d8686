// Metadata that a constructor reads and writes: through synchronous dm-io, as in the kernel.
import { REQ_FUA, REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES, REQ_PREFLUSH } from '../../block/bio.ts';
import type { BlockDevice } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import type { TargetServices } from '../../block/target.ts';
import { DmIoClient, type DmIoMemory } from '../../dm-io/index.ts';
import { StoreError } from './store.ts';

/** Zeroes go out in pieces of this size where the device has no write-zeroes. */
const ZERO_SECTOR_COUNT = 2048;

/** Requests on one device that have ended when the call returns. */
export class SyncIo {
  readonly #client: DmIoClient;
  readonly #device: BlockDevice;

  constructor(device: BlockDevice, services: TargetServices) {
    const { reactor, engines } = services;
    this.#device = device;
    this.#client = new DmIoClient(engines === undefined ? { reactor } : { reactor, engines });
  }

  /** @throws StoreError */
  read(sector: number, bytes: Uint8Array): void {
    this.#io(REQ_OP_READ, 0, sector, bytes.byteLength / SECTOR_SIZE, { type: 'buffer', buffer: bytes });
  }

  /** @throws StoreError */
  write(sector: number, bytes: Uint8Array, flushFirst: boolean): void {
    const flags = flushFirst ? REQ_PREFLUSH | REQ_FUA : 0;
    this.#io(REQ_OP_WRITE, flags, sector, bytes.byteLength / SECTOR_SIZE, { type: 'buffer', buffer: bytes });
  }

  /** @throws StoreError */
  zero(sector: number, sectorCount: number): void {
    if (this.#device.limits.maxWriteZeroesSectorCount > 0) {
      this.#io(REQ_OP_WRITE_ZEROES, 0, sector, sectorCount);
      return;
    }
    const zeroes = new Uint8Array(Math.min(sectorCount, ZERO_SECTOR_COUNT) * SECTOR_SIZE);
    for (let done = 0; done < sectorCount; done += ZERO_SECTOR_COUNT) {
      const count = Math.min(ZERO_SECTOR_COUNT, sectorCount - done);
      this.write(sector + done, zeroes.subarray(0, count * SECTOR_SIZE), false);
    }
  }

  close(): void {
    this.#client.close();
  }

  #io(op: number, flags: number, sector: number, count: number, memory?: DmIoMemory): void {
    const region = { bdev: this.#device, sector, count };
    const result = { errorBits: 0n, error: null as Error | null };
    let errno: number;
    try {
      errno = this.#client.io(memory === undefined ? { op, flags } : { op, flags, memory }, [region], result as never);
    } catch (error) {
      // Refused, not failed: nothing but the event loop could end it, and a constructor can't wait for that.
      if (error instanceof DmError) throw new StoreError(error.errno || Errno.EDEADLK, error.message, { cause: error });
      throw error;
    }
    if (errno !== 0) throw new StoreError(errno, result.error?.message ?? 'failed', { cause: result.error });
  }
}
