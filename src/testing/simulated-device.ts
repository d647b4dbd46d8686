// A disk in memory that behaves as badly as real ones may: slow, failing, with a volatile cache, and with a power switch.
// Everything it decides comes from one seed.
//
// What a reader may rely on, per sector: a read finds the newest write that had ended when the read was submitted, or a
// newer one. While a write is in flight, reads of its sectors find old or new, each sector of each read by itself. Of
// two writes of a sector in flight at one time either comes last, each sector by itself.
// What survives a crash is told in disk-model.ts.
import {
  type Bio,
  copyFromMemory,
  copyToMemory,
  REQ_FUA,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_PREFLUSH,
  walkMemory,
} from '../block/bio.ts';
import { type BlockDevice, EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, type ExtentCallback } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits, UNLIMITED_SECTOR_COUNT } from '../block/limits.ts';
import type { Reactor } from '../block/reactor.ts';
import { isSector, SECTOR_SIZE } from '../block/sector.ts';
import { enterSubmit, leaveSubmit } from '../engine/nesting.ts';
import { DiskImage } from './disk-image.ts';
import { type Change, type CrashChoice, type DiskEvent, DiskModel, flipBit } from './disk-model.ts';
import { type Fault, FaultList } from './faults.ts';
import {
  chance,
  freshSeed,
  mixSeed,
  type Random,
  randomBytes,
  randomFromSeed,
  randomInteger,
  randomItem,
} from './random.ts';
import { Recording } from './recording.ts';
import { describeRequest, OPERATIONS, type Operation } from './request.ts';
import { RequestLog, type SimulatedStats } from './request-log.ts';

/** Milliseconds: always the same, or drawn between two bounds, both included. */
export type Latency = number | readonly [min: number, max: number];

export interface SimulatedDeviceOptions {
  /** A 32-bit number; drawn unless given. */
  seed?: number;
  /** The clock for latency: a SimulatedReactor, or a real one. Without it every request ends inside submit(). */
  reactor?: Reactor;
  /** For all operations, or by operation; 0 unless given. Needs a reactor. */
  latency?: Latency | Partial<Record<Operation, Latency>>;
  /** Requests that the disk works on at one time; more wait in the order of submission. Unlimited unless given. */
  queueDepth?: number;
  faults?: readonly Fault[];
  /** What is on the disk (as far as it goes; zeroes behind it) and durable. Zeroes unless given. */
  content?: DiskImage | Uint8Array;
  readOnly?: boolean;
  /**
   * What differs from the defaults: a volatile cache (`hasWriteCache`), FUA, discard and write-zeroes without bound,
   * logical and physical blocks of 512 bytes. A physical block is what a crash never tears.
   */
  limits?: Partial<QueueLimits>;
  /** What a discarded sector reads as: zeroes, what it was, or `any` (unless given): drawn from these two and noise. */
  discardedSectors?: 'any' | 'zeroes' | 'old';
  /** Sectors that the cache takes; past it the disk makes drawn writes durable by itself. Unlimited unless given. */
  cacheSectorCount?: number;
  /** After a failed flush, does the next one cover the same writes (`keep`, unless given), or are they lost to it? */
  failedFlush?: 'keep' | 'forget';
  /** Requests that {@link SimulatedDevice.log} keeps, the newest; 10,000 unless given. */
  maxLogCount?: number;
}

export interface CrashOptions {
  /** What survives of what was volatile; drawn from the seed unless given. */
  choice?: CrashChoice;
  /** What becomes of requests in flight: `forget` (unless given): they never end. `fail`: EIO, now. */
  inFlight?: 'forget' | 'fail';
}

/** Numbers of the streams that the seed is split into. */
const [LATENCY, FAULT, PLACE, CRASH, REOPEN, DISCARD, DESTAGE] = [11, 12, 13, 14, 15, 16, 17] as const;

/** A request that the disk works on. */
interface Work {
  readonly id: number;
  readonly bio: Bio;
  readonly fault: Fault | null;
  /** Of a write, what was in memory when it was submitted. */
  readonly data: Uint8Array | null;
  readonly atStart: readonly (Uint8Array | undefined)[];
  /** Writes that had ended when it was submitted. */
  readonly flushMark: number;
}

/**
 * A simulated disk. The same seed and the same calls give the same run.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { Errno } from 'dmkit';
 * import { issue, SimulatedDevice, SimulatedReactor } from 'dmkit/testing';
 *
 * const reactor = new SimulatedReactor({ seed: 1 });
 * const disk = new SimulatedDevice('disk', 1024, {
 *   seed: 1,
 *   reactor,
 *   latency: { write: [1, 5], flush: 20 },
 *   faults: [{ kind: 'error', op: 'read', region: { sector: 100, sectorCount: 8 } }],
 * });
 *
 * const write = issue(disk, 'write', { sector: 8, data: new Uint8Array(512).fill(1) });
 * assert.equal(write.ended, false);
 * reactor.runUntilIdle();
 * assert.equal(write.errno, 0);
 *
 * const read = issue(disk, 'read', { sector: 96, sectorCount: 8 });
 * reactor.runUntilIdle();
 * assert.equal(read.errno, Errno.EIO);
 * assert.equal(read.bio.errorSector, 100);
 *
 * disk.crash({ choice: 'none' }); // the write was acknowledged, and never flushed
 * const after = disk.reopen({ faults: [] });
 * assert.equal(after.peek(8, 1)[0], 0);
 * ```
 */
export class SimulatedDevice implements BlockDevice {
  readonly name: string;
  readonly sectorCount: number;
  readonly readOnly: boolean;
  readonly limits: QueueLimits;
  /** With it and the same calls the run is the same. */
  readonly seed: number;
  readonly #options: SimulatedDeviceOptions;
  readonly #model: DiskModel;
  readonly #faults: FaultList;
  readonly #requests: RequestLog;
  readonly #latencyRandom: Random;
  readonly #placeRandom: Random;
  readonly #destageRandom: Random;
  readonly #working = new Map<number, Work>();
  #waiting: Work[] = [];
  #recordings: Recording[] = [];
  #nextId = 1;
  #reopenCount = 0;
  #crashed: DiskImage | null = null;

  /**
   * @param name as tables print it
   * @throws DmError EINVAL for a size that no device has, content longer than that, or a latency without a reactor
   */
  constructor(name: string, sectorCount: number, options: SimulatedDeviceOptions = {}) {
    if (!isSector(sectorCount)) throw new DmError(Errno.EINVAL, `${name}: ${sectorCount} is no number of sectors`);
    this.name = name;
    this.sectorCount = sectorCount;
    this.readOnly = options.readOnly ?? false;
    this.limits = {
      ...defaultLimits(),
      maxDiscardSectorCount: UNLIMITED_SECTOR_COUNT,
      discardGranularity: SECTOR_SIZE,
      maxWriteZeroesSectorCount: UNLIMITED_SECTOR_COUNT,
      hasWriteCache: true,
      hasFua: true,
      ...options.limits,
    };
    this.#options = options;
    this.seed = (options.seed ?? freshSeed()) >>> 0;
    this.#checkClock(options.latency, options.faults ?? []);
    this.#latencyRandom = randomFromSeed(mixSeed(this.seed, LATENCY));
    this.#placeRandom = randomFromSeed(mixSeed(this.seed, PLACE));
    this.#destageRandom = randomFromSeed(mixSeed(this.seed, DESTAGE));
    this.#faults = new FaultList(randomFromSeed(mixSeed(this.seed, FAULT)), options.faults ?? []);
    this.#requests = new RequestLog(options.maxLogCount ?? 10_000);
    const tearSectorCount = Math.max(1, Math.floor(this.limits.physicalBlockSize / SECTOR_SIZE));
    this.#model = new DiskModel({ sectorCount, seed: this.seed, tearSectorCount }, this.#contentEntries());
  }

  #contentEntries(): Iterable<[number, Uint8Array]> {
    const { content } = this.#options;
    if (content === undefined) return [];
    const image = content instanceof DiskImage ? content : DiskImage.fromBytes(content);
    if (image.sectorCount > this.sectorCount) {
      throw new DmError(Errno.EINVAL, `${this.name}: content of ${image.sectorCount} sectors on ${this.sectorCount}`);
    }
    return image.entries();
  }

  #checkClock(latency: SimulatedDeviceOptions['latency'], faults: readonly Fault[]): void {
    if (this.#options.reactor !== undefined) return;
    if (latency !== undefined || faults.some((fault) => fault.kind === 'delay')) {
      throw new DmError(Errno.EINVAL, `${this.name}: a latency needs a reactor`);
    }
  }

  /** True from {@link crash} on: every request fails with EIO. */
  get crashed(): boolean {
    return this.#crashed !== null;
  }

  get inFlightCount(): number {
    return this.#requests.inFlightCount;
  }

  /** Counts and high-water marks, a copy of this moment. */
  stats(): SimulatedStats {
    return this.#requests.stats(this.#model.cached.length);
  }

  /** The newest requests in words, oldest first: `#3 write 8+2 fua at 1.5 ms: EIO at 2.25 ms (error)`. */
  get log(): readonly string[] {
    return this.#requests.lines();
  }

  /** What reads find, bypassing requests. @throws RangeError past the end */
  peek(sector: number, sectorCount: number): Uint8Array {
    if (sector < 0 || sectorCount < 0 || sector + sectorCount > this.sectorCount) {
      throw new RangeError(`sectors ${sector}+${sectorCount} of ${this.name}, which has ${this.sectorCount}`);
    }
    return this.#model.read(sector, sectorCount);
  }

  /** Everything that reads find now. */
  image(): DiskImage {
    return this.#model.visibleImage();
  }

  /** What a crash now would leave by `choice`; the disk goes on. */
  crashImage(choice: CrashChoice): DiskImage {
    return this.#model.crashImage(choice);
  }

  /** Adds a fault, behind those that there are. @returns a function that takes it off @throws DmError EINVAL for a delay without a reactor */
  addFault(fault: Fault): () => void {
    this.#checkClock(undefined, [fault]);
    return this.#faults.add(fault);
  }

  /** Takes off all faults. Requests in flight keep theirs. */
  clearFaults(): void {
    this.#faults.clear();
  }

  /** Flips a bit of a sector (bit 0 to 4095; drawn unless given) on the medium, until the sector is written. */
  rot(sector: number, bit: number = randomInteger(this.#placeRandom, 0, SECTOR_SIZE * 8 - 1)): void {
    this.#apply({ kind: 'rot', sector, bit }, `rot of sector ${sector}`);
  }

  /** Starts to record what happens to the disk from now on, for crashes at every moment of it. */
  record(): Recording {
    // A recovery starts on a disk that doesn't fail, unless it is told otherwise.
    const recording = new Recording(this.#model.clone(), this.seed, (content, options) => {
      const { faults: _, ...own } = this.#options;
      return new SimulatedDevice(this.name, this.sectorCount, { ...own, ...options, content });
    });
    this.#recordings.push(recording);
    return recording;
  }

  /**
   * The power fails: what was volatile is kept, lost or torn, and this object is dead, its requests fail with EIO.
   *
   * @returns what is on the medium
   * @throws Error when it is dead already
   */
  crash(options: CrashOptions = {}): DiskImage {
    if (this.#crashed !== null) throw new Error(`${this.name} has crashed already`);
    this.#crashed = this.#model.crashImage(options.choice ?? { seed: mixSeed(this.seed, CRASH) });
    const abandoned = [...this.#working.values(), ...this.#waiting];
    this.#working.clear();
    this.#waiting = [];
    if (options.inFlight === 'fail') for (const work of abandoned) this.#answer(work, Errno.EIO);
    return this.#crashed;
  }

  /**
   * After a crash: a new disk with what was on the medium, the same options (faults count from the start) and a seed
   * that follows from this one's, except for what `options` gives.
   *
   * @throws Error when it has not crashed
   */
  reopen(options: SimulatedDeviceOptions = {}): SimulatedDevice {
    if (this.#crashed === null) throw new Error(`${this.name} has not crashed`);
    const seed = mixSeed(this.seed, REOPEN, this.#reopenCount++);
    return new SimulatedDevice(this.name, this.sectorCount, {
      ...this.#options,
      seed,
      content: this.#crashed,
      ...options,
    });
  }

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    if (this.#crashed !== null) {
      done(Errno.EIO, 0, 0);
      return;
    }
    const { visible } = this.#model;
    const stored = visible.has(sector);
    let count = 1;
    if (!stored && sectorCount > visible.size) {
      let end = sector + sectorCount;
      for (const other of visible.keys()) if (other > sector && other < end) end = other;
      count = end - sector;
    } else {
      while (count < sectorCount && visible.has(sector + count) === stored) count++;
    }
    done(0, count, stored ? EXTENT_DATA : EXTENT_HOLE | EXTENT_ZERO);
  }

  submit(bio: Bio): void {
    if (!enterSubmit(bio)) return;
    try {
      this.#take(bio);
    } finally {
      leaveSubmit();
    }
  }

  #take(bio: Bio): void {
    const data = memoryOf(bio);
    if (this.#crashed !== null || data === undefined) {
      bio.fail(data === undefined ? Errno.EFAULT : Errno.EIO, this);
      return;
    }
    const id = this.#nextId++;
    this.#requests.submitted(id, bio, this.#now());
    const fault = this.#faults.take(bio);
    if (fault !== null) this.#requests.faulted(id, fault.kind);
    const isRead = bio.op === REQ_OP_READ;
    const atStart = isRead ? this.#model.beginRead(bio.sector, bio.sectorCount) : [];
    const work: Work = { id, bio, fault, data, atStart, flushMark: this.#model.endCount };
    if (this.#hasPlace && this.#waiting.length === 0) this.#begin(work);
    else this.#waiting.push(work);
  }

  /** The disk starts on a request: a flush in front of it first. */
  #begin(work: Work): void {
    const { bio } = work;
    this.#working.set(work.id, work);
    if (work.fault?.kind === 'hang') return;
    if (bio.flags & REQ_PREFLUSH && bio.op === REQ_OP_WRITE) {
      this.#wait(work, 'flush', () => {
        if (work.fault?.kind !== 'ignored-flush') this.#flush(work, 'preflush of');
        this.#transfer(work);
      });
    } else {
      this.#transfer(work);
    }
  }

  #transfer(work: Work): void {
    const { bio, fault } = work;
    const change = this.#changeOf(work);
    if (change !== null) this.#apply({ kind: 'start', change }, `${describeRequest(bio)} submitted`);
    this.#wait(work, operationOf(bio), () => {
      this.#working.delete(work.id);
      const failed = fault?.kind === 'error';
      if (change !== null) this.#endChange(work, change);
      else if (bio.op === REQ_OP_FLUSH) this.#endFlush(work);
      else if (bio.op === REQ_OP_READ && !failed) copyToMemory(bio, this.#read(work));
      this.#beginNext();
      this.#answer(work, failed ? (fault.errno ?? Errno.EIO) : 0);
    });
  }

  #beginNext(): void {
    if (!this.#hasPlace) return;
    const next = this.#waiting.shift();
    if (next !== undefined) this.#begin(next);
  }

  get #hasPlace(): boolean {
    return this.#working.size < (this.#options.queueDepth ?? Number.POSITIVE_INFINITY);
  }

  #wait(work: Work, op: Operation, then: () => void): void {
    const { reactor } = this.#options;
    if (reactor === undefined) {
      then();
      return;
    }
    const delay = work.fault?.kind === 'delay' ? work.fault.milliseconds : 0;
    reactor.after(this.#latencyOf(op) + delay, () => {
      if (this.#working.has(work.id)) then();
    });
  }

  #latencyOf(op: Operation): number {
    const { latency = 0 } = this.#options;
    const own = isLatency(latency) ? latency : (latency[op] ?? 0);
    if (typeof own === 'number') return own;
    const [min, max] = own;
    return min + this.#latencyRandom() * (max - min);
  }

  #now(): number {
    return this.#options.reactor?.now() ?? 0;
  }

  /** What a request changes, decided at its start. Null for reads, flushes and what never reaches the medium. */
  #changeOf(work: Work): Change | null {
    const { id, bio, fault, data } = work;
    if (bio.op === REQ_OP_READ || bio.op === REQ_OP_FLUSH) return null;
    if (fault?.kind === 'lost-write') return null;
    if (fault?.kind === 'error' && (fault.written ?? 'none') === 'none') return null;
    const misdirected = fault?.kind === 'misdirected-write';
    const sector = misdirected ? this.#otherPlace(bio, fault.toSector) : bio.sector;
    const range = { id, sector, sectorCount: bio.sectorCount };
    if (bio.op === REQ_OP_WRITE) return { ...range, contents: contentsOf(sector, data!) };
    return { ...range, contents: bio.op === REQ_OP_DISCARD ? this.#discarded(id, sector, bio.sectorCount) : null };
  }

  /** Where a request goes astray to: `wish`, as far as it fits, or a drawn multiple of the request's length. */
  #otherPlace(bio: Bio, wish?: number): number {
    const { sector, sectorCount } = bio;
    if (wish !== undefined) return Math.min(wish, this.sectorCount - sectorCount);
    const places = Math.floor(this.sectorCount / sectorCount);
    const place = randomInteger(this.#placeRandom, 0, Math.max(0, places - 2));
    const other = place * sectorCount;
    return other === sector || places < 2 ? Math.max(0, places - 1) * sectorCount : other;
  }

  #discarded(id: number, sector: number, sectorCount: number): Change['contents'] {
    const how = this.#options.discardedSectors ?? 'any';
    if (how === 'zeroes') return null;
    const contents = new Map<number, Uint8Array | null>();
    if (how === 'old') return contents;
    // Only what holds data can differ from zeroes: a discard of a huge device costs what is on it.
    for (const at of this.#model.visible.keys()) {
      if (at < sector || at >= sector + sectorCount) continue;
      const fate = chance(this.seed, DISCARD, id, at);
      if (fate < 1 / 3) contents.set(at, null);
      else if (fate < 2 / 3) contents.set(at, randomBytes(randomFromSeed(mixSeed(this.seed, id, at)), SECTOR_SIZE));
    }
    return contents;
  }

  #endChange(work: Work, change: Change): void {
    const { bio, fault } = work;
    const failed = fault?.kind === 'error';
    const isFua = bio.op === REQ_OP_WRITE && (bio.flags & REQ_FUA) !== 0;
    const durable = !failed && fault?.kind !== 'ignored-flush' && (isFua || !this.limits.hasWriteCache);
    const part = fault?.kind === 'torn-write' || (failed && fault.written === 'some') ? 'some' : 'all';
    this.#apply({ kind: 'end', id: change.id, durable, part }, `${describeRequest(bio)} ended`);
    this.#destage();
  }

  #endFlush(work: Work): void {
    if (work.fault?.kind === 'ignored-flush') return;
    if (work.fault?.kind !== 'error') this.#flush(work, '');
    else if (this.#options.failedFlush === 'forget')
      this.#apply({ kind: 'forget', mark: work.flushMark }, 'flush failed');
  }

  #flush(work: Work, prefix: string): void {
    this.#apply({ kind: 'flush', mark: work.flushMark }, `${prefix} ${describeRequest(work.bio)} ended`.trimStart());
  }

  #read({ id, bio, fault, atStart }: Work): Uint8Array {
    if (fault?.kind === 'misdirected-read') {
      const sector = this.#otherPlace(bio, fault.fromSector);
      return this.#model.finishRead(id, sector, this.#model.beginRead(sector, bio.sectorCount));
    }
    if (fault?.kind !== 'bit-rot') return this.#model.finishRead(id, bio.sector, atStart);
    const bit = randomInteger(this.#placeRandom, 0, bio.byteLength * 8 - 1);
    if (fault.lasting === false) return flipBit(this.#model.finishRead(id, bio.sector, atStart), bit);
    this.rot(bio.sector + Math.floor(bit / (SECTOR_SIZE * 8)), bit % (SECTOR_SIZE * 8));
    return this.#model.finishRead(id, bio.sector, atStart);
  }

  /** A full cache writes some of what it holds. */
  #destage(): void {
    const bound = this.#options.cacheSectorCount;
    if (bound === undefined) return;
    for (;;) {
      const { cached } = this.#model;
      const sectorCount = cached.reduce((sum, change) => sum + (change.contents?.size ?? 1), 0);
      if (sectorCount <= bound) return;
      const { id } = randomItem(this.#destageRandom, cached);
      this.#apply({ kind: 'destage', id }, 'the cache wrote something');
    }
  }

  #apply(event: DiskEvent, words: string): void {
    for (const recording of this.#recordings) recording.add(event, words);
    this.#model.apply(event);
  }

  #answer(work: Work, errno: number): void {
    const { bio, fault } = work;
    this.#requests.ended(work.id, bio, errno, this.#now());
    if (errno === 0) bio.endIo(0);
    else bio.fail(errno, this, bio.op === REQ_OP_FLUSH ? bio.sector : Math.max(bio.sector, fault?.region?.sector ?? 0));
  }
}

function isLatency(latency: Latency | Partial<Record<Operation, Latency>>): latency is Latency {
  return typeof latency === 'number' || Array.isArray(latency);
}

function operationOf(bio: Bio): Operation {
  for (const [name, op] of Object.entries(OPERATIONS)) if (op === bio.op) return name as Operation;
  throw new Error(`operation ${bio.op}`);
}

/** A copy of what a write writes; null for other operations; undefined where there is less memory than the range needs. */
function memoryOf(bio: Bio): Uint8Array | null | undefined {
  if (!bio.hasData) return null;
  try {
    if (bio.op === REQ_OP_READ) {
      walkMemory(bio, 0, bio.byteLength, () => {});
      return null;
    }
    const data = new Uint8Array(bio.byteLength);
    copyFromMemory(bio, data);
    return data;
  } catch {
    return undefined;
  }
}

function contentsOf(sector: number, data: Uint8Array): Map<number, Uint8Array> {
  const contents = new Map<number, Uint8Array>();
  for (let start = 0; start < data.byteLength; start += SECTOR_SIZE) {
    contents.set(sector + start / SECTOR_SIZE, data.subarray(start, start + SECTOR_SIZE));
  }
  return contents;
}
