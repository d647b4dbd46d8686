// So many bytes a second: each takes its turn on a line of time.
import type { Reactor } from '../block/reactor.ts';

/** How far the line may lie behind: what was not used lately may be caught up. */
const MAX_CREDIT_MILLISECONDS = 500;

export class RateLimit {
  readonly #reactor: Pick<Reactor, 'now' | 'after'>;
  readonly #bytesPerSecond: number;
  #freeAt = 0;

  constructor(reactor: Pick<Reactor, 'now' | 'after'>, bytesPerSecond: number) {
    this.#reactor = reactor;
    this.#bytesPerSecond = bytesPerSecond;
    this.#freeAt = reactor.now();
  }

  /** Resolves when `byteLength` bytes may go. */
  async take(byteLength: number): Promise<void> {
    const now = this.#reactor.now();
    const start = Math.max(this.#freeAt, now - MAX_CREDIT_MILLISECONDS);
    this.#freeAt = start + (byteLength * 1000) / this.#bytesPerSecond;
    const wait = start - now;
    if (wait > 0) await new Promise<void>((resolve) => void this.#reactor.after(wait, resolve));
  }
}
