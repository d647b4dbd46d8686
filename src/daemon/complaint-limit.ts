// How many lines clients can cause: some of each kind, then one a minute that says how many more there were.

/** Lines of one kind before the limit holds. */
const BURST_COUNT = 5;
/** A kind that has used them up gets one more after each of these. */
const REFILL_MILLISECONDS = 60_000;
/** Kinds told apart; texts of others count as one kind. */
const MAX_KIND_COUNT = 64;
const OTHER_KIND = '';

interface Kind {
  /** Lines that may be written now, parts of one included. */
  allowance: number;
  at: number;
  droppedCount: number;
  /** The last text, for the line about those that were dropped. */
  text: string;
}

/** Texts that differ in numbers alone are of one kind. */
function kindOf(text: string): string {
  return text.replace(/0x[0-9a-f]+|[0-9a-f]*[0-9][0-9a-f]*/gi, '#').slice(0, 120);
}

export interface ComplaintLimitOptions {
  /** Milliseconds of a clock that only goes forward. */
  now?: () => number;
}

export class ComplaintLimit {
  readonly #now: () => number;
  readonly #kinds = new Map<string, Kind>();
  readonly #write: (moreCount: number, text: string) => void;
  #timer: NodeJS.Timeout | null = null;

  /** @param write writes one line: that there were `moreCount` more that read like `text` */
  constructor(write: (moreCount: number, text: string) => void, options: ComplaintLimitOptions = {}) {
    this.#write = write;
    this.#now = options.now ?? (() => performance.now());
  }

  /** Whether a line with this text may be written; where not, it is counted, and told of later. */
  allows(text: string): boolean {
    const kind = this.#kindFor(kindOf(text));
    this.#refill(kind);
    kind.text = text;
    if (kind.allowance >= 1) {
      kind.allowance--;
      return true;
    }
    kind.droppedCount++;
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      this.flush();
    }, REFILL_MILLISECONDS).unref();
    return false;
  }

  /** Tells of all that were dropped. */
  flush(): void {
    for (const kind of this.#kinds.values()) {
      const { droppedCount } = kind;
      if (droppedCount === 0) continue;
      kind.droppedCount = 0;
      this.#refill(kind);
      kind.allowance = Math.max(0, kind.allowance - 1);
      this.#write(droppedCount, kind.text);
    }
  }

  /** Tells of all that were dropped, and of nothing later. */
  close(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.flush();
  }

  #kindFor(name: string): Kind {
    const key = this.#kinds.has(name) || this.#kinds.size < MAX_KIND_COUNT ? name : OTHER_KIND;
    let kind = this.#kinds.get(key);
    if (kind === undefined) {
      kind = { allowance: BURST_COUNT, at: this.#now(), droppedCount: 0, text: '' };
      this.#kinds.set(key, kind);
    }
    return kind;
  }

  #refill(kind: Kind): void {
    const now = this.#now();
    kind.allowance = Math.min(BURST_COUNT, kind.allowance + (now - kind.at) / REFILL_MILLISECONDS);
    kind.at = now;
  }
}
