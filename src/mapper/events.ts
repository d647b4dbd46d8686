// A device's event number, and who waits for it to move (dm_wait_event).

/** Counts from 0 to 2^32 - 1 and round again. */
export class EventCounter {
  #number = 0;
  #waiting = new Set<() => void>();

  get number(): number {
    return this.#number;
  }

  /** One event: whoever waits is let go, whatever number they waited for. */
  raise(): void {
    this.#number = (this.#number + 1) >>> 0;
    const waiting = this.#waiting;
    this.#waiting = new Set();
    for (const callback of waiting) callback();
  }

  /**
   * Calls back once: at once where the number differs from `known` (larger or smaller), else at the next event.
   *
   * @returns stops waiting: `done` is not called any more
   */
  wait(known: number, done: () => void): () => void {
    if (this.#number !== known) {
      done();
      return () => {};
    }
    const callback = (): void => done();
    this.#waiting.add(callback);
    return () => void this.#waiting.delete(callback);
  }
}
