// What a device may answer, for property tests: an array of sectors, each with the contents that are right for it. One
// content where requests were clear; several where a write failed, raced or may have been lost; any where nothing says.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { equalBytes, ZERO_SECTOR } from './disk-image.ts';

/** Contents that are right; null: every content is. */
type Allowed = readonly Uint8Array[] | null;

interface SectorState {
  /** What a read may find. */
  now: Allowed;
  /** What a read may find after a crash. */
  afterCrash: Allowed;
}

export interface ByteModelOptions {
  /** What the device holds at first: zeroes (unless given), or anything. */
  content?: 'zeroes' | 'anything';
}

function both(a: Allowed, b: Allowed): Allowed {
  if (a === null || b === null) return null;
  return [...a, ...b.filter((content) => !a.some((other) => equalBytes(content, other)))];
}

/**
 * The model of a device of `sectorCount` sectors. Tell it what happened to the device, and let it check what reads give.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { ByteModel } from 'dmkit/testing';
 *
 * const model = new ByteModel(8);
 * const [ones, twos] = [new Uint8Array(512).fill(1), new Uint8Array(512).fill(2)];
 * model.write(3, ones);
 * model.flush();
 * model.mayWrite(3, twos); // a write that failed
 * assert.equal(model.check(3, ones), null);
 * assert.equal(model.check(3, twos), null);
 * assert.match(model.check(3, new Uint8Array(512)), /sector 3/);
 * ```
 */
export class ByteModel {
  readonly sectorCount: number;
  readonly #initial: SectorState;
  readonly #sectors = new Map<number, SectorState>();

  constructor(sectorCount: number, options: ByteModelOptions = {}) {
    this.sectorCount = sectorCount;
    const allowed: Allowed = options.content === 'anything' ? null : [ZERO_SECTOR];
    this.#initial = { now: allowed, afterCrash: allowed };
  }

  /** A write ended: reads find `data`; a crash may lose it unless it is `durable` (FUA, or a device without a cache). */
  write(sector: number, data: Uint8Array, options: { durable?: boolean } = {}): void {
    this.#eachOf(sector, data, (at, content) => this.#set(at, [content], options.durable ?? false));
  }

  /** A write failed, or is in flight: reads find `data` or what was there, sector by sector. */
  mayWrite(sector: number, data: Uint8Array): void {
    this.#eachOf(sector, data, (at, content) => this.#add(at, [content]));
  }

  /** As {@link write}, with zeroes. */
  writeZeroes(sector: number, sectorCount: number, options: { durable?: boolean } = {}): void {
    this.#each(sector, sectorCount, (at) => this.#set(at, [ZERO_SECTOR], options.durable ?? false));
  }

  /** As {@link mayWrite}, with zeroes. */
  mayWriteZeroes(sector: number, sectorCount: number): void {
    this.#each(sector, sectorCount, (at) => this.#add(at, [ZERO_SECTOR]));
  }

  /** The range was discarded, or is about to be: it holds anything until it is written. */
  discard(sector: number, sectorCount: number): void {
    this.#each(sector, sectorCount, (at) => this.#add(at, null));
  }

  /** A flush ended, and nothing was written between its submission and its end: what reads may find now is durable. */
  flush(): void {
    for (const state of this.#sectors.values()) state.afterCrash = state.now;
  }

  /** A crash: sectors that were written since the last flush hold any of the contents that they had since. */
  crash(): void {
    for (const state of this.#sectors.values()) state.now = state.afterCrash;
  }

  /** Compares what a read gave, from `sector` on. @returns what is wrong, in words, or null. @throws DmError EINVAL for no whole sectors */
  check(sector: number, bytes: Uint8Array): string | null {
    let problem: string | null = null;
    this.#eachOf(sector, bytes, (at, content) => {
      const { now } = this.#stateOf(at);
      if (problem !== null || now === null || now.some((allowed) => equalBytes(allowed, content))) return;
      const right = now.map((allowed) => differenceOf(content, allowed)).join('; or ');
      problem = `sector ${at}: ${right}`;
    });
    return problem;
  }

  /** As {@link check}, throwing. @throws Error */
  assertRead(sector: number, bytes: Uint8Array): void {
    const problem = this.check(sector, bytes);
    if (problem !== null) throw new Error(`wrong data at ${problem}`);
  }

  /** The one content that the range must have; null where there is none, or several are right. */
  expected(sector: number, sectorCount: number): Uint8Array | null {
    const bytes = new Uint8Array(sectorCount * SECTOR_SIZE);
    let certain = true;
    this.#each(sector, sectorCount, (at) => {
      const { now } = this.#stateOf(at);
      if (now === null || now.length !== 1) certain = false;
      else bytes.set(now[0]!, (at - sector) * SECTOR_SIZE);
    });
    return certain ? bytes : null;
  }

  #stateOf(sector: number): SectorState {
    return this.#sectors.get(sector) ?? this.#initial;
  }

  #set(sector: number, now: Allowed, durable: boolean): void {
    const { afterCrash } = this.#stateOf(sector);
    this.#sectors.set(sector, { now, afterCrash: durable ? now : both(afterCrash, now) });
  }

  #add(sector: number, allowed: Allowed): void {
    const { now, afterCrash } = this.#stateOf(sector);
    this.#sectors.set(sector, { now: both(now, allowed), afterCrash: both(afterCrash, allowed) });
  }

  #each(sector: number, sectorCount: number, visit: (sector: number) => void): void {
    if (sector < 0 || sector + sectorCount > this.sectorCount) {
      throw new DmError(Errno.EINVAL, `sectors ${sector}+${sectorCount} of a model of ${this.sectorCount}`);
    }
    for (let i = 0; i < sectorCount; i++) visit(sector + i);
  }

  #eachOf(sector: number, bytes: Uint8Array, visit: (sector: number, content: Uint8Array) => void): void {
    if (bytes.byteLength % SECTOR_SIZE !== 0) {
      throw new DmError(Errno.EINVAL, `${bytes.byteLength} bytes are no whole number of sectors`);
    }
    const copy = bytes.slice();
    this.#each(sector, bytes.byteLength / SECTOR_SIZE, (at) => {
      const start = (at - sector) * SECTOR_SIZE;
      visit(at, copy.subarray(start, start + SECTOR_SIZE));
    });
  }
}

function differenceOf(found: Uint8Array, right: Uint8Array): string {
  const at = found.findIndex((byte, index) => byte !== right[index]);
  return `byte ${at} is ${found[at]} and should be ${right[at]}`;
}
