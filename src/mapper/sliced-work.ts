// Long work in slices of a few milliseconds, so that the other devices of its reactor are served in between.
import type { Reactor } from '../block/reactor.ts';
import type { Steps } from '../table/steps.ts';

/** A slice ends after this long by the reactor's clock … */
const MAX_SLICE_MILLISECONDS = 4;
/** … and after so many steps in any case: a simulated clock stands still. */
const MAX_SLICE_STEP_COUNT = 16;

/**
 * Runs steps, a slice in each turn of the reactor. Ends in one of three ways, each once: `ended(null)` after the last step,
 * `ended(error)` when a step threw, or what was given to {@link SlicedWork.stop}. Whichever it is, the `finally` of the
 * steps has run before.
 */
export class SlicedWork {
  readonly #steps: Steps;
  readonly #reactor: Reactor | null;
  readonly #ended: (error: unknown) => void;
  #isRunning = false;
  #isOver = false;
  /** What to call once the steps are undone. */
  #tell: (() => void) | null = null;

  /** @param reactor null where there is none: all is one slice */
  constructor(steps: Steps, reactor: Reactor | null, ended: (error: unknown) => void) {
    this.#steps = steps;
    this.#reactor = reactor;
    this.#ended = ended;
  }

  /** The first slice, now. It ends by its steps alone: a short piece of work is done inside, however slow the machine. */
  start(): void {
    this.#runSlice(Number.POSITIVE_INFINITY);
  }

  /** Gives the work up, and calls `stopped` when it is undone; without effect where it is over. */
  stop(stopped: () => void): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#tell = stopped;
    // Called from within a step: its slice goes on from here when the step returns.
    if (!this.#isRunning) this.#undo();
  }

  /** {@link stop}, and `ended` is told why. */
  fail(error: unknown): void {
    this.stop(() => this.#ended(error));
  }

  #undo(): void {
    this.#steps.return();
    this.#tell?.();
  }

  readonly #next = (): void => {
    if (!this.#isOver) this.#runSlice(this.#reactor!.now() + MAX_SLICE_MILLISECONDS);
  };

  #runSlice(endMilliseconds: number): void {
    const reactor = this.#reactor;
    let isDone = false;
    this.#isRunning = true;
    try {
      for (let stepCount = 0; !isDone && !this.#isOver; stepCount++) {
        if (reactor !== null && (stepCount === MAX_SLICE_STEP_COUNT || reactor.now() >= endMilliseconds)) break;
        isDone = this.#steps.next().done === true;
      }
    } catch (error) {
      isDone = true;
      if (!this.#isOver) {
        this.#isOver = true;
        this.#tell = () => this.#ended(error);
      }
    } finally {
      this.#isRunning = false;
    }
    if (this.#isOver) this.#undo();
    else if (!isDone) reactor!.afterSockets(this.#next);
    else {
      this.#isOver = true;
      this.#ended(null);
    }
  }
}
