// What can go wrong on a simulated disk, and which requests it happens to.
import { type Bio, REQ_OP_FLUSH, REQ_OP_READ } from '../block/bio.ts';
import type { Random } from './random.ts';
import { matchesFilter, type RequestFilter } from './request.ts';

/** When a fault happens, among the requests that its filter means. */
export interface FaultTrigger {
  /** Not before this many of them have passed by; 0 unless given. */
  nth?: number;
  /** To so many of them from there on; 1 where `nth` is given, else Infinity. */
  count?: number;
  /** Of those, to about this share, drawn from the seed; 1 unless given. */
  probability?: number;
}

/** What happens. */
export type FaultEffect =
  /**
   * The request fails with `errno` (positive, EIO unless given), at the first sector of `region` that it touches.
   * `written`: how much of a failed write, discard or write-zeroes reaches the disk; `none` unless given.
   */
  | { kind: 'error'; errno?: number; written?: 'none' | 'some' | 'all' }
  /** Reported as success, and only a part of its sectors was written. */
  | { kind: 'torn-write' }
  /** Reported as success, and nothing was written. */
  | { kind: 'lost-write' }
  /** Reported as success, and written to `toSector` (drawn unless given) instead of where it belongs. */
  | { kind: 'misdirected-write'; toSector?: number }
  /** The read gives what is at `fromSector` (drawn unless given). */
  | { kind: 'misdirected-read'; fromSector?: number }
  /** One drawn bit of what the read covers flips, and stays so until its sector is written (`lasting: false`: this once). */
  | { kind: 'bit-rot'; lasting?: boolean }
  /** A flush, PREFLUSH or FUA is reported as done and makes nothing durable. */
  | { kind: 'ignored-flush' }
  /** It takes so many milliseconds more. Needs a reactor. */
  | { kind: 'delay'; milliseconds: number }
  /** It never ends. */
  | { kind: 'hang' };

/** Something that goes wrong with some requests. The first fault of a list that applies to a request is the one it gets. */
export type Fault = RequestFilter & FaultTrigger & FaultEffect;

/** Faults that make sense for a request only when it is of these operations. */
function suits(fault: Fault, bio: Bio): boolean {
  switch (fault.kind) {
    case 'torn-write':
    case 'lost-write':
    case 'misdirected-write':
      return bio.op !== REQ_OP_READ && bio.op !== REQ_OP_FLUSH;
    case 'misdirected-read':
    case 'bit-rot':
      return bio.op === REQ_OP_READ;
    case 'ignored-flush':
      return bio.op !== REQ_OP_READ;
    default:
      return true;
  }
}

interface Armed {
  readonly fault: Fault;
  matchedCount: number;
}

/** The faults of one disk, with how often each has had its chance. */
export class FaultList {
  #armed: Armed[] = [];
  readonly #random: Random;

  constructor(random: Random, faults: readonly Fault[]) {
    this.#random = random;
    for (const fault of faults) this.add(fault);
  }

  add(fault: Fault): () => void {
    const armed: Armed = { fault, matchedCount: 0 };
    this.#armed.push(armed);
    return () => {
      this.#armed = this.#armed.filter((other) => other !== armed);
    };
  }

  clear(): void {
    this.#armed = [];
  }

  /** The fault that `bio` gets; to be asked once a request. Every fault that means it counts it. */
  take(bio: Bio): Fault | null {
    let found: Fault | null = null;
    for (const armed of this.#armed) if (this.#hits(armed, bio)) found ??= armed.fault;
    return found;
  }

  #hits(armed: Armed, bio: Bio): boolean {
    const { fault } = armed;
    if (!suits(fault, bio) || !matchesFilter(fault, bio)) return false;
    const index = armed.matchedCount++;
    const first = fault.nth ?? 0;
    const count = fault.count ?? (fault.nth === undefined ? Number.POSITIVE_INFINITY : 1);
    if (index < first || index >= first + count) return false;
    return fault.probability === undefined || this.#random() < fault.probability;
  }
}
