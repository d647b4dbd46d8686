// How much of the time a client, or several that share this, may have I/O under way (struct dm_kcopyd_throttle). Time is
// counted over about a second. It is a share of time, no rate: a faster device moves more in the same share.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { THROTTLE_PERIOD_MILLISECONDS } from './bounds.ts';

/**
 * A throttle in percent. Shared by the clients that it is given to.
 *
 * @example
 * ```ts
 * import { KcopydClient, KcopydThrottle, NodeLoop } from 'dmkit';
 *
 * const throttle = new KcopydThrottle(25);
 * const client = new KcopydClient({ reactor: new NodeLoop(), throttle });
 * throttle.percent = 100; // from now on as fast as it goes
 * client.destroy(() => {});
 * ```
 */
export class KcopydThrottle {
  #percent = 100;
  #jobCount = 0;
  #ioMilliseconds = 0;
  #totalMilliseconds = 0;
  #accountedAt = 0;

  /** @throws DmError EINVAL for what is no whole number from 0 on */
  constructor(percent = 100) {
    this.percent = percent;
  }

  /** 100 and more: no throttle. 0: a request about every second. */
  get percent(): number {
    return this.#percent;
  }

  set percent(percent: number) {
    if (!Number.isSafeInteger(percent) || percent < 0) {
      throw new DmError(Errno.EINVAL, `${percent} is no throttle: a whole number of percent, 0 or more`);
    }
    this.#percent = percent;
  }

  get active(): boolean {
    return this.#percent < 100;
  }

  /** Whether a request would have to wait at `now`. */
  mustWait(now: number): boolean {
    if (!this.active) return false;
    this.#account(now);
    while (this.#totalMilliseconds >= THROTTLE_PERIOD_MILLISECONDS) {
      this.#totalMilliseconds /= 2;
      this.#ioMilliseconds /= 2;
    }
    return this.#ioMilliseconds > (this.#percent * this.#totalMilliseconds) / 100;
  }

  started(now: number): void {
    if (this.active) this.#account(now);
    this.#jobCount++;
  }

  ended(now: number): void {
    if (this.active) this.#account(now);
    this.#jobCount--;
  }

  #account(now: number): void {
    const elapsed = Math.max(0, now - this.#accountedAt);
    this.#accountedAt = now;
    // After a long rest the rest itself counts no more than a period.
    this.#totalMilliseconds += Math.min(elapsed, 2 * THROTTLE_PERIOD_MILLISECONDS);
    if (this.#jobCount > 0) this.#ioMilliseconds += Math.min(elapsed, 2 * THROTTLE_PERIOD_MILLISECONDS);
  }
}
