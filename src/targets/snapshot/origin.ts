// Who belongs together: the snapshots of one origin device, and the mappings through which that is written. The device
// object is the identity, whatever path led to it. Lists live as long as somebody is on them.
import type { Bio } from '../../block/bio.ts';
import type { BlockDevice } from '../../block/block-device.ts';
import { TargetError } from '../../block/target.ts';
import type { Snapshot } from './snapshot.ts';

export class Origin {
  readonly device: BlockDevice;
  /** The largest chunks first; among equals in the order of their registration. */
  readonly snapshots: Snapshot[] = [];
  /** The same by their stores: an origin may have thousands, and each store has one or two of them. */
  readonly #byCow = new Map<BlockDevice, Snapshot[]>();
  readonly #merges = new Set<Snapshot>();

  constructor(device: BlockDevice) {
    this.device = device;
  }

  /**
   * Registers a snapshot.
   *
   * @returns true where another line has its store: it is handed over at the resume, not loaded now
   * @throws TargetError where that can't be
   */
  register(snapshot: Snapshot): boolean {
    const { source, destination, merging, count } = this.findSharing(snapshot.cow);
    if (count === 2 || destination !== null) {
      throw new TargetError('Snapshot cow pairing for exception table handover failed');
    }
    if (source !== null && snapshot.isMerge) {
      if (merging !== null) throw new TargetError('A snapshot is already merging.');
      if (!source.supportsMerge) {
        throw new TargetError('Snapshot exception store does not support snapshot-merge.');
      }
    }
    this.insert(snapshot);
    return source !== null;
  }

  /** Puts a snapshot in its place; once more where its chunk size has changed. */
  insert(snapshot: Snapshot): void {
    const { chunkSectorCount } = snapshot;
    // New ones stand at the end, where they are looked for first: an origin may have thousands.
    const is = this.snapshots.lastIndexOf(snapshot);
    const [before, after] = [this.snapshots[is - 1], this.snapshots[is + 1]];
    const isInPlace =
      is >= 0 &&
      (before === undefined || before.chunkSectorCount >= chunkSectorCount) &&
      (after === undefined || after.chunkSectorCount < chunkSectorCount);
    if (isInPlace) return;
    this.remove(snapshot);
    this.#index(snapshot);
    const last = this.snapshots.at(-1);
    if (last === undefined || last.chunkSectorCount >= chunkSectorCount) {
      this.snapshots.push(snapshot);
      return;
    }
    const at = this.snapshots.findIndex((other) => other.chunkSectorCount < chunkSectorCount);
    if (at < 0) this.snapshots.push(snapshot);
    else this.snapshots.splice(at, 0, snapshot);
  }

  #index(snapshot: Snapshot): void {
    const sharing = this.#byCow.get(snapshot.cow);
    if (sharing === undefined) this.#byCow.set(snapshot.cow, [snapshot]);
    else sharing.push(snapshot);
    if (snapshot.isMerge) this.#merges.add(snapshot);
  }

  remove(snapshot: Snapshot): void {
    const at = this.snapshots.lastIndexOf(snapshot);
    if (at < 0) return;
    this.snapshots.splice(at, 1);
    this.#merges.delete(snapshot);
    const sharing = this.#byCow.get(snapshot.cow)!.filter((other) => other !== snapshot);
    if (sharing.length === 0) this.#byCow.delete(snapshot.cow);
    else this.#byCow.set(snapshot.cow, sharing);
  }

  /** The snapshots with that store: the one that has it and the one that waits for it; and the one that merges. */
  findSharing(cow: BlockDevice): {
    source: Snapshot | null;
    destination: Snapshot | null;
    merging: Snapshot | null;
    count: number;
  } {
    const sharing = this.#byCow.get(cow) ?? [];
    let source: Snapshot | null = null;
    let destination: Snapshot | null = null;
    for (const other of sharing) {
      if (other.active) source = other;
      else destination = other;
    }
    const [merging = null] = this.#merges;
    return { source, destination, merging, count: sharing.length };
  }

  /**
   * Makes sure that no snapshot needs what `sector` to `end` of the origin holds. Where copies have to be made first,
   * `resume` is called once when one of them is done, to ask again.
   *
   * @param except a snapshot that does not count
   * @returns true where nothing is needed
   */
  isReleased(sector: number, end: number, except: Snapshot | null, resume: () => void): boolean {
    let step = Number.POSITIVE_INFINITY;
    for (const snapshot of this.snapshots) {
      if (snapshot === except || !snapshot.protects(sector)) continue;
      step = Math.min(step, snapshot.chunkSectorCount);
    }
    if (step === Number.POSITIVE_INFINITY) return true;
    return new Release(this, except).run(sector, end, step, resume);
  }

  /** A write to the origin: sends it, now or when every snapshot has what it overwrites. `send` is called once. */
  beforeWrite(bio: Bio, sector: number, send: (bio: Bio) => void): boolean {
    const attempt = (): void => {
      if (this.isReleased(sector, sector + bio.sectorCount, null, attempt)) send(bio);
    };
    return this.isReleased(sector, sector + bio.sectorCount, null, attempt);
  }
}

/** One look at a range: begins the copies that it needs, and waits for the last of them. */
class Release {
  readonly #origin: Origin;
  readonly #except: Snapshot | null;
  readonly #starts: (() => void)[] = [];
  #wait: ((resume: () => void) => void) | null = null;

  constructor(origin: Origin, except: Snapshot | null) {
    this.#origin = origin;
    this.#except = except;
  }

  run(sector: number, end: number, step: number, resume: () => void): boolean {
    // In the order of the kernel, which cuts the write at the smallest chunk: piece by piece, the largest chunks first.
    for (let at = sector; at < end; at = (Math.floor(at / step) + 1) * step) {
      for (const snapshot of [...this.#origin.snapshots]) {
        if (snapshot === this.#except || !snapshot.protects(at)) continue;
        const wait = snapshot.prepareOriginWrite(at, this.#starts);
        if (wait !== null) this.#wait = wait;
      }
    }
    if (this.#wait === null) return true;
    // First in line, then started: a copy may be done before this returns.
    this.#wait(resume);
    for (const start of this.#starts) start();
    return false;
  }
}

/** The devices below lines of type snapshot-origin, with the number of those lines. */
const mapped = new Map<BlockDevice, number>();

/** A line of type snapshot-origin comes (1) or goes (-1). */
export function countMapper(device: BlockDevice, step: 1 | -1): void {
  const count = (mapped.get(device) ?? 0) + step;
  if (count > 0) mapped.set(device, count);
  else mapped.delete(device);
}

/** A line of type snapshot-origin is on the device, in a live table or another. */
export function isMapped(device: BlockDevice): boolean {
  return mapped.has(device);
}

/** The devices below lines of type snapshot-origin, of live tables and others: few, where there are thousands of snapshots. */
export function mappedOrigins(): Iterable<BlockDevice> {
  return mapped.keys();
}

const origins = new WeakMap<BlockDevice, Origin>();

/** The list of a device. */
export function originOf(device: BlockDevice): Origin {
  let origin = origins.get(device);
  if (origin === undefined) {
    origin = new Origin(device);
    origins.set(device, origin);
  }
  return origin;
}
