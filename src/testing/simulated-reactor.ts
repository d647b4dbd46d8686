// A reactor whose clock is a number: nothing happens until a test runs it, and then everything happens in an order that
// the seed decides. A second of waiting costs nothing.
import type { Reactor, Timer } from '../block/reactor.ts';
import { freshSeed, type Random, randomFromSeed } from './random.ts';

export interface SimulatedReactorOptions {
  /** A 32-bit number; drawn unless given. */
  seed?: number;
  /** Callbacks that one call of a run method may run before it throws: two that call each other never end. 1,000,000 unless given. */
  maxCallbackCount?: number;
}

interface Event extends Timer {
  readonly dueMilliseconds: number;
  /** The order among those that are due at the same time. Drawn for timers. */
  readonly rank: number;
  readonly callback: () => void;
  cancelled: boolean;
}

function comesBefore(a: Event, b: Event): boolean {
  return a.dueMilliseconds === b.dueMilliseconds ? a.rank < b.rank : a.dueMilliseconds < b.dueMilliseconds;
}

/** A binary heap: the earliest event is at index 0. */
class EventHeap {
  readonly #events: Event[] = [];

  get first(): Event | undefined {
    return this.#events[0];
  }

  push(event: Event): void {
    const events = this.#events;
    let at = events.push(event) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!comesBefore(event, events[parent]!)) break;
      events[at] = events[parent]!;
      at = parent;
    }
    events[at] = event;
  }

  shift(): void {
    const events = this.#events;
    const last = events.pop();
    if (last === undefined || events.length === 0) return;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= events.length) break;
      if (child + 1 < events.length && comesBefore(events[child + 1]!, events[child]!)) child++;
      if (!comesBefore(events[child]!, last)) break;
      events[at] = events[child]!;
      at = child;
    }
    events[at] = last;
  }
}

/**
 * Virtual time, in milliseconds from 0. `wake` keeps the order of its calls; what `after` made due at the same time runs
 * in an order drawn from the seed. The same seed and the same calls give the same run. An exception of a callback comes
 * out of the method that ran it.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { SimulatedReactor } from 'dmkit/testing';
 *
 * const reactor = new SimulatedReactor({ seed: 1 });
 * let ended = false;
 * reactor.after(60_000, () => {
 *   ended = true;
 * });
 * reactor.run(59_999);
 * assert.equal(ended, false);
 * reactor.runUntilIdle();
 * assert.equal(ended, true);
 * assert.equal(reactor.now(), 60_000);
 * ```
 */
export class SimulatedReactor implements Reactor {
  readonly seed: number;
  readonly #random: Random;
  readonly #maxCallbackCount: number;
  readonly #timers = new EventHeap();
  readonly #woken: (() => void)[] = [];
  #nowMilliseconds = 0;
  #yieldCount = 0;

  constructor(options: SimulatedReactorOptions = {}) {
    this.seed = (options.seed ?? freshSeed()) >>> 0;
    this.#random = randomFromSeed(this.seed);
    this.#maxCallbackCount = options.maxCallbackCount ?? 1_000_000;
  }

  now(): number {
    return this.#nowMilliseconds;
  }

  after(milliseconds: number, callback: () => void): Timer {
    return this.#at(this.#nowMilliseconds + Math.max(0, milliseconds), this.#random(), callback);
  }

  afterSockets(callback: () => void): void {
    // Behind every timer of this moment, whose ranks are drawn below 1.
    this.#at(this.#nowMilliseconds, 1 + this.#yieldCount++, callback);
  }

  #at(dueMilliseconds: number, rank: number, callback: () => void): Timer {
    const event: Event = {
      dueMilliseconds,
      rank,
      callback,
      cancelled: false,
      cancel() {
        event.cancelled = true;
      },
    };
    this.#timers.push(event);
    return event;
  }

  wake(callback: () => void): void {
    this.#woken.push(callback);
  }

  /** True when nothing waits: neither a woken callback nor a timer. */
  get idle(): boolean {
    return this.#woken.length === 0 && this.#firstTimer() === undefined;
  }

  /** Runs the next callback, going forward in time where it has to. False when there was none. */
  step(): boolean {
    const woken = this.#woken.shift();
    if (woken !== undefined) {
      woken();
      return true;
    }
    const event = this.#firstTimer();
    if (event === undefined) return false;
    this.#timers.shift();
    this.#nowMilliseconds = event.dueMilliseconds;
    event.callback();
    return true;
  }

  /** Goes forward by `milliseconds` and runs what is due up to then, the end included. */
  run(milliseconds: number): void {
    const end = this.#nowMilliseconds + milliseconds;
    this.#bounded('run', () => {
      const event = this.#firstTimer();
      return (this.#woken.length > 0 || (event !== undefined && event.dueMilliseconds <= end)) && this.step();
    });
    this.#nowMilliseconds = end;
  }

  /** Runs everything until nothing waits. */
  runUntilIdle(): void {
    this.#bounded('runUntilIdle', () => this.step());
  }

  /** Runs until `condition` is true, asked before each callback. @throws Error when nothing waits and it is still false */
  runUntil(condition: () => boolean): void {
    this.#bounded('runUntil', () => {
      if (condition()) return false;
      if (!this.step()) throw new Error('nothing waits any more, and the condition is still false');
      return true;
    });
  }

  /**
   * For code with promises: runs until `promise` settles, and gives what it gives. After each callback all that follows
   * from it in promises runs first, so that the order is the same in every run.
   *
   * @throws what the promise rejects with; Error when nothing waits and it is still pending
   *
   * @example
   * ```ts
   * import assert from 'node:assert/strict';
   * import { SimulatedReactor } from 'dmkit/testing';
   *
   * const reactor = new SimulatedReactor({ seed: 1 });
   * const sleep = (milliseconds) => new Promise((resolve) => void reactor.after(milliseconds, resolve));
   * await reactor.settle(sleep(500).then(() => sleep(500)));
   * assert.equal(reactor.now(), 1000);
   * ```
   */
  async settle<Value>(promise: Promise<Value>): Promise<Value> {
    let settled = false;
    const watched = promise.finally(() => {
      settled = true;
    });
    watched.catch(() => {});
    for (let count = 0; ; count++) {
      // A macrotask: every microtask has run before it.
      await new Promise<void>((resolve) => setImmediate(resolve));
      if (settled) return watched;
      if (count >= this.#maxCallbackCount) throw this.#endless('settle');
      if (!this.step()) throw new Error('nothing waits any more, and the promise is still pending');
    }
  }

  #firstTimer(): Event | undefined {
    while (this.#timers.first?.cancelled) this.#timers.shift();
    return this.#timers.first;
  }

  #bounded(method: string, step: () => boolean): void {
    for (let count = 0; step(); count++) if (count >= this.#maxCallbackCount) throw this.#endless(method);
  }

  #endless(method: string): Error {
    return new Error(`${method}: still not done after ${this.#maxCallbackCount} callbacks (seed ${this.seed})`);
  }
}
