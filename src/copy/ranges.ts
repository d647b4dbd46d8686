// What has become of each sector of a copy: ranges that cover it without gaps, neighbours that are alike joined. The
// letters are those of GNU ddrescue's mapfile.

/** Not tried. */
export const UNTRIED = '?';
/** Failed as a whole, and not looked at closer. */
export const FAILED = '*';
/** Failed, down to the logical block. */
export const BAD = '-';
/** Done, and durable. */
export const DONE = '+';

export type Status = typeof UNTRIED | typeof FAILED | typeof BAD | typeof DONE;

/** Sectors counted from the start of the copy; `end` is not part of it. */
export interface Range {
  start: number;
  end: number;
}

interface Entry extends Range {
  status: Status;
}

export class RangeMap {
  readonly sectorCount: number;
  #entries: Entry[];

  constructor(sectorCount: number, status: Status = UNTRIED) {
    this.sectorCount = sectorCount;
    this.#entries = sectorCount === 0 ? [] : [{ start: 0, end: sectorCount, status }];
  }

  get entries(): readonly Readonly<Entry>[] {
    return this.#entries;
  }

  /** The index of the entry that `sector` is in. */
  #find(sector: number): number {
    let low = 0;
    let high = this.#entries.length;
    while (low + 1 < high) {
      const middle = (low + high) >> 1;
      if (this.#entries[middle]!.start <= sector) low = middle;
      else high = middle;
    }
    return low;
  }

  set(start: number, end: number, status: Status): void {
    if (start >= end) return;
    const first = this.#find(start);
    const last = this.#find(end - 1);
    const before = this.#entries[first]!;
    const after = this.#entries[last]!;
    const parts: Entry[] = [];
    if (before.start < start) parts.push({ start: before.start, end: start, status: before.status });
    parts.push({ start, end, status });
    if (after.end > end) parts.push({ start: end, end: after.end, status: after.status });
    this.#entries.splice(first, last - first + 1, ...parts);
    this.#join(Math.max(0, first - 1), first + parts.length);
  }

  #join(from: number, to: number): void {
    for (let index = Math.min(to, this.#entries.length - 1); index > from; index--) {
      const entry = this.#entries[index]!;
      const left = this.#entries[index - 1]!;
      if (left.status !== entry.status) continue;
      left.end = entry.end;
      this.#entries.splice(index, 1);
    }
  }

  /** Ranges with one of `statuses` within `within`. */
  *ranges(statuses: readonly Status[], within: Range = { start: 0, end: this.sectorCount }): Generator<Range> {
    let open: Range | null = null;
    for (let index = this.#find(within.start); index < this.#entries.length; index++) {
      const entry = this.#entries[index]!;
      if (entry.start >= within.end) break;
      const start = Math.max(entry.start, within.start);
      const end = Math.min(entry.end, within.end);
      if (!statuses.includes(entry.status) || start >= end) continue;
      if (open !== null && open.end === start) open.end = end;
      else {
        if (open !== null) yield open;
        open = { start, end };
      }
    }
    if (open !== null) yield open;
  }

  count(status: Status): number {
    let count = 0;
    for (const entry of this.#entries) if (entry.status === status) count += entry.end - entry.start;
    return count;
  }
}
