// A device that fails the Nth request, and the driver that runs a scenario with every N until nothing is left to fail:
// whoever survives it handles an error at every place where one can come.
import type { Bio } from '../block/bio.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { Errno, errnoName } from '../block/errno.ts';
import { enterSubmit, leaveSubmit } from '../engine/nesting.ts';
import { describeRequest, matchesFilter, type RequestFilter } from './request.ts';
import { endLike, submitCopy, WrappingDevice } from './wrapping-device.ts';

/** Failed requests that a plan keeps in words. */
const MAX_NAMED_COUNT = 100;

export interface FailNthOptions extends RequestFilter {
  /** Which of the requests that the filter means fails, counted from 0. Infinity: none. */
  n: number;
  /** How many in a row fail, from the Nth on; 1 unless given. Infinity: the device never recovers. */
  failCount?: number;
  /** The Linux errno, positive; EIO unless given. */
  errno?: number;
  /** `before` (unless given): the device below never sees the request. `after`: it did it, and the answer is lost. */
  when?: 'before' | 'after';
}

/**
 * What shall fail, and what has: shared by several {@link FailNthDevice}s, it counts their requests as one sequence.
 */
export class FailurePlan {
  readonly n: number;
  readonly failCount: number;
  readonly errno: number;
  readonly when: 'before' | 'after';
  /** Requests so far that the filter means. */
  matchedCount = 0;
  /** How many requests were made to fail. */
  injectedCount = 0;
  /** The first of them (100 at the most), as `write 8+8 on disk`. */
  readonly injected: string[] = [];
  readonly #filter: RequestFilter;

  constructor(options: FailNthOptions) {
    this.n = options.n;
    this.failCount = options.failCount ?? 1;
    this.errno = options.errno ?? Errno.EIO;
    this.when = options.when ?? 'before';
    this.#filter = options;
  }

  /** Counts `bio`, and says whether it shall fail. To be asked once a request. */
  take(bio: Bio, device: BlockDevice): boolean {
    if (!matchesFilter(this.#filter, bio)) return false;
    const index = this.matchedCount++;
    if (index < this.n || index >= this.n + this.failCount) return false;
    if (this.injectedCount++ < MAX_NAMED_COUNT) this.injected.push(`${describeRequest(bio)} on ${device.name}`);
    return true;
  }
}

/**
 * Wraps a device and makes the Nth request fail. Name, size, limits and map are those of the device below.
 *
 * A failed read leaves its memory as it was with `before`, and filled with `after`. A failed write has changed nothing
 * with `before`, and everything with `after`: a caller may rely on neither.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { Errno, MemoryDevice } from 'dmkit';
 * import { FailNthDevice, issue } from 'dmkit/testing';
 *
 * const device = new FailNthDevice(new MemoryDevice('memory', 64), { n: 1, op: 'write', errno: Errno.ENOSPC });
 * const data = new Uint8Array(512);
 * assert.equal(issue(device, 'write', { data }).errno, 0);
 * assert.equal(issue(device, 'read', { sectorCount: 1 }).errno, 0); // no write: not counted
 * assert.equal(issue(device, 'write', { data }).errno, Errno.ENOSPC);
 * assert.deepEqual(device.plan.injected, ['write 0+1 on memory']);
 * ```
 */
export class FailNthDevice extends WrappingDevice {
  readonly plan: FailurePlan;
  #inFlightCount = 0;

  /** @param plan options, or a plan that other devices share */
  constructor(device: BlockDevice, plan: FailNthOptions | FailurePlan) {
    super(device);
    this.plan = plan instanceof FailurePlan ? plan : new FailurePlan(plan);
  }

  get inFlightCount(): number {
    return this.#inFlightCount;
  }

  submit(bio: Bio): void {
    if (!enterSubmit(bio)) return;
    try {
      this.#inFlightCount++;
      const { plan } = this;
      const fails = plan.take(bio, this.device);
      if (fails && plan.when === 'before') this.#fail(bio);
      else submitCopy(bio, this.device, (copy) => this.#onCopyEnd(bio, copy, fails));
    } finally {
      leaveSubmit();
    }
  }

  #onCopyEnd(bio: Bio, copy: Bio, fails: boolean): void {
    if (fails) {
      this.#fail(bio);
    } else {
      this.#inFlightCount--;
      endLike(bio, copy);
    }
  }

  #fail(bio: Bio): void {
    this.#inFlightCount--;
    bio.fail(this.plan.errno, this);
  }
}

/** What a scenario of {@link failEveryNth} gets. */
export interface FailNthContext {
  /** Which request fails in this run, counted from 0 through all wrapped devices. */
  readonly n: number;
  /** The same in every run: for what the scenario draws at random. */
  readonly seed: number;
  /** True once a request was made to fail. Before that, every error is the program's own. */
  readonly injected: boolean;
  /** Wraps a device, so that its requests count. Wrap fresh devices in every run. */
  wrap(device: BlockDevice): FailNthDevice;
}

/** Options of {@link failEveryNth}: those of {@link FailNthDevice} without `n`. */
export interface FailEveryNthOptions extends Omit<FailNthOptions, 'n'> {
  /** A 32-bit number handed to the scenario and named in reports; 1 unless given. */
  seed?: number;
  /** Give up after so many runs: the scenario does not end by itself. 10,000 unless given. */
  maxRunCount?: number;
  /** Real time that one run may take; a request that never ends shows as this. 10,000 unless given, Infinity for none. */
  timeoutMilliseconds?: number;
}

/** What {@link failEveryNth} has done. */
export interface FailEveryNthResult {
  /** Runs in all, the last one without a failure included: the scenario makes `runCount - 1` requests. */
  runCount: number;
  seed: number;
}

/** A run of {@link failEveryNth} went wrong: `n` and `seed` repeat it, `cause` is what the scenario threw. */
export class FailEveryNthError extends Error {
  readonly n: number;
  readonly seed: number;
  /** What was made to fail in that run, as `write 8+8 on disk`. */
  readonly injected: readonly string[];

  constructor(plan: FailurePlan, seed: number, problem: string, options?: ErrorOptions) {
    const failed =
      plan.injectedCount === 0 ? 'no request failed' : `${errnoName(plan.errno)} for ${plan.injected.join(', ')}`;
    super(`with n = ${plan.n}, seed = ${seed} (${failed}): ${problem}`, options);
    this.name = 'FailEveryNthError';
    this.n = plan.n;
    this.seed = seed;
    this.injected = plan.injected;
  }
}

async function withinTime(work: void | Promise<void>, milliseconds: number): Promise<void> {
  if (milliseconds === Number.POSITIVE_INFINITY) return work;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`the scenario did not end within ${milliseconds} ms`)), milliseconds);
  });
  try {
    await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** One run. True when a request was made to fail in it. */
async function runOnce(
  scenario: (context: FailNthContext) => void | Promise<void>,
  plan: FailurePlan,
  seed: number,
  timeoutMilliseconds: number,
): Promise<boolean> {
  const devices: FailNthDevice[] = [];
  const context: FailNthContext = {
    n: plan.n,
    seed,
    get injected() {
      return plan.injectedCount > 0;
    },
    wrap(device) {
      const wrapped = new FailNthDevice(device, plan);
      devices.push(wrapped);
      return wrapped;
    },
  };
  try {
    await withinTime(scenario(context), timeoutMilliseconds);
  } catch (error) {
    throw new FailEveryNthError(plan, seed, messageOf(error), { cause: error });
  }
  for (const { name, inFlightCount } of devices) {
    if (inFlightCount > 0) {
      throw new FailEveryNthError(plan, seed, `${inFlightCount} request(s) still in flight on ${name} after the run`);
    }
  }
  return plan.injectedCount > 0;
}

/**
 * Runs `scenario` with the first request failing, then the second, and so on, until a run in which nothing was left to
 * fail. The scenario makes everything anew in each run, expects the error (or the recovery) where `context.injected`
 * says so, and throws where the program under test did the wrong thing. After each run nothing may be in flight.
 *
 * @throws FailEveryNthError with the N and the seed of the run that went wrong
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { MemoryDevice } from 'dmkit';
 * import { failEveryNth, issue } from 'dmkit/testing';
 *
 * const { runCount } = await failEveryNth((context) => {
 *   const device = context.wrap(new MemoryDevice('memory', 64));
 *   const results = [0, 1, 2].map((sector) => issue(device, 'write', { sector, data: new Uint8Array(512) }));
 *   const failedCount = results.filter((result) => result.errno !== 0).length;
 *   assert.equal(failedCount, context.injected ? 1 : 0);
 * });
 * assert.equal(runCount, 4); // three requests, and one run without a failure
 * ```
 */
export async function failEveryNth(
  scenario: (context: FailNthContext) => void | Promise<void>,
  options: FailEveryNthOptions = {},
): Promise<FailEveryNthResult> {
  const { seed = 1, maxRunCount = 10_000, timeoutMilliseconds = 10_000, ...failure } = options;
  for (let n = 0; n < maxRunCount; n++) {
    const plan = new FailurePlan({ ...failure, n });
    if (!(await runOnce(scenario, plan, seed, timeoutMilliseconds))) return { runCount: n + 1, seed };
  }
  throw new FailEveryNthError(
    new FailurePlan({ ...failure, n: maxRunCount }),
    seed,
    `still failing requests after ${maxRunCount} runs`,
  );
}
