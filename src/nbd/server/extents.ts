// What BLOCK_STATUS tells: the device's own map of a range, neighbours that are alike joined, whatever stripe or table
// line they come from. Each context that was selected has a list of its own.
import { type BlockDevice, queryExtent } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import type { Reactor } from '../../block/reactor.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import { EXTENT_TIME_CHECK_COUNT, MAX_EXTENT_COUNT, MAX_EXTENT_QUERY_COUNT, MAX_TURN_MILLISECONDS } from './bounds.ts';
import { META_CONTEXTS } from './contexts.ts';

/** The extents of one context. */
export class StatusList {
  readonly contextId: number;
  /** Lengths in bytes and values, one after the other. */
  readonly pairs: number[] = [];

  constructor(contextId: number) {
    this.contextId = contextId;
  }

  get count(): number {
    return this.pairs.length / 2;
  }

  /** False when there is no room for another one. */
  add(byteLength: number, value: number, maxCount: number): boolean {
    const { pairs } = this;
    if (pairs.length > 0 && pairs[pairs.length - 1] === value) {
      pairs[pairs.length - 2] = pairs[pairs.length - 2]! + byteLength;
      return true;
    }
    if (this.count >= maxCount) return false;
    pairs.push(byteLength, value);
    return true;
  }
}

/** One range at a time; may be used again. */
export class ExtentList {
  /** One for each context, in the order of their numbers. */
  lists: readonly StatusList[] = [];
  /** Where the map could not be read; -1 where it could. */
  errorSector = -1;
  readonly #reactor: Reactor;
  #device: BlockDevice | null = null;
  #sector = 0;
  /** Bytes of the first sector that were not asked for. */
  #head = 0;
  #byteLeft = 0;
  #maxCount = 0;
  #queryCount = 0;
  #turnBegin = 0;
  #running = false;
  #answered = false;
  #ended = false;
  #onEnd: (errno: number) => void = () => {};

  readonly #isHurried: () => boolean;

  /** @param isHurried asked between turns: true where the rest is for no one, or the server is to end */
  constructor(reactor: Reactor, isHurried: () => boolean) {
    this.#reactor = reactor;
    this.#isHurried = isHurried;
  }

  /**
   * Finds out about `byteLength` bytes from byte `head` of `sector` on. `onEnd` is called once, in this call or later. Each
   * list has one extent at least then, covers no more than what was asked, and may cover less; or there is an errno.
   */
  query(
    device: BlockDevice,
    contextIds: readonly number[],
    sector: number,
    head: number,
    byteLength: number,
    onlyOne: boolean,
    onEnd: (errno: number) => void,
  ): void {
    this.lists = contextIds.map((id) => new StatusList(id));
    this.errorSector = -1;
    this.#device = device;
    this.#sector = sector;
    this.#head = head;
    this.#byteLeft = byteLength;
    this.#maxCount = onlyOne ? 1 : MAX_EXTENT_COUNT;
    this.#queryCount = 0;
    this.#ended = false;
    this.#onEnd = onEnd;
    this.#run();
  }

  /** Asks again and again, in a loop while the device answers at once. */
  #run(): void {
    this.#running = true;
    do {
      if (this.#queryCount >= MAX_EXTENT_QUERY_COUNT) {
        this.#end(0);
      } else if (this.#isTurnOver()) {
        this.#running = false;
        this.#reactor.afterSockets(this.#next);
        return;
      } else {
        this.#queryCount++;
        this.#answered = false;
        const sectorCount = Math.ceil((this.#head + this.#byteLeft) / SECTOR_SIZE);
        queryExtent(this.#device!, this.#sector, sectorCount, this.#onAnswer);
      }
    } while (this.#answered && !this.#ended);
    this.#running = false;
  }

  readonly #next = (): void => {
    this.#turnBegin = this.#reactor.now();
    // An answer may be for less than was asked.
    if (this.#isHurried() && this.lists[0]!.count > 0) this.#end(0);
    else this.#run();
  };

  #isTurnOver(): boolean {
    if (this.#queryCount % EXTENT_TIME_CHECK_COUNT !== 0) return false;
    const now = this.#reactor.now();
    if (this.#queryCount === 0) this.#turnBegin = now;
    return now - this.#turnBegin >= MAX_TURN_MILLISECONDS;
  }

  readonly #onAnswer = (errno: number, sectorCount: number, flags: number, depth?: number): void => {
    this.#answered = true;
    this.#take(errno, sectorCount, flags, depth);
    if (!this.#running && !this.#ended) this.#run();
  };

  #take(errno: number, sectorCount: number, flags: number, depth: number | undefined): void {
    // A device that says nothing about its sectors would be asked for ever.
    const failure = errno === 0 && !(sectorCount > 0) ? Errno.EIO : errno;
    if (failure !== 0) {
      this.errorSector = this.#sector;
      // What is known is told; the client will come back for the rest.
      this.#end(this.lists[0]!.count > 0 ? 0 : failure);
      return;
    }
    const byteLength = Math.min(sectorCount * SECTOR_SIZE - this.#head, this.#byteLeft);
    if (!this.#add(byteLength, flags, depth)) {
      this.#end(0);
      return;
    }
    this.#head = 0;
    this.#sector += sectorCount;
    this.#byteLeft -= byteLength;
    if (this.#byteLeft === 0) this.#end(0);
  }

  /** False when one of the lists is full: the client comes back for what the shortest of them lacks. */
  #add(byteLength: number, flags: number, depth: number | undefined): boolean {
    let hasRoom = true;
    for (const list of this.lists) {
      const value = META_CONTEXTS[list.contextId - 1]!.value(flags, depth);
      if (!list.add(byteLength, value, this.#maxCount)) hasRoom = false;
    }
    return hasRoom;
  }

  #end(errno: number): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#device = null;
    const onEnd = this.#onEnd;
    this.#onEnd = () => {};
    onEnd(errno);
  }
}
