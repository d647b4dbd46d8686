// Which map belongs to which destination of a copy. Maps are found by the disks that they tell of, never by their
// numbers, and none is believed that tells of others.
import { existsSync, readFileSync } from 'node:fs';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { decodeName, rawName } from '../block/file-name.ts';
import { MAX_DESTINATION_COUNT } from './bounds.ts';
import { parseMapfile } from './mapfile.ts';
import { haveOneName, type MapOwners, type MapSide, otherDestination, otherSource, ownersOf } from './owners.ts';
import type { RangeMap } from './ranges.ts';

export interface MapSearch {
  /** As the user named it; with several destinations `base.1`, `base.2` … */
  readonly base: string;
  readonly isSingle: boolean;
  readonly source: MapSide | null;
  /** End of the source's device, in bytes; null for zeroing. */
  readonly sourceEndByte: number | null;
  /** Goes on with maps that are there. */
  readonly retry: boolean;
  /** Believes a map of other disks. */
  readonly force: boolean;
}

export interface MapSeeker {
  readonly label: string;
  readonly side: MapSide;
  readonly byteLength: number;
  /** The image was made for this copy. */
  readonly isNew: boolean;
}

export interface FoundMap {
  readonly path: string;
  /** Null where nothing is done yet. */
  readonly map: RangeMap | null;
}

interface Candidate {
  readonly path: string;
  readonly text: string;
  readonly owners: MapOwners | null;
  taken: boolean;
}

/** @throws DmError for a map that can't be read */
function readCandidate(path: string): Candidate | null {
  try {
    const text = decodeName(readFileSync(rawName(path)));
    return { path, text, owners: ownersOf(text), taken: false };
  } catch (error) {
    const errno = errnoFromException(error);
    if (errno === Errno.ENOENT) return null;
    throw new DmError(errno, `cannot read the mapfile ${path}: ${errnoMessage(errno)}`);
  }
}

/**
 * Finds the maps of all destinations, in their order.
 *
 * @throws DmError EEXIST without `retry` where maps are there; EINVAL for a damaged one; ESTALE for one of other disks
 */
export function findMaps(search: MapSearch, seekers: readonly MapSeeker[]): FoundMap[] {
  return new MapFinder(search).find(seekers);
}

class MapFinder {
  readonly #search: MapSearch;
  #candidates: Candidate[] = [];
  readonly #used = new Set<string>();

  constructor(search: MapSearch) {
    this.#search = search;
  }

  find(seekers: readonly MapSeeker[]): FoundMap[] {
    const { retry, base } = this.#search;
    if (!retry) return seekers.map((_, index) => ({ path: this.#unusedPath(index), map: null }));
    const numbered = Array.from({ length: MAX_DESTINATION_COUNT }, (_, index) => `${base}.${index + 1}`);
    this.#candidates = [base, ...numbered].map(readCandidate).filter((one) => one !== null);
    // First all that are found by their identity, so that no other destination is offered their maps.
    const own = seekers.map((seeker) => this.#ownOf(seeker));
    const chosen = seekers.map((seeker, index) => own[index] ?? this.#otherOf(seeker, index));
    return seekers.map((seeker, index) => this.#open(seeker, chosen[index] ?? null, index));
  }

  #ownOf(seeker: MapSeeker): Candidate | null {
    // An inode may be used again: what was just made is not what an earlier copy wrote to.
    if (seeker.isNew) return null;
    const fits = this.#candidates.filter(
      ({ owners, taken }) => !taken && owners !== null && otherDestination(owners, seeker.side) === null,
    );
    if (fits.length > 1) {
      const names = fits.map(({ path }) => path).join(' and ');
      throw new DmError(Errno.EINVAL, `${names} are maps of ${seeker.label}, all of them: remove the older ones`);
    }
    const [found = null] = fits;
    if (found !== null) found.taken = true;
    return found;
  }

  /** A map under the name that this destination's would have. */
  #otherOf(seeker: MapSeeker, index: number): Candidate | null {
    const { base, isSingle } = this.#search;
    const found = this.#candidates.find(({ path, owners, taken }) => {
      if (taken) return false;
      if (isSingle && path === base) return true;
      if (owners === null) return path === `${base}.${index + 1}`;
      return haveOneName(owners.destination, seeker.side);
    });
    if (found !== undefined) found.taken = true;
    return found ?? null;
  }

  /** @throws DmError where the map is not one of this copy */
  #open(seeker: MapSeeker, candidate: Candidate | null, index: number): FoundMap {
    if (candidate === null) return { path: this.#unusedPath(index), map: null };
    const { path, text, owners } = candidate;
    const { source, sourceEndByte, force } = this.#search;
    this.#used.add(path);
    const why = this.#objection(seeker, owners);
    const refuse = (): never => {
      throw new DmError(Errno.ESTALE, `${path}: ${why}; ${this.#advice(seeker, path)}`);
    };
    if (why !== null && owners !== null && !force) refuse();
    // Read in any case: a file that is not a map is not replaced by one.
    const endByte = sourceEndByte ?? seeker.byteLength;
    const map = parseMapfile(text, path, source?.sector ?? 0, seeker.byteLength, endByte);
    if (why !== null && !force) refuse();
    return { path, map: seeker.isNew ? null : map };
  }

  #objection(seeker: MapSeeker, owners: MapOwners | null): string | null {
    if (owners === null) {
      return 'it does not say which disks it belongs to (GNU ddrescue, or an older dmkit, wrote it)';
    }
    const other = otherDestination(owners, seeker.side) ?? otherSource(owners, this.#search.source, seeker.byteLength);
    if (other !== null || !seeker.isNew) return other;
    return `${seeker.label} was not there and is new: nothing of it is done`;
  }

  #advice(seeker: MapSeeker, path: string): string {
    const again = `remove ${path} to copy everything again`;
    if (seeker.isNew) return `${again}, or --force does so`;
    return `${again}, or --force goes on with what this map lacks on ${seeker.label}`;
  }

  /** @throws DmError EEXIST */
  #unusedPath(index: number): string {
    const { base, isSingle, retry } = this.#search;
    const first = isSingle ? base : `${base}.${index + 1}`;
    if (!this.#isTaken(first)) return this.#use(first);
    if (!retry) {
      throw new DmError(
        Errno.EEXIST,
        `${first} is there already: --retry copies what it lacks; remove it to copy everything again`,
      );
    }
    for (let number = 1; ; number++) {
      const path = `${base}.${number}`;
      if (!this.#isTaken(path)) return this.#use(path);
    }
  }

  #isTaken(path: string): boolean {
    return this.#used.has(path) || existsSync(rawName(path));
  }

  #use(path: string): string {
    this.#used.add(path);
    return path;
  }
}
