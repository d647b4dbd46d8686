// The source's blocks, shared: destinations that are close to each other read each once. One that has fallen behind what
// is kept reads it again, so that nobody waits for the slowest.

import type { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { DmIoClient } from '../dm-io/index.ts';
import { ownMemory } from '../engine/address.ts';
import { allocatePages } from '../engine/bounce.ts';
import { loadLibc } from '../engine/libc.ts';
import { BLOCK_SECTOR_COUNT, MAX_BLOCK_COUNT } from './bounds.ts';
import { type FailedRange, narrow } from './narrow.ts';
import { type CopyRegion, transfer } from './request.ts';

/** A block in memory. Its data is not to be changed. */
export interface Block {
  readonly start: number;
  readonly data: Uint8Array;
  /** What could not be read. */
  readonly failed: readonly FailedRange[];
}

interface Slot {
  readonly key: string;
  readonly memory: Uint8Array;
  readonly block: Promise<Block>;
  userCount: number;
}

function allocate(): Uint8Array {
  const byteLength = BLOCK_SECTOR_COUNT * SECTOR_SIZE;
  const { libc } = loadLibc();
  return libc === null
    ? ownMemory(new Uint8Array(byteLength))
    : allocatePages((buffer) => libc.addressOf(buffer), byteLength);
}

export class SourceReader {
  readonly source: CopyRegion;
  /** Sectors read from the source, those that were read again included. */
  readSectorCount = 0;
  /** Most blocks that were in memory at one time. */
  highWater = 0;
  readonly #io: DmIoClient;
  readonly #keepGoing: boolean;
  /** By start and length; the longest unused come first. */
  readonly #slots = new Map<string, Slot>();
  readonly #free: Uint8Array[] = [];
  #memoryCount = 0;
  #waiters: (() => void)[] = [];

  constructor(io: DmIoClient, source: CopyRegion, keepGoing: boolean) {
    this.#io = io;
    this.source = source;
    this.#keepGoing = keepGoing;
  }

  /**
   * The sectors from `start` to `end`, at most a block. Each use must be given back.
   *
   * @throws DmError where a part can't be read, unless it keeps going
   */
  async use<Value>(start: number, end: number, work: (block: Block) => Promise<Value>): Promise<Value> {
    const slot = await this.#acquire(start, end);
    try {
      return await work(await slot.block);
    } finally {
      slot.userCount--;
      if (slot.userCount === 0) this.#waiters.shift()?.();
    }
  }

  async #acquire(start: number, end: number): Promise<Slot> {
    const key = `${start} ${end}`;
    for (;;) {
      const known = this.#slots.get(key);
      if (known !== undefined) {
        known.userCount++;
        // Used last: to the end of the order.
        this.#slots.delete(key);
        this.#slots.set(key, known);
        return known;
      }
      const memory = this.#takeMemory();
      if (memory !== null) return this.#read(key, memory, start, end);
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  #takeMemory(): Uint8Array | null {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#memoryCount < MAX_BLOCK_COUNT) {
      this.highWater = ++this.#memoryCount;
      return allocate();
    }
    for (const [key, slot] of this.#slots) {
      if (slot.userCount > 0) continue;
      this.#slots.delete(key);
      return slot.memory;
    }
    return null;
  }

  #read(key: string, memory: Uint8Array, start: number, end: number): Slot {
    const data = memory.subarray(0, (end - start) * SECTOR_SIZE);
    const slot: Slot = { key, memory, block: this.#fill(start, end, data), userCount: 1 };
    // Whoever uses it hears of it; without anybody it must not end the process.
    slot.block.catch(() => {});
    this.#slots.set(key, slot);
    return slot;
  }

  async #fill(start: number, end: number, data: Uint8Array): Promise<Block> {
    const { source } = this;
    const read = (from: number, to: number) =>
      transfer(this.#io, 'read', source, from, data.subarray((from - start) * SECTOR_SIZE, (to - start) * SECTOR_SIZE));
    this.readSectorCount += end - start;
    if (!this.#keepGoing) {
      const cause: DmError | null = await read(start, end);
      if (cause !== null) throw cause;
      return { start, data, failed: [] };
    }
    const blockSectorCount = source.device.limits.logicalBlockSize / SECTOR_SIZE;
    const where = { firstSector: source.sector, blockSectorCount };
    return { start, data, failed: await narrow(start, end, where, read) };
  }
}
