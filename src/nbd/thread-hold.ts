// The end of a process beside threads of a server. Node.js stops a worker wherever it is. Inside a callback of koffi's
// watch, or with one still to come, koffi then aborts the process: SIGABRT in the place of the exit code. And requests of
// a ring would write to memory that the worker's end has freed. So every thread is told to hold still first: it closes its
// ring and its watches, says so, and sleeps until it is stopped.
import { exitAtOnce } from '../engine/index.ts';

/** A thread that does not hold still by then is in a system call, or still loading. */
const HOLD_TIMEOUT_MILLISECONDS = 1000;

/** A thread that must not be stopped before it holds still. */
export interface HeldAtExit {
  /** 1 when it does. Shared with it. */
  readonly held: Int32Array;
  tellToHold(): void;
}

const threads = new Set<HeldAtExit>();
let isListening = false;

/** Holds `thread` at the process's exit, until {@link letGo}. */
export function holdAtExit(thread: HeldAtExit): void {
  threads.add(thread);
  if (!isListening) process.on('exit', holdAll);
  isListening = true;
}

/** The thread has ended, or has nothing open. */
export function letGo(thread: HeldAtExit): void {
  threads.delete(thread);
}

function holdAll(code: number): void {
  const end = performance.now() + HOLD_TIMEOUT_MILLISECONDS;
  for (const thread of threads) thread.tellToHold();
  for (const { held } of threads) {
    while (Atomics.load(held, 0) === 0) {
      const left = end - performance.now();
      // Stopped where it is, such a thread would abort the process or keep it: nothing of it is stopped then.
      if (left <= 0) {
        exitAtOnce(code);
        return;
      }
      Atomics.wait(held, 0, 0, left);
    }
  }
}

/** For the thread: says that it holds still, and sleeps until it is stopped. */
export function holdStill(held: Int32Array): void {
  Atomics.store(held, 0, 1);
  Atomics.notify(held, 0);
  Atomics.wait(held, 0, 1);
}
