// dm-io as a promise, for programs. Below here nothing knows one.
import type { DmIoRegion, DmIoRequest } from '../dm-io/index.ts';
import { endsTurn } from './turn-budget.ts';

/**
 * dmIo as a promise: resolves when every region is done, rejects when one of them failed.
 *
 * @throws DmIoError (EIO) with the error bits, the regions behind them and each one's cause; and what dmIo throws
 *
 * @example
 * ```ts
 * import { DeviceMapper, DmIoClient, DmIoError, dmIoPromise, MemoryDevice, REQ_OP_WRITE } from 'dmkit';
 *
 * const dm = new DeviceMapper();
 * const client = new DmIoClient({ reactor: dm.loop, engines: dm.devices.engines });
 * const drives = [new MemoryDevice('drive 1', 2048), new MemoryDevice('drive 2', 4)];
 * const memory = { type: 'buffer', buffer: Buffer.alloc(4096, 'x') };
 * try {
 *   await dmIoPromise({ op: REQ_OP_WRITE, memory, client }, drives.map((bdev) => ({ bdev, sector: 0, count: 8 })));
 * } catch (error) {
 *   if (error instanceof DmIoError) console.log(error.errorBits, error.failedRegions[0].cause.device); // 2n drive 2
 * }
 * ```
 */
export async function dmIoPromise(request: Omit<DmIoRequest, 'notify'>, regions: readonly DmIoRegion[]): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    let isSubmitting = true;
    const fn = (_errorBits: bigint, _context: unknown, error: Error | null): void => {
      if (error !== null) reject(error);
      else if (isSubmitting && endsTurn(regions[0]!.count)) setImmediate(resolve);
      else resolve();
    };
    const { op, flags = 0, memory, client } = request;
    // Written out and not spread: every request then has one shape, which is worth a microsecond.
    const whole = memory === undefined ? { op, flags, notify: { fn } } : { op, flags, memory, notify: { fn } };
    client.io(whole, regions);
    isSubmitting = false;
  });
}
