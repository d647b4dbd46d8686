// Regions, error bits and operations, each synchronously and asynchronously.
import { describe, expect, it } from 'vitest';
import {
  REQ_FUA,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
} from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { type DmIoClient, DmIoError, type DmIoMemory, type DmIoRegion, dmIo } from '../../src/dm-io/index.ts';
import { numbered, RecordingDevice } from '../support/stack.ts';
import { expectOne, type ManualReactor, MeteredDevice, makeClient, newResult, region } from './support.ts';

interface Answer {
  errorBits: bigint;
  error: DmIoError | null;
}

type Run = (
  request: { op: number; flags?: number; memory?: DmIoMemory },
  regions: readonly DmIoRegion[],
  client?: DmIoClient,
  reactor?: ManualReactor,
) => Answer;

const runSync: Run = (request, regions, client = makeClient().client) => {
  const result = newResult();
  const errno = dmIo({ ...request, client }, regions, result);
  expect(errno).toBe(result.errorBits === 0n ? 0 : Errno.EIO);
  return result;
};

const runAsync: Run = (request, regions) => {
  const { client, reactor } = makeClient();
  const { outcome, notify } = expectOne();
  expect(dmIo({ ...request, client, notify }, regions)).toBe(0);
  expect(outcome.callCount).toBe(0);
  reactor.run();
  expect(outcome.callCount).toBe(1);
  expect(outcome.context).toBe('context');
  expect(client.pagesInFlight).toBe(0);
  expect(client.unfinishedCount).toBe(0);
  return outcome;
};

function devices(count: number, sectorCount = 64): RecordingDevice[] {
  return Array.from({ length: count }, (_, i) => new RecordingDevice(`d${i}`, sectorCount));
}

function buffer(sectorCount: number): DmIoMemory {
  return { type: 'buffer', buffer: numbered(sectorCount) };
}

const write = (sectorCount: number) => ({ op: REQ_OP_WRITE, memory: buffer(sectorCount) });

describe.each([
  ['sync', runSync],
  ['async', runAsync],
])('%s', (_name, run) => {
  it('reads one region', () => {
    const device = new RecordingDevice('d', 64);
    device.bytes.set(numbered(64));
    const memory = new Uint8Array(3 * 512);
    const answer = run({ op: REQ_OP_READ, memory: { type: 'buffer', buffer: memory } }, [region(device, 5, 3)]);
    expect(answer).toMatchObject({ errorBits: 0n, error: null });
    expect(memory).toEqual(numbered(3, 6));
    expect(device.log).toEqual(['read 5+3']);
  });

  it('writes the same data, from its start, to regions of different counts', () => {
    const [a, b, c] = devices(3);
    const answer = run(write(8), [region(a!, 0, 8), region(b!, 7, 3), region(c!, 63, 1)]);
    expect(answer.errorBits).toBe(0n);
    expect(a!.bytes.subarray(0, 8 * 512)).toEqual(numbered(8));
    expect(b!.bytes.subarray(7 * 512, 10 * 512)).toEqual(numbered(3));
    expect(c!.bytes.subarray(63 * 512)).toEqual(numbered(1));
  });

  it('writes several regions of one device', () => {
    const [a] = devices(1);
    expect(run(write(2), [region(a!, 0, 2), region(a!, 10, 2)]).errorBits).toBe(0n);
    expect(a!.log).toEqual(['write 0+2', 'write 10+2']);
  });

  it('sets the bit of each region that fails, and attempts all', () => {
    const all = devices(64);
    const failing = [0, 31, 32, 33, 63];
    for (const index of failing) all[index]!.fail = () => Errno.ENOSPC;
    const { errorBits, error } = run(
      write(1),
      all.map((device) => region(device, 9, 1)),
    );
    expect(errorBits).toBe(failing.reduce((bits, index) => bits | (1n << BigInt(index)), 0n));
    expect(error).toBeInstanceOf(DmIoError);
    expect(error).toBeInstanceOf(DmError);
    expect(error).toMatchObject({ code: 'EIO', errno: Errno.EIO, operation: 'write', errorBits });
    expect(error!.failedRegions.map(({ index }) => index)).toEqual(failing);
    expect(error!.failedRegions[1]!.region).toEqual({ bdev: all[31], sector: 9, count: 1 });
    expect(error!.failedRegions[1]!.cause).toMatchObject({ code: 'ENOSPC', device: 'd31', sector: 9 });
    expect(error!.message).toBe(
      'write failed in 5 of 64 regions: region 0 (d0, sector 9: No space left on device), ' +
        'region 31 (d31, sector 9: No space left on device), region 32 (d32, sector 9: No space left on device), ' +
        'region 33 (d33, sector 9: No space left on device) and 1 more',
    );
    for (const device of all) expect(device.log).toEqual(['write 9+1']);
  });

  it.each([31, 32, 63])('sets bit %i alone', (index) => {
    const all = devices(64);
    all[index]!.fail = () => Errno.EIO;
    expect(
      run(
        write(1),
        all.map((device) => region(device, 0, 1)),
      ).errorBits,
    ).toBe(1n << BigInt(index));
  });

  it('counts regions of count 0 in the numbering, and sends them nothing', () => {
    const [a, b, c] = devices(3);
    c!.fail = () => Errno.EIO;
    const { errorBits } = run(write(1), [region(a!, 0, 0), region(b!, 0, 1), region(c!, 0, 1)]);
    expect(errorBits).toBe(0b100n);
    expect(a!.log).toEqual([]);
  });

  it('ends well with nothing to do', () => {
    const [a] = devices(1);
    expect(run(write(0), []).errorBits).toBe(0n);
    expect(run({ op: REQ_OP_WRITE }, [region(a!, 0, 0), region(a!, 5, 0)]).errorBits).toBe(0n);
    expect(run({ op: REQ_OP_READ }, [region(a!, 0, 0)]).errorBits).toBe(0n);
    expect(run({ op: REQ_OP_DISCARD }, [region(a!, 0, 0)]).errorBits).toBe(0n);
    expect(a!.log).toEqual([]);
  });

  it('fails a region past the end of its device alone, whole bios of it', () => {
    const [a, b] = devices(2, 4096);
    const { errorBits, error } = run(write(4096), [region(a!, 2048, 4096), region(b!, 0, 4096)]);
    expect(errorBits).toBe(1n);
    // The first bio fits, the second would reach past the end: nothing of it is transferred.
    expect(a!.log).toEqual(['write 2048+2048']);
    expect(error!.failedRegions[0]!.cause).toMatchObject({ code: 'EIO', device: 'd0', sector: 4096 });
    expect(Buffer.compare(b!.bytes, numbered(4096))).toBe(0);
  });

  it('goes on in a region after one of its bios has failed, and tells the lowest sector', () => {
    const [a] = devices(1, 8192);
    a!.fail = (bio) => (bio.sector === 2048 || bio.sector === 4096 ? Errno.EIO : 0);
    const { errorBits, error } = run(write(8192), [region(a!, 0, 8192)]);
    expect(errorBits).toBe(1n);
    expect(a!.log).toEqual(['write 0+2048', 'write 2048+2048', 'write 4096+2048', 'write 6144+2048']);
    expect(error!.failedRegions).toHaveLength(1);
    expect(error!.failedRegions[0]!.cause.sector).toBe(2048);
  });

  it('leaves zeroes where a read failed, and nothing else', () => {
    const [a] = devices(1, 4096);
    a!.bytes.fill(7);
    a!.fail = (bio) => (bio.sector === 0 ? Errno.EIO : 0);
    const memory = new Uint8Array(4096 * 512 + 512).fill(9);
    const { errorBits } = run({ op: REQ_OP_READ, memory: { type: 'buffer', buffer: memory } }, [region(a!, 0, 4096)]);
    expect(errorBits).toBe(1n);
    expect(memory.subarray(0, 2048 * 512).every((byte) => byte === 0)).toBe(true);
    expect(memory.subarray(2048 * 512, 4096 * 512).every((byte) => byte === 7)).toBe(true);
    expect(memory.subarray(4096 * 512).every((byte) => byte === 9)).toBe(true);
  });

  it.each([
    ['discard', REQ_OP_DISCARD],
    ['write-zeroes', REQ_OP_WRITE_ZEROES],
  ])('sends %s without memory, cut at the limit of each device', (name, op) => {
    const a = new RecordingDevice('a', 64, { maxDiscardSectorCount: 10, maxWriteZeroesSectorCount: 10 });
    const b = new RecordingDevice('b', 64);
    const c = new RecordingDevice('c', 64, { maxDiscardSectorCount: 0, maxWriteZeroesSectorCount: 0 });
    const regions = [region(c, 0, 9), region(a, 3, 25), region(b, 0, 64)];
    const { errorBits, error } = run({ op }, regions);
    expect(errorBits).toBe(1n);
    expect(error!.failedRegions[0]!.cause).toMatchObject({ code: 'EOPNOTSUPP', operation: name, device: 'c' });
    expect(a.log).toEqual([`${name} 3+10`, `${name} 13+10`, `${name} 23+5`]);
    expect(b.log).toEqual([`${name} 0+64`]);
    expect(c.log).toEqual([]);
  });

  it('cuts discards at multiples of the granularity where the limit holds one', () => {
    const a = new RecordingDevice('a', 64, { maxDiscardSectorCount: 11, discardGranularity: 4096 });
    run({ op: REQ_OP_DISCARD }, [region(a, 0, 20)]);
    expect(a.log).toEqual(['discard 0+8', 'discard 8+8', 'discard 16+4']);
    const b = new RecordingDevice('b', 64, { maxDiscardSectorCount: 3, discardGranularity: 4096 });
    run({ op: REQ_OP_DISCARD }, [region(b, 0, 4)]);
    expect(b.log).toEqual(['discard 0+3', 'discard 3+1']);
  });

  it('fails every region at once where no device can discard', () => {
    const none = new RecordingDevice('c', 64, { maxDiscardSectorCount: 0 });
    expect(run({ op: REQ_OP_DISCARD }, [region(none, 0, 1), region(none, 1, 1)]).errorBits).toBe(0b11n);
  });

  it('flushes many devices by regions of count 0', () => {
    const all = devices(3);
    const plain = new RecordingDevice('no cache', 64, { hasWriteCache: false });
    all[1]!.fail = () => Errno.EIO;
    const regions = [...all, plain].map((device) => region(device, 0, 0));
    const { errorBits, error } = run({ op: REQ_OP_WRITE, flags: REQ_PREFLUSH }, regions);
    expect(errorBits).toBe(0b10n);
    expect(error!.failedRegions[0]!.cause).toMatchObject({ operation: 'flush', device: 'd1' });
    for (const device of all) expect(device.log).toEqual(['flush 0+0']);
    expect(plain.log).toEqual([]);
  });

  it('flushes one device, whatever the count', () => {
    const [a] = devices(1);
    expect(run({ op: REQ_OP_FLUSH }, [region(a!, 0, 0)]).errorBits).toBe(0n);
    expect(run({ op: REQ_OP_FLUSH }, [region(a!, 3, 3)]).errorBits).toBe(0n);
    expect(a!.log).toEqual(['flush 0+0', 'flush 0+0']);
  });

  it('repeats PREFLUSH and FUA on every bio', () => {
    const a = new MeteredDevice('a', 8192);
    run({ op: REQ_OP_WRITE, flags: REQ_PREFLUSH | REQ_FUA, memory: buffer(5000) }, [region(a, 0, 5000)]);
    expect(a.flags).toHaveLength(3);
    for (const flags of a.flags) expect(flags & (REQ_PREFLUSH | REQ_FUA)).toBe(REQ_PREFLUSH | REQ_FUA);
  });

  it('cuts between logical blocks', () => {
    const a = new MeteredDevice('a', 8192, undefined, { logicalBlockSize: 4096 });
    const vecs = Array.from({ length: 300 }, () => ({ page: new Uint8Array(4096), offset: 512, byteLength: 3584 }));
    run({ op: REQ_OP_WRITE, memory: { type: 'bvec', vecs } }, [region(a, 0, 2096)]);
    expect(a.log).toEqual(['write 0+1792', 'write 1792+304']);
  });

  it('gives a bio 256 pieces of memory, and more where a sector needs them', () => {
    const a = new MeteredDevice('a', 64);
    const vecs = Array.from({ length: 2048 }, (_, i) => ({ page: Uint8Array.of(i), offset: 0, byteLength: 1 }));
    run({ op: REQ_OP_WRITE, memory: { type: 'bvec', vecs } }, [region(a, 0, 4)]);
    expect(a.vecCounts).toEqual([512, 512, 512, 512]);
    expect(a.bytes.subarray(0, 2048)).toEqual(Uint8Array.from({ length: 2048 }, (_, i) => i));
    const b = new MeteredDevice('b', 64);
    const halves = Array.from({ length: 512 }, () => ({ page: new Uint8Array(256), offset: 0, byteLength: 64 }));
    run({ op: REQ_OP_WRITE, memory: { type: 'bvec', vecs: halves } }, [region(b, 0, 64)]);
    expect(b.vecCounts).toEqual([256, 256]);
  });

  it('takes sectors past 2^44', () => {
    const far = new RecordingDevice('far', 8);
    far.sectorCount = Number.MAX_SAFE_INTEGER;
    far.finish = (bio) => bio.endIo(0);
    const sector = Number.MAX_SAFE_INTEGER - 4096;
    expect(run(write(4096), [region(far, sector, 4096)]).errorBits).toBe(0n);
    expect(far.log).toEqual([`write ${sector}+2048`, `write ${sector + 2048}+2048`]);
  });
});

describe('a read of several regions', () => {
  it('is EIO without any I/O when synchronous, and leaves the result alone', () => {
    const all = devices(2);
    const { client } = makeClient();
    const result = { errorBits: 77n, error: null };
    const regions = all.map((device) => region(device, 0, 1));
    expect(dmIo({ op: REQ_OP_READ, memory: buffer(1), client }, regions, result)).toBe(Errno.EIO);
    expect(dmIo({ op: REQ_OP_FLUSH, client }, regions, result)).toBe(Errno.EIO);
    expect(result).toEqual({ errorBits: 77n, error: null });
    for (const device of all) expect(device.log).toEqual([]);
  });

  it('calls back once with bit 0 when asynchronous, and returns 0', () => {
    const all = devices(2);
    const answer = runAsync(
      { op: REQ_OP_READ, memory: buffer(1) },
      all.map((device) => region(device, 0, 1)),
    );
    expect(answer.errorBits).toBe(1n);
    expect(answer.error).toMatchObject({ code: 'EIO', errorBits: 1n, failedRegions: [] });
    expect(answer.error!.message).toBe('a read takes one region, not 2: nothing was done');
    for (const device of all) expect(device.log).toEqual([]);
  });
});

describe('completion', () => {
  it('comes once, after the last bio, in whatever order they end', () => {
    const { client, reactor } = makeClient();
    const [a, b] = devices(2, 8192);
    a!.hold = true;
    b!.hold = true;
    b!.fail = (bio) => (bio.sector === 0 ? Errno.EIO : 0);
    const { outcome, notify } = expectOne();
    dmIo({ ...write(4096), client, notify }, [region(a!, 0, 4096), region(b!, 0, 4096)]);
    expect([a!.held.length, b!.held.length]).toEqual([2, 2]);
    const bios = [...a!.held, ...b!.held];
    for (const at of [2, 0, 3]) (at < 2 ? a! : b!).finish(bios[at]!);
    reactor.run();
    expect(outcome.callCount).toBe(0);
    a!.finish(bios[1]!);
    expect(outcome.callCount).toBe(0);
    reactor.run();
    expect(outcome).toMatchObject({ callCount: 1, errorBits: 2n });
  });

  it('does not depend on what the caller does to its regions afterwards', () => {
    const { client, reactor } = makeClient(8);
    const [a, b] = devices(2);
    a!.hold = true;
    const { outcome, notify } = expectOne();
    const first = region(a!, 0, 64);
    const regions = [first, region(a!, 8, 0), region(b!, 8, 8)];
    dmIo({ ...write(64), client, notify }, regions);
    Object.assign(regions[2]!, { sector: 0, count: 1, bdev: a });
    regions.length = 0;
    a!.release();
    reactor.run();
    expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
    expect(b!.log).toEqual(['write 8+8']);
  });

  it('does not grow the stack over 100,000 requests made in callbacks', () => {
    const { client, reactor } = makeClient(1);
    const [a] = devices(1);
    let count = 0;
    const request = {
      ...write(1),
      client,
      notify: {
        fn: (bits: bigint) => {
          expect(bits).toBe(0n);
          if (++count < 100_000) dmIo(request, regions);
        },
      },
    };
    const regions = [region(a!, 0, 1)];
    a!.log.push = () => 0;
    dmIo(request, regions);
    reactor.run();
    expect(count).toBe(100_000);
  });

  it('can come at once for layers of the stack, without growing it', () => {
    const { client, reactor } = makeClient(1);
    const [a] = devices(1);
    a!.log.push = () => 0;
    let count = 0;
    const request = {
      ...write(1),
      client,
      notify: {
        immediate: true,
        fn: () => {
          if (++count < 100_000) dmIo(request, regions);
        },
      },
    };
    const regions = [region(a!, 0, 1)];
    dmIo(request, regions);
    reactor.run();
    expect(count).toBe(100_000);
  });

  it('goes on after a callback that throws', () => {
    const { client, reactor } = makeClient(1);
    const [a] = devices(1);
    const { outcome, notify } = expectOne();
    const fail = () => {
      throw new Error('mine');
    };
    const failing = { ...write(1), client, notify: { fn: fail, immediate: true } };
    expect(() => dmIo(failing, [region(a!, 0, 1)])).toThrow('mine');
    expect(client.pagesInFlight).toBe(0);
    dmIo({ ...write(1), client, notify: { fn: fail } }, [region(a!, 0, 1)]);
    expect(() => reactor.run()).toThrow('mine');
    dmIo({ ...write(1), client, notify }, [region(a!, 0, 1)]);
    reactor.run();
    expect(outcome.callCount).toBe(1);
  });
});
