// What the tests of dm-io share: a reactor that is turned by hand, devices that count pages in flight, the kinds of
// memory over the same bytes.
import { Bio, type BioVec, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import type { QueueLimits } from '../../src/block/limits.ts';
import {
  DmIoClient,
  type DmIoError,
  type DmIoMemory,
  type DmIoRegion,
  type DmIoResult,
  type PageList,
} from '../../src/dm-io/index.ts';
import { RecordingDevice } from '../support/stack.ts';

/** Runs what was woken when it is told to. */
export class ManualReactor {
  #queue: (() => void)[] = [];

  wake(callback: () => void): void {
    this.#queue.push(callback);
  }

  get waitingCount(): number {
    return this.#queue.length;
  }

  /** Turns until nothing is left. */
  run(): void {
    while (this.#queue.length > 0) this.turn();
  }

  turn(): void {
    for (const callback of this.#queue.splice(0)) callback();
  }
}

/** Pages in flight over several devices, as dm-io counts them. */
export class PageMeter {
  now = 0;
  highWater = 0;

  take(bio: Bio): void {
    this.now += pagesOf(bio);
    this.highWater = Math.max(this.highWater, this.now);
  }

  give(bio: Bio): void {
    this.now -= pagesOf(bio);
  }
}

function pagesOf(bio: Bio): number {
  return bio.op === REQ_OP_READ || bio.op === REQ_OP_WRITE ? Math.ceil(bio.sectorCount / 8) : 1;
}

/** A recording device that counts on a meter, and keeps each bio's number of pieces of memory. */
export class MeteredDevice extends RecordingDevice {
  readonly meter: PageMeter;
  readonly flags: number[] = [];
  readonly vecCounts: number[] = [];

  constructor(name: string, sectorCount: number, meter = new PageMeter(), limits: Partial<QueueLimits> = {}) {
    super(name, sectorCount, limits);
    this.meter = meter;
  }

  override submit(bio: Bio): void {
    this.meter.take(bio);
    this.flags.push(bio.flags);
    this.vecCounts.push(vecCountOf(bio));
    super.submit(bio);
  }

  override finish(bio: Bio): void {
    this.meter.give(bio);
    super.finish(bio);
  }
}

function vecCountOf(bio: Bio): number {
  let left = bio.hasData ? bio.byteLength + bio.vecOffset : 0;
  let count = 0;
  for (; left > 0; count++) left -= bio.vecs[bio.vecIndex + count]!.byteLength;
  return count;
}

export interface Outcome {
  callCount: number;
  errorBits: bigint;
  context: unknown;
  error: DmIoError | null;
}

/** An outcome to be filled in, and the notify that does it. */
export function expectOne(context: unknown = 'context'): {
  outcome: Outcome;
  notify: { fn: (bits: bigint, context: unknown, error: DmIoError | null) => void; context: unknown };
} {
  const outcome: Outcome = { callCount: 0, errorBits: -1n, context: undefined, error: null };
  const fn = (bits: bigint, given: unknown, error: DmIoError | null): void => {
    outcome.callCount++;
    outcome.errorBits = bits;
    outcome.context = given;
    outcome.error = error;
  };
  return { outcome, notify: { fn, context } };
}

export function newResult(): DmIoResult {
  return { errorBits: -1n, error: null };
}

export function makeClient(pageCount = 1024): { client: DmIoClient; reactor: ManualReactor } {
  const reactor = new ManualReactor();
  return { reactor, client: new DmIoClient({ reactor, pageCount }) };
}

export function region(bdev: BlockDevice, sector: number, count: number): DmIoRegion {
  return { bdev, sector, count };
}

/** Splits `bytes` into a list of pages, the first one starting `offset` bytes before the data. */
export function pageListOf(bytes: Uint8Array, offset = 0, pageByteLength = 4096): PageList {
  const pages: Uint8Array[] = [];
  for (let at = -offset; at < bytes.byteLength || pages.length === 0; at += pageByteLength) {
    const page = new Uint8Array(pageByteLength).fill(0xee);
    const from = Math.max(0, at);
    page.set(bytes.subarray(from, Math.max(from, at + pageByteLength)), from - at);
    pages.push(page);
  }
  return pages.reduceRight<PageList | null>((next, page) => ({ next, page }), null)!;
}

/** Cuts `bytes` into pieces of the lengths given, over and over; each in a page of its own. */
export function vecsOf(bytes: Uint8Array, lengths: readonly number[]): BioVec[] {
  const vecs: BioVec[] = [];
  for (let at = 0, i = 0; at < bytes.byteLength; i++) {
    const byteLength = Math.min(lengths[i % lengths.length]!, bytes.byteLength - at);
    const page = new Uint8Array(byteLength + 6).fill(0xee);
    page.set(bytes.subarray(at, at + byteLength), 3);
    vecs.push({ page, offset: 3, byteLength });
    at += byteLength;
  }
  return vecs;
}

export function joinVecs(vecs: readonly BioVec[]): Uint8Array {
  return Buffer.concat(vecs.map(({ page, offset, byteLength }) => page.subarray(offset, offset + byteLength)));
}

export type MemoryKind = 'page-list' | 'bvec' | 'bio' | 'buffer';
export const MEMORY_KINDS: readonly MemoryKind[] = ['page-list', 'bvec', 'bio', 'buffer'];

/** Memory of a kind that holds `bytes`, and a way to read it back. */
export function memoryOf(
  kind: MemoryKind,
  bytes: Uint8Array,
  shape = 0,
): { memory: DmIoMemory; content: () => Uint8Array } {
  if (kind === 'buffer') {
    const buffer = Uint8Array.from(bytes);
    return { memory: { type: 'buffer', buffer }, content: () => buffer };
  }
  if (kind === 'page-list') {
    const offset = (shape % 8) * 512;
    const pages = pageListOf(bytes, offset);
    return {
      memory: { type: 'page-list', pages, offset },
      content: () => listContent(pages, offset, bytes.byteLength),
    };
  }
  const lengths = [[4096], [512, 1536], [100, 412, 3], [7, 8192]][shape % 4]!;
  if (kind === 'bvec') {
    const vecs = vecsOf(bytes, lengths);
    return { memory: { type: 'bvec', vecs }, content: () => joinVecs(vecs) };
  }
  // A bio whose iterator stands behind some bytes that are none of the request's.
  const skip = 512 + (shape % 3) * 100;
  const before = new Uint8Array(skip).fill(0xdd);
  const vecs = vecsOf(Buffer.concat([before, bytes]), lengths);
  const bio = new Bio();
  bio.reset(REQ_OP_WRITE, 0, null, 0, bytes.byteLength / 512);
  bio.vecs = vecs;
  let rest = skip;
  while (bio.vecIndex < vecs.length && rest >= vecs[bio.vecIndex]!.byteLength) rest -= vecs[bio.vecIndex++]!.byteLength;
  bio.vecOffset = rest;
  return { memory: { type: 'bio', bio }, content: () => joinVecs(vecs).subarray(skip) };
}

function listContent(pages: PageList, offset: number, byteLength: number): Uint8Array {
  const all: Uint8Array[] = [];
  for (let entry: PageList | null = pages; entry !== null; entry = entry.next) all.push(entry.page);
  return Buffer.concat(all).subarray(offset, offset + byteLength);
}
