// A dm-io client: its reserve of pages, the queue of requests that wait for pages, and the two ways in, asynchronous and
// synchronous (drivers/md/dm-io.c). Both run the same jobs.
import { REQ_OP_READ, REQ_OP_WRITE, REQ_SYNC } from '../block/bio.ts';
import { isInsideSubmit } from '../block/block-device.ts';
import { DEFAULT_DM_IO_PAGE_COUNT, MAX_DM_IO_TURN_BIO_COUNT, MAX_POOLED_OBJECT_COUNT } from '../block/bounds.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor } from '../block/reactor.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { startQueuedBios } from '../engine/nesting.ts';
import { checkOperation, checkRegions, takesSeveralRegions } from './check.ts';
import { PageCredits } from './credits.ts';
import { wouldDeadlock } from './error.ts';
import { Job, type JobOwner } from './job.ts';
import type { DmIoNotifyFunction, DmIoRegion, DmIoRequest, DmIoResult, SyncEngines } from './types.ts';

export interface DmIoClientOptions {
  /** Calls the users' callbacks. */
  reactor: Pick<Reactor, 'wake'>;
  /** The reserve: 4 KiB pages of data in flight at the most. */
  pageCount?: number;
  /**
   * The engines of this reactor's devices, which a synchronous call sets to blocking for its time. Without them only
   * devices that end every request inside submit() (memory, and what is made of it) can be used synchronously.
   */
  engines?: SyncEngines;
  /**
   * Bios sent in a row before everything else in the reactor gets a turn; 64 unless given. Infinity for a layer of a
   * stack: a synchronous call above it can't wait for another turn.
   */
  turnBioCount?: number;
}

/** Engines where there are none: no request of ours is under way outside submit(). */
const NO_ENGINES: SyncEngines = { blocking: false, poll: startQueuedBios };

/** Clients of this thread that are sending, or hearing of an end, right now. */
let activeClientCount = 0;

/**
 * Makes requests on regions, with a reserve of its own. Every layer of a stack needs its own client: a request then
 * never waits for pages that a request above it holds.
 *
 * @example
 * ```ts
 * import { DmIoClient, MemoryDevice, NodeLoop, REQ_OP_WRITE } from 'dmkit';
 *
 * const client = new DmIoClient({ reactor: new NodeLoop(), pageCount: 256 });
 * const bdev = new MemoryDevice('disk', 2048);
 * const memory = { type: 'buffer', buffer: Buffer.alloc(4096, 'x') };
 * console.log(client.io({ op: REQ_OP_WRITE, memory }, [{ bdev, sector: 8, count: 8 }])); // 0
 * client.close();
 * ```
 */
export class DmIoClient implements JobOwner {
  readonly #reactor: Pick<Reactor, 'wake'>;
  readonly #engines: SyncEngines;
  readonly #credits: PageCredits;
  // Requests that have bios to send, in the order they came.
  #head: Job | null = null;
  #tail: Job | null = null;
  #unfinishedCount = 0;
  #closed = false;
  /** Somebody up the stack is sending: whoever comes meanwhile leaves it to him. */
  #pumping = false;
  #turnIsQueued = false;
  readonly #turnBioCount: number;
  readonly #pool: Job[] = [];
  readonly #takeTurn = (): void => {
    this.#turnIsQueued = false;
    this.#pump(this.#turnBioCount);
  };

  /** @throws DmError EINVAL for a pageCount that is no whole number, 1 or more */
  constructor(options: DmIoClientOptions) {
    this.#reactor = options.reactor;
    this.#engines = options.engines ?? NO_ENGINES;
    this.#turnBioCount = options.turnBioCount ?? MAX_DM_IO_TURN_BIO_COUNT;
    this.#credits = new PageCredits(options.pageCount ?? DEFAULT_DM_IO_PAGE_COUNT);
  }

  /** The bound on pages in flight. */
  get pageCount(): number {
    return this.#credits.bound;
  }

  /** Pages in flight now. */
  get pagesInFlight(): number {
    return this.#credits.inFlight;
  }

  /** Requests whose callback has not been called yet. */
  get unfinishedCount(): number {
    return this.#unfinishedCount;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Changes the bound (dm_io_client_resize). Growing starts what waits. Shrinking below what is in flight takes nothing
   * back: nothing more is sent until enough of it has ended.
   *
   * @throws DmError EINVAL for what is no whole number, 1 or more; ESHUTDOWN on a closed client
   *
   * @example
   * ```ts
   * import { DmIoClient, NodeLoop } from 'dmkit';
   *
   * const client = new DmIoClient({ reactor: new NodeLoop() });
   * client.resize(client.pageCount * 2);
   * ```
   */
  resize(pageCount: number): void {
    this.#checkOpen();
    this.#credits.bound = pageCount;
    this.#pump(this.#turnBioCount);
  }

  /**
   * Refuses requests from now on, and waits for nothing: those that were taken run to their end, callbacks included.
   *
   * @returns how many those are
   *
   * @example
   * ```ts
   * import { DmIoClient, NodeLoop } from 'dmkit';
   *
   * const client = new DmIoClient({ reactor: new NodeLoop() });
   * if (client.close() > 0) console.log('some requests are still under way');
   * ```
   */
  close(): number {
    this.#closed = true;
    return this.#unfinishedCount;
  }

  /**
   * Does a request: with `notify` it starts, without it is done at the return. See dmIo.
   *
   * @returns 0; EIO for a synchronous one that failed in a region, whatever the reason there is
   */
  io<Context>(
    request: Omit<DmIoRequest<Context>, 'client'>,
    regions: readonly DmIoRegion[],
    result?: DmIoResult,
  ): number {
    this.#checkOpen();
    const job = this.#prepare(request as DmIoRequest, regions);
    if (job.notify === null) return this.#runSync(job, result);
    this.#unfinishedCount++;
    this.#push(job);
    this.#pump(this.#turnBioCount);
    return 0;
  }

  #checkOpen(): void {
    if (this.#closed) throw new DmError(Errno.ESHUTDOWN, 'this dm-io client was closed');
  }

  #prepare(request: DmIoRequest, regions: readonly DmIoRegion[]): Job {
    const { op, memory, notify } = request;
    const flags = request.flags ?? 0;
    checkOperation(op, flags);
    const largest = checkRegions(regions);
    const job = this.#pool.pop() ?? new Job();
    try {
      const needsMemory = (op === REQ_OP_READ || op === REQ_OP_WRITE) && largest > 0;
      if (memory !== undefined) job.data.load(memory, needsMemory ? largest * SECTOR_SIZE : 0);
      else if (needsMemory) throw new DmError(Errno.EINVAL, 'dm-io memory: a read or write needs some');
    } catch (error) {
      this.#recycle(job);
      throw error;
    }
    job.start(this, op, notify === undefined ? flags | REQ_SYNC : flags, notify ?? null, regions);
    job.refused = regions.length > 1 && !takesSeveralRegions(op);
    return job;
  }

  #recycle(job: Job): void {
    job.release();
    if (this.#pool.length < MAX_POOLED_OBJECT_COUNT) this.#pool.push(job);
  }

  // Sending

  #push(job: Job): void {
    job.next = null;
    if (this.#tail === null) this.#head = job;
    else this.#tail.next = job;
    this.#tail = job;
  }

  #shift(): void {
    const job = this.#head!;
    this.#head = job.next;
    if (this.#head === null) this.#tail = null;
    job.next = null;
  }

  /** Sends what there are pages for, first come first served, at most `maxBioCount` bios before others get a turn. */
  #pump(maxBioCount: number): void {
    // Not reentrant: bios that end at once come back here, and so would the next, each deeper in the stack.
    if (this.#pumping || this.#head === null) return;
    this.#pumping = true;
    activeClientCount++;
    try {
      this.#sendQueued(maxBioCount);
    } finally {
      activeClientCount--;
      this.#pumping = false;
    }
  }

  #sendQueued(maxBioCount: number): void {
    let bioCount = 0;
    for (let job = this.#head; job !== null; job = this.#head) {
      if (job.refused || !job.settle()) {
        this.#shift();
        this.#dropHold(job);
        continue;
      }
      if (bioCount === maxBioCount) {
        this.#queueTurn();
        return;
      }
      const pageCount = job.measure(this.#credits.bound);
      if (!this.#credits.tryTake(pageCount)) return;
      bioCount++;
      job.send();
    }
  }

  #queueTurn(): void {
    if (this.#turnIsQueued) return;
    this.#turnIsQueued = true;
    this.#reactor.wake(this.#takeTurn);
  }

  bioEnded(job: Job, pageCount: number): void {
    // Pages first: whoever hears of the end may want them.
    this.#credits.give(pageCount);
    activeClientCount++;
    try {
      this.#dropHold(job);
    } finally {
      activeClientCount--;
      if (!this.#turnIsQueued) this.#pump(this.#turnBioCount);
    }
  }

  #dropHold(job: Job): void {
    if (--job.pending > 0) return;
    job.done = true;
    if (job.abandoned) {
      this.#unfinishedCount--;
      this.#recycle(job);
    } else if (job.notify?.immediate) {
      this.deliver(job);
    } else if (job.notify !== null) {
      this.#reactor.wake(job.deliver);
    }
  }

  deliver(job: Job): void {
    const { fn, context } = job.notify as { fn: DmIoNotifyFunction; context?: unknown };
    const { errorBits } = job;
    const error = job.error();
    // Before the callback: it may make the next request, and finds this job free.
    this.#unfinishedCount--;
    this.#recycle(job);
    fn(errorBits, context, error);
  }

  // Synchronous calls

  #runSync(job: Job, result: DmIoResult | undefined): number {
    const wasBlocking = this.#engines.blocking;
    try {
      if (job.refused) return Errno.EIO;
      if (job.regionCount > 0) this.#runBlocking(job);
      if (result !== undefined) {
        result.errorBits = job.errorBits;
        result.error = job.error();
      }
      return job.failed ? Errno.EIO : 0;
    } finally {
      this.#engines.blocking = wasBlocking;
      if (!job.abandoned) this.#recycle(job);
      this.#pump(this.#turnBioCount);
    }
  }

  #runBlocking(job: Job): void {
    if (activeClientCount > 0 || isInsideSubmit()) {
      throw wouldDeadlock('it was made while a request is being submitted or ended, which would have to go on first');
    }
    this.#engines.blocking = true;
    const obstacle = job.syncObstacle();
    if (obstacle !== null) throw wouldDeadlock(obstacle);
    this.#clearTheWay();
    this.#pumping = true;
    activeClientCount++;
    try {
      this.#sendAll(job);
    } finally {
      activeClientCount--;
      this.#pumping = false;
    }
  }

  /** Lets requests that came before go on, until they are sent and left some pages. */
  #clearTheWay(): void {
    this.#pump(Number.POSITIVE_INFINITY);
    while (this.#head !== null || this.#credits.free === 0) {
      if (!this.#engines.poll()) {
        throw wouldDeadlock(
          `${this.#head === null ? 'all' : 'requests came before it, and'} ${this.#credits.inFlight} pages of this ` +
            'client are in flight, which only the event loop gets back',
        );
      }
      this.#pump(Number.POSITIVE_INFINITY);
    }
  }

  #sendAll(job: Job): void {
    // What others have in flight may stay there until this returns: the bios have to fit into the rest.
    const maxPageCount = Math.min(this.#credits.bound, this.#credits.free);
    while (job.settle()) {
      const pageCount = job.measure(maxPageCount);
      while (!this.#credits.tryTake(pageCount)) {
        if (!this.#engines.poll()) this.#giveUp(job, job.pending - 1);
      }
      job.send();
    }
    this.#dropHold(job);
    while (!job.done) {
      if (!this.#engines.poll()) this.#giveUp(job, job.pending);
    }
  }

  /** Nothing moves any more, though no device has named an obstacle. Bios that are out keep the job alive. */
  #giveUp(job: Job, bioCount: number): never {
    if (bioCount === 0) throw wouldDeadlock('its pages are in flight for others, which only the event loop gets back');
    job.pending = bioCount;
    job.abandoned = true;
    this.#unfinishedCount++;
    throw wouldDeadlock('a device below took it and does not end it; it is still under way and uses its memory');
  }
}
