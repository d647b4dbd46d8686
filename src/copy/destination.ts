// One destination: its own pace, its own failures, its own map.

import { Errno } from '../block/errno.ts';
import { DmError, IoError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { DmIoClient } from '../dm-io/index.ts';
import { ownMemory } from '../engine/address.ts';
import { BLOCK_SECTOR_COUNT, FILE_PIECE_SECTOR_COUNT, MAX_DEAD_BLOCK_COUNT } from './bounds.ts';
import type { FileCopier } from './files.ts';
import { narrow } from './narrow.ts';
import { cut, type Piece } from './plan.ts';
import { BAD, DONE, FAILED, type Range, type RangeMap, type Status, UNTRIED } from './ranges.ts';
import type { RateLimit } from './rate.ts';
import type { Block, SourceReader } from './reader.ts';
import { type CopyRegion, flush, transfer, writeZeroes } from './request.ts';
import type { Tail } from './tail.ts';

/** Errors after which nothing can be expected of a device. */
const DEADLY: readonly number[] = [
  Errno.ENODEV,
  Errno.ENXIO,
  Errno.EPERM,
  Errno.EROFS,
  Errno.ESHUTDOWN,
  Errno.ENOSPC,
  Errno.EBADF,
];

const ZEROES = ownMemory(new Uint8Array(BLOCK_SECTOR_COUNT * SECTOR_SIZE));

export interface DestinationSetup {
  readonly region: CopyRegion;
  /** One sector more than the region has whole ones, where there is a tail. */
  readonly map: RangeMap;
  readonly io: DmIoClient;
  /** Bytes behind the last whole sector. */
  readonly tailByteLength: number;
  /** Where they go, and what they are; null without a tail. `bytes` throws DmError. */
  readonly tail: { place: Tail; bytes(): Promise<Uint8Array> } | null;
  /** Null for zeroing. */
  readonly reader: SourceReader | null;
  /** Where both are files. */
  readonly files: FileCopier | null;
  readonly keepGoing: boolean;
  readonly rate: RateLimit | null;
  readonly bytesPerSecond: number | null;
  /** Blocks under way. */
  readonly windowBlockCount: number;
  /** Pieces under way from file to file. */
  readonly filePieceCount: number;
}

/** Sectors that are not done, and the error that kept them. */
export interface FailedSectors extends Range {
  readonly side: Side;
  /** Of a range that was joined from several: the first one's. */
  readonly cause: IoError;
}

/** The source or this destination. */
export type Side = 'read' | 'write';

export class Destination {
  readonly region: CopyRegion;
  readonly map: RangeMap;
  /** Written or skipped, durable or not. */
  handledSectorCount = 0;
  /** What there is to do in all. */
  totalSectorCount = 0;
  /** What failed, in the order it failed. */
  readonly failures: FailedSectors[] = [];
  /** Of the verification: sectors that do not hold what the source has. */
  readonly differing: Range[] = [];
  verified: string | null = null;
  readonly #setup: DestinationSetup;
  /** Written since the last flush. */
  #unflushed: Range[] = [];
  #deadBlockCount = 0;
  #dead: DmError | null = null;
  readonly #startedAt = performance.now();
  #endedAt = 0;
  #readFailure: DmError | null = null;
  #hasWriteZeroes: boolean;

  constructor(setup: DestinationSetup) {
    this.region = setup.region;
    this.map = setup.map;
    this.#setup = setup;
    this.#hasWriteZeroes = setup.region.device.limits.maxWriteZeroesSectorCount > 0;
  }

  get io(): DmIoClient {
    return this.#setup.io;
  }

  /** Why it was given up; null while it takes part. */
  get dead(): DmError | null {
    return this.#dead;
  }

  /** It takes no part any more. */
  giveUp(cause: DmError): void {
    this.#dead ??= cause;
    this.#endedAt ||= performance.now();
    this.release();
  }

  /** Nothing waits for its rate any more. */
  release(): void {
    this.#setup.rate?.release();
  }

  /** Time from the start until the last byte was written, or it was given up. */
  get elapsedMilliseconds(): number {
    return (this.#endedAt || performance.now()) - this.#startedAt;
  }

  get tail(): DestinationSetup['tail'] {
    return this.#setup.tail;
  }

  /** Size of the region. */
  get byteLength(): number {
    return this.#bytesOf(this.map.sectorCount);
  }

  /** Durable, by the map. */
  get doneByteLength(): number {
    let byteLength = 0;
    for (const { start, end } of this.map.ranges([DONE])) byteLength += this.#bytesOf(end) - this.#bytesOf(start);
    return byteLength;
  }

  /** Written or skipped, durable or not. */
  get handledByteLength(): number {
    return Math.min(this.handledSectorCount * SECTOR_SIZE, this.totalByteLength);
  }

  get totalByteLength(): number {
    return this.#bytesOf(this.totalSectorCount);
  }

  /** Of the first `sectorCount` sectors: the last one may be there in part. */
  #bytesOf(sectorCount: number): number {
    return Math.min(sectorCount * SECTOR_SIZE, this.region.sectorCount * SECTOR_SIZE + this.#setup.tailByteLength);
  }

  /** Sectors of data to do at a time. A rate is kept by small steps. */
  get pieceSectorCount(): number {
    const { bytesPerSecond } = this.#setup;
    if (bytesPerSecond !== null) return Math.min(BLOCK_SECTOR_COUNT, smallPiece(bytesPerSecond));
    return this.#setup.files === null ? BLOCK_SECTOR_COUNT : FILE_PIECE_SECTOR_COUNT;
  }

  /** Works on `pieces`, several at a time. @throws DmError where the source could not be read */
  async run(pieces: Iterator<Piece>, shouldStop: () => boolean): Promise<void> {
    const isOver = (): boolean => this.dead !== null || this.#readFailure !== null || shouldStop();
    const { windowBlockCount, filePieceCount, files, rate } = this.#setup;
    const pieceCount = files === null ? windowBlockCount : Math.min(windowBlockCount, filePieceCount);
    const blockCount = Math.floor(windowBlockCount / pieceCount);
    await inParallel(pieceCount, pieces, isOver, async (piece) => {
      await rate?.take((piece.end - piece.start) * SECTOR_SIZE);
      if (!isOver()) await this.#do(piece, blockCount, isOver);
    });
    this.#endedAt ||= performance.now();
    if (this.#readFailure !== null) throw this.#readFailure;
  }

  async #do(piece: Piece, blockCount: number, isOver: () => boolean): Promise<void> {
    const { reader, files } = this.#setup;
    if (piece.start >= this.region.sectorCount) await this.#writeTail(piece);
    else if (piece.zero || reader === null) await this.#zero(piece);
    else if (files !== null && (await files.copy(piece.start, piece.end))) this.#unflushed.push(piece);
    else {
      const blocks = cut(piece, BLOCK_SECTOR_COUNT);
      await inParallel(blockCount, blocks, isOver, (block) => this.#readAndWrite(reader, block));
      return;
    }
    this.handledSectorCount += piece.end - piece.start;
  }

  // Data

  async #readAndWrite(reader: SourceReader, { start, end }: Range): Promise<void> {
    try {
      await reader.use(start, end, (block) => this.#write(block, start, end));
      this.handledSectorCount += end - start;
    } catch (error) {
      if (!(error instanceof IoError)) throw error;
      this.#fail(start, end, FAILED, 'read', error);
      this.#readFailure ??= error;
    }
  }

  async #write(block: Block, start: number, end: number): Promise<void> {
    let at = start;
    for (const bad of block.failed) {
      await this.#writeRange(block, at, bad.start);
      this.#fail(bad.start, bad.end, BAD, 'read', bad.cause);
      at = bad.end;
    }
    await this.#writeRange(block, at, end);
  }

  async #writeRange(block: Block, start: number, end: number): Promise<void> {
    if (start >= end || this.dead !== null) return;
    const { io, region } = this.#setup;
    const write = (from: number, to: number): Promise<IoError | null> =>
      transfer(io, 'write', region, from, sectorsOf(block, from, to));
    await this.#attempt(start, end, write);
  }

  /** Runs a write; where it fails it is narrowed, or the destination given up. */
  async #attempt(
    start: number,
    end: number,
    run: (from: number, to: number) => Promise<IoError | null>,
  ): Promise<void> {
    if (!this.#setup.keepGoing) {
      const cause = await run(start, end);
      if (cause === null) this.#unflushed.push({ start, end });
      else this.#failAndGiveUp(start, end, cause);
      return;
    }
    const blockSectorCount = this.region.device.limits.logicalBlockSize / SECTOR_SIZE;
    const where = { firstSector: this.region.sector, blockSectorCount };
    const failed = await narrow(start, end, where, run, () => this.dead !== null);
    let at = start;
    for (const bad of failed) {
      if (bad.start > at) this.#unflushed.push({ start: at, end: bad.start });
      this.#fail(bad.start, bad.end, BAD, 'write', bad.cause);
      at = bad.end;
      if (DEADLY.includes(bad.cause.errno)) this.giveUp(bad.cause);
    }
    if (at < end) this.#unflushed.push({ start: at, end });
    const nothing = failed.length === 1 && failed[0]!.start === start && failed[0]!.end === end;
    this.#deadBlockCount = nothing ? this.#deadBlockCount + 1 : 0;
    if (this.#deadBlockCount >= MAX_DEAD_BLOCK_COUNT) this.giveUp(failed[0]!.cause);
  }

  #failAndGiveUp(start: number, end: number, cause: IoError): void {
    this.#fail(start, end, FAILED, 'write', cause);
    this.giveUp(cause);
  }

  #fail(start: number, end: number, status: Status, side: Side, cause: IoError): void {
    this.map.set(start, end, status);
    const last = this.failures.at(-1);
    const isAlike = last !== undefined && last.side === side && last.cause.errno === cause.errno;
    if (isAlike && last.end === start) last.end = end;
    else this.failures.push({ start, end, side, cause });
  }

  // The last bytes

  async #writeTail({ start, end }: Range): Promise<void> {
    const { place, bytes } = this.#setup.tail!;
    let data: Uint8Array;
    try {
      data = await bytes();
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      this.#failTail({ start, end }, 'read', error);
      if (!this.#setup.keepGoing) this.#readFailure ??= error;
      return;
    }
    if (this.dead !== null) return;
    try {
      await place.write(data);
      this.#unflushed.push({ start, end });
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      this.#failTail({ start, end }, 'write', error);
      if (!this.#setup.keepGoing || DEADLY.includes(error.errno)) this.giveUp(error);
    }
  }

  /** Calls on bytes name no sector in their errors: it is the one that the tail begins. */
  #failTail({ start, end }: Range, side: Side, error: DmError): void {
    const { label, sector } = side === 'read' ? this.#setup.reader!.source : this.region;
    const cause = error instanceof IoError ? error : new IoError(error.errno, side, label, sector + start);
    this.#fail(start, end, this.#setup.keepGoing ? BAD : FAILED, side, cause);
  }

  // Zeroes

  async #zero({ start, end }: Range): Promise<void> {
    const { io, region } = this.#setup;
    if (this.#hasWriteZeroes) {
      const cause = await writeZeroes(io, region, start, end - start);
      if (cause === null) {
        this.#unflushed.push({ start, end });
        return;
      }
      // Written instead, which also tells the sectors apart.
      if (cause.errno === Errno.EOPNOTSUPP) this.#hasWriteZeroes = false;
    }
    for (let at = start; at < end && this.dead === null; at += BLOCK_SECTOR_COUNT) {
      const write = (from: number, to: number): Promise<IoError | null> =>
        transfer(io, 'write', region, from, ZEROES.subarray(0, (to - from) * SECTOR_SIZE));
      await this.#attempt(at, Math.min(end, at + BLOCK_SECTOR_COUNT), write);
    }
  }

  // Durability

  /** Makes what was written durable; only then it counts as done. Where that fails it counts as not tried. */
  async checkpoint(): Promise<void> {
    const ranges = this.#unflushed;
    this.#unflushed = [];
    if (ranges.length === 0) return;
    const cause = await flush(this.io, this.region);
    for (const { start, end } of ranges) this.map.set(start, end, cause === null ? DONE : UNTRIED);
    if (cause === null) return;
    this.giveUp(cause);
    // What was acknowledged since, too, may be gone with it.
    for (const { start, end } of this.#unflushed.splice(0)) this.map.set(start, end, UNTRIED);
  }

  get failed(): boolean {
    return this.dead !== null || this.failures.length > 0 || this.differing.length > 0;
  }
}

/** A quarter of a second's worth, as a power of two: 4 KiB at least, for disks with such blocks. */
function smallPiece(bytesPerSecond: number): number {
  return 2 ** Math.max(3, Math.floor(Math.log2(bytesPerSecond / 4 / SECTOR_SIZE)));
}

/** Does `items` in their order, `count` at a time, until it is over. */
async function inParallel<Item>(
  count: number,
  items: Iterator<Item>,
  isOver: () => boolean,
  work: (item: Item) => Promise<void>,
): Promise<void> {
  const one = async (): Promise<void> => {
    while (!isOver()) {
      const next = items.next();
      if (next.done) return;
      await work(next.value);
    }
  };
  await Promise.all(Array.from({ length: count }, one));
}

function sectorsOf(block: Block, start: number, end: number): Uint8Array {
  return block.data.subarray((start - block.start) * SECTOR_SIZE, (end - block.start) * SECTOR_SIZE);
}
