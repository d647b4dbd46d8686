// Jobs of kcopyd: what is copied, how it is cut, what is told, and when.
import { describe, expect, it } from 'vitest';
import { REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { KCOPYD_IGNORE_ERROR, KCOPYD_WRITE_SEQ, KcopydClient } from '../../src/kcopyd/index.ts';
import { HoldingDevice } from '../../src/testing/holding.ts';
import { SimulatedReactor } from '../../src/testing/simulated-reactor.ts';
import { expectOne, filled, makeClient, pattern, region, sameBytes, TapedDevice } from './support.ts';

const IGNORE = 1 << KCOPYD_IGNORE_ERROR;
const SEQ = 1 << KCOPYD_WRITE_SEQ;

describe('a copy', () => {
  it.each([1, 7, 8, 1023, 1024, 1025, 2048, 10_000])('of %i sectors reaches every destination', (count) => {
    const { client, reactor } = makeClient();
    const source = filled('source', count + 3);
    const dests = Array.from({ length: 8 }, (_, i) => new MemoryDevice(`d${i}`, count + 8));
    const { outcome, fn } = expectOne();
    client.copy(
      region(source, 3, count),
      dests.map((bdev, i) => region(bdev, i, count)),
      0,
      fn,
      'mine',
    );
    reactor.runUntilIdle();
    expect(outcome).toEqual({ callCount: 1, readErr: 0, writeErr: 0, context: 'mine', error: null });
    for (const [i, dest] of dests.entries()) expect(sameBytes(dest.peek(i, count), source.peek(3, count))).toBe(true);
    expect([client.usedPageCount, client.unfinishedCount]).toEqual([0, 0]);
  });

  it('calls back later, also where nothing is to be copied', () => {
    const { client, reactor } = makeClient();
    const device = new MemoryDevice('d', 8);
    const { outcome, fn } = expectOne();
    client.copy(region(device, 0, 0), [region(device, 8, 0)], 0, fn);
    expect(outcome.callCount).toBe(0);
    reactor.runUntilIdle();
    expect(outcome.callCount).toBe(1);
  });

  it('is cut into sub-jobs of 1024 sectors, eight at a time, each read before it is written', () => {
    const { client, reactor } = makeClient();
    const source = new HoldingDevice(filled('source', 20_000), { op: 'read' });
    const dest = new TapedDevice('dest', 20_000);
    client.copy(region(source, 0, 10_000), [region(dest, 5, 10_000)], 0, () => {});
    expect(source.heldRequests).toEqual(Array.from({ length: 8 }, (_, i) => `read ${i * 1024}+1024`));
    expect(client.usedPageCount).toBe(1024);
    source.release(source.held[2]);
    expect(dest.log).toHaveLength(1);
    expect(dest.log[0]).toContain('2053+1024');
    expect(source.heldRequests.at(-1)).toBe('read 8192+1024');
    source.open();
    reactor.runUntilIdle();
    expect(sameBytes(dest.peek(5, 10_000), pattern(20_000).subarray(0, 10_000 * 512))).toBe(true);
  });

  it('leaves the regions to the caller after the call', () => {
    const { client, reactor } = makeClient();
    const source = new HoldingDevice(filled('source', 4096));
    const dest = new MemoryDevice('dest', 4096);
    const from = region(source, 0, 2000);
    const dests = [region(dest, 0, 2000)];
    client.copy(from, dests, 0, () => {});
    from.sector = 77;
    dests[0]!.sector = 99;
    dests.length = 0;
    source.open();
    reactor.runUntilIdle();
    expect(sameBytes(dest.peek(0, 2000), pattern(2000))).toBe(true);
  });
});

describe('pages', () => {
  it('of one sub-job are enough for a thousand jobs', () => {
    const { client, reactor } = makeClient({ pageCount: 128 });
    const source = filled('source', 3000);
    const dest = new MemoryDevice('dest', 3000);
    let told = 0;
    for (let i = 0; i < 1000; i++) {
      const count = 1 + ((i * 37) % 3000);
      client.copy(region(source, 0, count), [region(dest, 0, count)], 0, (readErr, writeErr) => {
        expect([readErr, writeErr]).toEqual([0, 0]);
        told++;
      });
    }
    reactor.runUntilIdle();
    expect(told).toBe(1000);
    expect(client.pageHighWater).toBeLessThanOrEqual(128);
    expect(client.usedPageCount).toBe(0);
  });

  it('are not passed by smaller jobs for ever', () => {
    const { client, reactor } = makeClient({ pageCount: 128 });
    const source = new HoldingDevice(filled('source', 4096), { op: 'read' });
    const dest = new MemoryDevice('dest', 4096);
    const order: string[] = [];
    for (const [name, count] of [
      ['first', 8],
      ['large', 1024],
      ['small', 8],
    ] as const) {
      client.copy(region(source, 0, count), [region(dest, 0, count)], 0, () => order.push(name));
    }
    expect(source.heldRequests).toEqual(['read 0+8']);
    while (source.held.length > 0) source.release();
    reactor.runUntilIdle();
    expect(order).toEqual(['first', 'large', 'small']);
  });

  it('are aligned, and one piece of memory for each sub-job', () => {
    const { client, reactor } = makeClient();
    const dest = new TapedDevice('dest', 4096);
    dest.hold = true;
    client.copy(region(filled('source', 4096), 0, 4096), [region(dest, 0, 4096)], 0, () => {});
    for (const bio of dest.held) expect(bio.vecs.length).toBe(1);
    for (const bio of dest.held.splice(0)) dest.finish(bio);
    reactor.runUntilIdle();
    expect(client.unfinishedCount).toBe(0);
  });

  it('fewer than a sub-job takes are refused', () => {
    const reactor = new SimulatedReactor();
    expect(() => new KcopydClient({ reactor, pageCount: 127 })).toThrow(/127 is no number of pages/);
    expect(() => new KcopydClient({ reactor, subJobSectorCount: 12 })).toThrow(/whole number of pages/);
    expect(() => new KcopydClient({ reactor, subJobSectorCount: 4096 })).toThrow(/sub-job/);
    expect(() => new KcopydClient({ reactor, splitCount: 0 })).toThrow(/sub-jobs/);
    expect(new KcopydClient({ reactor, pageCount: 2, subJobSectorCount: 16 }).pageCount).toBe(2);
  });
});

describe('what is refused', () => {
  const { client } = makeClient();
  const a = new MemoryDevice('a', 4096);
  const b = new MemoryDevice('b', 4096);
  const fn = (): void => expect.unreachable();
  it.each([
    ['no destination', () => client.copy(region(a, 0, 8), [], 0, fn), /0 destinations/],
    ['nine', () => client.copy(region(a, 0, 8), Array(9).fill(region(b, 0, 8)), 0, fn), /9 destinations/],
    ['unequal counts', () => client.copy(region(a, 0, 8), [region(b, 0, 8), region(b, 8, 7)], 0, fn), /must be equal/],
    ['unequal zeroes', () => client.zero([region(a, 0, 8), region(b, 8, 7)], 0, fn), /must be equal/],
    ['a negative sector', () => client.copy(region(a, -1, 8), [region(b, 0, 8)], 0, fn), /no range/],
    ['half a sector', () => client.zero([region(a, 0.5, 8)], 0, fn), /no range/],
    ['flags as numbers', () => client.copy(region(a, 0, 8), [region(b, 0, 8)], 1, fn), /bit numbers/],
    ['no device', () => client.zero([{ bdev: null as never, sector: 0, count: 8 }], 0, fn), /no block device/],
    [
      'overlaps on both sides',
      () => client.copy(region(a, 100, 50), [region(a, 90, 50), region(a, 110, 50)], 0, fn),
      /both of its sides/,
    ],
    ['backwards in sequence', () => client.copy(region(a, 100, 50), [region(a, 110, 50)], SEQ, fn), /backwards/],
  ])('%s', (_, call, message) => {
    expect(call).toThrow(expect.objectContaining({ code: 'EINVAL', message: expect.stringMatching(message) }));
    expect(client.unfinishedCount).toBe(0);
  });
});

describe('errors', () => {
  it('of a read stop the job, and nothing of that part is written', () => {
    const { client, reactor } = makeClient({ splitCount: 1 });
    const dest = new TapedDevice('dest', 8192);
    const { outcome, fn } = expectOne();
    client.copy(region(filled('short', 2000), 0, 4096), [region(dest, 0, 4096)], 0, fn);
    reactor.runUntilIdle();
    expect([outcome.readErr, outcome.writeErr]).toEqual([1, 0]);
    expect(dest.log).toHaveLength(1);
    expect(outcome.error?.readCause).toMatchObject({ device: 'short', sector: 2000 });
    expect(outcome.error?.message).toContain('read of short, sector 2000');
  });

  it('with IGNORE_ERROR are told, the rest is copied, and what could not be read is written as zeroes', () => {
    const { client, reactor } = makeClient();
    const source = filled('source', 4096);
    const reading = new TapedDevice('source', 4096);
    reading.poke(0, source.peek(0, 4096));
    reading.fail = (bio) => (bio.sector === 1024 ? Errno.EIO : 0);
    const dest = filled('dest', 4096, 3);
    const { outcome, fn } = expectOne();
    client.copy(region(reading, 0, 4096), [region(dest, 0, 4096)], IGNORE, fn);
    reactor.runUntilIdle();
    expect([outcome.readErr, outcome.writeErr]).toEqual([1, 0]);
    const expected = source.peek(0, 4096);
    expected.fill(0, 1024 * 512, 2048 * 512);
    expect(sameBytes(dest.peek(0, 4096), expected)).toBe(true);
  });

  it('of writes are gathered from all parts: bit and lowest sector', () => {
    const { client, reactor } = makeClient();
    const source = filled('source', 8192);
    const dests = Array.from({ length: 3 }, (_, i) => new TapedDevice(`d${i}`, 8192));
    dests[0]!.fail = (bio) => (bio.sector >= 4096 ? Errno.ENOSPC : 0);
    dests[2]!.fail = (bio) => (bio.sector === 1024 ? Errno.EIO : 0);
    const { outcome, fn } = expectOne();
    client.copy(
      region(source, 0, 8192),
      dests.map((bdev) => region(bdev, 0, 8192)),
      IGNORE,
      fn,
    );
    reactor.runUntilIdle();
    expect([outcome.readErr, outcome.writeErr]).toEqual([0, 0b101]);
    expect(outcome.error?.failedDestinations.map(({ index, cause }) => [index, cause.code, cause.sector])).toEqual([
      [0, 'ENOSPC', 4096],
      [2, 'EIO', 1024],
    ]);
    expect(sameBytes(dests[1]!.peek(0, 8192), source.peek(0, 8192))).toBe(true);
  });

  it('let the parts under way end, and start no more', () => {
    const { client, reactor } = makeClient({ splitCount: 3 });
    const source = new HoldingDevice(filled('source', 8192), { op: 'read' });
    const dest = new MemoryDevice('dest', 8192);
    const { outcome, fn } = expectOne();
    client.copy(region(source, 0, 8192), [region(dest, 0, 8192)], 0, fn);
    source.fail(source.held[1]);
    reactor.runUntilIdle();
    expect(outcome.callCount).toBe(0);
    expect(source.heldRequests).toEqual(['read 0+1024', 'read 2048+1024']);
    source.open();
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ callCount: 1, readErr: 1, writeErr: 0 });
    expect(sameBytes(dest.peek(2048, 1024), pattern(8192).subarray(2048 * 512, 3072 * 512))).toBe(true);
    expect(sameBytes(dest.peek(3072, 1024), new Uint8Array(1024 * 512))).toBe(true);
  });
});

describe('WRITE_SEQ', () => {
  it('writes in ascending order, one after the other, whatever order the reads end in', () => {
    const { client, reactor } = makeClient();
    const source = new HoldingDevice(filled('source', 8192), { op: 'read' });
    const dest = new HoldingDevice(new MemoryDevice('dest', 8192), { op: 'write' });
    const { outcome, fn } = expectOne();
    client.copy(region(source, 0, 8192), [region(dest, 0, 8192)], SEQ, fn);
    for (const bio of [...source.held].reverse()) source.release(bio);
    const order: string[] = [];
    while (dest.held.length > 0) {
      expect(dest.held).toHaveLength(1);
      order.push(...dest.heldRequests);
      dest.release();
    }
    reactor.runUntilIdle();
    expect(order).toEqual(Array.from({ length: 8 }, (_, i) => `write ${i * 1024}+1024`));
    expect(outcome).toMatchObject({ callCount: 1, readErr: 0, writeErr: 0 });
  });

  it('gives everything up behind a failed write: all bits', () => {
    const { client, reactor } = makeClient();
    const dests = [new TapedDevice('a', 8192), new TapedDevice('b', 8192)];
    dests[1]!.fail = (bio) => (bio.sector === 2048 ? Errno.EIO : 0);
    const source = new HoldingDevice(filled('source', 8192), { op: 'read' });
    const { outcome, fn } = expectOne();
    client.copy(
      region(source, 0, 8192),
      dests.map((bdev) => region(bdev, 0, 8192)),
      SEQ | IGNORE,
      fn,
    );
    for (const bio of [...source.held].reverse()) source.release(bio);
    source.open();
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ callCount: 1, readErr: 0, writeErr: 0b11 });
    expect(dests[0]!.log).toHaveLength(3);
    expect(client.usedPageCount).toBe(0);
  });

  it('writes what lies before a failed read, and nothing behind it', () => {
    const { client, reactor } = makeClient();
    const dest = new TapedDevice('a', 8192);
    const source = new HoldingDevice(filled('source', 8192), { op: 'read' });
    const { outcome, fn } = expectOne();
    client.copy(region(source, 0, 8192), [region(dest, 0, 8192)], SEQ, fn);
    const [zero, one, two, three, ...others] = source.held;
    source.release(three);
    source.fail(two);
    source.release(one);
    for (const bio of others) source.release(bio);
    expect(dest.log).toHaveLength(0);
    source.release(zero);
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ callCount: 1, readErr: 1, writeErr: 0 });
    expect(dest.log).toHaveLength(2);
    expect(client.usedPageCount).toBe(0);
  });
});

describe('a destination that overlaps the source', () => {
  it.each([
    [0, 1],
    [1, 0],
    [0, 1500],
    [1500, 0],
    [0, 2999],
    [2999, 0],
    [40, 40],
  ])('from %i to %i gets what memmove gives', (from, to) => {
    const { client, reactor } = makeClient();
    const device = filled('disk', 6000);
    const other = new MemoryDevice('other', 6000);
    const expected = device.peek(0, 6000);
    expected.copyWithin(to * 512, from * 512, (from + 3000) * 512);
    const { outcome, fn } = expectOne();
    client.copy(region(device, from, 3000), [region(device, to, 3000), region(other, 0, 3000)], 0, fn);
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ readErr: 0, writeErr: 0 });
    expect(sameBytes(device.peek(0, 6000), expected)).toBe(true);
    expect(sameBytes(other.peek(0, 3000), pattern(6000).subarray(from * 512, (from + 3000) * 512))).toBe(true);
  });
});

describe('zero', () => {
  it('uses write-zeroes where every device has it, and no pages', () => {
    const { client, reactor } = makeClient();
    const a = new TapedDevice('a', 4096, { maxWriteZeroesSectorCount: 4096 });
    const b = new TapedDevice('b', 4096, { maxWriteZeroesSectorCount: 4096 });
    a.poke(0, pattern(4096));
    const { outcome, fn } = expectOne();
    client.zero([region(a, 1, 4000), region(b, 1, 4000)], 0, fn);
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ readErr: 0, writeErr: 0 });
    expect(a.operations).toEqual(new Set(['write-zeroes']));
    expect(sameBytes(a.peek(1, 4000), new Uint8Array(4000 * 512))).toBe(true);
    expect(client.pageHighWater).toBe(0);
  });

  it('writes where one device has none', () => {
    const { client, reactor } = makeClient({ pageCount: 128 });
    const a = new TapedDevice('a', 4096, { maxWriteZeroesSectorCount: 4096 });
    const b = new TapedDevice('b', 4096, { maxWriteZeroesSectorCount: 0 });
    for (const device of [a, b]) device.poke(0, pattern(4096));
    client.zero([region(a, 1, 4000), region(b, 1, 4000)], 0, () => {});
    reactor.runUntilIdle();
    expect(a.operations).toEqual(new Set(['write']));
    for (const device of [a, b]) expect(sameBytes(device.peek(1, 4000), new Uint8Array(4000 * 512))).toBe(true);
    expect(b.peek(4001, 1)).toEqual(pattern(4096).slice(4001 * 512, 4002 * 512));
  });

  it('does not fall back when write-zeroes fails', () => {
    const { client, reactor } = makeClient();
    const a = new TapedDevice('a', 4096, { maxWriteZeroesSectorCount: 4096 });
    a.fail = (bio) => (bio.op === REQ_OP_WRITE_ZEROES ? Errno.EOPNOTSUPP : 0);
    const { outcome, fn } = expectOne();
    client.zero([region(a, 0, 8)], 0, fn);
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ readErr: 0, writeErr: 1 });
    expect(a.operations).toEqual(new Set(['write-zeroes']));
  });
});
