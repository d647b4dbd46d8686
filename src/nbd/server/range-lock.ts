// Who may change which sectors of a device at what time, so that reading, changing and writing back a block loses
// nothing. A write of whole blocks needs no place of its own: it is only counted, and waits where somebody who changes
// part of a block is at work on the same sectors. Who changes part of a block has its sectors alone: claims that overlap
// go one after the other, and before it begins every write that was under way has ended.
//
// Waiting for those is done in two epochs, as in the kernel's SRCU: one that fills and one that runs empty. So a whole
// write costs two additions, however many there are.
import type { BlockDevice } from '../../block/block-device.ts';

/** A wish for a range of sectors, or the right to it. May be used again when it is over. */
export class RangeClaim {
  firstSector = 0;
  endSector = 0;
  isExclusive = false;
  /** The epoch that a claim which is not exclusive was counted in. */
  epoch = -1;
  /** Earlier claims that are in the way. */
  blockerCount = 0;
  /** Everything that was under way when this one's turn came has ended. */
  isDrained = false;
  /** Called once for each claim, in that call or later. It must not throw. */
  readonly onGranted: () => void;

  constructor(onGranted: () => void) {
    this.onGranted = onGranted;
  }
}

function isInTheWay(a: RangeClaim, b: RangeClaim): boolean {
  if (!a.isExclusive && !b.isExclusive) return false;
  return a.firstSector < b.endSector && b.firstSector < a.endSector;
}

export class RangeLock {
  /** Exclusive claims, granted or not, and others that wait; in the order in which they came. */
  readonly #claims: RangeClaim[] = [];
  /** Claims with nobody before them, to be looked at by the outermost {@link #run}. */
  #ready: RangeClaim[] = [];
  #isRunning = false;
  #epoch = 0;
  readonly #underWay: [number, number] = [0, 0];
  /** Who waits for the other epoch to run empty, and who came too late for that. */
  #draining: RangeClaim[] = [];
  #late: RangeClaim[] = [];

  /** Nobody changes part of a block: {@link enter} at once. */
  get isFree(): boolean {
    return this.#claims.length === 0;
  }

  /** Counts a write of whole blocks that begins, while {@link isFree}. @returns what {@link leave} wants */
  enter(): number {
    this.#underWay[this.#epoch as 0 | 1]++;
    return this.#epoch;
  }

  /** It has ended. */
  leave(epoch: number): void {
    if (--this.#underWay[epoch as 0 | 1] === 0 && this.#draining.length > 0 && epoch !== this.#epoch) {
      this.#onDrained();
      this.#run();
    }
  }

  /** Asks for a range. An exclusive claim is to be released; another one was entered when it is granted, with its epoch. */
  claim(claim: RangeClaim): void {
    claim.blockerCount = 0;
    claim.isDrained = false;
    for (const other of this.#claims) if (isInTheWay(other, claim)) claim.blockerCount++;
    this.#claims.push(claim);
    if (claim.blockerCount > 0) return;
    this.#ready.push(claim);
    this.#run();
  }

  /** Ends an exclusive claim that was granted. */
  release(claim: RangeClaim): void {
    this.#remove(claim);
    this.#run();
  }

  #remove(claim: RangeClaim): void {
    const index = this.#claims.indexOf(claim);
    this.#claims.splice(index, 1);
    for (let i = index; i < this.#claims.length; i++) {
      const later = this.#claims[i]!;
      if (isInTheWay(claim, later) && --later.blockerCount === 0) this.#ready.push(later);
    }
  }

  /** Grants what can be. A loop: a device that answers at once would else grow the stack with every claim. */
  #run(): void {
    if (this.#isRunning) return;
    this.#isRunning = true;
    for (let i = 0; i < this.#ready.length; i++) this.#pass(this.#ready[i]!);
    this.#ready = [];
    this.#isRunning = false;
  }

  #pass(claim: RangeClaim): void {
    if (!claim.isExclusive) {
      this.#remove(claim);
      claim.epoch = this.enter();
      claim.onGranted();
    } else if (claim.isDrained || this.#underWay[0] + this.#underWay[1] === 0) {
      claim.onGranted();
    } else if (this.#draining.length > 0) {
      this.#late.push(claim);
    } else {
      this.#draining.push(claim);
      this.#epoch ^= 1;
    }
  }

  #onDrained(): void {
    for (const claim of this.#draining) {
      claim.isDrained = true;
      this.#ready.push(claim);
    }
    this.#draining = this.#late;
    this.#late = [];
    if (this.#draining.length === 0) return;
    this.#epoch ^= 1;
    if (this.#underWay[(this.#epoch ^ 1) as 0 | 1] === 0) this.#onDrained();
  }
}

const locks = new WeakMap<BlockDevice, RangeLock>();

/** The lock of a device, one for all connections, exports and servers that use it. */
export function rangeLockOf(device: BlockDevice): RangeLock {
  let lock = locks.get(device);
  if (lock === undefined) {
    lock = new RangeLock();
    locks.set(device, lock);
  }
  return lock;
}
