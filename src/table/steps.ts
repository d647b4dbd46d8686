// Long work on a table as steps: a generator that yields after every few lines. One caller runs it to its end, another one
// lets other work run in between, and one that gives it up calls `return`: the generator's own `finally` undoes it.

/** Work in steps that ends with a `Result`. */
export type Steps<Result = void> = Generator<void, Result, void>;

/** Lines in one step: well below a millisecond, and enough to make the yield cost nothing. */
export const STEP_LINE_COUNT = 64;

/** True before the line `index` (from 0) that begins a new step. */
export function beginsStep(index: number): boolean {
  return index % STEP_LINE_COUNT === 0 && index > 0;
}

/** Runs all steps now. @throws what they throw */
export function runSteps<Result>(steps: Steps<Result>): Result {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}
