// The ring of one reactor: operations are gathered while a callback runs, leave in one io_uring_enter at its end, and
// what is complete then is reaped at once. For the rest the event loop watches the ring's descriptor, which polls as
// readable while there are completions. No thread waits anywhere: nothing has to be woken for the process or a worker
// to end, no place in libuv's pool is taken, and nothing is left to sleep when the last operation has ended.
import { MAX_RING_ENTRY_COUNT, MAX_RING_ROUND_COUNT } from '../block/bounds.ts';
import { Errno } from '../block/errno.ts';
import type { Reactor } from '../block/reactor.ts';
import { isRefusal, Uring, type UringCalls, type UringRefusal, type UringWatch } from './uring.ts';

/** Slots of the ring's own submissions. */
const CANCEL_SLOT = -1;
/** How long a process that ends waits for what it cancelled. */
const EXIT_WAIT_MILLISECONDS = 200;
/** Operations whose ends are told after a wake-up before new ones are sent: measured on a disk with O_DIRECT. */
const REAPED_AT_ONCE_COUNT = 8;

/** One call for the kernel to make. Made once for each pooled request; whoever starts it keeps its memory alive. */
export class RingOperation {
  opcode = 0;
  fd = -1;
  /** The byte offset, as two words. */
  offsetLow = 0;
  offsetHigh = 0;
  address = 0;
  length = 0;
  flags = 0;
  next: RingOperation | null = null;
  /** Told bytes or a negative errno, once for each start. */
  readonly onResult: (result: number) => void;

  constructor(onResult: (result: number) => void) {
    this.onResult = onResult;
  }

  /** Sets the offset to `byteCount` bytes behind a sector; exact up to the largest offset there is. */
  setOffset(sector: number, byteCount: number): void {
    const sectorLow = sector % SECTORS_PER_WORD;
    const low = sectorLow * 512 + byteCount;
    this.offsetLow = low | 0;
    this.offsetHigh = (sector - sectorLow) / SECTORS_PER_WORD + Math.floor(low / WORD);
  }
}

const WORD = 4294967296;
const SECTORS_PER_WORD = WORD / 512;

/** What a ring has done so far. */
export interface RingCounters {
  readonly operationCount: number;
  /** Calls of io_uring_enter for submissions. */
  readonly submitCount: number;
  /** Times that the event loop said that there is something to reap. */
  readonly wakeUpCount: number;
  /** The most that were in flight at one time. */
  readonly maxInFlightCount: number;
}

export interface RingOptions {
  calls: UringCalls;
  reactor: Pick<Reactor, 'wake'>;
  /** For tests: fewer places for submissions. */
  entryCount?: number;
}

const openRings = new Set<Ring>();
let listensForExit = false;

/** This thread ends. The kernel writes to memory that is about to be freed: requests are cancelled, and waited for a little. */
export function abandonRings(): void {
  for (const ring of openRings) ring.abandon();
}

export class Ring {
  readonly #uring: Uring;
  readonly #wake: (callback: () => void) => void;
  readonly #watch: UringWatch;
  readonly #slots: (RingOperation | null)[] = [];
  readonly #freeSlots: number[] = [];
  // Operations that found no place, in the order they came.
  #head: RingOperation | null = null;
  #tail: RingOperation | null = null;
  #inFlightCount = 0;
  #flushIsQueued = false;
  #wakeUpIsQueued = false;
  #flushing = false;
  #isWatched = true;
  #closing = false;
  #closed = false;
  #failed = false;
  #failure: unknown;
  #operationCount = 0;
  #submitCount = 0;
  #wakeUpCount = 0;
  #maxInFlightCount = 0;

  /** Makes a ring, or says why there can be none. */
  static make(options: RingOptions): Ring | UringRefusal {
    const made = Uring.make(options.calls, options.entryCount ?? MAX_RING_ENTRY_COUNT);
    return isRefusal(made) ? made : new Ring(made, options);
  }

  private constructor(uring: Uring, options: RingOptions) {
    this.#uring = uring;
    this.#wake = (callback) => options.reactor.wake(callback);
    // As many in flight as there are places for completions, so that none is ever left out; one is for the cancellation.
    for (let slot = uring.completionCount - 2; slot >= 0; slot--) {
      this.#slots.push(null);
      this.#freeSlots.push(slot);
    }
    this.#watch = options.calls.watch(uring.fd, this.#onReadable);
    this.#watchIfNeeded();
    openRings.add(this);
    if (!listensForExit) process.on('exit', abandonRings);
    listensForExit = true;
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Operations that the kernel has, or will have at the end of this callback. */
  get inFlightCount(): number {
    return this.#inFlightCount;
  }

  get counters(): RingCounters {
    return {
      operationCount: this.#operationCount,
      submitCount: this.#submitCount,
      wakeUpCount: this.#wakeUpCount,
      maxInFlightCount: this.#maxInFlightCount,
    };
  }

  /** Gives an operation to the kernel at the end of the callback that runs, or once there is a place for it. */
  start(operation: RingOperation): void {
    this.#closing = false;
    this.#operationCount++;
    if (this.#head === null && this.#hasPlace) this.#prepare(operation);
    else this.#push(operation);
    if (this.#flushing || this.#flushIsQueued) return;
    this.#flushIsQueued = true;
    // A tick and not a microtask: it comes after all microtasks, so that what awaits one another's outcome leaves
    // together.
    process.nextTick(this.#onTick);
  }

  /**
   * Sends what was gathered and waits, on this thread, until an operation has ended.
   *
   * @returns false when there is none
   */
  wait(): boolean {
    if (this.#inFlightCount === 0) return false;
    this.#fill();
    const gaveUp = this.#uring.pendingCount > 0 && this.#submit() !== 0;
    while (this.#reap(this.#slots.length) === 0 && !gaveUp) {
      if (this.#uring.submitAndWait() !== 0) return false;
    }
    this.#watchIfNeeded();
    this.#throwFailure();
    return true;
  }

  /** Closes the ring as soon as nothing is in flight, unless an operation is started before. */
  close(): void {
    this.#closing = true;
    if (!this.#flushing) this.#closeIfIdle();
  }

  /** This thread ends: cancels what is in flight, waits for it a little, and calls nobody back. */
  abandon(): void {
    if (this.#inFlightCount > 0) {
      const sentCount = this.#inFlightCount - this.#uring.takeBackPending().length;
      this.#uring.prepareCancel(CANCEL_SLOT);
      // One more for the cancellation itself. What the kernel can't cancel may take longer than this waits.
      this.#uring.waitFor(sentCount + 1, EXIT_WAIT_MILLISECONDS);
    }
    this.#end();
  }

  // The queue

  get #hasPlace(): boolean {
    return this.#freeSlots.length > 0 && this.#uring.freeSubmissionCount > 0;
  }

  #push(operation: RingOperation): void {
    operation.next = null;
    if (this.#tail === null) this.#head = operation;
    else this.#tail.next = operation;
    this.#tail = operation;
  }

  #prepare(operation: RingOperation): void {
    const slot = this.#freeSlots.pop()!;
    this.#slots[slot] = operation;
    this.#inFlightCount++;
    if (this.#inFlightCount > this.#maxInFlightCount) this.#maxInFlightCount = this.#inFlightCount;
    this.#uring.prepare(
      slot,
      operation.opcode,
      operation.fd,
      operation.offsetLow,
      operation.offsetHigh,
      operation.address,
      operation.length,
      operation.flags,
    );
  }

  /** Gives places to what waits for them. */
  #fill(): void {
    while (this.#head !== null && this.#hasPlace) {
      const operation = this.#head;
      this.#head = operation.next;
      if (this.#head === null) this.#tail = null;
      operation.next = null;
      this.#prepare(operation);
    }
  }

  // Sending and reaping

  readonly #onTick = (): void => {
    this.#flushIsQueued = false;
    if (this.#closed) return;
    // What there is to reap is left to the wake-up that is on its way: see there.
    if (this.#wakeUpIsQueued) this.#sendAll();
    else this.#flush(this.#slots.length);
    this.#settle();
  };

  readonly #onReadable = (): void => {
    if (this.#wakeUpIsQueued || this.#closed) return;
    this.#wakeUpCount++;
    this.#queueWakeUp();
  };

  #queueWakeUp(): void {
    this.#wakeUpIsQueued = true;
    // The watch calls from outside of Node's callbacks, where neither ticks nor microtasks would run behind it.
    this.#wake(this.#onWakeUp);
  }

  readonly #onWakeUp = (): void => {
    this.#wakeUpIsQueued = false;
    if (this.#closed) return;
    // A few at a time: what takes their place leaves before the next few are looked at. A disk that had to wait until
    // all of a batch are dealt with, and then gets all at once, stands still in between.
    this.#flush(REAPED_AT_ONCE_COUNT);
    this.#settle();
  };

  /** Reaps `most` at a time and sends what is started meanwhile. */
  #flush(most: number): void {
    this.#flushing = true;
    // What ends at once may start more for ever: past a bound the rest is left to the watch, and sockets get their turn.
    for (let round = 0; round < MAX_RING_ROUND_COUNT; round++) {
      const count = this.#reap(most);
      this.#fill();
      if (this.#uring.pendingCount > 0) {
        this.#submit();
      } else if (count === most) {
        // Nothing was started: whoever waits for these may do it in a microtask, and gets the chance before the rest.
        this.#queueWakeUp();
        break;
      } else if (count === 0) {
        break;
      }
    }
    this.#flushing = false;
  }

  /** Sends what is left, and sees to what comes after a flush. */
  #settle(): void {
    if (!this.#closed) this.#sendAll();
    this.#watchIfNeeded();
    if (this.#closing) this.#closeIfIdle();
    this.#throwFailure();
  }

  #sendAll(): void {
    this.#fill();
    if (this.#uring.pendingCount > 0) this.#submit();
  }

  /** @returns 0, or the errno of a submission that was given up */
  #submit(): number {
    this.#submitCount++;
    let errno = this.#uring.submit();
    // EBUSY, EAGAIN: the kernel is short of something, which completions that are there may hold.
    while ((errno === Errno.EBUSY || errno === Errno.EAGAIN) && this.#reap(this.#slots.length) > 0) {
      errno = this.#uring.submit();
    }
    if (errno !== 0) this.#giveUpPending(errno);
    return errno;
  }

  /** What could not be submitted ends: with EAGAIN where the kernel is short of something, which a thread can do. */
  #giveUpPending(errno: number): void {
    // All are taken back before the first is told: it may start another.
    for (const slot of this.#uring.takeBackPending()) {
      this.#complete(slot, errno === Errno.EBUSY ? -Errno.EAGAIN : -errno);
    }
  }

  /** @returns how many operations ended, `most` at the most */
  #reap(most: number): number {
    let count = 0;
    while (count < most && !this.#closed) {
      const slot = this.#uring.takeCompletion();
      if (slot === -1) break;
      this.#complete(slot, this.#uring.result);
      count++;
    }
    return count;
  }

  #complete(slot: number, result: number): void {
    const operation = this.#slots[slot]!;
    this.#slots[slot] = null;
    this.#freeSlots.push(slot);
    this.#inFlightCount--;
    try {
      operation.onResult(result);
    } catch (error) {
      // An endIo threw. The others still end; the first exception goes on afterwards.
      if (!this.#failed) this.#failure = error;
      this.#failed = true;
    }
  }

  #throwFailure(): void {
    if (!this.#failed) return;
    const failure = this.#failure;
    this.#failed = false;
    this.#failure = undefined;
    throw failure;
  }

  /** The event loop goes on while something is in flight, and ends without regard to an idle ring. */
  #watchIfNeeded(): void {
    const isNeeded = this.#inFlightCount > 0;
    if (isNeeded === this.#isWatched || this.#closed) return;
    this.#isWatched = isNeeded;
    if (isNeeded) this.#watch.ref();
    else this.#watch.unref();
  }

  // The end

  #closeIfIdle(): void {
    if (this.#closing && this.#inFlightCount === 0 && this.#head === null) this.#end();
  }

  #end(): void {
    if (this.#closed) return;
    this.#closed = true;
    openRings.delete(this);
    this.#watch.close();
    this.#uring.close();
  }
}
