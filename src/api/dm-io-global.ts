// dm-io as it was first: one reserve of pages for all, and a pair of functions for each kind of memory. The kernel's own
// Documentation/admin-guide/device-mapper/dm-io.rst still describes this form.
import type { BioVec } from '../block/bio.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor } from '../block/reactor.ts';
import {
  DmIoClient,
  type DmIoMemory,
  type DmIoNotifyFunction,
  type DmIoRegion,
  type DmIoResult,
  type PageList,
  type SyncEngines,
} from '../dm-io/index.ts';
import { NodeLoop } from '../reactor/node-loop.ts';

export interface DmIoGetOptions {
  /** Calls the callbacks; Node's own loop unless given. The first get decides. */
  reactor?: Pick<Reactor, 'wake'>;
  /** The engines of the devices, for synchronous calls on files: `deviceMapper.devices.engines`. The first get decides. */
  engines?: SyncEngines;
}

/** One thread is one reactor: this is the reserve of this thread. */
let client: DmIoClient | null = null;

function checkCount(pageCount: number): void {
  if (!Number.isSafeInteger(pageCount) || pageCount < 1) {
    throw new DmError(Errno.EINVAL, `${pageCount} is no number of pages: a whole number, 1 or more`);
  }
}

function globalClient(): DmIoClient {
  if (client === null) throw new DmError(Errno.EINVAL, 'dm-io has no pages in reserve: call dmIoGet first');
  return client;
}

/**
 * Adds `pageCount` pages to what the functions of this file may have in flight. Requests that waited for pages go on.
 *
 * Source: drivers/md/dm-io.c, dm_io_get.
 *
 * @throws DmError EINVAL for what is no whole number, 1 or more
 *
 * @example
 * ```ts
 * import { dmIoGet, dmIoPut, dmIoSyncVm, MemoryDevice, REQ_OP_WRITE } from 'dmkit';
 *
 * dmIoGet(256); // 1 MiB
 * const bdev = new MemoryDevice('disk', 2048);
 * dmIoSyncVm([{ bdev, sector: 0, count: 8 }], REQ_OP_WRITE, Buffer.alloc(4096, 'x'));
 * dmIoPut(256);
 * ```
 */
export function dmIoGet(pageCount: number, options: DmIoGetOptions = {}): void {
  checkCount(pageCount);
  if (client !== null) client.resize(client.pageCount + pageCount);
  else client = new DmIoClient({ reactor: new NodeLoop(), ...options, pageCount });
}

/**
 * Takes back what a {@link dmIoGet} added. What is in flight above the new bound stays; nothing more is sent until
 * enough of it has ended. With the last page the reserve closes: requests under way run to their end, new ones are
 * refused.
 *
 * Source: drivers/md/dm-io.c, dm_io_put.
 *
 * @throws DmError EINVAL for more pages than were got, and for what is no whole number, 1 or more
 *
 * @example
 * ```ts
 * import { dmIoGet, dmIoPut } from 'dmkit';
 *
 * dmIoGet(64);
 * dmIoPut(64);
 * ```
 */
export function dmIoPut(pageCount: number): void {
  checkCount(pageCount);
  const held = client?.pageCount ?? 0;
  if (pageCount > held) {
    throw new DmError(Errno.EINVAL, `dmIoPut(${pageCount}), but dmIoGet has added only ${held} pages that are left`);
  }
  if (pageCount < held) {
    globalClient().resize(held - pageCount);
  } else {
    globalClient().close();
    client = null;
  }
}

function sync(where: readonly DmIoRegion[], op: number, memory: DmIoMemory, result: DmIoResult | undefined): number {
  return globalClient().io({ op, memory }, where, result);
}

function start<Context>(
  where: readonly DmIoRegion[],
  op: number,
  memory: DmIoMemory,
  fn: DmIoNotifyFunction<Context>,
  context: Context | undefined,
): number {
  return globalClient().io({ op, memory, notify: context === undefined ? { fn } : { fn, context } }, where);
}

/**
 * Reads one region into a list of pages, or writes it to several, and returns when that is done. The data starts at
 * byte `offset` of the first page. `op` is REQ_OP_READ, REQ_OP_WRITE …; for flags there is dmIo.
 *
 * Source: drivers/md/dm-io.c, dm_io_sync.
 *
 * @returns 0, or EIO where a region failed: `result` says which
 * @throws DmError as dmIo; EINVAL before the first {@link dmIoGet}
 *
 * @example
 * ```ts
 * import { dmIoGet, dmIoPut, dmIoSync, MemoryDevice, REQ_OP_READ } from 'dmkit';
 *
 * dmIoGet(16);
 * const pages = { page: Buffer.alloc(4096), next: { page: Buffer.alloc(4096), next: null } };
 * const result = { errorBits: 0n, error: null };
 * const bdev = new MemoryDevice('disk', 2048);
 * if (dmIoSync([{ bdev, sector: 100, count: 15 }], REQ_OP_READ, pages, 512, result) !== 0) throw result.error;
 * dmIoPut(16);
 * ```
 */
export function dmIoSync(
  where: readonly DmIoRegion[],
  op: number,
  pages: PageList,
  offset: number,
  result?: DmIoResult,
): number {
  return sync(where, op, { type: 'page-list', pages, offset }, result);
}

/**
 * As {@link dmIoSync}, with bio vectors for memory.
 *
 * Source: drivers/md/dm-io.c, dm_io_sync_bvec.
 *
 * @example
 * ```ts
 * import { dmIoGet, dmIoPut, dmIoSyncBvec, MemoryDevice, REQ_OP_WRITE } from 'dmkit';
 *
 * dmIoGet(16);
 * const header = Buffer.alloc(512, 'h');
 * const body = Buffer.alloc(4096, 'b');
 * const vecs = [
 *   { page: header, offset: 0, byteLength: 512 },
 *   { page: body, offset: 1024, byteLength: 1024 },
 * ];
 * const bdev = new MemoryDevice('disk', 2048);
 * dmIoSyncBvec([{ bdev, sector: 0, count: 3 }], REQ_OP_WRITE, vecs); // 0
 * dmIoPut(16);
 * ```
 */
export function dmIoSyncBvec(
  where: readonly DmIoRegion[],
  op: number,
  vecs: readonly BioVec[],
  result?: DmIoResult,
): number {
  return sync(where, op, { type: 'bvec', vecs }, result);
}

/**
 * As {@link dmIoSync}, with one contiguous buffer for memory.
 *
 * Source: drivers/md/dm-io.c, dm_io_sync_vm.
 *
 * @example
 * ```ts
 * import { dmIoGet, dmIoPut, dmIoSyncVm, MemoryDevice, REQ_OP_WRITE } from 'dmkit';
 *
 * dmIoGet(16);
 * const bdev = new MemoryDevice('disk', 2048);
 * dmIoSyncVm([{ bdev, sector: 0, count: 8 }], REQ_OP_WRITE, Buffer.alloc(4096, 'x')); // 0
 * dmIoPut(16);
 * ```
 */
export function dmIoSyncVm(where: readonly DmIoRegion[], op: number, buffer: Uint8Array, result?: DmIoResult): number {
  return sync(where, op, { type: 'buffer', buffer }, result);
}

/**
 * Starts what {@link dmIoSync} does. `fn(errorBits, context, error)` is called once, later.
 *
 * Source: drivers/md/dm-io.c, dm_io_async.
 *
 * @returns 0
 * @throws DmError as dmIo; `fn` is not called then
 *
 * @example
 * ```ts
 * import { dmIoAsync, dmIoGet, dmIoPut, MemoryDevice, REQ_OP_READ } from 'dmkit';
 *
 * dmIoGet(16);
 * const bdev = new MemoryDevice('disk', 2048);
 * const pages = { page: Buffer.alloc(4096), next: null };
 * const where = [{ bdev, sector: 0, count: 8 }];
 * dmIoAsync(where, REQ_OP_READ, pages, 0, (errorBits, context) => console.log(context, errorBits), 'page 1'); // page 1 0n
 * dmIoPut(16);
 * ```
 */
export function dmIoAsync<Context>(
  where: readonly DmIoRegion[],
  op: number,
  pages: PageList,
  offset: number,
  fn: DmIoNotifyFunction<Context>,
  context?: Context,
): number {
  return start(where, op, { type: 'page-list', pages, offset }, fn, context);
}

/**
 * Starts what {@link dmIoSyncBvec} does; the rest as {@link dmIoAsync}.
 *
 * Source: drivers/md/dm-io.c, dm_io_async_bvec.
 *
 * @example
 * ```ts
 * import { dmIoAsyncBvec, dmIoGet, dmIoPut, MemoryDevice, REQ_OP_READ } from 'dmkit';
 *
 * dmIoGet(16);
 * const bdev = new MemoryDevice('disk', 2048);
 * const vecs = [{ page: Buffer.alloc(4096), offset: 0, byteLength: 4096 }];
 * dmIoAsyncBvec([{ bdev, sector: 0, count: 8 }], REQ_OP_READ, vecs, (errorBits) => console.log(errorBits)); // 0n
 * dmIoPut(16);
 * ```
 */
export function dmIoAsyncBvec<Context>(
  where: readonly DmIoRegion[],
  op: number,
  vecs: readonly BioVec[],
  fn: DmIoNotifyFunction<Context>,
  context?: Context,
): number {
  return start(where, op, { type: 'bvec', vecs }, fn, context);
}

/**
 * Starts what {@link dmIoSyncVm} does; the rest as {@link dmIoAsync}.
 *
 * Source: drivers/md/dm-io.c, dm_io_async_vm.
 *
 * @example
 * ```ts
 * import { dmIoAsyncVm, dmIoGet, dmIoPut, MemoryDevice, REQ_OP_READ } from 'dmkit';
 *
 * dmIoGet(16);
 * const bdev = new MemoryDevice('disk', 2048);
 * dmIoAsyncVm([{ bdev, sector: 0, count: 8 }], REQ_OP_READ, Buffer.alloc(4096), (errorBits) => console.log(errorBits));
 * dmIoPut(16);
 * ```
 */
export function dmIoAsyncVm<Context>(
  where: readonly DmIoRegion[],
  op: number,
  buffer: Uint8Array,
  fn: DmIoNotifyFunction<Context>,
  context?: Context,
): number {
  return start(where, op, { type: 'buffer', buffer }, fn, context);
}
