// Locks of several threads over the same bytes: played in one thread, with any order of what they do, and in threads.
import { existsSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import fc from 'fast-check';
import { describe, expect, it, vi } from 'vitest';
import { REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import type { Reactor } from '../../src/block/reactor.ts';
import {
  canShareRangeLock,
  RangeClaim,
  RangeLock,
  rangeLockOf,
  shareRangeLock,
  unshareRangeLock,
} from '../../src/nbd/server/range-lock.ts';
import { SharedGate } from '../../src/nbd/server/shared-gate.ts';
import { SimulatedReactor } from '../../src/testing/simulated-reactor.ts';
import { makeRandom, runs } from '../support/seed.ts';
import { HeldDevice, pattern, request, Session } from './support.ts';

const WRITE = 1;

function newMemory(threadCount: number): SharedArrayBuffer {
  return new SharedArrayBuffer(SharedGate.byteLength(threadCount));
}

/** So many threads' locks over one gate. */
function sharedLocks(threadCount: number, reactors: (threadIndex: number) => Pick<Reactor, 'after' | 'wake'>) {
  const memory = newMemory(threadCount);
  const locks = Array.from({ length: threadCount }, (_, i) => {
    const lock = new RangeLock();
    lock.share(new SharedGate(memory, i, threadCount, reactors(i)));
    return lock;
  });
  return { memory, locks };
}

/** Nobody has the right, waits or writes, and every ticket was used. */
function expectQuiet(memory: SharedArrayBuffer): void {
  const words = [...new Int32Array(memory)];
  const [turn, nextTicket] = words.splice(1, 2);
  expect(turn).toBe(nextTicket);
  expect(words.filter((word) => word !== 0)).toEqual([]);
}

function makeClaim(isExclusive: boolean, first: number, count: number, onGranted = (_: RangeClaim) => {}) {
  const claim: RangeClaim & { isGranted?: boolean } = new RangeClaim(() => {
    claim.isGranted = true;
    onGranted(claim);
  });
  claim.isGranted = false;
  claim.firstSector = first;
  claim.endSector = first + count;
  claim.isExclusive = isExclusive;
  return claim;
}

describe('a lock with a gate', () => {
  it('writes whole blocks in all threads at once', () => {
    const reactor = new SimulatedReactor();
    const { memory, locks } = sharedLocks(3, () => reactor);
    const epochs = locks.map((lock) => lock.tryEnter());
    expect(epochs).toEqual([0, 0, 0]);
    locks.forEach((lock, i) => void lock.leave(epochs[i]!));
    expect(reactor.idle).toBe(true);
    expectQuiet(memory);
  });

  it('gives part of a block away at once where nobody else writes', () => {
    const reactor = new SimulatedReactor();
    const { memory, locks } = sharedLocks(2, () => reactor);
    const claims = [makeClaim(true, 0, 1), makeClaim(true, 5, 1)];
    locks[0]!.claim(claims[0]!);
    expect(claims[0]!.isGranted).toBe(true);
    expect(reactor.idle).toBe(true);
    locks[0]!.release(claims[0]!);
    expectQuiet(memory);
  });

  it('waits for what other threads have under way, and they for it; their own blocks elsewhere are written', () => {
    const reactor = new SimulatedReactor();
    const [a, b] = sharedLocks(2, () => reactor).locks as [RangeLock, RangeLock];
    const epoch = b.tryEnter();
    const part = makeClaim(true, 0, 1);
    a.claim(part);
    const elsewhere = makeClaim(false, 7, 1);
    a.claim(elsewhere);
    expect(elsewhere.isGranted).toBe(true);
    reactor.run(20);
    expect(part.isGranted).toBe(false);
    expect(b.tryEnter()).toBe(-1);
    const whole = makeClaim(false, 7, 1);
    b.claim(whole);
    b.leave(epoch);
    reactor.run(2);
    expect([part.isGranted, whole.isGranted]).toEqual([true, false]);
    // What has the right waits for nobody; the other thread goes on looking.
    reactor.run(20);
    expect(whole.isGranted).toBe(false);
    a.release(part);
    reactor.run(2);
    expect(whole.isGranted).toBe(true);
    expect(reactor.idle).toBe(true);
    a.leave(elsewhere.epoch);
    b.leave(whole.epoch);
    expect([a.isFree, b.isFree, reactor.idle]).toEqual([true, true, true]);
  });

  it('looks soon, and then once a millisecond', () => {
    const waits = { wake: 0, after: [] as number[] };
    const reactor = new SimulatedReactor();
    const { locks } = sharedLocks(2, () => ({
      wake: (callback) => {
        waits.wake++;
        reactor.wake(callback);
      },
      after: (milliseconds, callback) => {
        waits.after.push(milliseconds);
        return reactor.after(milliseconds, callback);
      },
    }));
    const epoch = locks[0]!.tryEnter();
    const part = makeClaim(true, 0, 1);
    locks[1]!.claim(part);
    reactor.run(10);
    expect(waits.wake).toBeLessThanOrEqual(128);
    expect(waits.after.length).toBeGreaterThanOrEqual(9);
    expect(new Set(waits.after)).toEqual(new Set([1]));
    locks[0]!.leave(epoch);
    // Another request comes first and finds it; the timer that waits for the next look is taken back.
    locks[1]!.claim(makeClaim(true, 5, 1));
    expect([part.isGranted, reactor.idle]).toEqual([true, true]);
  });

  it('lets claims of one thread that are not in the way of each other through together', () => {
    const reactor = new SimulatedReactor();
    const { memory, locks } = sharedLocks(2, () => reactor);
    const epoch = locks[1]!.tryEnter();
    const claims = [makeClaim(true, 0, 1), makeClaim(true, 1, 1), makeClaim(true, 1, 2)];
    for (const claim of claims) locks[0]!.claim(claim);
    locks[1]!.leave(epoch);
    reactor.run(2);
    expect(claims.map(({ isGranted }) => isGranted)).toEqual([true, true, false]);
    const late = makeClaim(true, 9, 1);
    locks[0]!.claim(late);
    expect(late.isGranted).toBe(false);
    locks[0]!.release(claims[1]!);
    expect(claims[2]!.isGranted).toBe(false);
    locks[0]!.release(claims[0]!);
    expect([claims[2]!.isGranted, late.isGranted]).toEqual([true, true]);
    locks[0]!.release(claims[2]!);
    locks[0]!.release(late);
    expect(reactor.idle).toBe(true);
    expectQuiet(memory);
  });

  it.each([
    ['a whole block', 1, false],
    ['a whole block', 2, false],
    ['part of one', 1, true],
    ['part of one', 2, true],
  ])('comes to %s beside threads that never stop changing parts: %i', (_name, hammerCount, isExclusive) => {
    const reactor = new SimulatedReactor();
    const { memory, locks } = sharedLocks(3, () => reactor);
    let turnCount = 0;
    let isOver = false;
    // There is always one that waits when another is released.
    const hammer = (lock: RangeLock): void => {
      lock.claim(
        makeClaim(true, 0, 1, (claim) => {
          turnCount++;
          if (!isOver) hammer(lock);
          reactor.after(0.05, () => lock.release(claim));
        }),
      );
    };
    for (let i = 0; i < hammerCount; i++) hammer(locks[i]!);
    reactor.run(10);
    expect(turnCount).toBeGreaterThan(5);
    for (let i = 0; i < 20; i++) {
      const before = turnCount;
      const claim = makeClaim(isExclusive, 0, 1);
      locks[2]!.claim(claim);
      reactor.runUntil(() => claim.isGranted! || turnCount > before + 4);
      expect(claim.isGranted).toBe(true);
      if (isExclusive) locks[2]!.release(claim);
      else locks[2]!.leave(claim.epoch);
      reactor.run(0.3);
    }
    isOver = true;
    reactor.runUntilIdle();
    expectQuiet(memory);
  });

  it('grants a long row without a deep stack', () => {
    const reactor = new SimulatedReactor();
    const { memory, locks } = sharedLocks(2, () => reactor);
    const epoch = locks[1]!.tryEnter();
    let count = 0;
    for (let i = 0; i < 5000; i++) {
      const claim = makeClaim(true, i % 3, 1, () => {
        count++;
        locks[0]!.release(claim);
      });
      locks[0]!.claim(claim);
    }
    locks[1]!.leave(epoch);
    reactor.runUntilIdle();
    expect(count).toBe(5000);
    expectQuiet(memory);
  });

  it('refuses what can not be shared', () => {
    const reactor = new SimulatedReactor();
    const memory = newMemory(2);
    const gateOf = (threadIndex: number) => new SharedGate(memory, threadIndex, 2, reactor);
    expect(() => gateOf(2)).toThrow('thread 2 is none of 2');
    expect(() => new SharedGate(new SharedArrayBuffer(8), 0, 2, reactor)).toThrow('2 threads need 384 bytes');
    const device = new HeldDevice(8);
    const lock = rangeLockOf(device);
    const epoch = lock.tryEnter();
    expect(() => shareRangeLock(device, gateOf(0))).toThrow('the lock is in use');
    lock.leave(epoch);
    const gate = gateOf(0);
    shareRangeLock(device, gate);
    expect(() => shareRangeLock(device, gateOf(1))).toThrow('the lock is shared already');
    expect(() => shareRangeLock(new HeldDevice(8), gate)).toThrow('belongs to another lock');
  });

  it('leaves it at once, or when nobody uses the lock any more, and can have another then', () => {
    const reactor = new SimulatedReactor();
    const device = new HeldDevice(8);
    const lock = rangeLockOf(device);
    const share = () => {
      const memory = newMemory(2);
      shareRangeLock(device, new SharedGate(memory, 0, 2, reactor));
      return memory;
    };
    unshareRangeLock(device);
    expect(canShareRangeLock(device)).toBe(true);
    share();
    expect(canShareRangeLock(device)).toBe(false);
    unshareRangeLock(device);
    expect(canShareRangeLock(device)).toBe(true);

    const memory = share();
    const epoch = lock.tryEnter();
    const part = makeClaim(true, 0, 1);
    lock.claim(part);
    unshareRangeLock(device);
    expect(canShareRangeLock(device)).toBe(false);
    expect(() => share()).toThrow('the lock is shared already');
    lock.leave(epoch);
    expect(part.isGranted).toBe(true);
    expect(canShareRangeLock(device)).toBe(false);
    lock.release(part);
    expectQuiet(memory);
    expect(canShareRangeLock(device)).toBe(true);
    expectQuiet(share());
  });
});

describe('a step of one thread between any two of another', () => {
  /** Runs `other` before the atomic operation number `at` of `action`. @returns false when there are not so many */
  function interrupt(action: () => void, at: number, other: () => void): boolean {
    let count = 0;
    const spies = (['add', 'sub', 'load', 'store'] as const).map((name) => {
      const original: (...args: never[]) => number = Atomics[name];
      const interrupting = (...args: never[]): number => {
        if (count++ === at) other();
        return original(...args);
      };
      return vi.spyOn(Atomics, name).mockImplementation(interrupting as never);
    });
    try {
      action();
    } finally {
      for (const spy of spies) spy.mockRestore();
    }
    return count > at;
  }

  function gates(): [SharedGate, SharedGate, SharedGate] {
    const memory = newMemory(3);
    const newGate = (threadIndex: number) => new SharedGate(memory, threadIndex, 3, new SimulatedReactor());
    return [newGate(0), newGate(1), newGate(2)];
  }

  it.each(['enter', 'take'])('never lets a write in beside who has the right: %s', (interrupted) => {
    for (let at = 0, isOver = false; !isOver; at++) {
      const [a, b] = gates();
      let [isEntered, isTaken] = [false, false];
      const enter = () => {
        isEntered = a.tryEnter();
      };
      const take = () => {
        isTaken = b.tryTake();
      };
      const [action, other] = interrupted === 'enter' ? [enter, take] : [take, enter];
      isOver = !interrupt(action, at, other);
      if (isOver) other();
      expect(isEntered && isTaken, `interrupted at ${at}`).toBe(false);
      // Who came too late comes in when it tries again.
      if (isEntered) a.leave();
      if (!isTaken) expect(b.tryTake()).toBe(true);
      expect(a.tryEnter()).toBe(false);
      b.giveBack();
      expect(a.tryEnter()).toBe(true);
    }
  });

  it('never takes the right from who was given it', () => {
    for (let at = 0, isOver = false; !isOver; at++) {
      const [a, b, c] = gates();
      expect([a.tryTake(), b.tryTake()]).toEqual([true, false]);
      let isTaken = false;
      const take = () => {
        isTaken = b.tryTake();
      };
      isOver = !interrupt(() => a.giveBack(), at, take);
      if (!isTaken) expect(b.tryTake()).toBe(true);
      expect([a.tryTake(), c.tryTake(), a.tryEnter(), c.tryEnter()]).toEqual([false, false, false, false]);
    }
  });
});

describe('threads over one memory', () => {
  const BLOCK_BYTE_LENGTH = 4;
  const BLOCK_COUNT = 6;
  const write = fc.record({
    thread: fc.nat({ max: 3 }),
    startMilliseconds: fc.nat({ max: 20 }),
    offset: fc.nat({ max: BLOCK_BYTE_LENGTH * BLOCK_COUNT - 1 }),
    byteLength: fc.integer({ min: 1, max: 12 }),
    isWhole: fc.boolean(),
  });

  it('lose no byte that was written, in any order, and come to an end', () => {
    fc.assert(
      fc.property(
        fc.array(write, { maxLength: 60 }),
        fc.integer({ min: 1, max: 4 }),
        fc.nat(),
        (writes, threadCount, start) => {
          const random = makeRandom(start);
          const reactor = new SimulatedReactor({ seed: start });
          // Each thread's next turn comes when it comes.
          const { memory, locks } = sharedLocks(threadCount, () => ({
            wake: (callback) => void reactor.after(0.02 * random(), callback),
            after: (milliseconds, callback) => reactor.after(milliseconds + random(), callback),
          }));
          const bytes = new Uint8Array(BLOCK_BYTE_LENGTH * BLOCK_COUNT);
          const model = new Uint8Array(bytes.byteLength);
          let endedCount = 0;

          /** Runs the steps one after the other, other threads' between them. */
          const runSteps = (steps: (() => void)[], onEnd: () => void): void => {
            const [step, ...rest] = steps;
            if (step === undefined) {
              endedCount++;
              onEnd();
              return;
            }
            step();
            const wait = random() < 0.3 ? 0 : 2 * random();
            if (wait === 0) runSteps(rest, onEnd);
            else reactor.after(wait, () => runSteps(rest, onEnd));
          };

          writes.forEach(({ thread, startMilliseconds, offset, byteLength, isWhole }, i) => {
            const lock = locks[thread % threadCount]!;
            const value = i + 1;
            const firstBlock = Math.floor(offset / BLOCK_BYTE_LENGTH);
            const lastByte = Math.min(bytes.byteLength, offset + byteLength) - 1;
            const endBlock = Math.floor(lastByte / BLOCK_BYTE_LENGTH) + 1;
            const from = isWhole ? firstBlock * BLOCK_BYTE_LENGTH : offset;
            const to = isWhole ? endBlock * BLOCK_BYTE_LENGTH : lastByte + 1;
            const blocks = Array.from(
              { length: endBlock - firstBlock },
              (_, k) => (firstBlock + k) * BLOCK_BYTE_LENGTH,
            );
            const copy = new Uint8Array(bytes.byteLength);
            const read = (at: number) => () => copy.set(bytes.subarray(at, at + BLOCK_BYTE_LENGTH), at);
            const writeBack = (at: number) => () => {
              const end = at + BLOCK_BYTE_LENGTH;
              copy.fill(value, Math.max(from, at), Math.min(to, end));
              model.fill(value, Math.max(from, at), Math.min(to, end));
              bytes.set(copy.subarray(at, end), at);
              expect(bytes.subarray(at, end)).toEqual(model.subarray(at, end));
            };
            const claim = makeClaim(!isWhole, firstBlock, endBlock - firstBlock, () => {
              if (isWhole) runSteps(blocks.map(writeBack), () => lock.leave(claim.epoch));
              else runSteps([...blocks.map(read), ...blocks.map(writeBack)], () => lock.release(claim));
            });
            reactor.after(startMilliseconds, () => {
              claim.epoch = isWhole ? lock.tryEnter() : -1;
              if (claim.epoch >= 0) claim.onGranted();
              else lock.claim(claim);
            });
          });
          reactor.runUntilIdle();
          expect(endedCount).toBe(writes.length);
          expect(bytes).toEqual(model);
          for (const lock of locks) expect(lock.isFree).toBe(true);
          expectQuiet(memory);
        },
      ),
      { numRuns: runs(300) },
    );
  });
});

describe('servers over one device', () => {
  /** Two threads' servers, whose devices are the same below. */
  function twoServers(Device: typeof HeldDevice = HeldDevice) {
    const memory = newMemory(2);
    const devices = [new HeldDevice(8), new Device(8)] as const;
    Object.assign(devices[1], { memory: devices[0].memory });
    const [a, b] = devices.map((device) => new Session(device)) as [Session, Session];
    [a, b].forEach((session, i) => void shareRangeLock(devices[i]!, new SharedGate(memory, i, 2, session.reactor)));
    return { memory, a: a.go(), b: b.go(), deviceA: devices[0], deviceB: devices[1] };
  }

  function advance(...sessions: Session[]): void {
    for (const { reactor } of sessions) {
      reactor.turn();
      reactor.advance(1);
    }
  }

  it('write a block and part of it one after the other', () => {
    const { memory, a, b, deviceA, deviceB } = twoServers();
    a.send(request({ type: WRITE, data: pattern(512, 1) }));
    b.send(request({ type: WRITE, offset: 10, data: pattern(4, 2) }));
    a.send(request({ type: WRITE, cookie: 2, offset: 1024, data: pattern(512, 3) }));
    advance(b, a);
    expect(deviceA.bios).toMatchObject([{ op: REQ_OP_WRITE }]);
    expect(deviceB.bios).toEqual([]);
    deviceA.finish(0);
    advance(b, a);
    expect(deviceB.bios).toMatchObject([{ op: REQ_OP_READ }]);
    expect(deviceA.bios).toEqual([]);
    deviceB.finish(0);
    deviceB.finish(0);
    advance(a, b);
    expect(b.takeReply()).toEqual({ error: 0, cookie: 1 });
    expect(deviceA.bios).toMatchObject([{ op: REQ_OP_WRITE, sector: 2 }]);
    deviceA.finish(0);
    advance(a, b);
    const expected = Buffer.from(pattern(512, 1));
    expected.set(pattern(4, 2), 10);
    expect(Buffer.compare(deviceA.memory.peek(0, 1), expected)).toBe(0);
    expect([a.reactor.timerCount, b.reactor.timerCount]).toEqual([0, 0]);
    expectQuiet(memory);
  });

  it.each([
    ['part of a block', 10],
    ['a block', 0],
  ])('a connection that dies while it waits to write %s keeps nobody from anything', (_name, offset) => {
    const { memory, a, b, deviceA, deviceB } = twoServers();
    a.send(request({ type: WRITE, offset: 20, data: pattern(4, 1) }));
    b.send(request({ type: WRITE, offset, data: pattern(512, 2) }));
    advance(b, a);
    expect(deviceB.bios).toEqual([]);
    b.client.destroy();
    advance(b, a);
    expect(b.server.statistics.requestCount).toBe(1);
    deviceA.finish(0);
    deviceA.finish(0);
    // What the client has sent is written all the same.
    advance(b, a);
    while (deviceB.bios.length > 0) deviceB.finish(0);
    advance(b, a);
    expect(b.server.statistics).toMatchObject({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
    expect(Buffer.compare(deviceA.memory.peek(0, 2).subarray(offset, offset + 512), pattern(512, 2))).toBe(0);
    expect([a.reactor.timerCount, b.reactor.timerCount]).toEqual([0, 0]);
    expectQuiet(memory);
  });

  it.each([
    ['part of a block', 10, 4],
    ['a block', 0, 512],
  ])('a device that throws while it writes %s keeps nobody from anything', (_name, offset, byteLength) => {
    class Throwing extends HeldDevice {
      override submit(bio: HeldDevice['bios'][number]): void {
        if (bio.op === REQ_OP_WRITE) throw new Error('a bug');
        super.submit(bio);
      }
    }
    const { memory, a, b, deviceA, deviceB } = twoServers(Throwing);
    b.send(request({ type: WRITE, offset, data: pattern(byteLength) }));
    if (deviceB.bios.length > 0) deviceB.finish(0);
    advance(b);
    expect(b.isClosed).toBe(true);
    a.send(request({ type: WRITE, offset: 20, data: pattern(4, 2) }));
    deviceA.finish(0);
    deviceA.finish(0);
    a.reactor.turn();
    expect(a.takeReply()).toEqual({ error: 0, cookie: 1 });
    expectQuiet(memory);
  });
});

const dist = new URL('../../dist/', import.meta.url);

describe.runIf(existsSync(new URL('nbd/server/shared-gate.js', dist)))('in threads', () => {
  it('no addition is lost, and every thread ends', async () => {
    const threadCount = 3;
    const [wholeCount, partCount] = [60_000, 2_000];
    const gateMemory = newMemory(threadCount);
    const wordMemory = new SharedArrayBuffer(2 * threadCount * 4);
    const startMemory = new SharedArrayBuffer(4);
    const common = { dist: dist.href, gateMemory, wordMemory, startMemory, threadCount, wholeCount, partCount };
    const codes = Array.from({ length: threadCount }, (_, threadIndex) => {
      const worker = new Worker(new URL('shared-gate-thread.mjs', import.meta.url), {
        workerData: { ...common, threadIndex },
      });
      return new Promise((resolve, reject) => worker.on('error', reject).on('exit', resolve));
    });
    expect(await Promise.all(codes)).toEqual([0, 0, 0]);
    const counts = [partCount, partCount, partCount, wholeCount, wholeCount, wholeCount];
    expect([...new Int32Array(wordMemory)]).toEqual(counts);
    expectQuiet(gateMemory);
  });
});
