// One of several threads that write to the same words: alone to one of its own at times, at times to all, as they were but
// for one of its own that is one more. Where that is right, no addition is lost.
import { workerData } from 'node:worker_threads';

const { dist, gateMemory, wordMemory, startMemory, threadIndex, threadCount, wholeCount, partCount } = workerData;
const { NodeLoop } = await import(new URL('reactor/node-loop.js', dist).href);
const { RangeClaim, RangeLock } = await import(new URL('nbd/server/range-lock.js', dist).href);
const { SharedGate } = await import(new URL('nbd/server/shared-gate.js', dist).href);

const reactor = new NodeLoop();
const lock = new RangeLock();
lock.share(new SharedGate(gateMemory, threadIndex, threadCount, reactor));
const words = new Int32Array(wordMemory);
const ownWhole = threadCount + threadIndex;

function waitForAll() {
  const started = new Int32Array(startMemory);
  Atomics.add(started, 0, 1);
  Atomics.notify(started, 0);
  for (;;) {
    const count = Atomics.load(started, 0);
    if (count >= threadCount) return;
    Atomics.wait(started, 0, count);
  }
}

let wholeLeft = wholeCount;
const wholeClaim = new RangeClaim(() => {
  addWhole(wholeClaim.epoch);
  writeWholes();
});
wholeClaim.firstSector = ownWhole;
wholeClaim.endSector = ownWhole + 1;

function addWhole(epoch) {
  words[ownWhole]++;
  wholeLeft--;
  lock.leave(epoch);
}

/** Many in a row: then another thread often looks while this one enters. */
function writeWholes() {
  for (let i = 0; i < 100 && wholeLeft > 0; i++) {
    const epoch = lock.tryEnter();
    if (epoch < 0) {
      lock.claim(wholeClaim);
      return;
    }
    addWhole(epoch);
  }
  if (wholeLeft > 0) setImmediate(writeWholes);
}

let partLeft = partCount;
const partClaim = new RangeClaim(() => {
  const copy = words.slice();
  copy[threadIndex]++;
  if (partLeft % 2 === 0) setImmediate(writeBack, copy);
  else writeBack(copy);
});
partClaim.endSector = 2 * threadCount;
partClaim.isExclusive = true;

function writeBack(copy) {
  words.set(copy);
  lock.release(partClaim);
  if (--partLeft > 0) setImmediate(() => lock.claim(partClaim));
}

waitForAll();
writeWholes();
lock.claim(partClaim);
