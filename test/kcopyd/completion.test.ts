// How ends are told: later, one at a time, in their order; cancelled and destroyed clients; throttles; layers.
import { describe, expect, it } from 'vitest';
import { kcopydCopy, kcopydZero } from '../../src/api/kcopyd-promise.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { KcopydClient, KcopydThrottle } from '../../src/kcopyd/index.ts';
import { HoldingDevice } from '../../src/testing/holding.ts';
import { SimulatedDevice } from '../../src/testing/simulated-device.ts';
import { SimulatedReactor } from '../../src/testing/simulated-reactor.ts';
import { expectOne, filled, makeClient, region, sameBytes } from './support.ts';

describe('callbacks', () => {
  it('come in the order of completion, prepared ones among them', () => {
    const { client, reactor } = makeClient();
    const source = new HoldingDevice(filled('source', 64), { op: 'read' });
    const dest = new MemoryDevice('dest', 64);
    const order: string[] = [];
    const note = (_readErr: number, writeErr: number, name: string): void => void order.push(`${name} ${writeErr}`);
    for (const i of [0, 1, 2]) client.copy(region(source, i, 1), [region(dest, i, 1)], 0, note, `job ${i}`);
    const prepared = client.prepareCallback(note, 'prepared');
    source.release(source.held[2]);
    client.doCallback(prepared, 0, 3);
    source.release(source.held[0]);
    source.release();
    expect(order).toEqual([]);
    reactor.runUntilIdle();
    expect(order).toEqual(['job 2 0', 'prepared 3', 'job 0 0', 'job 1 0']);
    expect(() => client.doCallback(prepared, 0, 0)).toThrow(/called already/);
  });

  it('may start the next job, ten thousand times, without growing the stack', () => {
    const { client, reactor } = makeClient({ pageCount: 128 });
    const [source, dest] = [filled('source', 8), new MemoryDevice('dest', 8)];
    let left = 10_000;
    const again = (): void => {
      if (left-- > 0) client.copy(region(source, 0, 8), [region(dest, 0, 8)], 0, again);
    };
    again();
    reactor.runUntilIdle();
    expect(left).toBe(-1);
  });

  it('that throw take nothing away from the others', () => {
    for (const immediate of [false, true]) {
      const { client, reactor } = makeClient({ immediate });
      const device = filled('d', 64);
      const told: number[] = [];
      const start = (i: number): unknown =>
        client.copy(region(device, i, 1), [region(device, 32 + i, 1)], 0, () => {
          told.push(i);
          if (i === 1) throw new Error('mine');
        });
      start(0);
      if (immediate) expect(() => start(1)).toThrow('mine');
      else start(1);
      start(2);
      if (!immediate) expect(() => reactor.runUntilIdle()).toThrow('mine');
      reactor.runUntilIdle();
      expect(told).toEqual([0, 1, 2]);
      expect(client.unfinishedCount).toBe(0);
    }
  });

  it('of an immediate client come where the last request ends, never one inside another', () => {
    const { client } = makeClient({ immediate: true, pageCount: 128 });
    const [source, dest] = [filled('source', 300_000 / 8), new MemoryDevice('dest', 300_000 / 8)];
    let depth = 0;
    let left = 5000;
    const again = (): void => {
      expect(++depth).toBe(1);
      if (left-- > 0) client.copy(region(source, 0, 8), [region(dest, 0, 8)], 0, again);
      depth--;
    };
    client.copy(region(source, 0, 37_500), [region(dest, 0, 37_500)], 0, again);
    expect(left).toBe(-1);
    expect(client.unfinishedCount).toBe(0);
  });
});

describe('destroy', () => {
  it('waits until every callback has returned, prepared ones included', () => {
    const { client, reactor } = makeClient();
    const source = new HoldingDevice(filled('source', 64));
    const prepared = client.prepareCallback(() => {});
    let told = false;
    let destroyed = false;
    client.copy(region(source, 0, 8), [region(new MemoryDevice('d', 8), 0, 8)], 0, () => {
      told = true;
    });
    client.destroy(() => {
      expect(told).toBe(true);
      destroyed = true;
    });
    expect(() => client.zero([region(source, 0, 8)], 0, () => {})).toThrow(/destroyed/);
    expect(() => client.prepareCallback(() => {})).toThrow(/destroyed/);
    source.open();
    reactor.runUntilIdle();
    expect([told, destroyed]).toEqual([true, false]);
    client.doCallback(prepared, 0, 0);
    reactor.runUntilIdle();
    expect(destroyed).toBe(true);
  });

  it('may be called in a callback, and on an idle client; done never comes inside the call', () => {
    const { client, reactor } = makeClient();
    let count = 0;
    const device = new MemoryDevice('d', 8);
    client.zero([region(device, 0, 8)], 0, () => client.destroy(() => count++));
    reactor.runUntilIdle();
    client.destroy(() => count++);
    expect(count).toBe(1);
    reactor.runUntilIdle();
    expect(count).toBe(2);
  });
});

describe('a cancelled job', () => {
  it('lets what is in flight end, starts no more, and sets every bit', () => {
    const { client, reactor } = makeClient({ splitCount: 2 });
    const source = new HoldingDevice(filled('source', 8192), { op: 'read' });
    const dests = [new MemoryDevice('a', 8192), new MemoryDevice('b', 8192)];
    const { outcome, fn } = expectOne();
    const job = client.copy(
      region(source, 0, 8192),
      dests.map((bdev) => region(bdev, 0, 8192)),
      0,
      fn,
    );
    job.cancel();
    source.release();
    reactor.runUntilIdle();
    expect(outcome.callCount).toBe(0);
    source.open();
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ callCount: 1, readErr: 0, writeErr: 3 });
    expect(outcome.error).toMatchObject({ code: 'ECANCELED', message: expect.stringMatching(/cancelled/) });
    expect(job.finishedSectorCount).toBe(2048);
    expect(client.usedPageCount).toBe(0);
  });

  it('is none where all was started before', () => {
    const { client, reactor } = makeClient();
    const source = new HoldingDevice(filled('source', 64));
    const { outcome, fn } = expectOne();
    client.copy(region(source, 0, 64), [region(new MemoryDevice('a', 64), 0, 64)], 0, fn).cancel();
    source.open();
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ readErr: 0, writeErr: 0, error: null });
  });

  it('rejects with ECANCELED after an AbortSignal, and tells its progress', async () => {
    const reactor = new SimulatedReactor();
    const client = new KcopydClient({ reactor, splitCount: 1 });
    const source = new SimulatedDevice('source', 8192, { reactor, latency: 10, seed: 1 });
    const controller = new AbortController();
    const progress: number[] = [];
    const copied = kcopydCopy(client, region(source, 0, 8192), [region(new MemoryDevice('d', 8192), 0, 8192)], {
      signal: controller.signal,
      onProgress: (count) => {
        progress.push(count);
        if (count === 2048) controller.abort();
      },
    });
    await expect(reactor.settle(copied)).rejects.toMatchObject({ code: 'ECANCELED', writeErr: 1 });
    expect(progress).toEqual([1024, 2048]);
    const zeroed = kcopydZero(client, [region(new MemoryDevice('d', 8), 0, 8)], { signal: AbortSignal.abort() });
    await expect(zeroed).rejects.toMatchObject({ code: 'ECANCELED' });
    expect(client.unfinishedCount).toBe(0);
  });
});

describe('a throttle', () => {
  function timeWith(percent: number): number {
    const reactor = new SimulatedReactor({ seed: 1 });
    const client = new KcopydClient({ reactor, throttle: new KcopydThrottle(percent) });
    const source = new SimulatedDevice('source', 200_000, { reactor, latency: { read: 20 }, seed: 1 });
    const dest = new SimulatedDevice('dest', 200_000, { reactor, latency: { write: 20 }, seed: 2 });
    const { outcome, fn } = expectOne();
    client.copy(region(source, 0, 200_000), [region(dest, 0, 200_000)], 0, fn);
    reactor.runUntilIdle();
    expect(outcome).toMatchObject({ callCount: 1, readErr: 0, writeErr: 0 });
    return reactor.now();
  }

  it('makes a copy take longer, the more the smaller it is, and 0 still goes on', () => {
    const [free, half, tenth, none] = [timeWith(100), timeWith(50), timeWith(10), timeWith(0)];
    expect(free).toBeLessThan(1500);
    expect(half).toBeGreaterThan(free * 1.3);
    expect(tenth).toBeGreaterThan(half * 2);
    expect(none).toBeGreaterThan(tenth);
    // 392 requests, each after ten looks of 100 ms at the most.
    expect(none).toBeLessThan(392 * 1100);
  });

  it('refuses what is no percentage, and names itself as an obstacle', () => {
    expect(() => new KcopydThrottle(-1)).toThrow(/percent/);
    expect(() => new KcopydThrottle(1.5)).toThrow(/percent/);
    const throttle = new KcopydThrottle(30);
    const { client } = makeClient({ throttle });
    expect(client.syncObstacle()).toMatch(/throttled/);
    const device = new MemoryDevice('d', 64);
    expect(() => client.copySync(region(device, 0, 8), [region(device, 8, 8)])).toThrow(
      expect.objectContaining({ code: 'DM_WOULD_DEADLOCK' }),
    );
    throttle.percent = 100;
    expect(client.syncObstacle()).toBeNull();
    expect(client.copySync(region(device, 0, 8), [region(device, 8, 8)])).toBe(0);
  });
});

describe('a synchronous copy', () => {
  it('is done at the return, with the same results', () => {
    const { client } = makeClient({ pageCount: 128 });
    const device = filled('disk', 9000);
    const short = new MemoryDevice('short', 5000);
    const expected = device.peek(0, 9000).copyWithin(100 * 512, 0, 5000 * 512);
    const result = { readErr: -1, writeErr: -1, error: null };
    const errno = client.copySync(
      region(device, 0, 5000),
      [region(device, 100, 5000), region(short, 1, 5000)],
      0,
      result,
    );
    expect([errno, result.readErr, result.writeErr]).toEqual([5, 0, 2]);
    expect(client.copySync(region(device, 0, 0), [region(short, 0, 0)])).toBe(0);
    expect(result.error).toMatchObject({ failedDestinations: [{ index: 1 }] });
    // From the end on: the first part has failed on `short`, and no other was begun.
    expect(sameBytes(device.peek(5100 - 1024, 1024), expected.subarray((5100 - 1024) * 512, 5100 * 512))).toBe(true);
    expect(client.copySync(null, [region(device, 0, 9000)])).toBe(0);
    expect(sameBytes(device.peek(0, 9000), new Uint8Array(9000 * 512))).toBe(true);
    expect(client.usedPageCount).toBe(0);
  });

  it('is refused before any I/O where a destination could not end it, and inside submit()', () => {
    const { client } = makeClient();
    const source = new HoldingDevice(filled('source', 64));
    source.holding = false;
    const remote = Object.assign(new MemoryDevice('remote', 64), { syncObstacle: () => 'remote: a peer must answer' });
    expect(() => client.copySync(region(source, 0, 8), [region(remote, 0, 8)])).toThrow(/remote: a peer must answer/);
    const layer = makeClient({ immediate: true }).client;
    const device = filled('d', 64);
    layer.copy(region(device, 0, 8), [region(device, 8, 8)], 0, () => {
      expect(() => client.copySync(region(device, 0, 8), [region(device, 8, 8)])).toThrow(
        expect.objectContaining({ code: 'DM_WOULD_DEADLOCK' }),
      );
    });
    expect([layer.unfinishedCount, client.unfinishedCount, client.usedPageCount]).toEqual([0, 0, 0]);
  });

  it('is refused where other jobs have all pages, which only the event loop gets back', () => {
    const { client, reactor } = makeClient({ pageCount: 128 });
    const source = new HoldingDevice(filled('source', 4096));
    const device = filled('d', 64);
    client.copy(region(source, 0, 4096), [region(new MemoryDevice('e', 4096), 0, 4096)], 0, () => {});
    expect(() => client.copySync(region(device, 0, 8), [region(device, 8, 8)])).toThrow(/all pages of this client/);
    source.open();
    reactor.runUntilIdle();
    expect(client.copySync(region(device, 0, 8), [region(device, 8, 8)])).toBe(0);
  });
});
