// What engines do when calls fail, are slow, are interrupted or give less than they were asked for: with calls that a
// test replaces.
import fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import { type Bio, REQ_FUA, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_PREFLUSH } from '../../src/block/bio.ts';
import { MAX_OFFLOADED_CALL_COUNT } from '../../src/block/bounds.ts';
import { Errno } from '../../src/block/errno.ts';
import { blockingCalls, type FileCalls, threadCalls } from '../../src/engine/calls.ts';
import type { Libc } from '../../src/engine/index.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import type { ThreadedEngine } from '../../src/engine/threads.ts';
import { randomBytes } from '../support/tmp.ts';
import { callsWith, clock, folderIn, libcWith, memoryFolder, openImage, request, start, vecOf } from './harness.ts';

/** A libc in which nothing is cached: every read of the direct engine goes to a thread. */
function nothingCached(): Libc {
  return libcWith((real) => {
    let missed = false;
    return {
      preadv2: () => {
        missed = true;
        return -1;
      },
      errno: () => {
        if (!missed) return real.errno();
        missed = false;
        return Errno.EAGAIN;
      },
    };
  });
}

/** A libc whose `name` fails with the errnos given, one call after the other, and then works. */
function failing(name: 'preadv2' | 'pread' | 'preadv' | 'pwrite' | 'pwritev', errnos: number[]): Libc {
  return libcWith((real) => {
    let errno = 0;
    const replaced = (...args: never[]): number => {
      errno = errnos.shift() ?? 0;
      return errno === 0 ? (real[name] as (...args: never[]) => number)(...args) : -1;
    };
    return { [name]: replaced, errno: () => (errno === 0 ? real.errno() : errno) };
  });
}

describe.skipIf(memoryFolder === undefined)('a file in memory', () => {
  it('is flushed on this thread, and a durable write ends inside submit', () => {
    const log: string[] = [];
    const here: Partial<FileCalls> = {
      write: (fd, views, position, done) => {
        log.push(`write ${position}`);
        blockingCalls.write(fd, views, position, done);
      },
      dataSync: (fd, done) => {
        log.push('sync');
        blockingCalls.dataSync(fd, done);
      },
    };
    const calls = { threadCalls, blockingCalls: { ...blockingCalls, ...here } };
    const device = openImage('direct', { threads: calls, folder: folderIn(memoryFolder) });
    const statuses: number[] = [];
    const ended = (bio: Bio): void => void statuses.push(bio.status);
    const vecs = vecOf(new Uint8Array(512).fill(7));
    start(device, REQ_OP_WRITE, 2, 1, ended, { vecs, flags: REQ_PREFLUSH | REQ_FUA });
    expect(log).toEqual(['sync', 'write 1024', 'sync']);
    start(device, REQ_OP_FLUSH, 0, 0, ended);
    expect(log).toHaveLength(4);
    expect(statuses).toEqual([0, 0]);
    expect(fs.readFileSync(device.name).subarray(1024, 1536)).toEqual(Buffer.alloc(512, 7));
  });

  it('fails everything after a flush that failed', () => {
    const failing: Partial<FileCalls> = { dataSync: (_fd, done) => done(Errno.EIO, 0) };
    const device = openImage('direct', { threads: callsWith(failing), folder: folderIn(memoryFolder) });
    const statuses: number[] = [];
    const ended = (bio: Bio): void => void statuses.push(bio.status);
    const vecs = vecOf(new Uint8Array(512));
    start(device, REQ_OP_WRITE, 2, 1, ended, { vecs, flags: REQ_PREFLUSH | REQ_FUA });
    start(device, REQ_OP_WRITE, 2, 1, ended, { vecs });
    expect(statuses).toEqual([Errno.EIO, Errno.EIO]);
    expect(device.file.failure?.message).toMatch(/fdatasync failed with EIO/);
  });
});

/** The ring's faults are in a file of their own. */
const THREADED = ['direct', 'portable'] as const;

describe.each(THREADED)('the %s engine', (engine) => {
  it('flushes after the data of a FUA write and before that of a PREFLUSH one', async () => {
    const log: string[] = [];
    const logged: Partial<FileCalls> = {
      write: (fd, views, position, done) => {
        log.push(`write ${position}`);
        threadCalls.write(fd, views, position, done);
      },
      dataSync: (fd, done) => {
        log.push('sync');
        threadCalls.dataSync(fd, done);
      },
    };
    const device = openImage(engine, { threads: callsWith(logged) });
    const vecs = vecOf(new Uint8Array(512));
    const write = async (flags: number): Promise<string[]> => {
      log.length = 0;
      expect((await request(device, REQ_OP_WRITE, 2, 1, { vecs, flags })).status).toBe(0);
      return [...log];
    };
    expect(await write(REQ_FUA)).toEqual(['write 1024', 'sync']);
    expect(await write(REQ_PREFLUSH)).toEqual(['sync', 'write 1024']);
    expect(await write(REQ_PREFLUSH | REQ_FUA)).toEqual(['sync', 'write 1024', 'sync']);
    log.length = 0;
    expect((await request(device, REQ_OP_FLUSH, 0, 0)).status).toBe(0);
    expect(log).toEqual(['sync']);
    log.length = 0;
    await request(device, REQ_OP_READ, 0, 1, { vecs, flags: REQ_FUA | REQ_PREFLUSH });
    expect(log).toEqual([]);
  });

  it.each([
    ['a flush', REQ_OP_FLUSH, 0],
    ['a FUA write', REQ_OP_WRITE, REQ_FUA],
    ['a PREFLUSH write', REQ_OP_WRITE, REQ_PREFLUSH],
  ])('fails everything after %s that failed', async (_name, op, flags) => {
    let failures = 1;
    const calls = callsWith({
      dataSync: (fd, done) => {
        if (failures-- > 0) done(Errno.ENOSPC, 0);
        else threadCalls.dataSync(fd, done);
      },
    });
    const device = openImage(engine, { threads: calls, byte: 1 });
    const vecs = vecOf(new Uint8Array(512));
    const told: Error[] = [];
    device.file.onFailure = (failure) => told.push(failure);
    const options = op === REQ_OP_WRITE ? { vecs, flags } : {};
    expect((await request(device, op, 5, op === REQ_OP_WRITE ? 1 : 0, options)).status).toBe(Errno.ENOSPC);
    expect((await request(device, REQ_OP_READ, 0, 1, { vecs })).status).toBe(Errno.EIO);
    expect((await request(device, REQ_OP_WRITE, 0, 1, { vecs })).status).toBe(Errno.EIO);
    expect((await request(device, REQ_OP_FLUSH, 0, 0)).status).toBe(Errno.EIO);
    expect(device.file.failure?.message).toMatch(/fdatasync failed with ENOSPC.*may be lost.*opened again/s);
    expect(told).toEqual([device.file.failure]);
  });

  it('fails what waits behind a flush that failed, without nesting', async () => {
    const calls = callsWith({
      dataSync: (_fd, done) => void setImmediate(() => done(Errno.EIO, 0)),
      read: (fd, views, position, done) => threadCalls.read(fd, views, position, done),
    });
    const options = { threads: { ...calls, maxOffloadedCallCount: 1 } };
    const device = openImage(engine, engine === 'direct' ? { ...options, libc: nothingCached() } : options);
    const flush = request(device, REQ_OP_FLUSH, 0, 0);
    const vecs = vecOf(new Uint8Array(512));
    const reads = Array.from({ length: 20_000 }, () => request(device, REQ_OP_READ, 0, 1, { vecs }));
    expect((await flush).status).toBe(Errno.EIO);
    const statuses = new Set((await Promise.all(reads)).map((bio) => bio.status));
    expect([...statuses]).toEqual([Errno.EIO]);
  });

  it('asks again when a signal interrupts a call', async () => {
    let interruptions = 3;
    const interrupted =
      (call: FileCalls['read']): FileCalls['read'] =>
      (fd, views, position, done) => {
        if (interruptions-- > 0) done(Errno.EINTR, 0);
        else call(fd, views, position, done);
      };
    const calls = { read: interrupted(threadCalls.read), write: interrupted(threadCalls.write) };
    const device = openImage(engine, { byte: 6, threads: callsWith(calls) });
    const page = new Uint8Array(512);
    expect((await request(device, REQ_OP_READ, 0, 1, { vecs: vecOf(page) })).status).toBe(0);
    expect(page[0]).toBe(6);
    interruptions = 2;
    expect((await request(device, REQ_OP_WRITE, 0, 1, { vecs: vecOf(page), flags: REQ_FUA })).status).toBe(0);
    expect(interruptions).toBeLessThan(0);
  });

  it('goes on where a call moved less than it was asked to', async () => {
    const shorten = (views: Uint8Array[]): Uint8Array[] => [views[0]!.subarray(0, Math.min(700, views[0]!.byteLength))];
    const calls: Partial<FileCalls> = {
      read: (fd, views, position, done) => threadCalls.read(fd, shorten(views), position, done),
      write: (fd, views, position, done) => threadCalls.write(fd, shorten(views), position, done),
    };
    const device = openImage(engine, { threads: callsWith(calls) });
    const content = randomBytes(8 * 512, 1);
    const written = await request(device, REQ_OP_WRITE, 1, 8, { vecs: vecOf(content), flags: REQ_FUA });
    expect(written.status).toBe(0);
    const page = new Uint8Array(8 * 512);
    expect((await request(device, REQ_OP_READ, 1, 8, { vecs: vecOf(page) })).status).toBe(0);
    expect(Buffer.compare(page, content)).toBe(0);
  });

  it('fails at the sector where a call failed after others had moved data', async () => {
    let count = 0;
    const calls: Partial<FileCalls> = {
      write: (fd, views, position, done) => {
        if (++count > 3) done(Errno.EDQUOT, 0);
        else threadCalls.write(fd, [views[0]!.subarray(0, 500)], position, done);
      },
    };
    const device = openImage(engine, { threads: callsWith(calls) });
    const vecs = vecOf(new Uint8Array(4096));
    const bio = await request(device, REQ_OP_WRITE, 10, 8, { vecs, flags: REQ_FUA });
    // 1,500 bytes are two whole sectors.
    expect([bio.status, bio.errorSector]).toEqual([Errno.EDQUOT, 12]);
  });

  it('takes a write that moves nothing for an error, not for a reason to try for ever', async () => {
    const device = openImage(engine, { threads: callsWith({ write: (_fd, _views, _position, done) => done(0, 0) }) });
    const bio = await request(device, REQ_OP_WRITE, 3, 1, { vecs: vecOf(new Uint8Array(512)), flags: REQ_FUA });
    expect([bio.status, bio.errorSector]).toEqual([Errno.EIO, 3]);
  });

  it('keeps 2,000 requests within the bound of calls on threads', async () => {
    let most = 0;
    const device = openImage(engine, {
      byte: 5,
      ...(engine === 'direct' ? { libc: nothingCached() } : {}),
      threads: callsWith({
        read: (fd, views, position, done) => {
          most = Math.max(most, (device.file.engine as ThreadedEngine).offloadedCount);
          threadCalls.read(fd, views, position, done);
        },
      }),
    });
    const all = Array.from({ length: 2000 }, (_, index) => {
      const page = new Uint8Array(512);
      return request(device, REQ_OP_READ, index, 1, { vecs: vecOf(page) }).then((bio) => [bio.status, page[511]]);
    });
    for (const outcome of await Promise.all(all)) expect(outcome).toEqual([0, 5]);
    expect(most).toBe(MAX_OFFLOADED_CALL_COUNT);
    expect((device.file.engine as ThreadedEngine).offloadedCount).toBe(0);
    expect(device.file.pendingCount).toBe(0);
  });

  it('gives one file one thread for writes, and starts them in order', async () => {
    const order: number[] = [];
    let running = 0;
    let most = 0;
    const device = openImage(engine, {
      threads: callsWith({
        write: (fd, views, position, done) => {
          order.push(position / 512);
          most = Math.max(most, ++running);
          threadCalls.write(fd, views, position, (errno, length) => {
            running--;
            done(errno, length);
          });
        },
      }),
    });
    const sectors = Array.from({ length: 300 }, (_, index) => index);
    const vecs = vecOf(new Uint8Array(512));
    const all = sectors.map((sector) => request(device, REQ_OP_WRITE, sector, 1, { vecs, flags: REQ_FUA }));
    for (const bio of await Promise.all(all)) expect(bio.status).toBe(0);
    expect(most).toBe(1);
    expect(order).toEqual(sectors);
  });

  it('goes on after an endIo that threw', async () => {
    const device = openImage(engine, { byte: 1, threads: { blockingCalls } });
    device.engines.blocking = true;
    const vecs = vecOf(new Uint8Array(512));
    const boom = (): void => {
      throw new Error('boom');
    };
    expect(() => start(device, REQ_OP_READ, 0, 1, boom, { vecs })).toThrow('boom');
    const ends: number[] = [];
    start(device, REQ_OP_READ, 0, 1, (bio) => ends.push(bio.status), { vecs });
    expect(ends).toEqual([0]);
    expect(device.file.pendingCount).toBe(0);
    device.engines.blocking = false;
  });
});

describe('the direct engine', () => {
  const inline = (libc: Libc, options: object = {}) => openImage('direct', { libc, byte: 8, ...options });

  it.each([
    ['preadv2', REQ_OP_READ],
    ['pwrite', REQ_OP_WRITE],
  ] as const)('asks again when a signal interrupts %s', async (name, op) => {
    const device = inline(failing(name, [Errno.EINTR, Errno.EINTR]));
    const bio = await request(device, op, 0, 1, { vecs: vecOf(new Uint8Array(512)) });
    expect(bio.status).toBe(0);
  });

  it('asks again when a signal interrupts a write of pieces', async () => {
    const errnos = [Errno.EINTR, Errno.EINTR];
    const device = inline(failing('pwritev', errnos));
    const vecs = [...vecOf(new Uint8Array(512)), ...vecOf(new Uint8Array(512))];
    expect((await request(device, REQ_OP_WRITE, 0, 2, { vecs })).status).toBe(0);
    expect(errnos).toEqual([]);
  });

  it.each([Errno.ENOSPC, Errno.EDQUOT, Errno.EFBIG, Errno.EIO])('passes errno %i of a write on', async (errno) => {
    const libc = libcWith((real) => {
      let calls = 0;
      return {
        pwrite: () => -1,
        pwritev: (fd, iovec, count, offset) =>
          calls++ === 0 ? real.pwritev(fd, iovec, Math.min(1, count), offset) : -1,
        errno: () => errno,
      };
    });
    const device = inline(libc);
    const vecs = [...vecOf(new Uint8Array(1536)), ...vecOf(new Uint8Array(512))];
    const bio = await request(device, REQ_OP_WRITE, 20, 4, { vecs });
    expect([bio.status, bio.errorSector]).toEqual([errno, 23]);
  });

  it('remembers that a file takes no RWF_NOWAIT, and still reads it inline', () => {
    const errnos = [Errno.EOPNOTSUPP, Errno.EOPNOTSUPP];
    const device = inline(failing('preadv2', errnos));
    const page = new Uint8Array(1024);
    const ends: number[] = [];
    for (let round = 0; round < 3; round++) {
      start(device, REQ_OP_READ, 1, 2, (bio) => ends.push(bio.status), { vecs: vecOf(page) });
    }
    expect(ends).toEqual([0, 0, 0]);
    expect(page.every((byte) => byte === 8)).toBe(true);
    expect(errnos).toHaveLength(1);
  });

  it('reads the rest on a thread when the middle is not cached', async () => {
    const positions: number[] = [];
    const libc = libcWith((real) => ({
      preadv2: (fd, iovec, count, offset, flags) => {
        // As if the cache ended in the second sector: the call is made for less.
        const length = real.preadv2(fd, iovec, count, offset, flags);
        return length > 700 ? 700 : length;
      },
    }));
    const device = inline(libc, {
      threads: callsWith({
        read: (fd, views, position, done) => {
          positions.push(position);
          threadCalls.read(fd, views, position, done);
        },
      }),
    });
    const page = new Uint8Array(4096);
    expect((await request(device, REQ_OP_READ, 1, 8, { vecs: vecOf(page) })).status).toBe(0);
    expect(page.every((byte) => byte === 8)).toBe(true);
    expect(positions).toEqual([512 + 700]);
  });

  it('keeps the writes of a slow file on threads for a while', async () => {
    let time = 1000;
    let slow = true;
    let sleepCount = 7;
    let inlineCount = 0;
    const libc = libcWith((real) => ({
      pwrite: (fd, address, length, offset) => {
        inlineCount++;
        time += slow ? 50 : 0.1;
        if (slow) sleepCount++;
        return real.pwrite(fd, address, length, offset);
      },
      sleepCount: () => sleepCount,
    }));
    const device = inline(libc, { reactor: { ...clock, now: () => time } });
    const write = () => request(device, REQ_OP_WRITE, 0, 1, { vecs: vecOf(new Uint8Array(512)) });
    // The first one only makes suspicious, the next two are 100 ms.
    for (let round = 0; round < 3; round++) expect((await write()).status).toBe(0);
    slow = false;
    for (let round = 0; round < 5; round++) expect((await write()).status).toBe(0);
    expect(inlineCount).toBe(3);
    time += 1500;
    for (let round = 0; round < 5; round++) expect((await write()).status).toBe(0);
    expect(inlineCount).toBe(8);
    // It is still under suspicion: once is enough.
    slow = true;
    for (let round = 0; round < 5; round++) expect((await write()).status).toBe(0);
    expect(inlineCount).toBe(9);
    // And this long after it is not.
    time += 5000;
    for (let round = 0; round < 5; round++) expect((await write()).status).toBe(0);
    expect(inlineCount).toBe(12);
  });

  it('lets calls sleep for a tenth of the time', async () => {
    let time = 1000;
    let sleepCount = 0;
    let inlineCount = 0;
    const libc = libcWith((real) => ({
      pwrite: (fd, address, length, offset) => {
        inlineCount++;
        time += 10;
        sleepCount++;
        return real.pwrite(fd, address, length, offset);
      },
      sleepCount: () => sleepCount,
    }));
    const device = inline(libc, { reactor: { ...clock, now: () => time } });
    const vecs = vecOf(new Uint8Array(512));
    const writes = async (count: number, pause: number): Promise<void> => {
      for (let round = 0; round < count; round++) {
        time += pause;
        expect((await request(device, REQ_OP_WRITE, 0, 1, { vecs })).status).toBe(0);
      }
    };
    await writes(100, 110);
    expect(inlineCount).toBe(100);
    // Eleven times as often they come to 100 ms.
    await writes(30, 10);
    expect(inlineCount).toBeLessThan(120);
  });

  it('does not take a file for a slow one when the processor was somebody else’s', async () => {
    let time = 1000;
    let inlineCount = 0;
    const libc = libcWith((real) => ({
      pwrite: (fd, address, length, offset) => {
        inlineCount++;
        time += 50;
        return real.pwrite(fd, address, length, offset);
      },
      sleepCount: () => 7,
    }));
    const device = inline(libc, { reactor: { ...clock, now: () => time } });
    const vecs = vecOf(new Uint8Array(512));
    for (let round = 0; round < 20; round++) await request(device, REQ_OP_WRITE, 0, 1, { vecs });
    expect(inlineCount).toBe(20);
  });

  it('counts how often the thread sleeps, and not how often it computes', () => {
    const libc = loadLibc().libc!;
    const pause = new Int32Array(new SharedArrayBuffer(4));
    const before = libc.sleepCount();
    for (let round = 0; round < 5; round++) Atomics.wait(pause, 0, 0, 1);
    expect(libc.sleepCount() - before).toBeGreaterThanOrEqual(5);
  });

  it('does not take a large write for a slow one', async () => {
    let time = 0;
    let inlineCount = 0;
    const libc = libcWith((real) => ({
      pwrite: (fd, address, length, offset) => {
        inlineCount++;
        time += 6;
        return real.pwrite(fd, address, length, offset);
      },
    }));
    const device = inline(libc, { reactor: { ...clock, now: () => time }, sectorCount: 8192 });
    const vecs = vecOf(new Uint8Array(4 << 20));
    for (let round = 0; round < 3; round++) await request(device, REQ_OP_WRITE, 0, 8192, { vecs });
    expect(inlineCount).toBe(3);
  });

  it('transfers past 2^53 bytes', async () => {
    const positions: (number | bigint)[] = [];
    const libc = libcWith((real) => {
      const at = (offset: number | bigint): bigint => {
        positions.push(offset);
        return BigInt(offset) - 2n ** 60n;
      };
      return {
        preadv: (fd, iovec, count, offset) => real.preadv(fd, iovec, count, at(offset)),
        pwritev: (fd, iovec, count, offset) => real.pwritev(fd, iovec, Math.min(count, 1), at(offset)),
      };
    });
    const device = inline(libc);
    device.sectorCount = Number.MAX_SAFE_INTEGER;
    const content = randomBytes(2048, 4);
    const sector = 2 ** 51 + 3;
    const split = [...vecOf(content.subarray(0, 600)), ...vecOf(content.subarray(600))];
    expect((await request(device, REQ_OP_WRITE, sector, 4, { vecs: split })).status).toBe(0);
    expect((await request(device, REQ_OP_WRITE, sector, 4, { vecs: split, flags: REQ_FUA })).status).toBe(0);
    const page = new Uint8Array(2048);
    expect((await request(device, REQ_OP_READ, sector, 4, { vecs: vecOf(page) })).status).toBe(0);
    expect(Buffer.compare(page, content)).toBe(0);
    expect(Buffer.compare(fs.readFileSync(device.name).subarray(1536, 3584), content)).toBe(0);
    expect(positions).toContain(2n ** 60n + 1536n + 600n);
  });
});

describe('the portable engine', () => {
  it('refuses what is past 2^53 bytes, where node:fs would use another position', async () => {
    const device = openImage('portable');
    device.sectorCount = Number.MAX_SAFE_INTEGER;
    const vecs = vecOf(new Uint8Array(512));
    expect((await request(device, REQ_OP_WRITE, 2 ** 45, 1, { vecs })).status).toBe(Errno.EFBIG);
    expect((await request(device, REQ_OP_READ, 2 ** 45, 1, { vecs })).status).toBe(Errno.EFBIG);
    expect(fs.readFileSync(device.name).every((byte) => byte === 0)).toBe(true);
  });
});
