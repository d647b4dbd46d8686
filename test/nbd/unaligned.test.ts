// Requests of any bytes: against a model, in any order of the device's ends, over several connections and exports, and
// with blocks of 512 and 4096 bytes. And the lock by itself.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Bio, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { RangeClaim, RangeLock } from '../../src/nbd/server/range-lock.ts';
import { runs } from '../support/seed.ts';
import { HeldDevice, pattern, request, Session } from './support.ts';

const [READ, WRITE, TRIM, ZEROES] = [0, 1, 4, 6];
const SIZE = 32 * 1024;

/** Ends requests one by one, in an order that `pick` chooses, until there are none. */
function finishAll(device: HeldDevice, pick: () => number): void {
  while (device.bios.length > 0) device.finish(pick() % device.bios.length);
}

describe('requests of any bytes', () => {
  const operation = fc.record({
    type: fc.constantFrom(READ, WRITE, WRITE, WRITE, ZEROES, TRIM),
    offset: fc.nat({ max: SIZE - 1 }),
    length: fc.nat({ max: 9000 }),
    flags: fc.constantFrom(0, 1),
    client: fc.nat({ max: 2 }),
  });

  it.each([512, 4096])('leave every other byte alone, whatever ends first, with blocks of %i', (logicalBlockSize) => {
    fc.assert(
      fc.property(fc.array(operation, { maxLength: 40 }), fc.array(fc.nat(), { minLength: 1 }), (operations, picks) => {
        const device = new HeldDevice(SIZE / 512, { logicalBlockSize, maxWriteZeroesSectorCount: 64 });
        device.memory.poke(0, pattern(SIZE, 7));
        const session = new Session(device);
        session.server.exports.add({ name: 'again', device });
        const clients = [session.go(), session.connectAnother().go(), session.connectAnother().go('again')];
        // Which bytes somebody changes at the time is known; these may be either, all others must be as they were.
        const model: Set<number>[] = Array.from(pattern(SIZE, 7), (byte) => new Set([byte]));
        operations.forEach(({ type, offset, length, flags, client }, i) => {
          const end = Math.min(SIZE, offset + length);
          const data = pattern(end - offset, i);
          clients[client]!.send(
            request({ type, flags, cookie: i, offset, ...(type === WRITE ? { data } : { length: end - offset }) }),
          );
          for (let at = offset; at < end && type !== READ && type !== TRIM; at++) {
            model[at]!.add(type === WRITE ? data[at - offset]! : 0);
          }
        });
        let next = 0;
        for (let i = 0; i < 10_000; i++) {
          finishAll(device, () => picks[next++ % picks.length]!);
          session.reactor.turn();
          if (device.bios.length === 0) break;
        }
        expect(session.server.statistics).toMatchObject({ requestCount: 0, usedByteLength: 0 });
        const after = device.memory.peek(0, SIZE / 512);
        for (let at = 0; at < SIZE; at++) if (!model[at]!.has(after[at]!)) expect.fail(`byte ${at} is ${after[at]}`);
      }),
      { numRuns: runs(60) },
    );
  });

  it('many parts of one block at once all arrive, over two connections', () => {
    const device = new HeldDevice(8, { logicalBlockSize: 4096 });
    const session = new Session(device).go();
    const other = session.connectAnother().go();
    const data = pattern(4096, 3);
    for (let i = 0; i < 64; i++) {
      const piece = { offset: i * 64, data: data.subarray(i * 64, i * 64 + 64) };
      (i % 2 === 0 ? session : other).send(request({ type: WRITE, cookie: i, ...piece }));
    }
    // One at a time: read, then write.
    for (let i = 0; i < 64; i++) {
      for (const op of [REQ_OP_READ, REQ_OP_WRITE]) {
        expect(device.bios).toMatchObject([{ op, sector: 0, sectorCount: 8 }]);
        device.finish(0);
      }
    }
    session.reactor.turn();
    expect(Buffer.compare(device.memory.peek(0, 8), data)).toBe(0);
    for (let i = 0; i < 32; i++) expect([session.takeReply().error, other.takeReply().error]).toEqual([0, 0]);
  });

  it('a part of a block waits for the whole block that is being written, and the other way round', () => {
    const device = new HeldDevice(8);
    const session = new Session(device).go();
    session.send(request({ type: WRITE, cookie: 1, data: pattern(512, 1) }));
    session.send(request({ type: WRITE, cookie: 2, offset: 10, data: pattern(4, 2) }));
    session.send(request({ type: WRITE, cookie: 3, data: pattern(512, 3) }));
    session.send(request({ type: WRITE, cookie: 4, offset: 512, data: pattern(512, 4) }));
    // The last one is elsewhere and need not wait.
    expect(device.bios.map(({ op, sector }) => [op, sector])).toEqual([
      [REQ_OP_WRITE, 0],
      [REQ_OP_WRITE, 1],
    ]);
    device.finish(0);
    expect(device.bios.map(({ op, sector }) => [op, sector])).toEqual([
      [REQ_OP_WRITE, 1],
      [REQ_OP_READ, 0],
    ]);
    device.finish(1);
    expect(device.bios[1]).toMatchObject({ op: REQ_OP_WRITE, sector: 0 });
    device.finish(1);
    const between = Buffer.from(pattern(512, 1));
    between.set(pattern(4, 2), 10);
    expect(Buffer.compare(device.memory.peek(0, 1), between)).toBe(0);
    finishAll(device, () => 0);
    session.reactor.turn();
    expect(Buffer.compare(device.memory.peek(0, 1), pattern(512, 3))).toBe(0);
  });

  it('TRIM leaves what is no whole block alone', () => {
    const device = new HeldDevice(64, { maxDiscardSectorCount: 64 });
    const session = new Session(device).go();
    session.send(request({ type: TRIM, offset: 100, length: 512 }), request({ type: TRIM, offset: 100, length: 2000 }));
    expect(device.bios).toMatchObject([{ sector: 1, sectorCount: 3 }]);
    finishAll(device, () => 0);
    session.reactor.turn();
    expect([session.takeReply().error, session.takeReply().error]).toEqual([0, 0]);
  });

  it('FAST_ZERO is refused before anything is changed', () => {
    const device = new HeldDevice(64, { maxWriteZeroesSectorCount: 64 });
    const session = new Session(device).go();
    session.send(request({ type: ZEROES, flags: 16, offset: 100, length: 2000 }));
    device.finish(0, Errno.EOPNOTSUPP);
    session.reactor.turn();
    expect(session.takeReply().error).toBe(95);
    expect(device.bios).toHaveLength(0);
  });

  it.each([0, 1, 2])('an error at step %i of a change is the answer, and the block is free again', (step) => {
    const device = new HeldDevice(8);
    const session = new Session(device).go();
    session.send(request({ type: WRITE, cookie: 1, offset: 10, data: pattern(600) }));
    session.send(request({ type: WRITE, cookie: 2, offset: 20, data: pattern(4) }));
    for (let i = 0; i < step; i++) device.finish(0);
    device.finish(0, Errno.EIO);
    finishAll(device, () => 0);
    session.reactor.turn();
    expect(session.takeReply()).toEqual({ error: Errno.EIO, cookie: 1 });
    expect(session.takeReply()).toEqual({ error: 0, cookie: 2 });
    expect(session.server.statistics).toMatchObject({ requestCount: 0, usedByteLength: 0 });
  });

  it('a device that throws in between frees the block', () => {
    class Throwing extends HeldDevice {
      override submit(bio: Bio): void {
        if (bio.op === REQ_OP_WRITE && bio.sectorCount === 1) throw new Error('a bug');
        super.submit(bio);
      }
    }
    const device = new Throwing(8);
    const session = new Session(device).go();
    const other = session.connectAnother().go();
    session.send(request({ type: WRITE, offset: 10, data: pattern(4) }));
    other.send(request({ type: WRITE, cookie: 2, offset: 500, data: pattern(100) }));
    device.finish(0);
    session.reactor.turn();
    expect(session.isClosed).toBe(true);
    finishAll(device, () => 0);
    session.reactor.turn();
    expect(other.takeReply()).toEqual({ error: 0, cookie: 2 });
  });
});

describe('the lock', () => {
  it('never lets two at the same sectors, and lets everybody through', () => {
    const step = fc.record({
      first: fc.nat({ max: 15 }),
      count: fc.integer({ min: 1, max: 6 }),
      isExclusive: fc.boolean(),
      finish: fc.nat({ max: 3 }),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const lock = new RangeLock();
        const busy: RangeClaim[] = [];
        let granted = 0;
        const finish = (index: number): void => {
          const claim = busy.splice(index, 1)[0]!;
          if (claim.isExclusive) lock.release(claim);
          else lock.leave(claim.epoch);
        };
        for (const { first, count, isExclusive, finish: which } of steps) {
          const claim: RangeClaim = new RangeClaim(() => {
            granted++;
            for (const other of busy) {
              if (!other.isExclusive && !claim.isExclusive) continue;
              expect(other.firstSector < claim.endSector && claim.firstSector < other.endSector).toBe(false);
            }
            busy.push(claim);
          });
          claim.firstSector = first;
          claim.endSector = first + count;
          claim.isExclusive = isExclusive;
          claim.epoch = isExclusive ? -1 : lock.tryEnter();
          if (claim.epoch >= 0) claim.onGranted();
          else lock.claim(claim);
          if (which < busy.length) finish(which);
        }
        while (busy.length > 0) finish(0);
        expect(granted).toBe(steps.length);
        expect(lock.isFree).toBe(true);
      }),
      { numRuns: runs(300) },
    );
  });

  it('grants a long row without a deep stack', () => {
    const lock = new RangeLock();
    let count = 0;
    const claims = Array.from({ length: 20_000 }, (_, i) => {
      const claim: RangeClaim = new RangeClaim(() => {
        count++;
        if (i > 0) lock.release(claim);
      });
      claim.endSector = 1;
      claim.isExclusive = true;
      return claim;
    });
    for (const claim of claims) lock.claim(claim);
    expect(count).toBe(1);
    lock.release(claims[0]!);
    expect(count).toBe(20_000);
  });
});

it('a bio may be given again from its own end', () => {
  // Commands do that; Bio promises it.
  const bio = new Bio();
  let ends = 0;
  bio.onEnd = () => {
    if (ends++ > 0) return;
    bio.reset(REQ_OP_READ, 0, null, 0, 0);
    bio.endIo(0);
  };
  bio.reset(REQ_OP_READ, 0, null, 0, 0);
  bio.endIo(0);
  expect(ends).toBe(2);
});
