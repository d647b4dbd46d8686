// Operations on one device that must not run into each other: each waits for its turn (the kernel's suspend_lock).

/** One piece of work; it calls `release` once, now or later, and the next one begins. */
export type Turn = (release: () => void) => void;

/** Work in the order it came, one at a time. Where nothing is under way it begins at once. */
export class Turns {
  readonly #queue: Turn[] = [];
  #busy = false;
  /** The loop of {@link Turns.#runQueue} is further up the stack. */
  #running = false;

  /** Something is under way. */
  get isBusy(): boolean {
    return this.#busy;
  }

  /** @returns withdraws the work if it has not begun; true where it could be withdrawn */
  take(work: Turn): () => boolean {
    this.#queue.push(work);
    this.#runQueue();
    return () => {
      const at = this.#queue.indexOf(work);
      if (at >= 0) this.#queue.splice(at, 1);
      return at >= 0;
    };
  }

  /** A loop: thousands that wait and end at once must not nest. */
  #runQueue(): void {
    if (this.#running) return;
    this.#running = true;
    try {
      while (!this.#busy && this.#queue.length > 0) this.#run(this.#queue.shift()!);
    } finally {
      this.#running = false;
    }
  }

  #run(work: Turn): void {
    this.#busy = true;
    let released = false;
    work(() => {
      if (released) throw new Error('a turn was given back twice');
      released = true;
      this.#busy = false;
      this.#runQueue();
    });
  }
}
