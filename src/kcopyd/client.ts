// A kcopyd client: its pages, its jobs, and the I/O of their parts (drivers/md/dm-kcopyd.c).
import { REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../block/bio.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor } from '../block/reactor.ts';
import { PAGE_SECTOR_COUNT, SECTOR_SIZE } from '../block/sector.ts';
import { DmIoClient, type DmIoError, type DmIoMemory, type DmIoRegion, type SyncEngines } from '../dm-io/index.ts';
import {
  DEFAULT_SPLIT_COUNT,
  DEFAULT_SUB_JOB_SECTOR_COUNT,
  MAX_KCOPYD_REGION_COUNT,
  MAX_SPLIT_COUNT,
  MAX_SUB_JOB_SECTOR_COUNT,
  MAX_THROTTLE_SLEEP_COUNT,
  THROTTLE_SLEEP_MILLISECONDS,
} from './bounds.ts';
import { checkRequest, orderOf } from './check.ts';
import { Completions } from './completions.ts';
import { KcopydError } from './error.ts';
import { CopyJob, type JobSetup, SubJob } from './job.ts';
import { PageSlab } from './pages.ts';
import { runSync } from './sync.ts';
import type { KcopydThrottle } from './throttle.ts';
import type { KcopydJobHandle, KcopydNotifyFunction, KcopydResult } from './types.ts';
import { zeroMemory } from './zeroes.ts';

export interface KcopydClientOptions {
  /** Calls the callbacks, and wakes a throttled client. */
  reactor: Pick<Reactor, 'wake' | 'now' | 'after'>;
  /** Pages of 4096 bytes set aside, and all that is ever used; those of `splitCount` sub-jobs (4 MiB) unless given. */
  pageCount?: number;
  /** Sectors of a sub-job: a multiple of 8 up to 2048; 1024 unless given. */
  subJobSectorCount?: number;
  /** Sub-jobs of one job that are under way at a time; 8 unless given. */
  splitCount?: number;
  /** May be shared by several clients. */
  throttle?: KcopydThrottle;
  /** For synchronous calls on files: `deviceMapper.devices.engines`. */
  engines?: SyncEngines;
  /**
   * Callbacks are called where the last bio ends: inside copy(), or inside somebody's synchronous call. Still one at a
   * time, in order. For code that is itself a layer of the stack, such as a target, and for nothing else.
   */
  immediate?: boolean;
}

/** A prepared callback: to be given to doCallback, once. */
export interface PreparedCallback {
  readonly fn: KcopydNotifyFunction;
  readonly context: unknown;
}

function wholeNumber(value: number, least: number, most: number, what: string): number {
  if (Number.isSafeInteger(value) && value >= least && value <= most) return value;
  throw new DmError(Errno.EINVAL, `kcopyd: ${value} is no ${what}: a whole number from ${least} to ${most}`);
}

function subJobSectorCountOf(options: KcopydClientOptions): number {
  const count = options.subJobSectorCount ?? DEFAULT_SUB_JOB_SECTOR_COUNT;
  wholeNumber(count, PAGE_SECTOR_COUNT, MAX_SUB_JOB_SECTOR_COUNT, 'size of a sub-job in sectors');
  if (count % PAGE_SECTOR_COUNT === 0) return count;
  throw new DmError(Errno.EINVAL, `kcopyd: a sub-job of ${count} sectors is no whole number of pages (8 sectors each)`);
}

/**
 * Copies one region to as many as 8, through pages of its own.
 *
 * @example
 * ```ts
 * import { KcopydClient, MemoryDevice, NodeLoop } from 'dmkit';
 *
 * const client = new KcopydClient({ reactor: new NodeLoop() });
 * const from = { bdev: new MemoryDevice('source', 4096), sector: 0, count: 4096 };
 * const dests = [{ bdev: new MemoryDevice('copy', 4096), sector: 0, count: 4096 }];
 * client.copy(from, dests, 0, (readErr, writeErr) => console.log(readErr, writeErr)); // 0 0
 * client.destroy(() => console.log('all told'));
 * ```
 */
export class KcopydClient {
  readonly subJobSectorCount: number;
  readonly splitCount: number;
  readonly #reactor: KcopydClientOptions['reactor'];
  readonly #io: DmIoClient;
  readonly #engines: SyncEngines | undefined;
  readonly #slab: PageSlab;
  readonly #throttle: KcopydThrottle | null;
  readonly #completions: Completions;
  #destroyed = false;
  // Jobs with parts to start; each gets its turn for one part, then goes to the end.
  #head: CopyJob | null = null;
  #tail: CopyJob | null = null;
  #pumping = false;
  /** A synchronous copy waits for pages. */
  #held = false;
  readonly #prepared = new Set<PreparedCallback>();
  /** Parts that a throttle holds back, in order. */
  readonly #throttled: SubJob[] = [];
  /** A timer runs for the first of them. */
  #sleeping = false;
  readonly #onIoEnd = (subJob: SubJob, error: DmIoError | null): void => this.#ioEnded(subJob, error);

  /** @throws DmError EINVAL for numbers out of range, and for fewer pages than one sub-job takes */
  constructor(options: KcopydClientOptions) {
    this.subJobSectorCount = subJobSectorCountOf(options);
    this.splitCount = wholeNumber(options.splitCount ?? DEFAULT_SPLIT_COUNT, 1, MAX_SPLIT_COUNT, 'number of sub-jobs');
    const subJobPageCount = this.subJobSectorCount / PAGE_SECTOR_COUNT;
    const pageCount = options.pageCount ?? subJobPageCount * this.splitCount;
    wholeNumber(pageCount, subJobPageCount, 2 ** 31 - 1, 'number of pages');
    this.#slab = new PageSlab(pageCount);
    this.#reactor = options.reactor;
    this.#engines = options.engines;
    this.#throttle = options.throttle ?? null;
    const immediate = options.immediate ?? false;
    this.#completions = new Completions(options.reactor, immediate);
    this.#io = new DmIoClient({
      reactor: options.reactor,
      // The slab is the bound. dm-io counts a page once for each destination.
      pageCount: pageCount * MAX_KCOPYD_REGION_COUNT,
      ...(options.engines === undefined ? {} : { engines: options.engines }),
      ...(immediate ? { turnBioCount: Number.POSITIVE_INFINITY } : {}),
    });
  }

  /** Pages set aside. */
  get pageCount(): number {
    return this.#slab.pageCount;
  }

  /** Pages in use now. */
  get usedPageCount(): number {
    return this.#slab.usedCount;
  }

  /** The most that were in use at one time. */
  get pageHighWater(): number {
    return this.#slab.highWater;
  }

  /** Jobs and prepared callbacks that have not been told yet. */
  get unfinishedCount(): number {
    return this.#completions.unfinishedCount;
  }

  /** Why a job could not end inside a synchronous call, devices aside; null where it could. For TargetType.syncObstacle. */
  syncObstacle(): string | null {
    return this.#throttle?.active || this.#throttled.length > 0 ? 'kcopyd is throttled, and waits for a timer' : null;
  }

  /**
   * Starts to copy `from` to each of `dests`, which have as many sectors. `fn(readErr, writeErr, context, error)` is
   * called once, later.
   *
   * Sub-jobs are started in ascending order, several at a time; each is read whole and then written to all
   * destinations. After the first error no more are started; with `1 << KCOPYD_IGNORE_ERROR` all are, and what could not
   * be read is written as zeroes. With `1 << KCOPYD_WRITE_SEQ` writes go one after the other, and errors are not ignored.
   * A destination that overlaps the source on the same device object gets what the source held before (memmove). Nothing
   * is flushed: what has ended is not durable yet.
   *
   * `onProgress` is told after each sub-job how many sectors are done, failed ones included. It may be called inside this
   * call, and inside somebody's synchronous call: it must do no more than write things down.
   *
   * Source: drivers/md/dm-kcopyd.c, dm_kcopyd_copy.
   *
   * @throws DmError EINVAL, before any I/O: no or more than 8 destinations, unequal counts, unknown flags, what is no
   * range of sectors, overlaps that no order of copying can serve; ESHUTDOWN after destroy()
   *
   * @example
   * ```ts
   * import { KCOPYD_IGNORE_ERROR, KcopydClient, MemoryDevice, NodeLoop } from 'dmkit';
   *
   * const client = new KcopydClient({ reactor: new NodeLoop() });
   * const from = { bdev: new MemoryDevice('source', 64), sector: 0, count: 128 }; // past the end
   * const dests = [{ bdev: new MemoryDevice('copy', 128), sector: 0, count: 128 }];
   * client.copy(from, dests, 1 << KCOPYD_IGNORE_ERROR, (readErr, writeErr, name) => console.log(name, readErr, writeErr), 'job'); // job 1 0
   * client.destroy(() => {});
   * ```
   */
  copy<Context>(
    from: DmIoRegion,
    dests: readonly DmIoRegion[],
    flags: number,
    fn: KcopydNotifyFunction<Context>,
    context?: Context,
    onProgress?: (finishedSectorCount: number) => void,
  ): KcopydJobHandle {
    return this.#start(from, dests, flags, fn as KcopydNotifyFunction, context, onProgress);
  }

  /**
   * Starts to fill `dests`, which have the same number of sectors, with zeroes: by write-zeroes where every device can,
   * else by writes. Uses no pages. The rest as {@link copy}.
   *
   * Source: drivers/md/dm-kcopyd.c, dm_kcopyd_zero.
   *
   * @example
   * ```ts
   * import { KcopydClient, MemoryDevice, NodeLoop } from 'dmkit';
   *
   * const client = new KcopydClient({ reactor: new NodeLoop() });
   * const disk = new MemoryDevice('disk', 2048);
   * client.zero([{ bdev: disk, sector: 8, count: 1024 }], 0, (_readErr, writeErr) => console.log(writeErr)); // 0
   * client.destroy(() => {});
   * ```
   */
  zero<Context>(
    dests: readonly DmIoRegion[],
    flags: number,
    fn: KcopydNotifyFunction<Context>,
    context?: Context,
    onProgress?: (finishedSectorCount: number) => void,
  ): KcopydJobHandle {
    return this.#start(null, dests, flags, fn as KcopydNotifyFunction, context, onProgress);
  }

  /**
   * The same as {@link copy}, done at the return; `from` null fills with zeroes. Not throttled.
   *
   * @returns 0, or EIO where something failed: `result` says what
   * @throws DmError as copy(); DM_WOULD_DEADLOCK where only the event loop, a timer, a resume or user code could end it,
   * before any I/O where a device says so
   *
   * @example
   * ```ts
   * import { KcopydClient, MemoryDevice, NodeLoop } from 'dmkit';
   *
   * const client = new KcopydClient({ reactor: new NodeLoop() });
   * const from = { bdev: new MemoryDevice('source', 4096), sector: 0, count: 4096 };
   * const dests = [{ bdev: new MemoryDevice('copy', 4096), sector: 0, count: 4096 }];
   * console.log(client.copySync(from, dests)); // 0
   * client.destroy(() => {});
   * ```
   */
  copySync(from: DmIoRegion | null, dests: readonly DmIoRegion[], flags = 0, result?: KcopydResult): number {
    const job = new CopyJob(this.#setup(from, dests, flags), () => {}, null);
    this.#held = true;
    try {
      const obstacle = this.#throttle?.active ? 'the client is throttled, which a timer would have to end' : null;
      runSync(job, { io: this.#io, engines: this.#engines, slab: this.#slab, obstacle });
    } finally {
      this.#held = false;
      this.#pump();
    }
    const error = job.conclude();
    if (result !== undefined) {
      result.readErr = job.readErr;
      result.writeErr = job.writeErr;
      result.error = error;
    }
    return error === null ? 0 : Errno.EIO;
  }

  /**
   * Sets a callback aside, for work that is not kcopyd's but is to be told in its order. {@link destroy} waits for it.
   *
   * @example
   * ```ts
   * import { KcopydClient, NodeLoop } from 'dmkit';
   *
   * const client = new KcopydClient({ reactor: new NodeLoop() });
   * const prepared = client.prepareCallback((readErr, writeErr, name) => console.log(name, readErr, writeErr), 'mine');
   * client.doCallback(prepared, 0, 1); // mine 0 1, after what has ended before
   * client.destroy(() => {});
   * ```
   */
  prepareCallback<Context>(fn: KcopydNotifyFunction<Context>, context?: Context): PreparedCallback {
    this.#checkAlive();
    const prepared: PreparedCallback = { fn: fn as KcopydNotifyFunction, context };
    this.#prepared.add(prepared);
    this.#completions.expect();
    return prepared;
  }

  /** Has a prepared callback called, behind what has ended before. @throws DmError EINVAL for one that is not waiting */
  doCallback(prepared: PreparedCallback, readErr: number, writeErr: number): void {
    if (!this.#prepared.delete(prepared)) {
      throw new DmError(Errno.EINVAL, 'kcopyd: this callback was not prepared by this client, or was called already');
    }
    const failed = readErr !== 0 || writeErr !== 0;
    const error = failed ? new KcopydError(readErr, writeErr, null, [], false) : null;
    this.#completions.tell(() => prepared.fn(readErr, writeErr, prepared.context, error));
  }

  /**
   * Refuses jobs from now on, and calls `done` (from the reactor) when every callback has returned, prepared ones
   * included.
   */
  destroy(done: () => void): void {
    this.#destroyed = true;
    this.#completions.whenIdle(() => {
      this.#io.close();
      done();
    });
  }

  #checkAlive(): void {
    if (this.#destroyed) throw new DmError(Errno.ESHUTDOWN, 'this kcopyd client was destroyed');
  }

  #setup(from: DmIoRegion | null, dests: readonly DmIoRegion[], flags: number): JobSetup {
    this.#checkAlive();
    checkRequest(from, dests, flags);
    const order = orderOf(from, dests, flags);
    const { subJobSectorCount, splitCount } = this;
    return { from, dests, flags, order, subJobSectorCount, splitCount };
  }

  #start(
    from: DmIoRegion | null,
    dests: readonly DmIoRegion[],
    flags: number,
    fn: KcopydNotifyFunction,
    context: unknown,
    onProgress: ((finishedSectorCount: number) => void) | undefined,
  ): CopyJob {
    const job = new CopyJob(this.#setup(from, dests, flags), fn, context);
    job.onProgress = onProgress ?? null;
    if (from === null) job.zeroOperation = zeroOperationOf(job.dests);
    this.#completions.expect();
    if (job.count === 0) this.#tell(job);
    else this.#enqueue(job);
    this.#pump();
    return job;
  }

  // Starting parts

  #enqueue(job: CopyJob): void {
    job.queued = true;
    job.next = null;
    if (this.#tail === null) this.#head = job;
    else this.#tail.next = job;
    this.#tail = job;
  }

  #dequeue(): void {
    const job = this.#head!;
    this.#head = job.next;
    if (this.#head === null) this.#tail = null;
    job.next = null;
    job.queued = false;
  }

  /** Starts what there are pages for, one part of each job in turn. */
  #pump(): void {
    // Not reentrant: parts that end at once come back here.
    if (this.#pumping || this.#held) return;
    this.#pumping = true;
    try {
      for (let job = this.#head; job !== null; job = this.#head) {
        if (job.exhausted) {
          this.#dequeue();
          this.#endIfLast(job);
        } else if (!this.#startPart(job)) {
          return;
        }
      }
    } finally {
      this.#pumping = false;
    }
  }

  /** @returns false where there are not enough pages */
  #startPart(job: CopyJob): boolean {
    const count = job.nextSectorCount;
    const pageCount = job.from === null ? 0 : Math.ceil(count / PAGE_SECTOR_COUNT);
    // The first in the queue waits for its pages, and the others behind it: nobody is passed for ever.
    if (pageCount > this.#slab.freeCount) return false;
    this.#dequeue();
    const subJob = job.idle.pop() ?? new SubJob(job, this.#onIoEnd);
    job.startPart(subJob, count);
    if (pageCount > 0) subJob.pages = this.#slab.take(pageCount);
    job.activeCount++;
    if (!job.exhausted && job.activeCount < job.slotCount) this.#enqueue(job);
    if (subJob.isWrite) this.#writeInTurn(subJob);
    else this.#begin(subJob);
    return true;
  }

  // The I/O of a part

  /** Reads or writes, when the throttle lets it. */
  #begin(subJob: SubJob): void {
    if (this.#throttle === null) {
      this.#issue(subJob);
      return;
    }
    subJob.sleepCount = 0;
    this.#throttled.push(subJob);
    if (!this.#sleeping) this.#runThrottled();
  }

  readonly #wakeThrottled = (): void => {
    this.#sleeping = false;
    const first = this.#throttled[0];
    if (first !== undefined) first.sleepCount++;
    this.#runThrottled();
  };

  #runThrottled(): void {
    const throttle = this.#throttle!;
    while (this.#throttled.length > 0 && !this.#sleeping) {
      if (this.#throttled[0]!.sleepCount < MAX_THROTTLE_SLEEP_COUNT && throttle.mustWait(this.#reactor.now())) {
        this.#sleeping = true;
        this.#reactor.after(THROTTLE_SLEEP_MILLISECONDS, this.#wakeThrottled);
        return;
      }
      throttle.started(this.#reactor.now());
      // May end at once, and come back here with the part's write.
      this.#issue(this.#throttled.shift()!);
    }
  }

  #issue(subJob: SubJob): void {
    const notify = { fn: subJob.done, immediate: true };
    if (!subJob.isWrite) {
      this.#io.io({ op: REQ_OP_READ, memory: { type: 'bvec', vecs: subJob.pages }, notify }, [subJob.from]);
      return;
    }
    const { job } = subJob;
    if (job.from === null && job.zeroOperation === REQ_OP_WRITE_ZEROES) {
      this.#io.io({ op: REQ_OP_WRITE_ZEROES, notify }, subJob.dests);
      return;
    }
    const memory: DmIoMemory =
      job.from === null ? zeroMemory(subJob.count * SECTOR_SIZE) : { type: 'bvec', vecs: subJob.pages };
    this.#io.io({ op: REQ_OP_WRITE, memory, notify }, subJob.dests);
  }

  #ioEnded(subJob: SubJob, error: DmIoError | null): void {
    const { job } = subJob;
    this.#throttle?.ended(this.#reactor.now());
    if (subJob.isWrite) {
      job.noteWrite(error);
      job.writtenSectorCount = subJob.offset + subJob.count;
      this.#endPart(subJob);
      if (job.writesInSequence) this.#writeNext(job);
    } else if (!job.noteRead(error)) {
      job.sequenceEnd = Math.min(job.sequenceEnd, subJob.offset);
      this.#endPart(subJob);
      this.#abortParked(job);
    } else {
      subJob.isWrite = true;
      this.#writeInTurn(subJob);
    }
  }

  #writeInTurn(subJob: SubJob): void {
    const { job } = subJob;
    if (!job.writesInSequence) this.#begin(subJob);
    else if (job.sequenceIsOver(subJob)) this.#abort(subJob);
    else if (subJob.offset === job.writtenSectorCount) this.#begin(subJob);
    else job.parked.push(subJob);
  }

  /** WRITE_SEQ: a write has ended, and the one behind it may go. */
  #writeNext(job: CopyJob): void {
    this.#abortParked(job);
    const index = job.parked.findIndex(({ offset }) => offset === job.writtenSectorCount);
    if (index >= 0) this.#begin(job.parked.splice(index, 1)[0]!);
  }

  /** Ends the parts whose turn to write never comes. */
  #abortParked(job: CopyJob): void {
    for (const subJob of [...job.parked]) {
      if (!job.sequenceIsOver(subJob)) continue;
      job.parked.splice(job.parked.indexOf(subJob), 1);
      this.#abort(subJob);
    }
  }

  /** After a failed write every destination lacks what comes behind it; after a failed read the read error says it. */
  #abort(subJob: SubJob): void {
    if (subJob.job.writeErr !== 0) subJob.job.noteAborted();
    this.#endPart(subJob);
  }

  #endPart(subJob: SubJob): void {
    const { job } = subJob;
    if (subJob.pages.length > 0) this.#slab.give(subJob.pages);
    subJob.pages = [];
    job.activeCount--;
    job.idle.push(subJob);
    job.finishPart(subJob.count);
    if (!job.queued) {
      if (!job.exhausted) this.#enqueue(job);
      else this.#endIfLast(job);
    }
    this.#pump();
  }

  #endIfLast(job: CopyJob): void {
    if (job.activeCount === 0) this.#tell(job);
  }

  #tell(job: CopyJob): void {
    const error = job.conclude();
    this.#completions.tell(() => job.notify(job.readErr, job.writeErr, job.context, error));
  }
}

/** The kernel's rule: write-zeroes where every device has it, else plain writes; no falling back when one fails. */
function zeroOperationOf(dests: readonly DmIoRegion[]): number {
  const allCan = dests.every(({ bdev }) => bdev.limits.maxWriteZeroesSectorCount > 0);
  return allCan ? REQ_OP_WRITE_ZEROES : REQ_OP_WRITE;
}
