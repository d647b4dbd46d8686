// So many bytes a second: each takes its turn on a line of time.
import type { Reactor, Timer } from '../block/reactor.ts';

/** How far the line may lie behind: what was not used lately may be caught up. */
const MAX_CREDIT_MILLISECONDS = 500;

export class RateLimit {
  readonly #reactor: Pick<Reactor, 'now' | 'after'>;
  readonly #bytesPerSecond: number;
  #freeAt = 0;
  readonly #waiting = new Map<Timer, () => void>();
  #released = false;

  constructor(reactor: Pick<Reactor, 'now' | 'after'>, bytesPerSecond: number) {
    this.#reactor = reactor;
    this.#bytesPerSecond = bytesPerSecond;
    this.#freeAt = reactor.now();
  }

  /** Resolves when `byteLength` bytes may go, or nothing is to wait any more. */
  async take(byteLength: number): Promise<void> {
    if (this.#released) return;
    const now = this.#reactor.now();
    const start = Math.max(this.#freeAt, now - MAX_CREDIT_MILLISECONDS);
    this.#freeAt = start + (byteLength * 1000) / this.#bytesPerSecond;
    const wait = start - now;
    if (wait <= 0) return;
    await new Promise<void>((resolve) => {
      const timer = this.#reactor.after(wait, () => {
        this.#waiting.delete(timer);
        resolve();
      });
      this.#waiting.set(timer, resolve);
    });
  }

  /** The copy is stopping: nothing waits for its turn any more. */
  release(): void {
    this.#released = true;
    for (const [timer, resolve] of this.#waiting) {
      timer.cancel();
      resolve();
    }
    this.#waiting.clear();
  }
}
