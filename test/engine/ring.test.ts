// The ring by itself and under the engine: a ring that the test plays gives short, failing and late results; a real one
// shows bounds, order and that nothing is left.
import fs from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import {
  REQ_FUA,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
} from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { EngineSet } from '../../src/engine/index.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import { Ring, RingOperation } from '../../src/engine/ring.ts';
import {
  IORING_OP_FALLOCATE,
  IORING_OP_FSYNC,
  IORING_OP_NOP,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IORING_OP_WRITEV,
} from '../../src/engine/uring.ts';
import { randomBytes } from '../support/tmp.ts';
import {
  callsWith,
  clock,
  ENGINES,
  folderIn,
  libcWith,
  openImage,
  request,
  start,
  TestDevice,
  vecOf,
} from './harness.ts';
import { type FakeOptions, libcWithFakeRing, type Submission } from './ring-fake.ts';

const describeRing = describe.runIf(ENGINES.includes('ring'));

function openFaked(options: FakeOptions, more: { sectorCount?: number; byte?: number } = {}) {
  const { libc, uring } = libcWithFakeRing(options);
  return { device: openImage('ring', { libc, ...more }), uring };
}

function openRing(entryCount: number): Ring {
  const made = Ring.make({ calls: loadLibc().libc!.uring()!, reactor: clock, entryCount });
  if (!(made instanceof Ring)) throw new Error(made.reason);
  onTestFinished(() => made.close());
  return made;
}

function nops(ring: Ring, count: number): Promise<number[]> {
  const results: number[] = [];
  return new Promise((resolve) => {
    for (let i = 0; i < count; i++) {
      const operation = new RingOperation((result) => {
        results.push(result);
        if (results.length === count) resolve(results);
      });
      operation.opcode = IORING_OP_NOP;
      ring.start(operation);
    }
  });
}

const opcodes = (submissions: readonly Submission[]) => submissions.map(({ opcode }) => opcode);

describeRing('a ring', () => {
  it('loses none of twenty operations that are started at once with eight places', async () => {
    const ring = openRing(8);
    expect(await nops(ring, 20)).toEqual(new Array(20).fill(0));
    expect(ring.inFlightCount).toBe(0);
    expect(ring.counters.operationCount).toBe(20);
  });

  it('keeps no more in flight than there are places for completions', async () => {
    const ring = openRing(8);
    await nops(ring, 10_000);
    expect(ring.counters.maxInFlightCount).toBeLessThanOrEqual(16);
  });

  it('sends what one callback starts in one call', async () => {
    const ring = openRing(64);
    await nops(ring, 60);
    expect(ring.counters.submitCount).toBe(1);
  });

  it('lets the event loop have its turn between operations that each start the next', async () => {
    const ring = openRing(8);
    let count = 0;
    let going = true;
    const operation: RingOperation = new RingOperation(() => {
      count++;
      if (going) ring.start(operation);
    });
    operation.opcode = IORING_OP_NOP;
    ring.start(operation);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(count).toBeGreaterThan(10);
    going = false;
  });

  it('ends the others though the end of one throws, and throws that to its reactor', async () => {
    const thrown: unknown[] = [];
    process.removeAllListeners('uncaughtException');
    const listener = (error: unknown) => thrown.push(error);
    process.on('uncaughtException', listener);
    onTestFinished(() => {
      process.off('uncaughtException', listener);
    });
    const ring = openRing(8);
    const failing = new RingOperation(() => {
      throw new Error('an end that throws');
    });
    failing.opcode = IORING_OP_NOP;
    ring.start(failing);
    expect(await nops(ring, 3)).toEqual([0, 0, 0]);
    await new Promise((resolve) => setImmediate(resolve));
    expect(thrown).toEqual([expect.objectContaining({ message: 'an end that throws' })]);
    expect(ring.inFlightCount).toBe(0);
  });

  it('waits on this thread until something has ended', () => {
    const ring = openRing(8);
    expect(ring.wait()).toBe(false);
    const results: number[] = [];
    const operation = new RingOperation((result) => results.push(result));
    operation.opcode = IORING_OP_NOP;
    ring.start(operation);
    expect(ring.wait()).toBe(true);
    expect(results).toEqual([0]);
    expect(ring.wait()).toBe(false);
  });

  it('closes when nothing is in flight, also when it is told to by the last that ends', async () => {
    const ring = openRing(8);
    await new Promise<void>((resolve) => {
      const operation = new RingOperation(() => {
        ring.close();
        expect(ring.closed).toBe(false);
        resolve();
      });
      operation.opcode = IORING_OP_NOP;
      ring.start(operation);
      ring.close();
      expect(ring.closed).toBe(false);
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect(ring.closed).toBe(true);
  });

  it('knows every offset that a file can have', () => {
    const operation = new RingOperation(() => {});
    for (const [sector, byteCount] of [
      [0, 0],
      [8_388_607, 512],
      [8_388_607, 1_000_000],
      [2 ** 43 + 5, 1536],
      [2 ** 53 - 1, 2 ** 32],
    ] as const) {
      operation.setOffset(sector, byteCount);
      const offset = (BigInt(operation.offsetHigh) << 32n) | BigInt(operation.offsetLow >>> 0);
      expect(offset).toBe(BigInt(sector) * 512n + BigInt(byteCount));
    }
  });

  it('is refused with a reason where the system has none or none that is new enough', () => {
    const { libc } = loadLibc();
    const calls = libc!.uring()!;
    const reasonFor = (setup: () => number) => {
      const made = Ring.make({ calls: { ...calls, setup }, reactor: clock });
      return made instanceof Ring ? '' : made.reason;
    };
    expect(reasonFor(() => -Errno.ENOSYS)).toMatch('this kernel has no io_uring');
    expect(reasonFor(() => -Errno.EPERM)).toMatch(/not permitted here.*seccomp.*io_uring_disabled/);
    expect(reasonFor(() => -Errno.ENOMEM)).toMatch('errno 12');
    // A descriptor, but none of the features are told.
    const old = () => fs.openSync('/dev/null', 'r');
    expect(reasonFor(old)).toMatch('too old');
    const made = Ring.make({ calls: { ...calls, map: () => null }, reactor: clock });
    expect(made instanceof Ring ? '' : made.reason).toMatch('no memory');
  });
});

describeRing('the ring engine', () => {
  const vecs = vecOf(new Uint8Array(4096).fill(9));

  it('goes on after short reads and writes, up to the last byte', async () => {
    const content = randomBytes(8192, 3);
    const { device, uring } = openFaked({
      perform: ({ opcode, length }, make) => {
        if (opcode !== IORING_OP_READ && opcode !== IORING_OP_WRITE) return make();
        return length > 700 ? Math.min(make(), 700) : make();
      },
    });
    expect((await request(device, REQ_OP_WRITE, 2, 16, { vecs: vecOf(content) })).status).toBe(0);
    const page = new Uint8Array(8192);
    expect((await request(device, REQ_OP_READ, 2, 16, { vecs: vecOf(page) })).status).toBe(0);
    expect(Buffer.compare(page, content)).toBe(0);
    expect(uring.submissions.length).toBeGreaterThan(20);
  });

  it('tries again after EINTR', async () => {
    let interruptions = 3;
    const { device } = openFaked({ perform: (_s, make) => (interruptions-- > 0 ? -Errno.EINTR : make()) });
    expect((await request(device, REQ_OP_WRITE, 2, 8, { vecs })).status).toBe(0);
    expect(interruptions).toBeLessThan(0);
  });

  it.each([
    ['EAGAIN as the result of an operation', { perform: () => -Errno.EAGAIN }],
    ['EAGAIN from a submission', { enter: () => -Errno.EAGAIN }],
    ['EBUSY from a submission', { enter: () => -Errno.EBUSY }],
    ['a submission that takes nothing', { enter: (count: number) => (count > 0 ? 0 : undefined) }],
  ])('goes to threads after %s', async (_name, options) => {
    const { device } = openFaked(options);
    const ends = await Promise.all([
      request(device, REQ_OP_WRITE, 2, 8, { vecs, flags: REQ_FUA }),
      request(device, REQ_OP_READ, 100, 8, { vecs: vecOf(new Uint8Array(4096)) }),
      request(device, REQ_OP_FLUSH, 0, 0),
    ]);
    expect(ends.map(({ status }) => status)).toEqual([0, 0, 0]);
    expect(
      fs
        .readFileSync(device.name)
        .subarray(1024, 5120)
        .every((byte) => byte === 9),
    ).toBe(true);
    expect(device.file.pendingCount).toBe(0);
  });

  it('submits the rest when the kernel takes a part of a batch, and tries again when a signal comes', async () => {
    let refused = 0;
    const { device, uring } = openFaked({
      enter: (count) => {
        if (refused++ % 3 === 0) return -Errno.EINTR;
        return count > 2 ? 2 : undefined;
      },
    });
    const all = Array.from({ length: 9 }, (_, i) => request(device, REQ_OP_WRITE, i * 8, 8, { vecs }));
    for (const { status } of await Promise.all(all)) expect(status).toBe(0);
    expect(uring.submissions).toHaveLength(9);
    expect(
      fs
        .readFileSync(device.name)
        .subarray(0, 9 * 4096)
        .every((byte) => byte === 9),
    ).toBe(true);
  });

  it('fails what could not be submitted with the errno of the submission', async () => {
    const { device } = openFaked({ enter: () => -Errno.EBADF });
    const bio = await request(device, REQ_OP_WRITE, 2, 8, { vecs });
    expect([bio.status, bio.errorSector]).toEqual([Errno.EBADF, 2]);
  });

  it.each([
    ['an error', -Errno.EIO, Errno.EIO],
    ['a cancelled one', -Errno.ECANCELED, Errno.ECANCELED],
    ['one that moved nothing', 0, Errno.EIO],
  ])('ends a request with %s, at its sector', async (_name, result, errno) => {
    let first = true;
    const { device } = openFaked({
      perform: (_s, make) => {
        if (!first) return result;
        first = false;
        return Math.min(1500, make());
      },
    });
    const bio = await request(device, REQ_OP_WRITE, 10, 8, { vecs });
    expect([bio.status, bio.errorSector, bio.errorDevice]).toEqual([errno, 12, device]);
  });

  it('flushes after the data of a FUA write and before that of a PREFLUSH one', async () => {
    const { device, uring } = openFaked({});
    await request(device, REQ_OP_WRITE, 2, 8, { vecs, flags: REQ_FUA | REQ_PREFLUSH });
    expect(opcodes(uring.submissions)).toEqual([IORING_OP_FSYNC, IORING_OP_WRITE, IORING_OP_FSYNC]);
    expect(uring.submissions[0]!.flags).toBe(1);
  });

  it('stays failed after a flush that failed', async () => {
    const { device } = openFaked({
      perform: ({ opcode }, make) => (opcode === IORING_OP_FSYNC ? -Errno.ENOSPC : make()),
    });
    expect((await request(device, REQ_OP_WRITE, 2, 8, { vecs, flags: REQ_FUA })).status).toBe(Errno.ENOSPC);
    expect((await request(device, REQ_OP_READ, 2, 8, { vecs })).status).toBe(Errno.EIO);
    expect(device.file.failure?.message).toContain('fdatasync failed with ENOSPC');
  });

  it('writes zeroes where the file system has no call for it', async () => {
    const { device, uring } = openFaked(
      { perform: ({ opcode }, make) => (opcode === IORING_OP_FALLOCATE ? -Errno.EOPNOTSUPP : make()) },
      { byte: 7, sectorCount: 8192 },
    );
    expect((await request(device, REQ_OP_WRITE_ZEROES, 8, 4096)).status).toBe(0);
    const bytes = fs.readFileSync(device.name);
    expect(bytes.subarray(8 * 512, 4104 * 512).every((byte) => byte === 0)).toBe(true);
    expect([bytes[8 * 512 - 1], bytes[4104 * 512]]).toEqual([7, 7]);
    expect(new Set(opcodes(uring.submissions))).toEqual(new Set([IORING_OP_FALLOCATE, IORING_OP_WRITEV]));
  });

  it('sends one piece as it is and several as a list', async () => {
    const { device, uring } = openFaked({ perform: (_s, make) => make() });
    await request(device, REQ_OP_READ, 0, 8, { vecs: vecOf(new Uint8Array(4096)) });
    await request(device, REQ_OP_READ, 0, 2, { vecs: [...vecOf(new Uint8Array(512)), ...vecOf(new Uint8Array(512))] });
    expect(opcodes(uring.submissions)).toEqual([IORING_OP_READ, IORING_OP_READV]);
  });

  it('moves on what is under way when a synchronous call polls, and makes no calls on the ring for it', async () => {
    const { device, uring } = openFaked({ perform: () => null });
    const ends: string[] = [];
    start(device, REQ_OP_READ, 0, 8, () => ends.push('earlier'), { vecs: vecOf(new Uint8Array(4096)) });
    device.engines.blocking = true;
    start(device, REQ_OP_READ, 8, 8, () => ends.push('blocking'), { vecs: vecOf(new Uint8Array(4096)) });
    expect(ends).toEqual(['blocking']);
    expect(device.engines.poll()).toBe(true);
    expect(ends).toEqual(['blocking', 'earlier']);
    expect(device.engines.poll()).toBe(false);
    device.engines.blocking = false;
    expect(uring.submissions).toHaveLength(1);
  });

  it('keeps the event loop alive while something is in flight, and not after', async () => {
    const { device, uring } = openFaked({ perform: () => null });
    const answer = request(device, REQ_OP_READ, 0, 8, { vecs: vecOf(new Uint8Array(4096)) });
    expect(uring.referenced).toBe(false);
    await new Promise((resolve) => setImmediate(resolve));
    expect([uring.heldCount, uring.referenced]).toEqual([1, true]);
    uring.release();
    await answer;
    await new Promise((resolve) => setImmediate(resolve));
    expect(uring.referenced).toBe(false);
  });

  it('closes its ring with the last file, and makes another for the next', async () => {
    const { libc, uring } = libcWithFakeRing();
    const device = openImage('ring', { libc });
    const answer = request(device, REQ_OP_READ, 0, 8, { vecs: vecOf(new Uint8Array(4096)) });
    device.close();
    expect((await answer).status).toBe(0);
    await new Promise((resolve) => setImmediate(resolve));
    expect(uring.closedCount).toBe(1);
    const again = new TestDevice(device.engines, device.name);
    expect((await request(again, REQ_OP_READ, 0, 8, { vecs: vecOf(new Uint8Array(4096)) })).status).toBe(0);
    again.close();
    expect(uring.closedCount).toBe(2);
  });

  it('leaves no descriptor behind', async () => {
    const count = () => fs.readdirSync('/proc/self/fd').length;
    const folder = folderIn(undefined);
    fs.writeFileSync(join(folder, 'image'), Buffer.alloc(4096));
    const before = count();
    for (let round = 0; round < 20; round++) {
      const device = new TestDevice(new EngineSet({ reactor: clock, engine: 'ring' }), join(folder, 'image'));
      await request(device, REQ_OP_READ, 0, 8, { vecs: vecOf(new Uint8Array(4096)) });
      device.close();
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(count()).toBe(before);
  });

  it('keeps far more requests than its ring has places within the bound', async () => {
    const device = openImage('ring', { ringEntryCount: 8, byte: 5 });
    const pages = Array.from({ length: 500 }, () => new Uint8Array(512));
    const all = pages.map((page, sector) => request(device, REQ_OP_READ, sector, 1, { vecs: vecOf(page) }));
    for (const { status } of await Promise.all(all)) expect(status).toBe(0);
    expect(pages.every((page) => page.every((byte) => byte === 5))).toBe(true);
    expect(device.engines.counters.ring!.maxInFlightCount).toBeLessThanOrEqual(16);
  });
});

describeRing('the direct engine beside a ring', () => {
  const noThreads = () => {
    throw new Error('no thread was expected');
  };

  it('sends reads of what is not cached to the ring', async () => {
    const { libc, uring } = libcWithFakeRing();
    const device = openImage('auto', {
      libc: { ...libc, preadv2: () => -1, errno: () => Errno.EAGAIN },
      threads: callsWith({ read: noThreads, dataSync: noThreads }),
      byte: 6,
    });
    expect(device.file.engine.kind).toBe('direct');
    const page = new Uint8Array(4096);
    expect((await request(device, REQ_OP_READ, 8, 8, { vecs: vecOf(page) })).status).toBe(0);
    expect(page.every((byte) => byte === 6)).toBe(true);
    expect((await request(device, REQ_OP_FLUSH, 0, 0)).status).toBe(0);
    expect(opcodes(uring.submissions)).toEqual([IORING_OP_READ, IORING_OP_FSYNC]);
  });

  it('uses threads where the ring is refused, and asks once', async () => {
    let asked = 0;
    const libc = libcWith((real) => ({
      preadv2: () => -1,
      errno: () => Errno.EAGAIN,
      uring: () => ({
        ...real.uring()!,
        setup: () => {
          asked++;
          return -Errno.EPERM;
        },
      }),
    }));
    const device = openImage('auto', { libc, byte: 6 });
    expect(asked).toBe(0);
    for (let i = 0; i < 3; i++) {
      expect((await request(device, REQ_OP_READ, 8, 8, { vecs: vecOf(new Uint8Array(4096)) })).status).toBe(0);
    }
    expect(asked).toBe(1);
    expect(device.engines.ringReason).toMatch('not permitted');
  });

  it('makes no ring when it was asked for by name', async () => {
    const { libc, uring } = libcWithFakeRing();
    const device = openImage('direct', { libc: { ...libc, preadv2: () => -1, errno: () => Errno.EAGAIN } });
    expect((await request(device, REQ_OP_READ, 8, 8, { vecs: vecOf(new Uint8Array(4096)) })).status).toBe(0);
    expect(uring.submissions).toEqual([]);
    expect(device.engines.ringReason).toBe('the direct engine was asked for');
  });
});
