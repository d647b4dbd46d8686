// What a snapshot knows and does, whichever table line has it at the moment: exceptions, complete and pending, and their
// store. On a reload it passes from the old line to the new one as a whole.
import { type Bio, REQ_FUA } from '../../block/bio.ts';
import type { BlockDevice } from '../../block/block-device.ts';
import { MAX_POOLED_OBJECT_COUNT } from '../../block/bounds.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import type { TargetSetup } from '../../block/target.ts';
import { isZeroWrite } from '../../block/zeroout.ts';
import type { CopyRange } from './chunk-copy.ts';
import { CopyBuffers } from './copy-buffers.ts';
import { ExceptionTable } from './exception-table.ts';
import { forward } from './forward.ts';
import { PendingException, type PendingOwner } from './pending.ts';
import { PersistentStore } from './persistent.ts';
import type { Committable, ExceptionStore } from './store.ts';
import { ZeroBatches } from './zero-batch.ts';

/** How much a snapshot did since its store was opened. */
export interface SnapshotWork {
  /** Exceptions that were completed. */
  exceptionCount: number;
  /** Of these, those for which something was read from the origin. */
  copyCount: number;
  copiedSectorCount: number;
}

const pool: PendingException[] = [];

export class SnapshotState implements PendingOwner {
  readonly origin: BlockDevice;
  readonly store: ExceptionStore;
  readonly exceptions = new ExceptionTable();
  valid = true;
  /** No room for a write, on a store that lives on. */
  overflowed = false;
  /** As without lazy commit: while a suspend waits. */
  isEager = false;
  /** The line that has it. */
  setup: TargetSetup;
  readonly work: SnapshotWork = { exceptionCount: 0, copyCount: 0, copiedSectorCount: 0 };
  readonly #lazy: boolean;
  readonly #pending = new Map<number, PendingException>();
  // Pending exceptions that are not filled in their order of allocation yet.
  #firstAllocated: PendingException | null = null;
  #lastAllocated: PendingException | null = null;
  #buffers: CopyBuffers | null = null;
  #zeroBatches: ZeroBatches | null = null;
  /** Reads of the origin in flight, by chunk. */
  readonly #reads = new Map<number, number>();
  /** Exceptions that wait for such reads. */
  readonly #waitingForReads = new Map<number, PendingException>();
  /** Complete, and not in the store (lazy commit). */
  readonly #notDurable = new Set<number>();
  /** Who must not go on before the store is known to be invalid; null where that is not under way. */
  #whenInvalidated: (() => void)[] | null = null;

  constructor(origin: BlockDevice, store: ExceptionStore, setup: TargetSetup, lazy: boolean) {
    this.origin = origin;
    this.store = store;
    this.setup = setup;
    this.#lazy = lazy;
    store.holdDevices = () => {
      this.setup.hold();
      return this.setup;
    };
  }

  get chunkSectorCount(): number {
    return this.store.chunkSectorCount;
  }

  get lazy(): boolean {
    return this.#lazy;
  }

  get pendingCount(): number {
    return this.#pending.size;
  }

  /** The store is being marked as invalid. */
  get isInvalidating(): boolean {
    return this.#whenInvalidated !== null;
  }

  /** Passes to another line, with what is under way. */
  passTo(setup: TargetSetup): void {
    if (this.#pending.size > 0) {
      setup.hold();
      this.setup.release();
    }
    this.setup = setup;
  }

  // Pending exceptions

  findPending(chunk: number): PendingException | undefined {
    return this.#pending.get(chunk);
  }

  /**
   * @param writer the write that the chunk will be filled with, where there is one
   * @returns null where the store is full
   */
  makePending(chunk: number, writer: Bio | null): PendingException | null {
    const newChunk = this.store.allocate(writer !== null && this.#becomesHole(writer, chunk));
    if (newChunk < 0) return null;
    const pending = pool.pop() ?? new PendingException();
    pending.reset(this, chunk, newChunk);
    if (this.#pending.size === 0) this.setup.hold();
    this.#pending.set(chunk, pending);
    if (this.#lastAllocated === null) this.#firstAllocated = pending;
    else this.#lastAllocated.nextAllocated = pending;
    this.#lastAllocated = pending;
    return pending;
  }

  /** Calls back once, when the copy is complete, or the snapshot has given it up. */
  waitForCopy(pending: PendingException, resume: () => void): void {
    pending.originWaiters ??= [];
    pending.originWaiters.push(resume);
    this.hurryIfBlocking();
  }

  /** In a synchronous call, goes on with what was put off to a later turn. */
  hurryIfBlocking(): void {
    if (!this.setup.services.engines?.blocking) return;
    this.#zeroBatches?.hurry();
    this.store.hurry();
  }

  /** Begins to fill the chunk; with `writer`'s data in its place, where there is one. */
  start(pending: PendingException, writer: Bio | null): void {
    pending.started = true;
    pending.writer = writer;
    if (writer !== null && this.#becomesHole(writer, pending.oldChunk)) {
      pending.copy.copiedSectorCount = 0;
      this.#zeroes.add(pending.newChunk * this.chunkSectorCount, writer.sectorCount, pending.onFilled);
      return;
    }
    this.#buffers ??= new CopyBuffers(this.chunkSectorCount * SECTOR_SIZE);
    const { range } = pending.copy;
    this.#fillRange(range, pending);
    const writerStart = writer === null ? 0 : writer.sector - range.fromSector;
    // A commit flushes the data first; where none follows at once, the write itself has to be durable.
    const flags = writer !== null && (this.#lazy || !(this.store instanceof PersistentStore)) ? writer.flags : 0;
    pending.copy.run(this.#buffers, writer, writerStart, flags, pending.onFilled);
  }

  get #zeroes(): ZeroBatches {
    this.#zeroBatches ??= new ZeroBatches(this.store.device, this.setup.services);
    return this.#zeroBatches;
  }

  /** A write of zeroes over all that the origin has of a chunk. One with FUA goes the way of other writes. */
  #becomesHole(writer: Bio, chunk: number): boolean {
    if (!isZeroWrite(writer) || (writer.flags & REQ_FUA) !== 0 || !this.#zeroes.areCheap) return false;
    return (
      writer.sectorCount === Math.min(this.chunkSectorCount, this.origin.sectorCount - chunk * this.chunkSectorCount)
    );
  }

  /** Zeroes over a chunk that has its exception make it a hole. @returns false, with nothing done, for any other request */
  zeroChunk(bio: Bio, chunk: number, newChunk: number): boolean {
    if (!this.#becomesHole(bio, chunk)) return false;
    const sector = newChunk * this.chunkSectorCount;
    this.#zeroes.add(sector, bio.sectorCount, (errno) => {
      if (errno === 0) bio.endIo(0);
      else failBio(bio, errno, this.store.device, sector);
    });
    return true;
  }

  /** The last chunk may reach past the origin's end: it is filled as far as the origin goes. */
  #fillRange(range: CopyRange, pending: PendingException): void {
    const chunk = this.chunkSectorCount;
    range.from = this.origin;
    range.fromSector = pending.oldChunk * chunk;
    range.to = this.store.device;
    range.toSector = pending.newChunk * chunk;
    range.sectorCount = Math.min(chunk, this.origin.sectorCount - range.fromSector);
  }

  chunkFilled(pending: PendingException, errno: number, writing: boolean): void {
    pending.filled = true;
    pending.errno = errno;
    pending.failedWriting = writing;
    const { copiedSectorCount } = pending.copy;
    if (copiedSectorCount > 0) this.work.copyCount++;
    this.work.copiedSectorCount += copiedSectorCount;
    // Records are in the order of allocation, so that what is ready early waits.
    while (this.#firstAllocated?.filled) {
      const first = this.#firstAllocated;
      this.#firstAllocated = first.nextAllocated;
      if (this.#firstAllocated === null) this.#lastAllocated = null;
      this.#filledInOrder(first);
    }
  }

  #filledInOrder(pending: PendingException): void {
    if (pending.errno !== 0) {
      // A write that found no room below is that write's failure. Nobody can do without a copy for the origin, and what
      // else failed is the end of the snapshot.
      const harmless = pending.failedWriting && pending.errno === Errno.ENOSPC && pending.originWaiters === null;
      this.store.abandon(pending.newChunk);
      if (!harmless) this.invalidate();
      this.#fail(pending, harmless ? Errno.ENOSPC : Errno.EIO);
    } else if (!this.valid) {
      this.store.abandon(pending.newChunk);
      this.#fail(pending, Errno.EIO);
    } else if (this.#lazy && this.#mayBeLazy(pending)) {
      this.#commitLazily(pending);
    } else {
      this.store.commit(pending);
      if (this.#lazy) this.flushStore(() => {});
    }
  }

  #mayBeLazy(pending: PendingException): boolean {
    if (this.isEager || pending.originWaiters !== null || this.#reads.has(pending.oldChunk)) return false;
    return pending.writer === null || (pending.writer.flags & REQ_FUA) === 0;
  }

  /** The exception counts at once; its record follows when somebody flushes, or enough of them are there. */
  #commitLazily(pending: PendingException): void {
    this.store.commit(this.#acknowledged(pending));
    this.#complete(pending);
  }

  /** What the store has of an exception that counts, whatever becomes of its record. */
  #acknowledged({ oldChunk, newChunk }: PendingException): Committable {
    const exception: Committable = {
      oldChunk,
      newChunk,
      nextToCommit: null,
      committed: (errno) => {
        this.#notDurable.delete(oldChunk);
        if (errno !== 0) this.invalidate();
      },
      postponed: () => exception,
    };
    this.#notDurable.add(oldChunk);
    return exception;
  }

  /** The chunk's exception is complete, but a crash may forget it: the origin must not be written yet. */
  isNotDurable(chunk: number): boolean {
    return this.#notDurable.has(chunk);
  }

  recordCommitted(pending: PendingException, errno: number): void {
    if (errno !== 0) {
      const harmless = errno === Errno.ENOSPC && pending.originWaiters === null && this.valid;
      if (!harmless) this.invalidate();
      this.#fail(pending, harmless ? errno : Errno.EIO);
    } else if (!this.valid) {
      this.#fail(pending, Errno.EIO);
    } else if (this.#reads.has(pending.oldChunk)) {
      // From the completion on, the origin may be written: not below a read that was sent there.
      this.#waitingForReads.set(pending.oldChunk, pending);
    } else {
      this.#complete(pending);
    }
  }

  /** Lazy commit: the write fails as it would without; but what it wrote stays, as that of a write without FUA. */
  recordPostponed(pending: PendingException): Committable {
    const exception = this.#acknowledged(pending);
    pending.errno = Errno.ENOSPC;
    if (pending.originWaiters !== null || !this.valid) this.recordCommitted(pending, Errno.ENOSPC);
    else this.recordCommitted(pending, 0);
    return exception;
  }

  #complete(pending: PendingException): void {
    this.exceptions.add(pending.oldChunk, pending.newChunk);
    this.work.exceptionCount++;
    this.#forget(pending);
    if (pending.writer !== null) {
      if (pending.errno === 0) pending.writer.endIo(0);
      else failBio(pending.writer, pending.errno, this.store.device, pending.newChunk * this.chunkSectorCount);
    }
    for (let bio = pending.shift(); bio !== null; bio = pending.shift()) this.sendToNewChunk(bio, pending.newChunk);
    this.#releaseOrigin(pending);
    recycle(pending);
  }

  /** Sends a request that had to wait to where its chunk is now. */
  sendToNewChunk(bio: Bio, newChunk: number): void {
    const sector = newChunk * this.chunkSectorCount + (bio.sector % this.chunkSectorCount);
    const durably = this.#lazy && (bio.flags & REQ_FUA) !== 0;
    forward(bio, this.store.device, sector, durably ? this.#flushAndEnd : null);
  }

  /** Durable data is worth nothing without its record. */
  readonly #flushAndEnd = (bio: Bio): void => {
    this.flushStore((errno) => (errno === 0 ? bio.endIo(0) : bio.fail(errno, this.store.device)));
  };

  #fail(pending: PendingException, errno: number): void {
    this.#forget(pending);
    const { device } = this.store;
    const sector = pending.newChunk * this.chunkSectorCount;
    if (pending.writer !== null) failBio(pending.writer, errno, device, sector);
    for (let bio = pending.shift(); bio !== null; bio = pending.shift()) failBio(bio, errno, device, sector);
    this.#releaseOrigin(pending);
    recycle(pending);
  }

  #forget(pending: PendingException): void {
    this.#pending.delete(pending.oldChunk);
    if (this.#pending.size === 0) this.setup.release();
  }

  #releaseOrigin(pending: PendingException): void {
    const waiters = pending.originWaiters;
    pending.originWaiters = null;
    if (waiters === null) return;
    for (const resume of waiters) this.afterInvalidation(resume);
  }

  // Reads of the origin

  readStarted(chunk: number): void {
    this.#reads.set(chunk, (this.#reads.get(chunk) ?? 0) + 1);
  }

  readEnded(chunk: number): void {
    const count = this.#reads.get(chunk)! - 1;
    if (count > 0) {
      this.#reads.set(chunk, count);
      return;
    }
    this.#reads.delete(chunk);
    const pending = this.#waitingForReads.get(chunk);
    if (pending === undefined) return;
    this.#waitingForReads.delete(chunk);
    this.recordCommitted(pending, 0);
  }

  // Failure

  /** Ends the snapshot for good: its contents can't be kept right any more. The origin goes on. */
  invalidate(): void {
    if (!this.valid) return;
    this.valid = false;
    this.#whenInvalidated = [];
    const held = this.store.holdDevices();
    this.setup.raiseEvent();
    this.store.invalidate(() => {
      const waiting = this.#whenInvalidated!;
      this.#whenInvalidated = null;
      for (const resume of waiting) resume();
      held.release();
    });
  }

  /** Calls back when the store says that it is invalid, if it is about to; at once where it is not. */
  afterInvalidation(resume: () => void): void {
    if (this.#whenInvalidated === null) resume();
    else this.#whenInvalidated.push(resume);
  }

  /** For the answer of the store that a write to the origin waits for: it goes on, and a failure costs the snapshot. */
  goOnOrInvalidate(resume: () => void): (errno: number) => void {
    return (errno) => {
      if (errno !== 0) this.invalidate();
      this.afterInvalidation(resume);
    };
  }

  /** Makes every exception that counts durable (lazy commit). */
  flushStore(done: (errno: number) => void): void {
    if (this.store instanceof PersistentStore) this.store.flush(done);
    else done(0);
  }
}

function recycle(pending: PendingException): void {
  pending.writer = null;
  if (pool.length < MAX_POOLED_OBJECT_COUNT) pool.push(pending);
}

function failBio(bio: Bio, errno: number, device: BlockDevice, deviceSector: number): void {
  bio.errorSector = bio.sector;
  bio.errorDevice = device;
  bio.errorDeviceSector = deviceSector;
  bio.endIo(errno);
}
