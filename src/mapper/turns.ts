// Operations on one device that must not run into each other: each waits for its turn (the kernel's suspend_lock).

/** One piece of work; it calls `release` once, now or later, and the next one begins. */
export type Turn = (release: () => void) => void;

/** Work in the order it came, one at a time. Where nothing is under way it begins at once. */
export class Turns {
  readonly #queue: Turn[] = [];
  #busy = false;

  /** Something is under way. */
  get isBusy(): boolean {
    return this.#busy;
  }

  /** @returns withdraws the work if it has not begun; true where it could be withdrawn */
  take(work: Turn): () => boolean {
    if (this.#busy) this.#queue.push(work);
    else this.#run(work);
    return () => {
      const at = this.#queue.indexOf(work);
      if (at >= 0) this.#queue.splice(at, 1);
      return at >= 0;
    };
  }

  #run(work: Turn): void {
    this.#busy = true;
    let released = false;
    work(() => {
      if (released) throw new Error('a turn was given back twice');
      released = true;
      this.#busy = false;
      const next = this.#queue.shift();
      if (next !== undefined) this.#run(next);
    });
  }
}
