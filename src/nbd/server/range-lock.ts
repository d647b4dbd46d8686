// Who may change which sectors of a device at what time, so that reading, changing and writing back a block loses
// nothing. A write of whole blocks needs no place of its own: it is only counted, and waits where somebody who changes
// part of a block is at work on the same sectors. Who changes part of a block has its sectors alone: claims that overlap
// go one after the other, and before it begins every write that was under way has ended.
//
// Waiting for those is done in two epochs, as in the kernel's SRCU: one that fills and one that runs empty. So a whole
// write costs two additions, however many there are.
//
// Where other threads write to the same bytes, each lock has a gate (SharedGate). Then a write of whole blocks is counted
// there too; and claims for parts of blocks, when their turn in this thread has come, wait for the thread's turn among
// all. All that have come so far go through together; who comes later waits for the next time, so that other threads have
// theirs.
import type { BlockDevice } from '../../block/block-device.ts';
import type { SharedGate } from './shared-gate.ts';

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

  #gate: SharedGate | null = null;
  /** The other threads are gone: the gate goes when nobody uses it. */
  #isGateLeft = false;
  /** Claims of whole blocks that only another thread keeps from their sectors; still in `#claims`. */
  #barred: RangeClaim[] = [];
  /** Exclusive claims that nobody in this thread is in the way of, and that wait for its turn. */
  #drained: RangeClaim[] = [];
  /** Claims that were granted in this turn and are not released. */
  #turnClaimCount = 0;

  /** Nobody in this thread changes part of a block, or waits. */
  get isFree(): boolean {
    return this.#claims.length === 0;
  }

  get #isIdle(): boolean {
    return this.isFree && this.#underWay[0] + this.#underWay[1] === 0;
  }

  /** Nobody uses it now, and no other thread is to be heeded. */
  get canShare(): boolean {
    if (this.#isGateLeft && this.#isIdle) this.#dropGate();
    return this.#gate === null && this.#isIdle;
  }

  /** Heeds other threads from now on. @throws Error when the lock is in use or has a gate, or the gate has a lock */
  share(gate: SharedGate): void {
    if (!this.canShare) throw new Error(this.#gate === null ? 'the lock is in use' : 'the lock is shared already');
    gate.attach(() => this.#onLook());
    this.#gate = gate;
  }

  /** The other threads are gone for good. Whoever uses the lock goes on with the gate, at which nobody else is. */
  unshare(): void {
    if (this.#gate === null) return;
    if (this.#isIdle) this.#dropGate();
    else this.#isGateLeft = true;
  }

  #dropGate(): void {
    this.#gate!.rest();
    this.#gate = null;
    this.#isGateLeft = false;
  }

  /** Counts a write of whole blocks that begins. @returns what {@link leave} wants; -1 when it has to {@link claim} */
  tryEnter(): number {
    if (this.#claims.length > 0 || (this.#gate !== null && !this.#gate.tryEnter())) return -1;
    return this.#count();
  }

  #count(): number {
    this.#underWay[this.#epoch as 0 | 1]++;
    return this.#epoch;
  }

  /** It has ended. */
  leave(epoch: number): void {
    if (this.#gate !== null) this.#gate.leave();
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
    if (this.#gate !== null && --this.#turnClaimCount === 0) this.#gate.giveBack();
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
    do {
      for (let i = 0; i < this.#ready.length; i++) this.#pass(this.#ready[i]!);
      this.#ready = [];
    } while (this.#gate !== null && this.#takeTurn(this.#gate));
    this.#isRunning = false;
    if (this.#gate !== null) this.#waitAt(this.#gate);
  }

  #pass(claim: RangeClaim): void {
    if (!claim.isExclusive) {
      this.#passWhole(claim);
    } else if (claim.isDrained || this.#underWay[0] + this.#underWay[1] === 0) {
      if (this.#gate === null) claim.onGranted();
      else this.#drained.push(claim);
    } else if (this.#draining.length > 0) {
      this.#late.push(claim);
    } else {
      this.#draining.push(claim);
      this.#epoch ^= 1;
    }
  }

  #passWhole(claim: RangeClaim): void {
    if (this.#gate !== null && (this.#barred.length > 0 || !this.#gate.tryEnter())) {
      this.#barred.push(claim);
      return;
    }
    this.#remove(claim);
    claim.epoch = this.#count();
    claim.onGranted();
  }

  /** Grants the exclusive claims that wait for this thread's turn, when it comes. @returns whether it has come */
  #takeTurn(gate: SharedGate): boolean {
    if (this.#turnClaimCount > 0 || this.#drained.length === 0 || !gate.tryTake()) return false;
    const claims = this.#drained;
    this.#drained = [];
    this.#turnClaimCount = claims.length;
    for (const claim of claims) claim.onGranted();
    return true;
  }

  /** Sees to it that claims which wait for other threads are looked at again. */
  #waitAt(gate: SharedGate): void {
    const isBarred = this.#barred.length > 0;
    gate.setWaiting(isBarred);
    if (isBarred || (this.#drained.length > 0 && this.#turnClaimCount === 0)) gate.lookAgain();
    else gate.rest();
  }

  #onLook(): void {
    if (this.#barred.length > 0 && this.#gate!.isOpen) {
      this.#ready.push(...this.#barred);
      this.#barred = [];
    }
    this.#run();
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

/** The lock of a device, one for all connections, exports and servers of this thread that use it. */
export function rangeLockOf(device: BlockDevice): RangeLock {
  let lock = locks.get(device);
  if (lock === undefined) {
    lock = new RangeLock();
    locks.set(device, lock);
  }
  return lock;
}

/** Whether {@link shareRangeLock} can be: no requests use the lock now, and it heeds no other threads. */
export function canShareRangeLock(device: BlockDevice): boolean {
  return rangeLockOf(device).canShare;
}

/**
 * Lets the device's lock heed other threads, whose devices write to the same bytes; each has its own gate over the same
 * memory.
 *
 * @throws Error when requests use the lock, it is shared already, or the gate is another lock's
 */
export function shareRangeLock(device: BlockDevice, gate: SharedGate): void {
  rangeLockOf(device).share(gate);
}

/** Ends that, when the other threads are gone. */
export function unshareRangeLock(device: BlockDevice): void {
  rangeLockOf(device).unshare();
}
