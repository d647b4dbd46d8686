// One seed for everything random in a test run: fast-check's properties and `makeRandom`. A failure prints the seed;
// DMKIT_SEED=<number> repeats the run, DMKIT_RUNS=<factor> makes every property run so many times more often.
import fc from 'fast-check';
import { onTestFailed } from 'vitest';

function numberFrom(name: string, fallback: number): number {
  const text = process.env[name];
  if (text === undefined || text === '') return fallback;
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${name} must be a number, not ${JSON.stringify(text)}`);
  return value;
}

/** The seed of this run: DMKIT_SEED, or one drawn now. A signed 32-bit integer, as fast-check wants it. */
export const seed: number = numberFrom('DMKIT_SEED', Math.floor(Math.random() * 0x7fffffff)) | 0;

/** How many times a loop or property written for `count` runs shall run: DMKIT_RUNS scales it, at least once. */
export function runs(count: number): number {
  return Math.max(1, Math.round(count * numberFrom('DMKIT_RUNS', 1)));
}

/** Says, when the current test fails, how to repeat it. `property` does it by itself. */
export function printSeedOnFailure(): void {
  onTestFailed(() => {
    process.stderr.write(`dmkit: repeat this failure with DMKIT_SEED=${seed}\n`);
  });
}

/** A small generator (mulberry32) for tests that draw without fast-check; the numbers are in [0, 1). */
export function makeRandom(start: number = seed): () => number {
  let state = start >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

fc.configureGlobal({
  seed,
  numRuns: runs(100),
  // fast-check's own report names its seed and path; ours is the one thing to copy.
  reporter(details) {
    if (!details.failed) return;
    throw new Error(`${fc.defaultReportMessage(details)}\n\ndmkit: repeat this failure with DMKIT_SEED=${seed}`);
  },
});
