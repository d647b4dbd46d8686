// The modern entry of dm-io: one function, one request object (drivers/md/dm-io.c, dm_io).
import type { DmIoRegion, DmIoRequest, DmIoResult } from './types.ts';

/**
 * Reads one region, or writes the same data to as many as 64.
 *
 * With `request.notify` the request is started and `notify.fn` called once, later, by the reactor. Without, it has ended
 * when this returns, and `result` says what failed. All regions are attempted, whatever fails in others; their order is
 * open. A write that has ended is durable only after a flush, or with REQ_FUA.
 *
 * - Discard, write-zeroes: no memory; a device that can't do it has its region's bit set, the others go on.
 * - Several devices are flushed by a write with REQ_PREFLUSH on regions of count 0.
 * - A read (or REQ_OP_FLUSH) takes one region; with more nothing is done: EIO, and a callback gets 1n.
 * - A region that reaches past its device's end fails as a region, at the end; bios before that one are transferred.
 * - Where a read fails, the bio that failed (1 MiB at the most) leaves zeroes in its memory.
 *
 * Source: drivers/md/dm-io.c.
 *
 * @returns 0; or EIO (5) where a synchronous request failed in a region, whatever the reason there is
 * @throws DmError EINVAL, before any I/O: more than 64 regions, no range of sectors, memory that is too short, an
 * offset that is no multiple of 512 or not within the first page, no such operation
 * @throws DmError EFAULT, before any I/O: memory that was transferred away, or may move or shrink (resizable, WebAssembly's)
 * @throws DmError ESHUTDOWN: the client was closed
 * @throws DmError DM_WOULD_DEADLOCK: a synchronous request that only the event loop, a resume or user code could end
 *
 * @example
 * ```ts
 * import { DmIoClient, dmIo, MemoryDevice, NodeLoop, REQ_OP_WRITE } from 'dmkit';
 *
 * const client = new DmIoClient({ reactor: new NodeLoop() });
 * const mirrors = [new MemoryDevice('a', 2048), new MemoryDevice('b', 2048), new MemoryDevice('short', 8)];
 * const result = { errorBits: 0n, error: null };
 * const errno = dmIo(
 *   { op: REQ_OP_WRITE, memory: { type: 'buffer', buffer: Buffer.alloc(4096, 'x') }, client },
 *   mirrors.map((bdev) => ({ bdev, sector: 64, count: 8 })),
 *   result,
 * );
 * console.log(errno, result.errorBits.toString(2)); // 5 100
 * console.log(`${result.error}`); // DmIoError: write failed in 1 of 3 regions: region 2 (short, sector 64: Input/output error)
 * ```
 */
export function dmIo<Context>(
  request: DmIoRequest<Context>,
  regions: readonly DmIoRegion[],
  result?: DmIoResult,
): number {
  return request.client.io(request, regions, result);
}
