// How much of a client's memory may be in flight: a number of pages, taken by each bio and given back when it ends.
// A page is 4096 bytes of data; a bio without data counts for one.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

/** @throws DmError EINVAL for what is no number of pages */
export function checkPageCount(pageCount: number): void {
  if (!Number.isSafeInteger(pageCount) || pageCount < 1) {
    throw new DmError(Errno.EINVAL, `${pageCount} is no number of pages for dm-io: a whole number, 1 or more`);
  }
}

export class PageCredits {
  #bound: number;
  #inFlight = 0;

  constructor(bound: number) {
    checkPageCount(bound);
    this.#bound = bound;
  }

  get bound(): number {
    return this.#bound;
  }

  /** A smaller bound counts from now on for what is taken; what is in flight above it goes down by itself. */
  set bound(pageCount: number) {
    checkPageCount(pageCount);
    this.#bound = pageCount;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** How many could be taken now. */
  get free(): number {
    return Math.max(0, this.#bound - this.#inFlight);
  }

  /**
   * Takes `pageCount`, if they are free. More than the bound (one logical block can be larger than that) is given when
   * nothing else is in flight.
   */
  tryTake(pageCount: number): boolean {
    if (this.#inFlight + pageCount > this.#bound && this.#inFlight > 0) return false;
    this.#inFlight += pageCount;
    return true;
  }

  give(pageCount: number): void {
    this.#inFlight -= pageCount;
  }
}
