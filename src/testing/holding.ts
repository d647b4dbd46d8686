// A gate in front of a device: requests wait until a test lets them go, in the order that it wants. With it a test
// reaches what a scheduler would only rarely do: a flush that ends before an older write, two writes that swap places.
import type { Bio } from '../block/bio.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { enterSubmit, leaveSubmit } from '../engine/nesting.ts';
import { type Random, shuffled } from './random.ts';
import { describeRequest, matchesFilter, type RequestFilter } from './request.ts';
import { endLike, submitCopy, WrappingDevice } from './wrapping-device.ts';

export interface HoldingOptions extends RequestFilter {
  /** `before` (unless given): a held request has not reached the device below. `after`: it has, only its end is held. */
  when?: 'before' | 'after';
}

/**
 * Wraps a device and holds requests (those that the filter means) until they are released.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { MemoryDevice } from 'dmkit';
 * import { HoldingDevice, issue } from 'dmkit/testing';
 *
 * const device = new HoldingDevice(new MemoryDevice('memory', 64), { op: 'write' });
 * const first = issue(device, 'write', { sector: 0, data: new Uint8Array(512).fill(1) });
 * const second = issue(device, 'write', { sector: 0, data: new Uint8Array(512).fill(2) });
 * device.release(device.held[1]);
 * assert.equal(first.ended, false);
 * assert.equal(second.ended, true);
 * device.open();
 * assert.equal(issue(device, 'read', { sectorCount: 1 }).data[0], 1); // the first write came last
 * ```
 */
export class HoldingDevice extends WrappingDevice {
  /** While true, requests that the filter means are held. Setting it to false releases nothing; {@link open} does. */
  holding = true;
  /** The copies that have ended below, for requests whose end is held. */
  readonly #endedCopies = new Map<Bio, Bio>();
  readonly #held: Bio[] = [];
  readonly #filter: RequestFilter;
  readonly #when: 'before' | 'after';
  #inFlightCount = 0;

  constructor(device: BlockDevice, options: HoldingOptions = {}) {
    super(device);
    this.#filter = options;
    this.#when = options.when ?? 'before';
  }

  /** What waits, oldest first. A list of this moment: it does not change when requests are released. */
  get held(): readonly Bio[] {
    return [...this.#held];
  }

  /** {@link held} to read: `['write 8+8', 'flush']`. */
  get heldRequests(): readonly string[] {
    return this.#held.map(describeRequest);
  }

  /** Held requests, and those that the device below has. */
  get inFlightCount(): number {
    return this.#inFlightCount;
  }

  submit(bio: Bio): void {
    if (!enterSubmit(bio)) return;
    try {
      this.#inFlightCount++;
      const holds = this.holding && matchesFilter(this.#filter, bio);
      if (holds && this.#when === 'before') this.#held.push(bio);
      else submitCopy(bio, this.device, (copy) => this.#onCopyEnd(bio, copy, holds));
    } finally {
      leaveSubmit();
    }
  }

  #onCopyEnd(bio: Bio, copy: Bio, holds: boolean): void {
    if (holds) {
      this.#endedCopies.set(bio, copy);
      this.#held.push(bio);
    } else {
      this.#inFlightCount--;
      endLike(bio, copy);
    }
  }

  /**
   * Lets one request go; the oldest unless another of {@link held} is given.
   *
   * @throws Error when nothing is held, or not this one
   */
  release(bio: Bio | undefined = this.#held[0]): void {
    this.#take(bio);
    const copy = this.#endedCopies.get(bio!);
    if (copy === undefined) {
      submitCopy(bio!, this.device, (ended) => this.#onCopyEnd(bio!, ended, false));
    } else {
      this.#endedCopies.delete(bio!);
      this.#onCopyEnd(bio!, copy, false);
    }
  }

  /** Ends one held request as failed: with `before` it never reaches the device. @throws Error as {@link release} */
  fail(bio: Bio | undefined = this.#held[0], errno: number = Errno.EIO): void {
    this.#take(bio);
    this.#endedCopies.delete(bio!);
    this.#inFlightCount--;
    bio!.fail(errno, this);
  }

  /** Lets go what is held now, oldest first, or shuffled by `random`. What comes meanwhile is held as before. */
  releaseAll(random?: Random): void {
    const bios = random === undefined ? this.held : shuffled(random, this.#held);
    for (const bio of bios) if (this.#held.includes(bio)) this.release(bio);
  }

  /** Stops holding and lets everything go. */
  open(random?: Random): void {
    this.holding = false;
    this.releaseAll(random);
  }

  #take(bio: Bio | undefined): void {
    const index = bio === undefined ? -1 : this.#held.indexOf(bio);
    if (index < 0) throw new Error(bio === undefined ? 'no request is held' : `${describeRequest(bio)} is not held`);
    this.#held.splice(index, 1);
  }
}
