// One copy under way: which parts are started, which have ended, what failed. It does no I/O itself; the client does.
import type { IoError } from '../block/errors.ts';
import type { DmIoError, DmIoRegion, FailedRegion } from '../dm-io/index.ts';
import type { SubJobOrder } from './check.ts';
import { KcopydError } from './error.ts';
import type { PageRun } from './pages.ts';
import { KCOPYD_IGNORE_ERROR, KCOPYD_WRITE_SEQ, type KcopydJobHandle, type KcopydNotifyFunction } from './types.ts';

const NO_REGION: DmIoRegion = { bdev: null as never, sector: 0, count: 0 };

/** A part of a job: read once, then written to all destinations with one request. */
export class SubJob {
  readonly job: CopyJob;
  /** Sectors from the job's start. */
  offset = 0;
  count = 0;
  from: DmIoRegion = NO_REGION;
  dests: DmIoRegion[] = [];
  pages: readonly PageRun[] = [];
  /** How often a throttle has made it wait. */
  sleepCount = 0;
  /** What it would do next. */
  isWrite = false;
  readonly done: (errorBits: bigint, context: unknown, error: DmIoError | null) => void;

  constructor(job: CopyJob, onIoEnd: (subJob: SubJob, error: DmIoError | null) => void) {
    this.job = job;
    this.done = (_errorBits, _context, error) => onIoEnd(this, error);
  }
}

export interface JobSetup {
  readonly from: DmIoRegion | null;
  readonly dests: readonly DmIoRegion[];
  readonly flags: number;
  readonly order: SubJobOrder;
  readonly subJobSectorCount: number;
  readonly splitCount: number;
}

export class CopyJob implements KcopydJobHandle {
  /** In the client's queue of jobs that have parts to start. */
  next: CopyJob | null = null;
  queued = false;
  /** Of zeroes: WRITE_ZEROES where every destination takes it, settled once for all parts. */
  zeroOperation = 0;
  onProgress: ((finishedSectorCount: number) => void) | null = null;
  finishedSectorCount = 0;
  readonly from: DmIoRegion | null;
  readonly dests: readonly DmIoRegion[];
  readonly count: number;
  readonly ignoresErrors: boolean;
  readonly writesInSequence: boolean;
  readonly slotCount: number;
  readonly notify: KcopydNotifyFunction;
  readonly context: unknown;
  /** Parts under way. */
  activeCount = 0;
  /** Parts ended and kept for the next. */
  readonly idle: SubJob[] = [];
  /** Read, waiting for the writes before them. */
  readonly parked: SubJob[] = [];
  /** Up to here everything is written: for WRITE_SEQ. */
  writtenSectorCount = 0;
  /** Parts behind this are not written, since one there could not be read. */
  sequenceEnd = Number.POSITIVE_INFINITY;
  readErr = 0;
  writeErr = 0;
  readonly #descending: boolean;
  readonly #subJobSectorCount: number;
  #startedSectorCount = 0;
  #cancelled = false;
  #readCause: IoError | null = null;
  #failed: (FailedRegion | undefined)[] = [];

  constructor(setup: JobSetup, notify: KcopydNotifyFunction, context: unknown) {
    // Copies: the caller may change its regions after the call.
    this.from = setup.from === null ? null : { ...setup.from };
    this.dests = setup.dests.map((dest) => ({ ...dest }));
    this.count = setup.dests[0]!.count;
    this.writesInSequence = (setup.flags & (1 << KCOPYD_WRITE_SEQ)) !== 0;
    this.ignoresErrors = (setup.flags & (1 << KCOPYD_IGNORE_ERROR)) !== 0 && !this.writesInSequence;
    this.slotCount = setup.order === 'any' ? setup.splitCount : 1;
    this.#descending = setup.order === 'descending';
    this.#subJobSectorCount = setup.subJobSectorCount;
    this.notify = notify;
    this.context = context;
  }

  cancel(): void {
    this.#cancelled = true;
  }

  // Cutting

  /** No part is to be started any more. */
  get exhausted(): boolean {
    return this.#startedSectorCount === this.count || this.#isStopped;
  }

  get #isStopped(): boolean {
    return this.#cancelled || (!this.ignoresErrors && (this.readErr !== 0 || this.writeErr !== 0));
  }

  /** Sectors of the next part. */
  get nextSectorCount(): number {
    return Math.min(this.#subJobSectorCount, this.count - this.#startedSectorCount);
  }

  /** Sets a part to the next `count` sectors. */
  startPart(subJob: SubJob, count: number): void {
    const offset = this.#descending ? this.count - this.#startedSectorCount - count : this.#startedSectorCount;
    this.#startedSectorCount += count;
    subJob.offset = offset;
    subJob.count = count;
    subJob.sleepCount = 0;
    subJob.isWrite = this.from === null;
    if (this.from !== null) subJob.from = shifted(this.from, offset, count);
    subJob.dests = this.dests.map((dest) => shifted(dest, offset, count));
  }

  // Outcome

  /** @returns whether the part goes on */
  noteRead(error: DmIoError | null): boolean {
    if (error === null) return true;
    this.readErr = 1;
    const cause = error.failedRegions[0]?.cause ?? null;
    if (this.#readCause === null || (cause !== null && cause.sector < this.#readCause.sector)) this.#readCause = cause;
    return this.ignoresErrors;
  }

  noteWrite(error: DmIoError | null): void {
    if (error === null) return;
    this.writeErr |= Number(error.errorBits);
    for (const { index, cause } of error.failedRegions) {
      const known = this.#failed[index];
      if (known !== undefined && known.cause.sector <= cause.sector) continue;
      this.#failed[index] = { index, region: this.dests[index]!, cause };
    }
  }

  /** Parts that will not be written: every destination lacks them. */
  noteAborted(): void {
    this.writeErr = 2 ** this.dests.length - 1;
  }

  /** WRITE_SEQ: this part's turn to write never comes. */
  sequenceIsOver(subJob: SubJob): boolean {
    return this.writeErr !== 0 || subJob.offset > this.sequenceEnd;
  }

  finishPart(count: number): void {
    this.finishedSectorCount += count;
    this.onProgress?.(this.finishedSectorCount);
  }

  /** To be asked once, when the last part has ended. */
  conclude(): KcopydError | null {
    const cancelled = this.#cancelled && this.#startedSectorCount < this.count;
    if (cancelled) this.noteAborted();
    if (this.readErr === 0 && this.writeErr === 0) return null;
    const failed = this.#failed.filter((region) => region !== undefined);
    return new KcopydError(this.readErr, this.writeErr, this.#readCause, failed, cancelled);
  }
}

function shifted({ bdev, sector }: DmIoRegion, offset: number, count: number): DmIoRegion {
  return { bdev, sector: sector + offset, count };
}
