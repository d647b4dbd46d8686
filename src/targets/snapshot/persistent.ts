// The persistent store: exceptions that outlive the table, in the layout of layout.ts.
import { Bio, type BioVec, REQ_FUA, REQ_OP_WRITE, REQ_PREFLUSH } from '../../block/bio.ts';
import { type BlockDevice, submitBio } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import type { TargetServices } from '../../block/target.ts';
import { RangeRequest } from '../../block/zeroout.ts';
import { AllocationAhead, hasSectors } from './allocation.ts';
import { ChunkNumbers } from './chunk-numbers.ts';
import {
  areaChunk,
  dataChunk,
  dataChunkIndex,
  Records,
  recordsPerArea,
  windowByteLength,
  writeHeader,
} from './layout.ts';
import { type FoundStore, openStore } from './persistent-load.ts';
import { type Committable, type ExceptionStore, type HoldDevices, holdNothing, type StoreUsage } from './store.ts';
import { SyncIo } from './sync-io.ts';

/**
 * Of the area that is being filled, memory holds one window: the page with the first free record. A batch of exceptions is
 * one write of that page, which flushes what was written before and is durable when it ends. While it is under way the
 * window does not change: what is completed meanwhile waits, and makes the next batch.
 */
export class PersistentStore implements ExceptionStore {
  readonly device: BlockDevice;
  overflowAware: boolean;
  commitCount = 0;
  chunkSectorCount: number;
  holdDevices = holdNothing;
  readonly #services: TargetServices;
  readonly #lazy: boolean;
  readonly #bio = new Bio();
  readonly #windowVecs: BioVec[] = [{ page: new Uint8Array(0), offset: 0, byteLength: 0 }];
  readonly #onWindowWritten = (): void => this.#finish(this.#bio.status);
  readonly #ahead: AllocationAhead;
  #zeroing: RangeRequest | null = null;
  #valid = true;
  #perArea = 0;
  #numbers = new ChunkNumbers();
  /** The area that has free records, and how many of it are taken. */
  #area = 0;
  #recordCount = 0;
  #window = new Records(new Uint8Array(0));
  /** Chunks that were allocated and not heard of again. */
  #inFlightCount = 0;
  // Completed, and not in the window yet.
  #head: Committable | null = null;
  #tail: Committable | null = null;
  /** In the window, and not known to be on the device. */
  #batch: Committable[] = [];
  /**
   * Chunks that records named whose write found no room. Some of those records may be on the device all the same: the chunks
   * are free, and the window takes other records, when it was written without them.
   */
  #suspectChunks: number[] = [];
  #reclaims: ((errno: number) => void)[] = [];
  /** The list of a batch that is done with, for another. */
  #spareBatch: Committable[] | null = null;
  // How many exceptions came for commit, and how many of these are durable.
  #cameCount = 0;
  #durableCount = 0;
  /** Of the write under way the records may reach the device, although it fails. */
  #windowIsTouched = false;
  /** What is held while the window, or what goes before it, is being written; null where it is not. */
  #writing: ReturnType<HoldDevices> | null = null;
  #stepIsQueued = false;
  /** Who waits for the first `cameCount` exceptions to be durable: nothing else is waited for then. */
  #flushes: { cameCount: number; done: (errno: number) => void }[] = [];
  readonly #runStep = (): void => {
    this.#stepIsQueued = false;
    this.#step();
  };

  constructor(
    device: BlockDevice,
    chunkSectorCount: number,
    options: { services: TargetServices; overflowAware: boolean; lazy: boolean },
  ) {
    this.device = device;
    this.chunkSectorCount = chunkSectorCount;
    this.#services = options.services;
    this.overflowAware = options.overflowAware;
    this.#lazy = options.lazy;
    this.#ahead = new AllocationAhead(device);
  }

  get word(): 'P' | 'PO' {
    return this.overflowAware ? 'PO' : 'P';
  }

  load(add: (oldChunk: number, newChunk: number) => boolean): boolean {
    const io = new SyncIo(this.device, this.#services);
    try {
      const found = openStore(io, this.device, this.chunkSectorCount, add);
      this.#adopt(found);
      return found.valid;
    } finally {
      io.close();
    }
  }

  #adopt(found: FoundStore): void {
    this.chunkSectorCount = found.chunkSectorCount;
    this.#valid = found.valid;
    this.#perArea = recordsPerArea(found.chunkSectorCount);
    this.#area = found.area;
    this.#recordCount = found.recordCount;
    this.#numbers = found.numbers;
    this.#window = new Records(found.window);
  }

  // Space

  allocate(isHole: boolean): number {
    const chunk = dataChunk(this.#numbers.first, this.#perArea);
    const end = (chunk + 1) * this.chunkSectorCount;
    if (!hasSectors(this.device, end)) return -1;
    if (!isHole) this.#ahead.use(end - this.chunkSectorCount, end, this.holdDevices);
    this.#numbers.take();
    this.#inFlightCount++;
    return chunk;
  }

  abandon(newChunk: number): void {
    this.#inFlightCount--;
    this.#free(newChunk);
    this.#schedule();
  }

  #free(newChunk: number): void {
    this.#numbers.give(dataChunkIndex(newChunk, this.#perArea));
  }

  get isReclaimable(): boolean {
    return this.#valid && this.#suspectChunks.length > 0;
  }

  reclaim(done: (errno: number) => void): void {
    if (this.isReclaimable) {
      this.#reclaims.push(done);
      this.#schedule();
    } else {
      done(this.#valid ? 0 : Errno.EIO);
    }
  }

  usage(): StoreUsage {
    return {
      allocatedSectorCount: dataChunk(this.#numbers.next, this.#perArea) * this.chunkSectorCount,
      totalSectorCount: this.device.sectorCount,
      metadataSectorCount: (this.#area + 2) * this.chunkSectorCount,
    };
  }

  // Merging: records go, from the last one backwards, and nothing comes.

  /** The area with the last record (or, where it has none, the next free one), and how many it has. */
  get position(): { area: number; recordCount: number } {
    return { area: this.#area, recordCount: this.#recordCount };
  }

  /** Fewer records are left: `recordCount` in `area`, which holds `records`. */
  shrinkTo(area: number, recordCount: number, records: Records): void {
    this.#area = area;
    this.#recordCount = recordCount;
    this.#numbers.reset(area * this.#perArea + recordCount);
    // A snapshot that goes on from here writes its records behind those that are left, and no others.
    const { bytes } = this.#window;
    const start = Math.floor(recordCount / this.#window.count) * bytes.byteLength;
    bytes.set(records.bytes.subarray(start, start + bytes.byteLength));
  }

  /** A merge that was stopped leaves these chunks in use: their number says little where records don't ascend. */
  keepInUse(newChunks: Float64Array): void {
    this.#numbers.reset(0);
    for (const newChunk of newChunks.sort()) this.#numbers.note(dataChunkIndex(newChunk, this.#perArea));
  }

  // Commits

  commit(exception: Committable): void {
    this.#inFlightCount--;
    this.#cameCount++;
    exception.nextToCommit = null;
    this.#enqueue(exception);
    if (this.#isDue) this.#schedule();
  }

  #enqueue(exception: Committable): void {
    if (this.#tail === null) this.#head = exception;
    else this.#tail.nextToCommit = exception;
    this.#tail = exception;
  }

  /** Makes every exception durable that came for commit until now; calls back once, with 0, EIO or ENOSPC. */
  flush(done: (errno: number) => void): void {
    if (this.#durableCount === this.#cameCount) {
      done(this.#valid ? 0 : Errno.EIO);
      return;
    }
    this.#flushes.push({ cameCount: this.#cameCount, done });
    this.#schedule();
  }

  hurry(): void {
    if (this.#stepIsQueued) this.#step();
  }

  /** What arrives in one turn shares a commit; where somebody waits in a synchronous call there is no later turn. */
  #schedule(): void {
    if (this.#services.engines?.blocking) {
      this.#step();
    } else if (!this.#stepIsQueued) {
      this.#stepIsQueued = true;
      this.#services.reactor.wake(this.#runStep);
    }
  }

  /** With lazy commit the window waits for more until it is full, or somebody asks. */
  get #isDue(): boolean {
    if (!this.#lazy || this.#flushes.length > 0 || !this.#valid) return true;
    return this.#cameCount - this.#durableCount >= this.#window.count - (this.#recordCount % this.#window.count);
  }

  #step(): void {
    if (this.#writing !== null) return;
    const due = this.#isDue;
    const cleans = this.#valid && this.#suspectChunks.length > 0 && (this.#head !== null || this.#reclaims.length > 0);
    if (!cleans) this.#fillWindow();
    if (this.#batch.length === 0 && !cleans && this.#reclaims.length === 0) return;
    const full = this.#recordCount % this.#window.count === 0;
    // As long as more is on its way into a window that has room, it is worth waiting for.
    const waits = this.#lazy ? !due : this.#inFlightCount > 0 && this.#flushes.length === 0;
    if (this.#valid && !full && waits && !cleans) return;
    this.#writing = this.holdDevices();
    this.#windowIsTouched = false;
    if (!this.#valid) this.#finish(Errno.EIO);
    else if (this.#recordCount === this.#perArea) this.#zeroNextArea();
    else this.#writeWindow();
  }

  #fillWindow(): void {
    while (this.#head !== null && !this.#windowIsFull) {
      const exception = this.#head;
      this.#head = exception.nextToCommit;
      if (this.#head === null) this.#tail = null;
      exception.nextToCommit = null;
      this.#putIntoWindow(exception);
    }
  }

  #putIntoWindow(exception: Committable): void {
    this.#window.set(this.#recordCount % this.#window.count, exception.oldChunk, exception.newChunk);
    this.#recordCount++;
    this.#batch.push(exception);
  }

  get #windowIsFull(): boolean {
    return this.#batch.length > 0 && this.#recordCount % this.#window.count === 0;
  }

  /** Rule 6: before the last record of an area is written, the next area must read as the end of the list. */
  #zeroNextArea(): void {
    this.#zeroing ??= new RangeRequest(this.#services.reactor);
    const sector = areaChunk(this.#area + 1, this.#perArea) * this.chunkSectorCount;
    this.#zeroing.zeroOut(this.device, sector, this.chunkSectorCount, {}, (errno) => {
      if (errno === 0) this.#writeWindow();
      else this.#finish(errno);
    });
  }

  /** Rule 5: flushes the data of the batch, then writes its records through to the medium. */
  #writeWindow(): void {
    const { bytes } = this.#window;
    const windowSectorCount = bytes.byteLength / SECTOR_SIZE;
    // The batch may be empty, or fill the window.
    const window = Math.floor((this.#recordCount - this.#batch.length) / this.#window.count);
    this.#windowIsTouched = true;
    const sector = areaChunk(this.#area, this.#perArea) * this.chunkSectorCount + window * windowSectorCount;
    const bio = this.#bio;
    bio.reset(REQ_OP_WRITE, REQ_PREFLUSH | REQ_FUA, this.device, sector, windowSectorCount);
    this.#windowVecs[0]!.page = bytes;
    this.#windowVecs[0]!.byteLength = bytes.byteLength;
    bio.vecs = this.#windowVecs;
    bio.onEnd = this.#onWindowWritten;
    submitBio(bio);
  }

  #finish(status: number): void {
    const written = this.#writing!;
    // As long as it counts as being written, nothing that follows from an answer writes the window.
    if (status === Errno.ENOSPC && this.#lazy) this.#postpone();
    this.#writing = null;
    this.#tell(status);
    // Last: what follows from it may be held by nothing else yet.
    written.release();
  }

  #tell(status: number): void {
    if (status === Errno.ENOSPC) {
      this.#tellNoRoom();
      return;
    }
    const batch = this.#takeBatch();
    const errno = status === 0 ? 0 : Errno.EIO;
    if (errno === 0) {
      if (batch.length > 0) this.commitCount++;
      for (const newChunk of this.#suspectChunks.splice(0)) this.#free(newChunk);
      this.#turnThePage();
    } else this.#valid = false;
    this.#tellBatch(batch, errno);
    this.#tellWaiting(errno);
    this.#step();
  }

  #takeBatch(): Committable[] {
    const batch = this.#batch;
    this.#batch = this.#spareBatch ?? [];
    this.#spareBatch = null;
    return batch;
  }

  #tellBatch(batch: Committable[], errno: number): void {
    for (let i = 0; i < batch.length; i++) batch[i]!.committed(errno);
    // Not before: a caller that asks meanwhile is told when all of them know.
    this.#durableCount += batch.length;
    batch.length = 0;
    this.#spareBatch = batch;
  }

  /** Tells flushes and reclaims. Each list is closed first: an answer may bring another question. */
  #tellWaiting(errno: number): void {
    const isAnswered = ({ cameCount }: { cameCount: number }) => errno !== 0 || cameCount <= this.#durableCount;
    // In order of their counts.
    const count = this.#flushes.findIndex((flush) => !isAnswered(flush));
    const flushes = this.#flushes.splice(0, count < 0 ? this.#flushes.length : count);
    const reclaims = this.#reclaims.splice(0);
    for (const { done } of flushes) done(errno);
    for (const done of reclaims) done(errno);
  }

  #tellNoRoom(): void {
    if (!this.#lazy) this.#takeBack();
    this.#tellWaiting(Errno.ENOSPC);
    // With lazy commit the next write waits for a reason of its own.
    if (!this.#lazy || !this.#valid) this.#step();
  }

  /** The records stay in the window, and in the queue, and the next write tries again. */
  #postpone(): void {
    const batch = this.#batch;
    for (let i = 0; i < batch.length; i++) batch[i] = batch[i]!.postponed();
    let exception = this.#head;
    this.#head = null;
    this.#tail = null;
    while (exception !== null) {
      const next: Committable | null = exception.nextToCommit;
      exception.nextToCommit = null;
      this.#enqueue(exception.postponed());
      exception = next;
    }
  }

  /** The exceptions of the batch fail, and never were. Queued ones are tried next, but not on a window that can't be cleaned. */
  #takeBack(): void {
    const batch = this.#takeBatch();
    if (batch.length === 0) this.#takeQueue(batch);
    else this.#takeOutOfWindow(batch);
    this.#tellBatch(batch, Errno.ENOSPC);
  }

  #takeOutOfWindow(batch: readonly Committable[]): void {
    this.#recordCount -= batch.length;
    this.#window.clearFrom(this.#recordCount % this.#window.count);
    for (const { newChunk } of batch) {
      if (this.#windowIsTouched) this.#suspectChunks.push(newChunk);
      else this.#free(newChunk);
    }
  }

  #takeQueue(batch: Committable[]): void {
    while (this.#head !== null) {
      const exception = this.#head;
      this.#head = exception.nextToCommit;
      exception.nextToCommit = null;
      this.#free(exception.newChunk);
      batch.push(exception);
    }
    this.#tail = null;
  }

  /** A full window is done with; the next one, or the next area's first, is zeroes on the device. */
  #turnThePage(): void {
    if (this.#recordCount % this.#window.count !== 0) return;
    this.#window.bytes.fill(0);
    if (this.#recordCount < this.#perArea) return;
    this.#area++;
    this.#recordCount = 0;
  }

  invalidate(done: () => void): void {
    this.#valid = false;
    const bytes = new Uint8Array(windowByteLength(this.device, this.chunkSectorCount));
    writeHeader(bytes, false, this.chunkSectorCount);
    const bio = new Bio();
    // Durable before anybody goes on: an origin that moves on must not find a valid store after a crash.
    bio.reset(REQ_OP_WRITE, REQ_FUA, this.device, 0, bytes.byteLength / SECTOR_SIZE);
    bio.vecs = [{ page: bytes, offset: 0, byteLength: bytes.byteLength }];
    bio.onEnd = () => done();
    submitBio(bio);
    this.#schedule();
  }
}
