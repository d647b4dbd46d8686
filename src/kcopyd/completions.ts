// The ends of a client's jobs: told one at a time, in the order they came, and counted until they are told.
import type { Reactor } from '../block/reactor.ts';

export class Completions {
  readonly #reactor: Pick<Reactor, 'wake'>;
  readonly #immediate: boolean;
  readonly #queue: (() => void)[] = [];
  #telling = false;
  #unfinishedCount = 0;
  #waiters: (() => void)[] = [];

  constructor(reactor: Pick<Reactor, 'wake'>, immediate: boolean) {
    this.#reactor = reactor;
    this.#immediate = immediate;
  }

  /** Jobs, and prepared callbacks, that have not been told yet. */
  get unfinishedCount(): number {
    return this.#unfinishedCount;
  }

  /** Something that will be told. */
  expect(): void {
    this.#unfinishedCount++;
  }

  /** Tells it: from the reactor, or now where the client is immediate (after the one that is being told). */
  tell(callback: () => void): void {
    this.#queue.push(callback);
    if (!this.#immediate) this.#reactor.wake(() => this.#tellOne());
    else if (!this.#telling) this.#tellAll();
  }

  /** Calls `done`, from the reactor, when nothing is left to be told. */
  whenIdle(done: () => void): void {
    if (this.#unfinishedCount > 0) this.#waiters.push(done);
    else this.#reactor.wake(done);
  }

  #tellAll(): void {
    this.#telling = true;
    try {
      while (this.#queue.length > 0) this.#tellOne();
    } finally {
      this.#telling = false;
      // Where a callback threw, the others are told later.
      if (this.#queue.length > 0) this.#reactor.wake(() => this.#tellAll());
    }
  }

  #tellOne(): void {
    const callback = this.#queue.shift();
    if (callback === undefined) return;
    try {
      callback();
    } finally {
      // After the callback has returned: who waits for the end waits for that.
      this.#unfinishedCount--;
      if (this.#unfinishedCount === 0) {
        for (const done of this.#waiters.splice(0)) this.#reactor.wake(done);
      }
    }
  }
}
