// The loads of one device that take their time: one after another, in the order of their calls, so that the last one called
// is the one whose table stays. What a load does is in its steps; here is only when it runs and how it ends.
import { DmError } from '../block/errors.ts';
import type { Reactor } from '../block/reactor.ts';
import type { Steps } from '../table/steps.ts';
import { SlicedWork } from './sliced-work.ts';
import type { StateChange } from './state-change.ts';
import { Turns } from './turns.ts';

/** The loads of one device. */
export class Loads {
  /** Their own: a load keeps no suspend, resume or removal waiting, nor the other way round. */
  readonly #turns = new Turns();
  #current: SlicedWork | null = null;

  /**
   * Runs the steps when the loads before it have ended. Calls `done` once, unless it is cancelled: everything is undone
   * then. An error that is no DmError is thrown where the step ran.
   *
   * @param reactor null to run everything at once
   */
  start(makeSteps: () => Steps, reactor: Reactor | null, done: (error: DmError | null) => void): StateChange {
    let work: SlicedWork | null = null;
    let release = (): void => {};
    let isOver = false;
    const withdraw = this.#turns.take((releaseTurn) => {
      release = () => {
        this.#current = null;
        releaseTurn();
      };
      work = new SlicedWork(makeSteps(), reactor, (error) => {
        isOver = true;
        try {
          tell(error, done);
        } finally {
          release();
        }
      });
      this.#current = work;
      work.start();
    });
    return {
      cancel: () => {
        if (isOver) return;
        isOver = true;
        if (!withdraw()) work?.stop(release);
      },
    };
  }

  /** Fails the load under way. Those that wait begin, and find out for themselves. */
  fail(error: DmError): void {
    this.#current?.fail(error);
  }
}

function tell(error: unknown, done: (error: DmError | null) => void): void {
  if (error !== null && !(error instanceof DmError)) throw error;
  done(error);
}
