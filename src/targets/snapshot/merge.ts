// Bringing a snapshot's chunks home to its origin while both go on being used. The line is the origin's mapping, seen with
// the snapshot's changes.
//
// For each run of chunks, from the last record backwards:
// 1. every other snapshot copies what the run will overwrite, if it needs it;
// 2. writes to the run's chunks are held back from now on, and those under way end;
// 3. the run is copied from the store to the origin, and the origin is flushed;
// 4. its records are taken out of the store, durably: a crash before this only makes it copied once more;
// 5. the exceptions are forgotten, and the writes that were held back go to the origin.
import { Bio, REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE } from '../../block/bio.ts';
import { submitBio } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { DM_MAPIO_REMAPPED, DM_MAPIO_SUBMITTED, type MapResult } from '../../block/target.ts';
import { KcopydClient } from '../../kcopyd/index.ts';
import { forward } from './forward.ts';
import type { PersistentStore } from './persistent.ts';
import { MergeCursor, type MergeRun } from './persistent-merge.ts';
import type { Snapshot } from './snapshot.ts';
import type { SnapshotState } from './state.ts';

/** How often it is asked whether copies that began before the merge have ended. */
const RETRY_MILLISECONDS = 1;

export class Merge {
  readonly snapshot: Snapshot;
  #cursor: MergeCursor | null = null;
  #copier: KcopydClient | null = null;
  #running = false;
  #stopping = false;
  /** The run that is being copied; writes to its chunks wait. */
  #run: MergeRun | null = null;
  readonly #held: Bio[] = [];
  /** Writes to the store in flight, by new chunk. */
  readonly #writes = new Map<number, number>();
  #whenDrained: (() => void) | null = null;

  constructor(snapshot: Snapshot) {
    this.snapshot = snapshot;
  }

  get running(): boolean {
    return this.#running;
  }

  // Requests

  map(bio: Bio): MapResult {
    const { state, cow, origin } = this.snapshot;
    if (bio.op === REQ_OP_FLUSH) {
      bio.device = bio.targetBioNumber === 0 ? origin.device : cow;
      return DM_MAPIO_REMAPPED;
    }
    if (bio.op === REQ_OP_DISCARD) {
      // What is merged can't be taken back.
      bio.endIo(0);
      return DM_MAPIO_SUBMITTED;
    }
    if (state === null || !state.valid) return this.#toOrigin(bio);
    const chunk = Math.floor(bio.sector / state.chunkSectorCount);
    const newChunk = state.exceptions.get(chunk);
    if (newChunk < 0) return this.#toOrigin(bio);
    if (bio.op === REQ_OP_WRITE) {
      if (this.#isMerging(chunk)) {
        this.#held.push(bio);
        return DM_MAPIO_SUBMITTED;
      }
      this.#writes.set(newChunk, (this.#writes.get(newChunk) ?? 0) + 1);
    }
    bio.device = cow;
    bio.sector = newChunk * state.chunkSectorCount + (bio.sector % state.chunkSectorCount);
    return DM_MAPIO_REMAPPED;
  }

  #isMerging(chunk: number): boolean {
    const run = this.#run;
    return run !== null && chunk >= run.oldChunk && chunk < run.oldChunk + run.chunkCount;
  }

  #toOrigin(bio: Bio): MapResult {
    const { device } = this.snapshot.origin;
    const send = (held: Bio): void => forward(held, device, held.sector, null);
    if (bio.op !== REQ_OP_READ && !this.snapshot.origin.beforeWrite(bio, bio.sector, send)) return DM_MAPIO_SUBMITTED;
    bio.device = device;
    return DM_MAPIO_REMAPPED;
  }

  endIo(bio: Bio): void {
    const { state, cow } = this.snapshot;
    if (bio.op !== REQ_OP_WRITE || bio.device !== cow || state === null) return;
    const newChunk = Math.floor(bio.sector / state.chunkSectorCount);
    const count = this.#writes.get(newChunk)! - 1;
    if (count > 0) this.#writes.set(newChunk, count);
    else this.#writes.delete(newChunk);
    if (count === 0) this.#checkDrained();
  }

  // The merge

  /** At a resume. */
  start(): void {
    this.#stopping = false;
    if (this.#running || this.snapshot.mergeFailed || !this.snapshot.valid) return;
    this.#running = true;
    this.snapshot.setup.beginWork();
    this.#begin();
  }

  /** At a suspend, which waits for the run under way. */
  stop(): void {
    this.#stopping = true;
  }

  /** What the snapshot began before it merged comes to its end first. */
  #begin(): void {
    const { state, setup } = this.snapshot;
    if (this.#stopping) {
      this.#shut();
    } else if (state!.pendingCount > 0) {
      setup.services.reactor.after(RETRY_MILLISECONDS, () => this.#begin());
    } else {
      state!.flushStore((errno) => (errno === 0 ? this.#next() : this.#fail()));
    }
  }

  /** Each run in a turn of its own, so that others get theirs. */
  #later(): void {
    this.snapshot.setup.services.reactor.wake(() => this.#next());
  }

  #next(): void {
    const { state } = this.snapshot;
    if (this.#stopping || !state!.valid) {
      this.#shut();
      return;
    }
    this.#cursor ??= new MergeCursor(state!.store as PersistentStore);
    this.#cursor.next((errno, run) => {
      if (errno !== 0) this.#fail();
      else if (run === null) this.#shut();
      else this.#prepare(state!, run);
    });
  }

  #prepare(state: SnapshotState, run: MergeRun): void {
    const { origin } = this.snapshot;
    const sector = run.oldChunk * state.chunkSectorCount;
    const end = Math.min(sector + run.chunkCount * state.chunkSectorCount, origin.device.sectorCount);
    const attempt = (): void => {
      if (!origin.isReleased(sector, end, this.snapshot, attempt)) return;
      this.#run = run;
      this.#whenDrained = () => this.#copy(state, run, sector, end - sector);
      this.#checkDrained();
    };
    attempt();
  }

  #checkDrained(): void {
    const run = this.#run;
    if (this.#whenDrained === null || run === null) return;
    for (let index = 0; index < run.chunkCount; index++) if (this.#writes.has(run.newChunk + index)) return;
    const drained = this.#whenDrained;
    this.#whenDrained = null;
    drained();
  }

  #copy(state: SnapshotState, run: MergeRun, sector: number, count: number): void {
    const { origin, cow, setup } = this.snapshot;
    // A chunk behind the origin's end has nowhere to go: it stays, for an origin that is as long as it was.
    if (count <= 0) {
      this.#fail();
      return;
    }
    const { reactor, engines } = setup.services;
    this.#copier ??= new KcopydClient(engines === undefined ? { reactor } : { reactor, engines });
    const from = { bdev: cow, sector: run.newChunk * state.chunkSectorCount, count };
    this.#copier.copy(from, [{ bdev: origin.device, sector, count }], 0, (readErr, writeErr) => {
      if (readErr !== 0 || writeErr !== 0) this.#fail();
      else this.#flush(() => this.#commit(state, run));
    });
  }

  #flush(flushed: () => void): void {
    const bio = new Bio();
    bio.reset(REQ_OP_FLUSH, 0, this.snapshot.origin.device, 0, 0);
    bio.onEnd = () => (bio.status === 0 ? flushed() : this.#fail());
    submitBio(bio);
  }

  #commit(state: SnapshotState, run: MergeRun): void {
    this.#cursor!.commit(run, (errno) => {
      if (errno !== 0) {
        this.#fail();
        return;
      }
      for (let index = 0; index < run.chunkCount; index++) state.exceptions.delete(run.oldChunk + index);
      this.#run = null;
      for (const bio of this.#held.splice(0)) forward(bio, this.snapshot.origin.device, bio.sector, null);
      this.#later();
    });
  }

  /** Requests go on as they did; what is not merged stays in the store. */
  #fail(): void {
    this.snapshot.mergeFailed = true;
    this.#run = null;
    this.#whenDrained = null;
    for (const bio of this.#held.splice(0)) bio.fail(Errno.EIO, this.snapshot.origin.device);
    this.#shut();
  }

  #shut(): void {
    this.#running = false;
    const copier = this.#copier;
    this.#copier = null;
    copier?.destroy(() => {});
    this.snapshot.setup.endWork();
  }
}
