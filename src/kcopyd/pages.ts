// The pages a client sets aside: one slab, its pages handed out by number. A job's pages are mostly neighbours and then
// make one piece of memory; where they are not they make several.

import type { BioVec } from '../block/bio.ts';
import { ownMemory } from '../engine/address.ts';
import { allocatePages, PAGE_BYTE_LENGTH } from '../engine/bounce.ts';
import { loadLibc } from '../engine/libc.ts';

export class PageSlab {
  readonly pageCount: number;
  /** Most pages that were out at one time. */
  highWater = 0;
  /** A stack of page numbers, the lowest on top at first. */
  readonly #free: Uint32Array;
  #freeCount: number;
  #memory: Uint8Array | null = null;

  constructor(pageCount: number) {
    this.pageCount = pageCount;
    this.#free = Uint32Array.from({ length: pageCount }, (_, index) => pageCount - 1 - index);
    this.#freeCount = pageCount;
  }

  get freeCount(): number {
    return this.#freeCount;
  }

  get usedCount(): number {
    return this.pageCount - this.#freeCount;
  }

  /** Takes `pageCount` pages, which must be free. */
  take(pageCount: number): PageRun[] {
    const memory = this.#allocated();
    const runs: PageRun[] = [];
    let run: PageRun | undefined;
    for (let left = pageCount; left > 0; left--) {
      const page = this.#free[--this.#freeCount]!;
      if (run !== undefined && page === run.first + run.count) {
        run.count++;
        run.byteLength += PAGE_BYTE_LENGTH;
      } else {
        run = { page: memory, offset: page * PAGE_BYTE_LENGTH, byteLength: PAGE_BYTE_LENGTH, first: page, count: 1 };
        runs.push(run);
      }
    }
    this.highWater = Math.max(this.highWater, this.usedCount);
    return runs;
  }

  /** Gives back what one `take` gave. */
  give(runs: readonly PageRun[]): void {
    // Backwards, so that the next to take them finds them in the same order.
    for (let index = runs.length - 1; index >= 0; index--) {
      const { first, count } = runs[index]!;
      for (let page = first + count - 1; page >= first; page--) this.#free[this.#freeCount++] = page;
    }
  }

  /** On page boundaries where addresses can be known, so that O_DIRECT takes it as it is. */
  #allocated(): Uint8Array {
    if (this.#memory === null) {
      const byteLength = this.pageCount * PAGE_BYTE_LENGTH;
      const { libc } = loadLibc();
      this.#memory =
        libc === null
          ? ownMemory(new Uint8Array(byteLength))
          : allocatePages((buffer) => libc.addressOf(buffer), byteLength);
    }
    return this.#memory;
  }
}

/** Pages that lie side by side, as a piece of memory. */
export interface PageRun extends BioVec {
  readonly first: number;
  count: number;
}
