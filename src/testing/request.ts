// Requests as tests see them: which ones are meant (a filter), how one reads in a report, and a plain call that makes one.
import {
  Bio,
  operationName,
  REQ_FUA,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
} from '../block/bio.ts';
import { type BlockDevice, submitBio } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';

/** Operations by the names that reports and errors use. */
export const OPERATIONS = {
  read: REQ_OP_READ,
  write: REQ_OP_WRITE,
  flush: REQ_OP_FLUSH,
  discard: REQ_OP_DISCARD,
  'write-zeroes': REQ_OP_WRITE_ZEROES,
} as const;

export type Operation = keyof typeof OPERATIONS;

/** Sectors of a device. */
export interface Region {
  sector: number;
  sectorCount: number;
}

/** Which requests are meant; what is left out does not restrict. */
export interface RequestFilter {
  op?: Operation | readonly Operation[];
  /** Requests that touch at least one of these sectors. A flush touches none. */
  region?: Region;
  /** Only those for which this says true. Called for requests that the rest of the filter lets through. */
  where?: (bio: Bio) => boolean;
}

/** True where the two ranges have a sector in common. */
export function overlaps(a: Region, b: Region): boolean {
  return a.sector < b.sector + b.sectorCount && b.sector < a.sector + a.sectorCount;
}

/** True for a request that `filter` means. */
export function matchesFilter(filter: RequestFilter, bio: Bio): boolean {
  const { op, region, where } = filter;
  if (op !== undefined) {
    const names = typeof op === 'string' ? [op] : op;
    if (!names.some((name) => OPERATIONS[name] === bio.op)) return false;
  }
  if (region !== undefined && (bio.op === REQ_OP_FLUSH || !overlaps(region, bio))) return false;
  return where === undefined || where(bio);
}

/** `write 8+2 preflush fua`: sector and sector count in the middle. */
export function describeRequest(bio: { op: number; flags: number; sector: number; sectorCount: number }): string {
  const words = [operationName(bio.op)];
  if (bio.op !== REQ_OP_FLUSH) words.push(`${bio.sector}+${bio.sectorCount}`);
  if (bio.flags & REQ_PREFLUSH) words.push('preflush');
  if (bio.flags & REQ_FUA) words.push('fua');
  if (bio.flags & REQ_NOUNMAP) words.push('nounmap');
  return words.join(' ');
}

/** What a request is about; all but `sector` and the size have a default. */
export interface IssueOptions {
  /** First sector; 0 unless given. */
  sector?: number;
  /** Taken from `data` where that is given; else needed for everything but a flush. */
  sectorCount?: number;
  /** What to write, or where to read to: whole sectors. A read without it gets memory of its own. */
  data?: Uint8Array;
  /** REQ_ flags: `REQ_PREFLUSH | REQ_FUA` … */
  flags?: number;
}

/** A request that was given to a device. */
export interface IssuedRequest {
  readonly bio: Bio;
  /** How often it has ended so far: 0 while it is in flight. */
  readonly ended: boolean;
  /** The errno it ended with, 0 for success; undefined while it is in flight. */
  readonly errno: number | undefined;
  /** The memory of a read or write. Empty for the others. */
  readonly data: Uint8Array;
  /** Resolves with `data` when it ends with success. @throws IoError when it fails */
  readonly done: Promise<Uint8Array>;
}

class Issued implements IssuedRequest {
  readonly bio = new Bio();
  readonly data: Uint8Array;
  ended = false;
  readonly #device: BlockDevice;
  #done: Promise<Uint8Array> | null = null;
  #onEnd: () => void = () => {};

  constructor(device: BlockDevice, op: number, sector: number, sectorCount: number, flags: number, data: Uint8Array) {
    this.#device = device;
    this.data = data;
    this.bio.reset(op, flags, device, sector, sectorCount);
    if (this.bio.hasData) this.bio.vecs = [{ page: data, offset: 0, byteLength: data.byteLength }];
    this.bio.onEnd = () => {
      this.ended = true;
      this.#onEnd();
    };
  }

  get errno(): number | undefined {
    return this.ended ? this.bio.status : undefined;
  }

  get done(): Promise<Uint8Array> {
    this.#done ??= new Promise((resolve, reject) => {
      this.#onEnd = () => {
        if (this.bio.status === 0) resolve(this.data);
        else reject(this.bio.toError(this.#device));
      };
      if (this.ended) this.#onEnd();
    });
    return this.#done;
  }
}

function sectorCountOf(op: Operation, options: IssueOptions): number {
  const { data, sectorCount } = options;
  const fromData = data === undefined ? undefined : data.byteLength / SECTOR_SIZE;
  const count = sectorCount ?? fromData ?? (op === 'flush' ? 0 : undefined);
  const agrees = op !== 'read' && op !== 'write' ? true : fromData === undefined || fromData === count;
  if (count === undefined || !Number.isSafeInteger(count) || !agrees || (op === 'write' && data === undefined)) {
    throw new DmError(Errno.EINVAL, `${op}: no whole number of sectors, or no data`);
  }
  return count;
}

/**
 * Gives one request to `device`, through submitBio. It may have ended when this returns (memory does that), or ends later.
 *
 * @throws DmError EINVAL for data that is no whole number of 512-byte sectors, or a size that is missing
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { MemoryDevice } from 'dmkit';
 * import { issue } from 'dmkit/testing';
 *
 * const device = new MemoryDevice('memory', 64);
 * assert.equal(issue(device, 'write', { sector: 3, data: new Uint8Array(512).fill(7) }).errno, 0);
 * assert.equal((await issue(device, 'read', { sector: 3, sectorCount: 1 }).done)[511], 7);
 * ```
 */
export function issue(device: BlockDevice, op: Operation, options: IssueOptions = {}): IssuedRequest {
  const sectorCount = sectorCountOf(op, options);
  const hasData = op === 'read' || op === 'write';
  const data = (hasData ? options.data : undefined) ?? new Uint8Array(hasData ? sectorCount * SECTOR_SIZE : 0);
  const issued = new Issued(device, OPERATIONS[op], options.sector ?? 0, sectorCount, options.flags ?? 0, data);
  submitBio(issued.bio);
  return issued;
}
