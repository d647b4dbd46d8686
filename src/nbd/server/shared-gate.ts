// Threads of one process that serve the same bytes, each with devices and a RangeLock of its own: what goes on in one of
// them has to keep the others from it. A few words of shared memory say who changes part of a block, and how many writes
// of whole blocks each thread has under way.
//
// Why nothing is lost. A write of whole blocks first counts itself and then looks who holds the right; whoever wants the
// right first writes down that it has it and then looks at the counts (Dekker's way). Atomics have one order that all
// threads agree on. In it either the count comes before the look at it, and the holder sees the write and waits for its
// end; or that look comes before the count, and so does the holder's mark, which stands before it: the write sees the
// mark, takes its count back and waits. Both may see each other, which costs a turn. That neither does is not possible.
//
// Why everybody gets on. A write that waits is not counted, so whatever is counted was given to a device and ends by
// itself. The holder waits for nothing but those, and holds nothing anew while it does: it ends. The right goes by
// tickets, in the order in which they were drawn; each thread has one at the most, and gives it back with the right. Whose
// ticket has come waits until the other threads have let in those that waited at the gate while somebody held the right.
// Nobody holds it then, so each of them succeeds when it looks next, and nobody new begins to wait. So nobody waits for
// who waits for them.
import type { Reactor, Timer } from '../../block/reactor.ts';

/** Words between what different threads write: two cache lines, for processors fetch them in pairs. */
const STRIDE_WORD_COUNT = 32;

/** Of all threads: 0, or 1 + the index of the thread that has the exclusive right. */
const HOLDER = 0;
/** The ticket whose turn it is, and the one that is drawn next. */
const TURN = 1;
const NEXT_TICKET = 2;

/** Of one thread, from its stride's first word: writes of whole blocks under way, and 1 where some wait at the gate. */
const UNDER_WAY = 0;
const WAITING = 1;

/** Looks that come as soon as the reactor can; what others have under way often ends within them. */
const SOON_LOOK_COUNT = 128;
/** And from then on. */
const LOOK_MILLISECONDS = 1;

function firstWordOf(threadIndex: number): number {
  return (1 + threadIndex) * STRIDE_WORD_COUNT;
}

/**
 * One thread's side of what threads share about one device; for its {@link RangeLock}, and for that one alone. The memory
 * begins as zeroes. A thread that ends without having left leaves the others waiting for ever.
 */
export class SharedGate {
  readonly #words: Int32Array;
  readonly #threadIndex: number;
  readonly #threadCount: number;
  readonly #reactor: Pick<Reactor, 'after' | 'wake'>;
  readonly #mark: number;
  readonly #underWay: number;
  readonly #waiting: number;
  #onLook: (() => void) | null = null;
  #ticket = 0;
  #hasTicket = false;
  #isHolder = false;
  #isWaiting = false;
  /** Looks since something began to wait. */
  #lookCount = 0;
  #isWoken = false;
  #timer: Timer | null = null;

  /** How much memory so many threads need for one device. */
  static byteLength(threadCount: number): number {
    return firstWordOf(threadCount) * Int32Array.BYTES_PER_ELEMENT;
  }

  /** @throws RangeError for an index that is none of so many threads, or too little memory */
  constructor(
    memory: SharedArrayBuffer,
    threadIndex: number,
    threadCount: number,
    reactor: Pick<Reactor, 'after' | 'wake'>,
  ) {
    if (!Number.isInteger(threadIndex) || threadIndex < 0 || threadIndex >= threadCount) {
      throw new RangeError(`thread ${threadIndex} is none of ${threadCount}`);
    }
    const byteLength = SharedGate.byteLength(threadCount);
    if (memory.byteLength < byteLength) {
      throw new RangeError(`${threadCount} threads need ${byteLength} bytes, and there are ${memory.byteLength}`);
    }
    this.#words = new Int32Array(memory);
    this.#threadIndex = threadIndex;
    this.#threadCount = threadCount;
    this.#reactor = reactor;
    this.#mark = 1 + threadIndex;
    this.#underWay = firstWordOf(threadIndex) + UNDER_WAY;
    this.#waiting = firstWordOf(threadIndex) + WAITING;
  }

  /** Makes it the gate of a lock, whose `onLook` is called after each {@link lookAgain}. @throws Error when it has one */
  attach(onLook: () => void): void {
    if (this.#onLook !== null) throw new Error('the gate belongs to another lock already');
    this.#onLook = onLook;
  }

  /** No other thread has the right. It may have it the next moment. */
  get isOpen(): boolean {
    const holder = Atomics.load(this.#words, HOLDER);
    return holder === 0 || holder === this.#mark;
  }

  /** Counts a write of whole blocks that begins; false, and not counted, where another thread has the right. */
  tryEnter(): boolean {
    Atomics.add(this.#words, this.#underWay, 1);
    const holder = Atomics.load(this.#words, HOLDER);
    if (holder === 0 || holder === this.#mark) return true;
    Atomics.sub(this.#words, this.#underWay, 1);
    return false;
  }

  /** It has ended. */
  leave(): void {
    Atomics.sub(this.#words, this.#underWay, 1);
  }

  /** Tells the other threads whether writes of whole blocks wait here: nobody takes the right before those were let in. */
  setWaiting(isWaiting: boolean): void {
    if (isWaiting === this.#isWaiting) return;
    this.#isWaiting = isWaiting;
    Atomics.store(this.#words, this.#waiting, isWaiting ? 1 : 0);
  }

  /**
   * A step towards the exclusive right, to be repeated until it is true: then no other thread writes until
   * {@link giveBack}. Must go on once begun, for a ticket that was drawn has to be used.
   */
  tryTake(): boolean {
    if (!this.#hasTicket) {
      this.#ticket = Atomics.add(this.#words, NEXT_TICKET, 1);
      this.#hasTicket = true;
    }
    if (!this.#isHolder) {
      if (Atomics.load(this.#words, TURN) !== this.#ticket || this.#isAnyOther(WAITING)) return false;
      Atomics.store(this.#words, HOLDER, this.#mark);
      this.#isHolder = true;
      this.#lookCount = 0;
    }
    return !this.#isAnyOther(UNDER_WAY);
  }

  /** Ends what {@link tryTake} has given. */
  giveBack(): void {
    this.#isHolder = false;
    this.#hasTicket = false;
    this.#lookCount = 0;
    Atomics.store(this.#words, HOLDER, 0);
    Atomics.add(this.#words, TURN, 1);
  }

  #isAnyOther(word: number): boolean {
    for (let i = 0; i < this.#threadCount; i++) {
      if (i !== this.#threadIndex && Atomics.load(this.#words, firstWordOf(i) + word) !== 0) return true;
    }
    return false;
  }

  /** Something waits for other threads: calls `onLook` once, soon, or a little later where that was in vain for some time. */
  lookAgain(): void {
    if (this.#isWoken || this.#timer !== null) return;
    if (this.#lookCount++ < SOON_LOOK_COUNT) {
      this.#isWoken = true;
      this.#reactor.wake(this.#look);
    } else {
      this.#timer = this.#reactor.after(LOOK_MILLISECONDS, this.#look);
    }
  }

  /** Nothing waits. */
  rest(): void {
    this.#lookCount = 0;
    this.#timer?.cancel();
    this.#timer = null;
  }

  readonly #look = (): void => {
    this.#isWoken = false;
    this.#timer = null;
    this.#onLook!();
  };
}
