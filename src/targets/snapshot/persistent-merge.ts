// A persistent store that shrinks: its records are taken out from the last one backwards, as their chunks go home.
import { Bio, REQ_FUA, REQ_OP_READ, REQ_OP_WRITE, REQ_PREFLUSH } from '../../block/bio.ts';
import { submitBio } from '../../block/block-device.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import { areaChunk, Records, recordsPerArea } from './layout.ts';
import type { PersistentStore } from './persistent.ts';

/** Chunks that follow one another on both sides, and whose records do, backwards, in one area. */
export interface MergeRun {
  oldChunk: number;
  newChunk: number;
  chunkCount: number;
}

export class MergeCursor {
  readonly #store: PersistentStore;
  readonly #perArea: number;
  readonly #bio = new Bio();
  #records: Records | null = null;
  /** The area that `#records` holds. */
  #loadedArea = -1;
  /** How many of its records are left. */
  #left = 0;

  constructor(store: PersistentStore) {
    this.#store = store;
    this.#perArea = recordsPerArea(store.chunkSectorCount);
  }

  /** Looks for the run that ends with the last record. `done` gets an errno, or the run, or null where none is left. */
  next(done: (errno: number, run: MergeRun | null) => void): void {
    const { area, recordCount } = this.#store.position;
    if (recordCount === 0 && area === 0) {
      done(0, null);
      return;
    }
    // An area that has become empty is the store's until a record before it is gone: a snapshot may go on with it.
    this.#left = recordCount === 0 ? this.#perArea : recordCount;
    this.#load(recordCount === 0 ? area - 1 : area, (errno) => done(errno, errno === 0 ? this.#lastRun() : null));
  }

  #load(area: number, done: (errno: number) => void): void {
    if (this.#loadedArea === area) {
      done(0);
      return;
    }
    this.#records ??= new Records(new Uint8Array(this.#store.chunkSectorCount * SECTOR_SIZE));
    this.#loadedArea = -1;
    this.#areaIo(REQ_OP_READ, 0, area, (errno) => {
      if (errno === 0) this.#loadedArea = area;
      done(errno);
    });
  }

  #areaIo(op: number, flags: number, area: number, done: (errno: number) => void): void {
    const { device, chunkSectorCount } = this.#store;
    const { bytes } = this.#records!;
    const bio = this.#bio;
    bio.reset(op, flags, device, areaChunk(area, this.#perArea) * chunkSectorCount, chunkSectorCount);
    bio.vecs = [{ page: bytes, offset: 0, byteLength: bytes.byteLength }];
    bio.onEnd = () => done(bio.status);
    submitBio(bio);
  }

  #lastRun(): MergeRun {
    const records = this.#records!;
    const last = this.#left - 1;
    const [oldChunk, newChunk] = [records.oldChunk(last), records.newChunk(last)];
    let count = 1;
    while (count <= last) {
      const index = last - count;
      if (records.oldChunk(index) !== oldChunk - count || records.newChunk(index) !== newChunk - count) break;
      count++;
    }
    return { oldChunk: oldChunk + 1 - count, newChunk: newChunk + 1 - count, chunkCount: count };
  }

  /** Takes the records of the run out, durably. */
  commit(run: MergeRun, done: (errno: number) => void): void {
    const area = this.#loadedArea;
    const left = this.#left - run.chunkCount;
    // Records stand at the front: what is behind those that stay is cleared.
    this.#records!.clearFrom(left);
    this.#areaIo(REQ_OP_WRITE, REQ_PREFLUSH | REQ_FUA, area, (errno) => {
      if (errno === 0) this.#store.shrinkTo(area, left, this.#records!);
      else this.#loadedArea = -1;
      done(errno);
    });
  }
}
