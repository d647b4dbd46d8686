// kcopyd as promises, for programs. Below here nothing knows one.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { DmIoRegion } from '../dm-io/index.ts';
import type { KcopydClient, KcopydJobHandle, KcopydNotifyFunction } from '../kcopyd/index.ts';

export interface KcopydOptions {
  /** `1 << KCOPYD_IGNORE_ERROR`, `1 << KCOPYD_WRITE_SEQ`. */
  flags?: number;
  /** Starts no more sub-jobs; what is in flight ends before the promise rejects, with ECANCELED. */
  signal?: AbortSignal;
  /** Told after each sub-job how many sectors are done, failed ones included. */
  onProgress?: (finishedSectorCount: number) => void;
}

/**
 * KcopydClient.copy as a promise: resolves when every destination has the data, rejects when a read or a write failed.
 *
 * @throws KcopydError EIO with `readErr`, `writeErr` and the causes, ECANCELED after an abort; what copy() throws
 *
 * @example
 * ```ts
 * import { DeviceMapper, KcopydClient, kcopydCopy, MemoryDevice } from 'dmkit';
 *
 * const dm = new DeviceMapper();
 * const client = new KcopydClient({ reactor: dm.loop, engines: dm.devices.engines });
 * const from = { bdev: new MemoryDevice('golden', 2048), sector: 0, count: 2048 };
 * const dests = ['a', 'b', 'c'].map((name) => ({ bdev: new MemoryDevice(name, 2048), sector: 0, count: 2048 }));
 * await kcopydCopy(client, from, dests, { onProgress: (done) => console.log(`${done} of 2048`) });
 * // prints: 1024 of 2048
 * await dm.close();
 * ```
 */
export function kcopydCopy(
  client: KcopydClient,
  from: DmIoRegion,
  dests: readonly DmIoRegion[],
  options: KcopydOptions = {},
): Promise<void> {
  return promised(options, (fn) => client.copy(from, dests, options.flags ?? 0, fn, undefined, options.onProgress));
}

/**
 * KcopydClient.zero as a promise.
 *
 * @throws as {@link kcopydCopy}
 *
 * @example
 * ```ts
 * import { DeviceMapper, KcopydClient, kcopydZero, MemoryDevice } from 'dmkit';
 *
 * const dm = new DeviceMapper();
 * const client = new KcopydClient({ reactor: dm.loop });
 * await kcopydZero(client, [{ bdev: new MemoryDevice('disk', 2048), sector: 0, count: 2048 }]);
 * await dm.close();
 * ```
 */
export function kcopydZero(
  client: KcopydClient,
  dests: readonly DmIoRegion[],
  options: KcopydOptions = {},
): Promise<void> {
  return promised(options, (fn) => client.zero(dests, options.flags ?? 0, fn, undefined, options.onProgress));
}

async function promised(options: KcopydOptions, start: (fn: KcopydNotifyFunction) => KcopydJobHandle): Promise<void> {
  const { signal } = options;
  if (signal?.aborted) throw new DmError(Errno.ECANCELED, 'the copy was cancelled before it began');
  let job: KcopydJobHandle | undefined;
  const abort = (): void => job?.cancel();
  signal?.addEventListener('abort', abort);
  try {
    await new Promise<void>((resolve, reject) => {
      job = start((_readErr, _writeErr, _context, error) => (error === null ? resolve() : reject(error)));
    });
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}
