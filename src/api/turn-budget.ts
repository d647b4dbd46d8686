// Requests that end at once settle their promises in microtasks: a program that awaits one after the other would never
// let timers and sockets run. From time to time such a promise settles in a turn of its own.

/** Requests that end at once, in a row or not, before one waits for the next turn of the event loop. */
const TURN_BUDGET = 256;
/** Each begun 64 KiB of data costs as much as a request. */
const SECTOR_SHIFT_OF_COST = 7;

let spent = 0;

/** Counts a request that ended while it was submitted. @returns true where its promise shall settle in a later turn */
export function endsTurn(sectorCount: number): boolean {
  spent += 1 + Math.min(TURN_BUDGET, sectorCount >>> SECTOR_SHIFT_OF_COST);
  if (spent < TURN_BUDGET) return false;
  spent = 0;
  return true;
}
