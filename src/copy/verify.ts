// Reading back what was written, from the medium where that can be had, and comparing it with the source.

import { closeSync, openSync } from 'node:fs';
import type { BlockDevice } from '../block/block-device.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { DeviceRegistry } from '../devices/index.ts';
import { ownMemory } from '../engine/address.ts';
import { dropFromPageCache } from '../engine/advice.ts';
import { allocatePages } from '../engine/bounce.ts';
import { loadLibc } from '../engine/libc.ts';
import type { NodeLoop } from '../reactor/node-loop.ts';
import { BLOCK_SECTOR_COUNT } from './bounds.ts';
import type { Destination } from './destination.ts';
import type { OpenedRegion } from './open.ts';
import { cut, extentsOf, type SourceExtent } from './plan.ts';
import { DONE, type Range, UNTRIED } from './ranges.ts';
import type { SourceReader } from './reader.ts';
import { type CopyRegion, transfer } from './request.ts';

/** Where a destination is read back from. */
interface ReadBack {
  readonly region: CopyRegion;
  /** For people: which way it goes. */
  readonly way: string;
  close(): void;
}

const nothing = (): void => {};

function openDirect(loop: NodeLoop, path: string): { device: BlockDevice; close: () => void } | null {
  const registry = new DeviceRegistry({ reactor: loop });
  try {
    const device = registry.open(path, true, { direct: true });
    return { device, close: () => registry.close(device, true) };
  } catch (error) {
    // A file system without O_DIRECT.
    if (error instanceof DmError) return null;
    throw error;
  }
}

/** Around the page cache where that works; else after dropping it; else as it comes, and said so. */
function openForReadBack(loop: NodeLoop, region: OpenedRegion): ReadBack {
  const { path, sector, sectorCount } = region;
  if (path === null) return { region, way: "through the server, whose cache can't be gone around", close: nothing };
  const direct = openDirect(loop, path);
  if (direct !== null) {
    const unit = direct.device.limits.logicalBlockSize / SECTOR_SIZE;
    const isAligned = BLOCK_SECTOR_COUNT % unit === 0 && sector % unit === 0 && (sector + sectorCount) % unit === 0;
    if (isAligned) return { region: { ...region, device: direct.device }, way: 'with O_DIRECT', close: direct.close };
    direct.close();
  }
  return { region, way: dropCache(path) ? 'after dropping the page cache' : 'from the page cache', close: nothing };
}

/** Has the next read of a file or block device come from the disk. @returns false where that can't be had */
export function dropCache(path: string): boolean {
  const fd = openSync(rawName(path), 'r');
  try {
    return dropFromPageCache(fd);
  } finally {
    closeSync(fd);
  }
}

function allocate(): Uint8Array {
  const byteLength = BLOCK_SECTOR_COUNT * SECTOR_SIZE;
  const { libc } = loadLibc();
  return libc === null
    ? ownMemory(new Uint8Array(byteLength))
    : allocatePages((buffer) => libc.addressOf(buffer), byteLength);
}

/** Sectors of `a` and `b` that differ, from `start` on. */
function differences(a: Uint8Array, b: Uint8Array, start: number): Range[] {
  const found: Range[] = [];
  if (Buffer.compare(a, b) === 0) return found;
  for (let at = 0; at < a.byteLength; at += SECTOR_SIZE) {
    if (Buffer.compare(a.subarray(at, at + SECTOR_SIZE), b.subarray(at, at + SECTOR_SIZE)) === 0) continue;
    const sector = start + at / SECTOR_SIZE;
    const last = found.at(-1);
    if (last !== undefined && last.end === sector) last.end++;
    else found.push({ start: sector, end: sector + 1 });
  }
  return found;
}

/** A range to compare. */
interface Stretch extends Range {
  /** The source is known to be zero there, and is not read. */
  zero: boolean;
  /** The destination is known to be zero there as well: nothing is read. */
  same: boolean;
}

/** Ranges that count as done, blocks of data in order. Holes of both sides are told apart as they are reached. */
async function* stretchesOf(
  destination: Destination,
  opened: OpenedRegion,
  within: readonly SourceExtent[],
): AsyncGenerator<Stretch> {
  for (const { zero, ...stretch } of within) {
    for (const range of [...destination.map.ranges([DONE], stretch)]) {
      const parts = zero ? await extentsOf(opened, range) : [{ ...range, zero: false }];
      for (const part of parts) {
        if (part.zero) yield { start: part.start, end: part.end, zero, same: true };
        else for (const block of cut(part, BLOCK_SECTOR_COUNT)) yield { ...block, zero, same: false };
      }
    }
  }
}

export interface VerifySetup {
  readonly loop: NodeLoop;
  readonly opened: OpenedRegion;
  /** What to compare with; null for zeroes. */
  readonly reader: SourceReader | null;
  readonly within: readonly SourceExtent[];
  readonly shouldStop: () => boolean;
  readonly onProgress: (sectorCount: number) => void;
}

/**
 * Compares what counts as done. A sector that differs, or can't be read back, counts as not tried from then on.
 *
 * @throws DmError where the source can't be read
 */
export async function verify(destination: Destination, setup: VerifySetup): Promise<void> {
  const back = openForReadBack(setup.loop, setup.opened);
  const memory = allocate();
  const zeroes = new Uint8Array(memory.byteLength);
  try {
    for await (const { start, end, zero, same } of stretchesOf(destination, setup.opened, setup.within)) {
      if (setup.shouldStop()) return;
      if (!same) {
        const bytes = memory.subarray(0, (end - start) * SECTOR_SIZE);
        const cause = await transfer(destination.io, 'read', back.region, start, bytes);
        const compare = (data: Uint8Array): Range[] =>
          cause !== null ? [{ start, end }] : differences(bytes, data, start);
        const found =
          zero || setup.reader === null
            ? compare(zeroes.subarray(0, bytes.byteLength))
            : await setup.reader.use(start, end, async (block) => compare(block.data));
        for (const range of found) noteDifference(destination, range);
      }
      setup.onProgress(end - start);
    }
    if (!setup.shouldStop()) await verifyTail(destination, setup.opened);
    destination.verified = back.way;
  } finally {
    back.close();
  }
}

function noteDifference(destination: Destination, range: Range): void {
  destination.map.set(range.start, range.end, UNTRIED);
  const last = destination.differing.at(-1);
  if (last !== undefined && last.end === range.start) last.end = range.end;
  else destination.differing.push(range);
}

/** The bytes behind the last whole sector. @throws DmError where the source can't be read */
async function verifyTail(destination: Destination, { path, sectorCount }: OpenedRegion): Promise<void> {
  const { tail, map } = destination;
  const range = { start: sectorCount, end: sectorCount + 1 };
  if (tail === null || [...map.ranges([DONE], range)].length === 0) return;
  const wanted = await tail.bytes();
  if (path !== null) dropCache(path);
  let found: Uint8Array | null = null;
  try {
    found = await tail.place.read();
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
  }
  if (found === null || Buffer.compare(found, wanted) !== 0) noteDifference(destination, range);
}
