// What a simulated disk has been asked: numbers for assertions, lines for people.
import { type Bio, operationName } from '../block/bio.ts';
import { errnoName } from '../block/errno.ts';
import { describeRequest, OPERATIONS, type Operation } from './request.ts';

/** Requests of one operation. */
export interface OperationStats {
  submitted: number;
  /** Ended with success. */
  succeeded: number;
  failed: number;
  /** Of those that succeeded. */
  sectorCount: number;
}

/** What {@link SimulatedDevice.stats} gives: a copy of this moment. */
export interface SimulatedStats {
  operations: Record<Operation, OperationStats>;
  /** Submitted and not ended, those that wait for a place in the queue included. */
  inFlightCount: number;
  maxInFlightCount: number;
  /** Bytes of reads and writes in flight. */
  inFlightByteLength: number;
  maxInFlightByteLength: number;
  /** Faults that happened, by kind. */
  faults: Record<string, number>;
  /** Ended writes, discards and write-zeroes that a crash may still lose. */
  cachedCount: number;
  /** Milliseconds by the reactor's clock that requests took, all together; 0 without a reactor. */
  totalLatencyMilliseconds: number;
}

interface Entry {
  readonly id: number;
  readonly words: string;
  readonly startMilliseconds: number;
  fault: string | null;
  endMilliseconds: number | null;
  errno: number;
}

const NAMES = Object.keys(OPERATIONS) as Operation[];

export class RequestLog {
  readonly #maxEntryCount: number;
  readonly #entries: Entry[] = [];
  readonly #open = new Map<number, Entry>();
  readonly #operations = new Map<string, OperationStats>();
  readonly #faults = new Map<string, number>();
  #inFlightCount = 0;
  #maxInFlightCount = 0;
  #inFlightByteLength = 0;
  #maxInFlightByteLength = 0;
  #totalLatencyMilliseconds = 0;

  constructor(maxEntryCount: number) {
    this.#maxEntryCount = maxEntryCount;
    for (const name of NAMES) {
      this.#operations.set(name, { submitted: 0, succeeded: 0, failed: 0, sectorCount: 0 });
    }
  }

  get inFlightCount(): number {
    return this.#inFlightCount;
  }

  submitted(id: number, bio: Bio, nowMilliseconds: number): void {
    this.#operations.get(operationName(bio.op))!.submitted++;
    this.#maxInFlightCount = Math.max(this.#maxInFlightCount, ++this.#inFlightCount);
    if (bio.hasData) this.#inFlightByteLength += bio.byteLength;
    this.#maxInFlightByteLength = Math.max(this.#maxInFlightByteLength, this.#inFlightByteLength);
    const words = describeRequest(bio);
    const entry: Entry = {
      id,
      words,
      startMilliseconds: nowMilliseconds,
      fault: null,
      endMilliseconds: null,
      errno: 0,
    };
    this.#open.set(id, entry);
    this.#entries.push(entry);
    if (this.#entries.length > this.#maxEntryCount) this.#entries.shift();
  }

  faulted(id: number, kind: string): void {
    this.#faults.set(kind, (this.#faults.get(kind) ?? 0) + 1);
    this.#open.get(id)!.fault = kind;
  }

  ended(id: number, bio: Bio, errno: number, nowMilliseconds: number): void {
    const entry = this.#open.get(id)!;
    this.#open.delete(id);
    entry.endMilliseconds = nowMilliseconds;
    entry.errno = errno;
    this.#inFlightCount--;
    if (bio.hasData) this.#inFlightByteLength -= bio.byteLength;
    this.#totalLatencyMilliseconds += nowMilliseconds - entry.startMilliseconds;
    const stats = this.#operations.get(operationName(bio.op))!;
    if (errno === 0) {
      stats.succeeded++;
      stats.sectorCount += bio.sectorCount;
    } else {
      stats.failed++;
    }
  }

  stats(cachedCount: number): SimulatedStats {
    const operations = Object.fromEntries([...this.#operations].map(([name, stats]) => [name, { ...stats }]));
    return {
      operations: operations as Record<Operation, OperationStats>,
      inFlightCount: this.#inFlightCount,
      maxInFlightCount: this.#maxInFlightCount,
      inFlightByteLength: this.#inFlightByteLength,
      maxInFlightByteLength: this.#maxInFlightByteLength,
      faults: Object.fromEntries(this.#faults),
      cachedCount,
      totalLatencyMilliseconds: this.#totalLatencyMilliseconds,
    };
  }

  /** `#3 write 8+2 fua at 1.5 ms: EIO at 2.25 ms (error)`, in the order of submission. */
  lines(): string[] {
    return this.#entries.map((entry) => {
      const { id, words, startMilliseconds, endMilliseconds, fault, errno } = entry;
      const result = errno === 0 ? 'done' : errnoName(errno);
      const end = endMilliseconds === null ? 'in flight' : `${result} at ${inMilliseconds(endMilliseconds)}`;
      return `#${id} ${words} at ${inMilliseconds(startMilliseconds)}: ${end}${fault === null ? '' : ` (${fault})`}`;
    });
  }
}

function inMilliseconds(time: number): string {
  return `${Number(time.toFixed(3))} ms`;
}
