// One snapshot line of a table: where its requests go. What it knows about chunks is in state.ts, and may come from
// another line that had it before.
import { type Bio, REQ_FUA, REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE } from '../../block/bio.ts';
import { type BlockDevice, type ExtentCallback, extentDepth, queryExtent } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { escapeArgument } from '../../block/escape.ts';
import {
  DM_MAPIO_KILL,
  DM_MAPIO_REMAPPED,
  DM_MAPIO_SUBMITTED,
  type MapResult,
  type Target,
  TargetError,
  type TargetSetup,
} from '../../block/target.ts';
import { isZeroWrite } from '../../block/zeroout.ts';
import { formatFeatures, type SnapshotArguments, type SnapshotFeatures } from './arguments.ts';
import { discardChunks } from './discard.ts';
import { forward } from './forward.ts';
import { type Origin, originOf } from './origin.ts';
import { PersistentStore } from './persistent.ts';
import { SnapshotState } from './state.ts';
import { type ExceptionStore, StoreError } from './store.ts';

/** Chunks that one question about the allocation walks over. */
const MAX_EXTENT_CHUNK_COUNT = 4096;

export class Snapshot {
  readonly isMerge: boolean;
  readonly cow: BlockDevice;
  readonly features: SnapshotFeatures;
  readonly target: Target<unknown>;
  readonly setup: TargetSetup;
  readonly origin: Origin;
  /** Null as long as another line has it, and from then on when it has passed to another. */
  state: SnapshotState | null = null;
  /** It was resumed once: from then on the origin's writes leave it what it needs. */
  active = false;
  suspended = false;
  /** What merges stopped with. */
  mergeFailed = false;
  /** Of the table, until the state is here. */
  readonly #store: ExceptionStore;

  constructor(target: Target<unknown>, args: SnapshotArguments, setup: TargetSetup, isMerge: boolean) {
    this.isMerge = isMerge;
    this.target = target;
    this.cow = args.cow;
    this.features = args.features;
    this.setup = setup;
    this.origin = originOf(args.origin);
    this.#store = args.store;
    const waits = this.origin.register(this);
    try {
      if (!waits) this.#adopt(this.#load());
    } catch (error) {
      this.origin.remove(this);
      throw error;
    }
  }

  #load(): SnapshotState {
    const state = new SnapshotState(this.origin.device, this.#store, this.setup, this.features.lazyCommit);
    try {
      state.valid = this.#store.load((oldChunk, newChunk) => state.exceptions.add(oldChunk, newChunk));
    } catch (error) {
      if (!(error instanceof StoreError)) throw error;
      // Without a chunk size a transient store is the table's mistake.
      const text = this.#store.word === 'N' ? error.message : 'Failed to read snapshot metadata';
      throw new TargetError(text, error.errno, { cause: error });
    }
    if (this.target.begin % state.chunkSectorCount !== 0) {
      throw new TargetError('Target does not start at a multiple of its chunk size');
    }
    return state;
  }

  #adopt(state: SnapshotState): void {
    this.state = state;
    this.target.maxIoSectorCount = state.chunkSectorCount;
    this.origin.insert(this);
  }

  get chunkSectorCount(): number {
    return this.state?.chunkSectorCount ?? 0;
  }

  get valid(): boolean {
    return this.state?.valid ?? false;
  }

  get supportsMerge(): boolean {
    return this.#store instanceof PersistentStore;
  }

  // Requests

  /** Sectors are those of the mapped device, and the same on the origin: the line's start is no offset. */
  map(bio: Bio): MapResult {
    const { state } = this;
    if (bio.op === REQ_OP_FLUSH) return this.flush(bio);
    if (state === null || !state.valid) return DM_MAPIO_KILL;
    if (bio.op === REQ_OP_DISCARD) return this.#discard(state, bio);
    if (bio.op === REQ_OP_WRITE && state.overflowed) return DM_MAPIO_KILL;
    const chunk = Math.floor(bio.sector / state.chunkSectorCount);
    const newChunk = state.exceptions.get(chunk);
    if (newChunk >= 0) {
      if (isZeroWrite(bio) && state.zeroChunk(bio, chunk, newChunk)) return DM_MAPIO_SUBMITTED;
      return this.mapToNewChunk(state, bio, newChunk);
    }
    if (bio.op !== REQ_OP_READ) return this.#firstWrite(state, bio, chunk);
    state.readStarted(chunk);
    bio.device = state.origin;
    return DM_MAPIO_REMAPPED;
  }

  endIo(bio: Bio): void {
    const { state } = this;
    if (bio.op !== REQ_OP_READ || state === null || bio.device !== state.origin) return;
    state.readEnded(Math.floor(bio.sector / state.chunkSectorCount));
  }

  mapToNewChunk(state: SnapshotState, bio: Bio, newChunk: number): MapResult {
    if (state.lazy && bio.flags & REQ_FUA) {
      state.sendToNewChunk(bio, newChunk);
      return DM_MAPIO_SUBMITTED;
    }
    const chunk = state.chunkSectorCount;
    bio.device = this.cow;
    bio.sector = newChunk * chunk + (bio.sector % chunk);
    return DM_MAPIO_REMAPPED;
  }

  #firstWrite(state: SnapshotState, bio: Bio, chunk: number): MapResult {
    const pending = state.findPending(chunk) ?? state.makePending(chunk, bio);
    if (pending === null) {
      if (state.store.isReclaimable) {
        state.store.reclaim((errno) => this.#writeAgain(state, bio, chunk, errno));
        return DM_MAPIO_SUBMITTED;
      }
      if (state.store.overflowAware) state.overflowed = true;
      else state.invalidate();
      return DM_MAPIO_KILL;
    }
    if (!pending.started) {
      state.start(pending, bio);
      return DM_MAPIO_SUBMITTED;
    }
    pending.queue(bio);
    state.hurryIfBlocking();
    return DM_MAPIO_SUBMITTED;
  }

  /** A first write goes on when the store has reclaimed chunks, or has failed to. */
  #writeAgain(state: SnapshotState, bio: Bio, chunk: number, errno: number): void {
    if (errno !== 0) {
      if (errno !== Errno.ENOSPC) state.invalidate();
      bio.fail(errno, this.cow);
      return;
    }
    const newChunk = state.exceptions.get(chunk);
    if (!state.valid || state.overflowed) bio.fail(Errno.EIO, this.cow);
    else if (newChunk >= 0) state.sendToNewChunk(bio, newChunk);
    else if (this.#firstWrite(state, bio, chunk) === DM_MAPIO_KILL) bio.fail(Errno.EIO, this.cow);
  }

  /** The store's device alone: the origin holds nothing of ours that is not durable. */
  flush(bio: Bio): MapResult {
    const { state } = this;
    if (state?.lazy && state.valid) {
      state.flushStore((errno) => {
        if (errno === 0) forward(bio, this.cow, 0, null);
        else bio.fail(errno, this.cow);
      });
      return DM_MAPIO_SUBMITTED;
    }
    bio.device = this.cow;
    return DM_MAPIO_REMAPPED;
  }

  #discard(state: SnapshotState, bio: Bio): MapResult {
    if (bio.targetBioNumber > 0) {
      // To the origin, without copies for anybody: that is what was asked for.
      bio.device = state.origin;
      return DM_MAPIO_REMAPPED;
    }
    discardChunks(state, this.setup.services.reactor, bio);
    return DM_MAPIO_SUBMITTED;
  }

  // Writes to the origin

  /** A write to the origin at `sector` may need a copy first. */
  protects(sector: number): boolean {
    const { state } = this;
    if (state === null || !this.active || this.isMerge) return false;
    return (state.valid || state.isInvalidating) && sector < this.target.begin + this.target.sectorCount;
  }

  /**
   * Sees to the copy of the chunk with `sector`, if it needs one. A copy that has to be started is put into `starts`.
   *
   * @returns null where nothing needs to be waited for; else what takes a callback for its end
   */
  prepareOriginWrite(sector: number, starts: (() => void)[]): ((resume: () => void) => void) | null {
    const state = this.state!;
    if (!state.valid) return (resume) => state.afterInvalidation(resume);
    const chunk = Math.floor(sector / state.chunkSectorCount);
    if (state.exceptions.get(chunk) >= 0) {
      return state.isNotDurable(chunk) ? (resume) => state.flushStore(state.goOnOrInvalidate(resume)) : null;
    }
    const pending = state.findPending(chunk) ?? state.makePending(chunk, null);
    if (pending === null && state.store.isReclaimable)
      return (resume) => state.store.reclaim(state.goOnOrInvalidate(resume));
    if (pending === null) {
      state.invalidate();
      return state.isInvalidating ? (resume) => state.afterInvalidation(resume) : null;
    }
    if (!pending.started) {
      pending.started = true;
      starts.push(() => state.start(pending, null));
    }
    return (resume) => state.waitForCopy(pending, resume);
  }

  // Life

  preresume(): void {
    const { source, destination } = this.origin.findSharing(this.cow);
    if (source === null || destination === null) return;
    if (source === this) {
      throw new TargetError('Unable to resume snapshot source until handover completes.');
    }
    if (!source.suspended) {
      throw new TargetError('Unable to perform snapshot handover until source is suspended.');
    }
  }

  resume(): void {
    const { source, destination } = this.origin.findSharing(this.cow);
    if (source !== null && destination === this) this.#takeOver(source);
    this.origin.insert(this);
    this.active = true;
    this.suspended = false;
    this.presuspendUndo();
  }

  #takeOver(source: Snapshot): void {
    const { state } = source;
    source.state = null;
    if (state === null) return;
    // Whether a full store is the end of it is for the new line to say.
    state.store.overflowAware = this.#store.overflowAware;
    state.passTo(this.setup);
    if (source.isMerge && state.store instanceof PersistentStore) {
      const newChunks = new Float64Array(state.exceptions.size);
      let at = 0;
      state.exceptions.forEach((_, newChunk) => {
        newChunks[at++] = newChunk;
      });
      state.store.keepInUse(newChunks);
    }
    this.#adopt(state);
  }

  /** A suspend begins, and waits for the records that could have waited for a flush; later writes wait for theirs. */
  presuspend(): void {
    const { state, setup } = this;
    if (state === null || !state.lazy || !state.valid) return;
    state.isEager = true;
    setup.beginWork();
    state.flushStore(() => setup.endWork());
  }

  presuspendUndo(): void {
    if (this.state !== null) this.state.isEager = false;
  }

  postsuspend(): void {
    this.suspended = true;
  }

  destruct(): void {
    const { source, destination } = this.origin.findSharing(this.cow);
    this.origin.remove(this);
    // Who waits for this one's exceptions waits for nothing.
    if (source === this && destination !== null) destination.origin.remove(destination);
  }

  // What it says

  info(): string {
    const { state } = this;
    // One that waits for another's store has nothing yet, but could have.
    if (state === null && !this.active) return `0/${this.cow.sectorCount} 0`;
    if (state === null || !state.valid) return 'Invalid';
    if (this.mergeFailed) return 'Merge failed';
    if (state.overflowed) return 'Overflow';
    const usage = state.store.usage();
    return `${usage.allocatedSectorCount}/${usage.totalSectorCount} ${usage.metadataSectorCount}`;
  }

  get storeWord(): 'P' | 'PO' | 'N' {
    return this.state?.store.word ?? this.#store.word;
  }

  tableWords(): string {
    const devices = `${escapeArgument(this.origin.device.name)} ${escapeArgument(this.cow.name)}`;
    return `${devices} ${this.storeWord} ${this.chunkSectorCount}${formatFeatures(this.features)}`;
  }

  /** What the store has is of depth 1, whatever its device makes of it; what the origin has lies below. */
  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    const { state } = this;
    if (state === null || !state.valid) {
      done(Errno.EIO, 0, 0);
      return;
    }
    const size = state.chunkSectorCount;
    const chunk = Math.floor(sector / size);
    const newChunk = state.exceptions.get(chunk);
    if (newChunk >= 0) {
      const count = Math.min(sectorCount, (chunk + 1) * size - sector);
      queryExtent(this.cow, newChunk * size + (sector % size), count, (errno, extentCount, flags) => {
        done(errno, extentCount, flags, 1);
      });
      return;
    }
    const last = Math.min(chunk + MAX_EXTENT_CHUNK_COUNT, Math.ceil((sector + sectorCount) / size));
    let end = chunk + 1;
    while (end < last && state.exceptions.get(end) < 0) end++;
    const count = Math.min(sectorCount, end * size - sector);
    queryExtent(state.origin, sector, count, (errno, extentCount, flags, depth) => {
      const below = extentDepth(flags, depth);
      done(errno, extentCount, flags, below === 0 ? 0 : below + 1);
    });
  }
}
