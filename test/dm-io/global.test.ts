// The first form: one reserve for all, a pair of functions for each kind of memory; and the promise at the edge.
import { afterEach, describe, expect, it } from 'vitest';
import {
  dmIoAsync,
  dmIoAsyncBvec,
  dmIoAsyncVm,
  dmIoGet,
  dmIoPut,
  dmIoSync,
  dmIoSyncBvec,
  dmIoSyncVm,
} from '../../src/api/dm-io-global.ts';
import { dmIoPromise } from '../../src/api/dm-io-promise.ts';
import { REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { type DmIoClient, DmIoError, type PageList } from '../../src/dm-io/index.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { numbered, RecordingDevice } from '../support/stack.ts';
import {
  expectOne,
  joinVecs,
  ManualReactor,
  MeteredDevice,
  makeClient,
  newResult,
  pageListOf,
  region,
  vecsOf,
} from './support.ts';

let got = 0;

function get(pageCount: number, reactor?: ManualReactor): void {
  dmIoGet(pageCount, reactor === undefined ? {} : { reactor });
  got += pageCount;
}

function put(pageCount: number): void {
  dmIoPut(pageCount);
  got -= pageCount;
}

afterEach(() => {
  if (got > 0) put(got);
});

const invalid = expect.objectContaining({ code: 'EINVAL', errno: Errno.EINVAL });

describe('dmIoGet and dmIoPut', () => {
  it.each([0, -1, 0.5, Number.NaN])('take no %d', (pageCount) => {
    expect(() => dmIoGet(pageCount)).toThrow(invalid);
    expect(() => dmIoPut(pageCount)).toThrow(invalid);
  });

  it('have to match', () => {
    expect(() => dmIoPut(1)).toThrow(invalid);
    get(4);
    get(2);
    expect(() => dmIoPut(7)).toThrow(/dmIoPut\(7\), but dmIoGet has added only 6 pages/);
    put(4);
    expect(() => dmIoPut(3)).toThrow(invalid);
    put(2);
    expect(() => dmIoPut(1)).toThrow(invalid);
  });

  it('are needed first, and after the last put again', () => {
    const disk = new RecordingDevice('a', 64);
    expect(() => dmIoSyncVm([region(disk, 0, 1)], REQ_OP_READ, new Uint8Array(512))).toThrow(/call dmIoGet first/);
    get(1);
    expect(dmIoSyncVm([region(disk, 0, 1)], REQ_OP_READ, new Uint8Array(512))).toBe(0);
    put(1);
    expect(() => dmIoSyncVm([region(disk, 0, 1)], REQ_OP_READ, new Uint8Array(512))).toThrow(invalid);
    expect(disk.log).toHaveLength(1);
  });

  it('bound what is in flight; growing starts what waits, and the last put lets it end', () => {
    const reactor = new ManualReactor();
    get(2, reactor);
    const disk = new MeteredDevice('a', 64);
    disk.hold = true;
    const { outcome, notify } = expectOne();
    for (let i = 0; i < 8; i++) {
      dmIoAsyncVm([region(disk, i * 8, 8)], REQ_OP_READ, new Uint8Array(4096), notify.fn);
    }
    expect(disk.held).toHaveLength(2);
    get(3);
    expect(disk.held).toHaveLength(5);
    put(4);
    disk.finish(disk.held.shift()!);
    expect(disk.log).toHaveLength(5);
    put(1);
    for (; disk.held.length > 0; reactor.run()) disk.finish(disk.held.shift()!);
    reactor.run();
    expect(outcome.callCount).toBe(8);
    expect(disk.meter.highWater).toBe(5);
  });
});

describe('the three families', () => {
  const data = numbered(12);
  const fresh = () => [new RecordingDevice('a', 64), new RecordingDevice('b', 64)] as const;

  it('write and read synchronously', () => {
    get(8);
    const [a, b] = fresh();
    const where = [region(a, 0, 12), region(b, 50, 12)];
    expect(dmIoSync(where, REQ_OP_WRITE, pageListOf(data, 1024), 1024)).toBe(0);
    expect(b.bytes.subarray(50 * 512, 62 * 512)).toEqual(data);
    const pages: PageList = pageListOf(new Uint8Array(12 * 512), 512);
    expect(dmIoSync([where[0]!], REQ_OP_READ, pages, 512)).toBe(0);
    expect(Buffer.concat([pages.page.subarray(512), pages.next!.page]).subarray(0, 12 * 512)).toEqual(
      Buffer.from(data),
    );
    const vecs = vecsOf(new Uint8Array(12 * 512), [1000, 24]);
    expect(dmIoSyncBvec([where[0]!], REQ_OP_READ, vecs)).toBe(0);
    expect(joinVecs(vecs)).toEqual(Buffer.from(data));
    expect(dmIoSyncBvec([region(b, 0, 12)], REQ_OP_WRITE, vecs)).toBe(0);
    const buffer = new Uint8Array(12 * 512);
    expect(dmIoSyncVm([region(b, 0, 12)], REQ_OP_READ, buffer)).toBe(0);
    expect(buffer).toEqual(data);
    expect(dmIoSyncVm(where, REQ_OP_READ, buffer)).toBe(Errno.EIO);
  });

  it('say which regions failed', () => {
    get(8);
    const [a, b] = fresh();
    b.fail = () => Errno.ENOSPC;
    const where = [region(a, 0, 12), region(b, 0, 12)];
    for (const call of [
      (result: ReturnType<typeof newResult>) => dmIoSync(where, REQ_OP_WRITE, pageListOf(data), 0, result),
      (result: ReturnType<typeof newResult>) => dmIoSyncBvec(where, REQ_OP_WRITE, vecsOf(data, [512]), result),
      (result: ReturnType<typeof newResult>) => dmIoSyncVm(where, REQ_OP_WRITE, data, result),
    ]) {
      const result = newResult();
      expect(call(result)).toBe(Errno.EIO);
      expect(result.errorBits).toBe(2n);
      expect(result.error!.failedRegions[0]!.cause.code).toBe('ENOSPC');
    }
  });

  it('write asynchronously, with a context', () => {
    const reactor = new ManualReactor();
    get(8, reactor);
    const [a, b] = fresh();
    a.fail = () => Errno.EIO;
    const where = [region(a, 0, 12), region(b, 0, 12)];
    const one = expectOne();
    const answers: unknown[] = [];
    const fn = (errorBits: bigint, context: string): void => void answers.push([errorBits, context]);
    expect(dmIoAsync(where, REQ_OP_WRITE, pageListOf(data), 0, fn, 'pages')).toBe(0);
    expect(dmIoAsyncBvec(where, REQ_OP_WRITE, vecsOf(data, [512]), fn, 'vecs')).toBe(0);
    expect(dmIoAsyncVm(where, REQ_OP_WRITE, data, one.notify.fn)).toBe(0);
    expect(answers).toEqual([]);
    reactor.run();
    expect(answers).toEqual([
      [1n, 'pages'],
      [1n, 'vecs'],
    ]);
    expect(one.outcome).toMatchObject({ callCount: 1, errorBits: 1n, context: undefined });
    expect(b.bytes.subarray(0, 12 * 512)).toEqual(data);
  });

  it('run on the loop of Node where no reactor is given', async () => {
    get(1);
    const [a] = fresh();
    const bits = await new Promise((resolve) => {
      dmIoAsyncVm([region(a, 0, 12)], REQ_OP_WRITE, data, resolve);
    });
    expect(bits).toBe(0n);
  });
});

describe('dmIoPromise', () => {
  const run = (client: DmIoClient, ...disks: RecordingDevice[]) =>
    dmIoPromise(
      { op: REQ_OP_WRITE, memory: { type: 'buffer', buffer: numbered(4) }, client },
      disks.map((disk) => region(disk, 3, 4)),
    );

  it('resolves when every region is written', async () => {
    const { client, reactor } = makeClient();
    const disk = new RecordingDevice('a', 64);
    const done = run(client, disk, disk);
    reactor.run();
    expect(await done).toBeUndefined();
    expect(disk.log).toHaveLength(2);
  });

  it('rejects with the bits, the regions and their causes', async () => {
    const { client, reactor } = makeClient();
    const [a, b] = [new RecordingDevice('a', 64), new RecordingDevice('b', 64)];
    b.fail = () => Errno.ENODATA;
    const done = run(client, a, b, a);
    reactor.run();
    const error = await done.then(
      () => null,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(DmIoError);
    expect(error).toMatchObject({ code: 'EIO', errorBits: 2n, operation: 'write' });
    const [failed, ...others] = (error as DmIoError).failedRegions;
    expect(others).toEqual([]);
    expect(failed).toMatchObject({ index: 1, region: { bdev: b, sector: 3, count: 4 } });
    expect(failed!.cause).toMatchObject({ code: 'ENODATA', device: 'b', sector: 3, lowerDevice: 'b', lowerSector: 3 });
    expect((error as DmIoError).cause).toBe(failed!.cause);
  });

  it('rejects what is refused before any I/O', async () => {
    const { client } = makeClient();
    client.close();
    await expect(run(client, new RecordingDevice('a', 64))).rejects.toMatchObject({ code: 'ESHUTDOWN' });
    const open = makeClient(1).client;
    const requests = { op: REQ_OP_WRITE, memory: { type: 'buffer', buffer: new Uint8Array(1) } as const, client: open };
    const disk = new RecordingDevice('a', 64);
    await expect(dmIoPromise(requests, [region(disk, 0, 1)])).rejects.toMatchObject({ code: 'EINVAL' });
  });

  it('works on a real loop', async () => {
    const { DmIoClient } = await import('../../src/dm-io/index.ts');
    const client = new DmIoClient({ reactor: new NodeLoop() });
    const disk = new RecordingDevice('a', 64);
    await Promise.all(Array.from({ length: 20 }, () => run(client, disk)));
    expect(disk.log).toHaveLength(20);
  });
});
