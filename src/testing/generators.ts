// Random requests for property tests, out of any function that gives numbers in [0, 1).
import type { BioVec } from '../block/bio.ts';
import { REQ_FUA, REQ_PREFLUSH } from '../block/bio.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { type Random, randomBytes, randomInteger, randomItem } from './random.ts';
import type { Operation, Region } from './request.ts';

const DEFAULT_OPERATIONS: readonly Operation[] = ['read', 'write', 'flush'];

export interface RandomRequestOptions {
  /** Of the device. At least 1. */
  sectorCount: number;
  /** Longest request; 16 sectors unless given. */
  maxSectorCount?: number;
  /** Drawn from these, evenly (name one twice to draw it more often); read, write and flush unless given. */
  operations?: readonly Operation[];
  /** Share of the writes that get PREFLUSH, and of those that get FUA; 0 unless given. */
  flagProbability?: number;
}

/** A request that is not made yet: {@link issue} takes `op`, and the rest as its options. */
export interface RandomRequest {
  op: Operation;
  sector: number;
  sectorCount: number;
  flags: number;
  /** Of a write. */
  data?: Uint8Array;
}

/** At least one sector, inside a device of `sectorCount` sectors; short ranges and the device's edges are more likely. */
export function randomRegion(random: Random, sectorCount: number, maxSectorCount = 16): Region {
  const longest = Math.min(maxSectorCount, sectorCount);
  const count = 1 + Math.floor(random() * random() * longest);
  const where = random();
  if (where < 0.05) return { sector: 0, sectorCount: count };
  if (where < 0.1) return { sector: sectorCount - count, sectorCount: count };
  return { sector: randomInteger(random, 0, sectorCount - count), sectorCount: count };
}

/**
 * One request.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { MemoryDevice } from 'dmkit';
 * import { ByteModel, issue, randomFromSeed, randomRequest } from 'dmkit/testing';
 *
 * const random = randomFromSeed(42);
 * const device = new MemoryDevice('memory', 64);
 * const model = new ByteModel(64);
 * for (let i = 0; i < 200; i++) {
 *   const { op, ...request } = randomRequest(random, { sectorCount: 64 });
 *   const { data, errno } = issue(device, op, request);
 *   assert.equal(errno, 0);
 *   if (op === 'write') model.write(request.sector, data);
 *   if (op === 'read') model.assertRead(request.sector, data);
 * }
 * ```
 */
export function randomRequest(random: Random, options: RandomRequestOptions): RandomRequest {
  const op = randomItem(random, options.operations ?? DEFAULT_OPERATIONS);
  if (op === 'flush') return { op, sector: 0, sectorCount: 0, flags: 0 };
  const region = randomRegion(random, options.sectorCount, options.maxSectorCount);
  if (op !== 'write') return { op, ...region, flags: 0 };
  const { flagProbability = 0 } = options;
  const flags = (random() < flagProbability ? REQ_PREFLUSH : 0) | (random() < flagProbability ? REQ_FUA : 0);
  return { op, ...region, flags, data: randomBytes(random, region.sectorCount * SECTOR_SIZE) };
}

/**
 * Memory for `byteLength` bytes in up to `maxCount` pieces (8 unless given) of odd lengths, at odd offsets in pages of
 * their own: for bios whose memory is not one buffer.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { randomFromSeed, randomVecs } from 'dmkit/testing';
 *
 * const vecs = randomVecs(randomFromSeed(1), 4096);
 * assert.equal(vecs.reduce((sum, vec) => sum + vec.byteLength, 0), 4096);
 * ```
 */
export function randomVecs(random: Random, byteLength: number, maxCount = 8): BioVec[] {
  const cuts = new Set([0, byteLength]);
  for (let i = randomInteger(random, 0, maxCount - 1); i > 0; i--) cuts.add(randomInteger(random, 0, byteLength));
  const bounds = [...cuts].sort((a, b) => a - b);
  return bounds.slice(1).map((end, index) => {
    const length = end - bounds[index]!;
    const offset = randomInteger(random, 0, 16);
    return { page: new Uint8Array(offset + length + randomInteger(random, 0, 16)), offset, byteLength: length };
  });
}
