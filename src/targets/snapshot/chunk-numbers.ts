// The numbers of a store's data chunks: which one is given out next. Numbers are counted without the metadata between the
// chunks (0 is the store's first data chunk), so that neighbours are neighbours.
//
//   0                                         next
//   |=====|..|===========|....|===============|- - - -
//          gap            gap                  never given out
//
// A number that came back is a gap, and given out again before any other. Gaps at the end are none: `next` moves down.

/** Numbers from `from` on, before `end`. */
interface Gap {
  from: number;
  end: number;
}

export class ChunkNumbers {
  #next = 0;
  /** In ascending order, with something taken between them and behind the last. */
  readonly #gaps: Gap[] = [];

  /** Behind the largest number that is given out. */
  get next(): number {
    return this.#next;
  }

  /** The number that take() will give. */
  get first(): number {
    return this.#gaps.length > 0 ? this.#gaps[0]!.from : this.#next;
  }

  take(): number {
    const gap = this.#gaps[0];
    if (gap === undefined) return this.#next++;
    const number = gap.from++;
    if (gap.from === gap.end) this.#gaps.shift();
    return number;
  }

  /** Takes a number back. */
  give(from: number): void {
    const end = from + 1;
    const gaps = this.#gaps;
    let at = gaps.length;
    while (at > 0 && gaps[at - 1]!.from > from) at--;
    const before = gaps[at - 1];
    const after = gaps[at];
    if (before?.end === from) {
      before.end = after?.from === end ? after.end : end;
      if (after?.from === end) gaps.splice(at, 1);
    } else if (after?.from === end) {
      after.from = from;
    } else {
      gaps.splice(at, 0, { from, end });
    }
    const last = gaps[gaps.length - 1]!;
    if (last.end !== this.#next) return;
    this.#next = last.from;
    gaps.pop();
  }

  /** Starts again: every number below `next` is taken. */
  reset(next: number): void {
    this.#next = next;
    this.#gaps.length = 0;
  }

  /** Notes that a number is taken already. @returns false, with nothing changed, unless it is larger than every other one */
  note(number: number): boolean {
    if (number < this.#next) return false;
    if (number > this.#next) this.#gaps.push({ from: this.#next, end: number });
    this.#next = number + 1;
    return true;
  }
}
