// What a disk with a volatile cache may have on its medium. Plain data in, plain data out: no clock, no requests. It is
// driven by events, and the same events give the same state, so that a recorded run can be played again up to any event.
//
//   start: a write is on its way        from here on a crash may leave any part of it
//   end: it was acknowledged            reads see it; a crash may still lose it, or parts of it ...
//   flush: everything that had ended    ... until a flush that began after its end has ended, or at once where the
//          before a mark is durable         write itself is durable (FUA, or no cache)
//
// Writes that are still volatile are kept in the order of their ends. A crash decides about each of them, per unit that
// the disk writes atomically, and applies what survives in that order: a sector holds the newest survivor. (Any other
// order gives nothing new: "the older over the newer" is "the newer was lost".)
import { SECTOR_SIZE } from '../block/sector.ts';
import { DiskImage, type SectorMap, ZERO_SECTOR } from './disk-image.ts';
import { chance, mixSeed } from './random.ts';
import { overlaps, type Region } from './request.ts';

/** A change of sectors: a write, a discard, zeroes. */
export interface Change extends Region {
  readonly id: number;
  /** Sector to content (null: zeroes), for the sectors that change. Null: the whole range becomes zeroes. */
  readonly contents: ReadonlyMap<number, Uint8Array | null> | null;
}

/** One thing that happened to the disk. */
export type DiskEvent =
  | { readonly kind: 'start'; readonly change: Change }
  /** `durable`: it is on the medium. `part`: how much of it took place; `some` comes from faults. */
  | { readonly kind: 'end'; readonly id: number; readonly durable: boolean; readonly part: 'all' | 'some' }
  /** Everything among the first `mark` ends is durable. */
  | { readonly kind: 'flush'; readonly mark: number }
  /** A failed flush after which the cache takes these writes for written: no later flush covers them. */
  | { readonly kind: 'forget'; readonly mark: number }
  /** The disk wrote one cached change by itself. */
  | { readonly kind: 'destage'; readonly id: number }
  /** A bit of the medium flips; it stays so until the sector is written. */
  | { readonly kind: 'rot'; readonly sector: number; readonly bit: number };

/** What of the volatile writes a crash leaves; plain data, so that a report can carry it. */
export type CrashChoice =
  /** Nothing that was not durable, or all of it, also what was in flight. */
  | 'none'
  | 'all'
  /** Each write kept, lost or torn. */
  | { readonly seed: number }
  /** Only this one of them, or all but this one, counted in the order of {@link DiskModel.pending}. */
  | { readonly only: number }
  | { readonly except: number }
  /** Bit i: whether the ith unit survives, counted through all of them. Only for few units. */
  | { readonly units: number };

interface Pending {
  readonly change: Change;
  /** Its place in the order of ends; Infinity while it is in flight. */
  end: number;
  durable: boolean;
  forgotten: boolean;
  /** Changes of the same sectors that ended while this one was in flight. */
  readonly racers: Change[];
  /** Sectors in which another change won, or which a fault left out. */
  readonly excluded: Set<number>;
}

type Keep = (sector: number) => boolean;

const KEEP_ALL: Keep = () => true;
const KEEP_NONE: Keep = () => false;
/** Purposes, so that one seed decides about each independently. */
const [RACE, TEAR, FATE, READ] = [1, 2, 3, 4] as const;
/** Two changes of longer ranges that race: the one that ended last wins everywhere. */
const MAX_RACE_SECTOR_COUNT = 65536;

function applyChange(sectors: SectorMap, { change, excluded }: Pending, keep: Keep, visit?: (sector: number) => void) {
  const set = (sector: number, bytes: Uint8Array | null): void => {
    if (excluded.has(sector) || !keep(sector)) return;
    if (bytes === null) sectors.delete(sector);
    else sectors.set(sector, bytes);
    visit?.(sector);
  };
  if (change.contents !== null) {
    for (const [sector, bytes] of change.contents) set(sector, bytes);
  } else if (change.sectorCount > sectors.size) {
    for (const sector of sectors.keys()) if (overlaps(change, { sector, sectorCount: 1 })) set(sector, null);
  } else {
    for (let i = 0; i < change.sectorCount; i++) set(change.sector + i, null);
  }
}

export interface DiskModelOptions {
  sectorCount: number;
  seed: number;
  /** Sectors that reach the medium together or not at all, counted from sector 0. */
  tearSectorCount: number;
}

export class DiskModel {
  readonly #options: DiskModelOptions;
  /** Durable for certain, as far as no volatile write comes before it. */
  #medium: SectorMap;
  /** What a read finds. */
  #visible: SectorMap;
  /** Ended and not yet folded into the medium, in the order of their ends. */
  #ended: Pending[] = [];
  #inFlight = new Map<number, Pending>();
  #rot = new Map<number, number>();
  #endCount = 0;

  constructor(options: DiskModelOptions, content: Iterable<[number, Uint8Array]> = []) {
    this.#options = options;
    this.#medium = new Map(content);
    this.#visible = new Map(this.#medium);
  }

  /** A model in the same state that goes its own way from here. */
  clone(): DiskModel {
    const copy = new DiskModel(this.#options);
    const copyOf = (pending: Pending): Pending => ({
      ...pending,
      racers: [...pending.racers],
      excluded: new Set(pending.excluded),
    });
    copy.#medium = new Map(this.#medium);
    copy.#visible = new Map(this.#visible);
    copy.#ended = this.#ended.map(copyOf);
    copy.#inFlight = new Map([...this.#inFlight].map(([id, pending]) => [id, copyOf(pending)]));
    copy.#rot = new Map(this.#rot);
    copy.#endCount = this.#endCount;
    return copy;
  }

  /** How many changes have ended: the mark of a flush that begins now. */
  get endCount(): number {
    return this.#endCount;
  }

  /** Sectors with content of their own that reads find. */
  get visible(): ReadonlyMap<number, Uint8Array> {
    return this.#visible;
  }

  /** Ended changes that a crash may lose. */
  get cached(): readonly Change[] {
    return this.#ended.filter((pending) => !pending.durable).map((pending) => pending.change);
  }

  /** What a crash now decides about: cached changes in the order of their ends, then those in flight as they started. */
  get pending(): readonly Change[] {
    return this.#pending().map((pending) => pending.change);
  }

  /** How many units {@link pending} has, up to `max`. */
  countUnits(max: number): number {
    let count = 0;
    for (const { change } of this.#pending()) {
      count += this.#unitOf(change.sector + change.sectorCount - 1) - this.#unitOf(change.sector) + 1;
      if (count >= max) return max;
    }
    return count;
  }

  apply(event: DiskEvent): void {
    switch (event.kind) {
      case 'start':
        this.#start(event.change);
        break;
      case 'end':
        this.#end(event.id, event.durable, event.part);
        break;
      case 'flush':
        for (const pending of this.#ended) if (pending.end <= event.mark && !pending.forgotten) pending.durable = true;
        this.#fold();
        break;
      case 'forget':
        for (const pending of this.#ended) if (pending.end <= event.mark) pending.forgotten = true;
        break;
      case 'destage':
        for (const pending of this.#ended) if (pending.change.id === event.id) pending.durable = true;
        this.#fold();
        break;
      case 'rot':
        this.#rot.set(event.sector, event.bit);
        // From now on the sector is no hole.
        if (!this.#visible.has(event.sector)) this.#visible.set(event.sector, ZERO_SECTOR);
        break;
    }
  }

  #start(change: Change): void {
    const pending = { change, end: Number.POSITIVE_INFINITY, durable: false, forgotten: false };
    this.#inFlight.set(change.id, { ...pending, racers: [], excluded: new Set() });
  }

  #end(id: number, durable: boolean, part: 'all' | 'some'): void {
    const pending = this.#inFlight.get(id)!;
    this.#inFlight.delete(id);
    pending.end = ++this.#endCount;
    pending.durable = durable;
    this.#decideRaces(pending);
    if (part === 'some') this.#excludeTorn(pending);
    applyChange(this.#visible, pending, KEEP_ALL, (sector) => this.#rot.delete(sector));
    this.#ended.push(pending);
    for (const other of this.#inFlight.values()) {
      if (overlaps(other.change, pending.change)) other.racers.push(pending.change);
    }
    this.#fold();
  }

  /** Two changes of a sector in flight at the same time: a coin says which one came last. */
  #decideRaces({ change, racers, excluded }: Pending): void {
    for (const racer of racers) {
      const first = Math.max(change.sector, racer.sector);
      const end = Math.min(change.sector + change.sectorCount, racer.sector + racer.sectorCount);
      if (end - first > MAX_RACE_SECTOR_COUNT) continue;
      for (let sector = first; sector < end; sector++) {
        if (chance(this.#options.seed, RACE, change.id, racer.id, sector) < 0.5) excluded.add(sector);
      }
    }
  }

  #excludeTorn({ change, excluded }: Pending): void {
    const keep = this.#torn(change, mixSeed(this.#options.seed, TEAR, change.id));
    const sectors = change.contents?.keys() ?? this.#sectorsOf(change);
    for (const sector of sectors) if (!keep(sector)) excluded.add(sector);
  }

  *#sectorsOf(region: Region): IterableIterator<number> {
    for (let i = 0; i < Math.min(region.sectorCount, MAX_RACE_SECTOR_COUNT); i++) yield region.sector + i;
  }

  /** Moves what nothing volatile comes before onto the medium. */
  #fold(): void {
    let count = 0;
    for (const pending of this.#ended) {
      if (!pending.durable) break;
      applyChange(this.#medium, pending, KEEP_ALL);
      count++;
    }
    if (count > 0) this.#ended.splice(0, count);
  }

  #pending(): Pending[] {
    return [...this.#ended.filter((pending) => !pending.durable), ...this.#inFlight.values()];
  }

  /** What each of `sectorCount` sectors holds: for {@link finishRead}, from the moment at which a read was submitted. */
  beginRead(sector: number, sectorCount: number): readonly (Uint8Array | undefined)[] {
    return Array.from({ length: sectorCount }, (_, i) => this.#visible.get(sector + i));
  }

  /**
   * What a read that ends now finds. A sector that a change is in flight for, or that one has ended for since `atStart`,
   * is old or new, each sector by itself.
   */
  finishRead(id: number, sector: number, atStart: readonly (Uint8Array | undefined)[]): Uint8Array {
    const bytes = new Uint8Array(atStart.length * SECTOR_SIZE);
    const region = { sector, sectorCount: atStart.length };
    const racing = [...this.#inFlight.values()].filter((pending) => overlaps(pending.change, region));
    for (const [i, old] of atStart.entries()) {
      const at = sector + i;
      let content = this.#visible.get(at);
      if (content !== old && chance(this.#options.seed, READ, id, at) < 0.5) content = old;
      for (const { change } of racing) {
        if (
          overlaps(change, { sector: at, sectorCount: 1 }) &&
          chance(this.#options.seed, READ, id, change.id, at) < 0.5
        ) {
          content = change.contents === null ? undefined : this.#contentOf(change.contents, at, content);
        }
      }
      bytes.set(this.#rotted(at, content ?? ZERO_SECTOR), i * SECTOR_SIZE);
    }
    return bytes;
  }

  /** What reads find where nothing races. */
  read(sector: number, sectorCount: number): Uint8Array {
    const bytes = new Uint8Array(sectorCount * SECTOR_SIZE);
    for (let i = 0; i < sectorCount; i++) {
      bytes.set(this.#rotted(sector + i, this.#visible.get(sector + i) ?? ZERO_SECTOR), i * SECTOR_SIZE);
    }
    return bytes;
  }

  #contentOf(contents: NonNullable<Change['contents']>, sector: number, unchanged: Uint8Array | undefined) {
    const content = contents.get(sector);
    return content === undefined ? unchanged : (content ?? undefined);
  }

  #rotted(sector: number, content: Uint8Array): Uint8Array {
    const bit = this.#rot.get(sector);
    return bit === undefined ? content : flipBit(content, bit);
  }

  /** What reads find. */
  visibleImage(): DiskImage {
    return this.#imageOf(new Map(this.#visible));
  }

  /** What is on the medium after a crash now, by `choice`. */
  crashImage(choice: CrashChoice): DiskImage {
    const sectors: SectorMap = new Map(this.#medium);
    const keeps = new Map<Pending, Keep>();
    let firstUnit = 0;
    for (const [index, pending] of this.#pending().entries()) {
      keeps.set(pending, this.#keepOf(choice, index, pending.change, firstUnit));
      firstUnit +=
        this.#unitOf(pending.change.sector + pending.change.sectorCount - 1) - this.#unitOf(pending.change.sector) + 1;
    }
    // Durable ones that come after volatile ones are applied in their place: nothing older covers them.
    for (const pending of this.#ended) applyChange(sectors, pending, keeps.get(pending) ?? KEEP_ALL);
    for (const pending of this.#inFlight.values()) applyChange(sectors, pending, keeps.get(pending)!);
    return this.#imageOf(sectors);
  }

  #imageOf(sectors: SectorMap): DiskImage {
    for (const [sector, bit] of this.#rot) sectors.set(sector, flipBit(sectors.get(sector) ?? ZERO_SECTOR, bit));
    return new DiskImage(this.#options.sectorCount, sectors);
  }

  #keepOf(choice: CrashChoice, index: number, change: Change, firstUnit: number): Keep {
    if (choice === 'none') return KEEP_NONE;
    if (choice === 'all') return KEEP_ALL;
    if ('only' in choice) return choice.only === index ? KEEP_ALL : KEEP_NONE;
    if ('except' in choice) return choice.except === index ? KEEP_NONE : KEEP_ALL;
    if ('units' in choice) {
      const offset = firstUnit - this.#unitOf(change.sector);
      return (sector) => ((choice.units >>> (this.#unitOf(sector) + offset)) & 1) === 1;
    }
    const fate = chance(choice.seed, FATE, change.id);
    if (fate < 1 / 3) return KEEP_NONE;
    return fate < 2 / 3 ? KEEP_ALL : this.#torn(change, mixSeed(choice.seed, TEAR, change.id));
  }

  /** Half of the torn writes stop at a boundary, half have a part of their units written. */
  #torn(change: Change, seed: number): Keep {
    if (chance(seed, 0) < 0.5) return (sector) => chance(seed, 1, this.#unitOf(sector)) < 0.5;
    const first = this.#unitOf(change.sector);
    const unitCount = this.#unitOf(change.sector + change.sectorCount - 1) - first + 1;
    const boundary = first + Math.floor(chance(seed, 2) * unitCount);
    return (sector) => this.#unitOf(sector) < boundary;
  }

  #unitOf(sector: number): number {
    return Math.floor(sector / this.#options.tearSectorCount);
  }
}

/** A copy of a sector with one of its 4096 bits turned over. */
export function flipBit(content: Uint8Array, bit: number): Uint8Array {
  const copy = content.slice();
  copy[bit >> 3]! ^= 1 << (bit & 7);
  return copy;
}
