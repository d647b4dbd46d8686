import { describe, expect, test } from 'vitest';
import { Bio, REQ_OP_READ } from '../../src/block/bio.ts';
import { submitBio } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import {
  FailEveryNthError,
  FailNthDevice,
  FailurePlan,
  failEveryNth,
  HoldingDevice,
  issue,
} from '../../src/testing/index.ts';

const filled = (value: number) => new Uint8Array(512).fill(value);

describe('FailNthDevice', () => {
  test('fails the Nth request that the filter means, once', () => {
    const memory = new MemoryDevice('memory', 64);
    const device = new FailNthDevice(memory, { n: 1, op: 'write', region: { sector: 8, sectorCount: 8 } });
    expect(issue(device, 'write', { sector: 8, data: filled(1) }).errno).toBe(0);
    expect(issue(device, 'write', { sector: 16, data: filled(2) }).errno).toBe(0);
    const failed = issue(device, 'write', { sector: 7, data: new Uint8Array(1024).fill(3) });
    expect(failed.bio).toMatchObject({ status: Errno.EIO, errorSector: 7, errorDevice: device });
    expect(issue(device, 'write', { sector: 9, data: filled(4) }).errno).toBe(0);
    expect(memory.peek(8, 1)[0]).toBe(1);
    expect(device.plan).toMatchObject({ matchedCount: 3, injected: ['write 7+2 on memory'] });
  });

  test('can fail after the data was transferred, and go on failing', () => {
    const memory = new MemoryDevice('memory', 64);
    const device = new FailNthDevice(memory, { n: 0, failCount: 2, when: 'after', errno: Errno.ETIMEDOUT });
    expect(issue(device, 'write', { sector: 8, data: filled(1) }).errno).toBe(Errno.ETIMEDOUT);
    expect(memory.peek(8, 1)[0]).toBe(1);
    const read = issue(device, 'read', { sector: 8, sectorCount: 1 });
    expect([read.errno, read.data[0]]).toEqual([Errno.ETIMEDOUT, 1]);
    expect(issue(device, 'read', { sector: 8, sectorCount: 1 }).errno).toBe(0);
  });

  test('passes on what failed below, with the device that failed', () => {
    const lower = new FailNthDevice(new MemoryDevice('memory', 64), { n: 0 });
    const device = new FailNthDevice(lower, { n: Number.POSITIVE_INFINITY });
    expect(issue(device, 'read', { sector: 3, sectorCount: 1 }).bio).toMatchObject({
      status: Errno.EIO,
      errorSector: 3,
      errorDevice: lower,
    });
  });

  test('a long chain of failing requests needs no stack', () => {
    const device = new FailNthDevice(new MemoryDevice('memory', 64), { n: 0, failCount: Number.POSITIVE_INFINITY });
    const bio = new Bio();
    let left = 20_000;
    const next = (): void => {
      if (left-- === 0) return;
      bio.reset(REQ_OP_READ, 0, device, 0, 1);
      submitBio(bio);
    };
    bio.onEnd = next;
    next();
    expect(left).toBe(-1);
  });

  test('a wrapper has the map of the device below', () => {
    const memory = new MemoryDevice('memory', 256);
    memory.poke(0, filled(1));
    const device = new FailNthDevice(memory, { n: 0 });
    const extents: (number | undefined)[][] = [];
    device.queryExtent(0, 256, (...answer) => extents.push(answer));
    expect(extents).toEqual([[0, 128, 0]]);
    expect([...device.lowerDevices()]).toEqual([memory]);
  });
});

describe('failEveryNth', () => {
  test('fails each request once, over several devices as one sequence', async () => {
    const failed: string[] = [];
    const result = await failEveryNth(
      async (context) => {
        const devices = ['a', 'b'].map((name) => context.wrap(new MemoryDevice(name, 8)));
        for (const device of devices) {
          await issue(device, 'write', { data: filled(1) }).done.catch(() => failed.push(device.name));
        }
      },
      { seed: 77 },
    );
    expect(result).toEqual({ runCount: 3, seed: 77 });
    expect(failed).toEqual(['a', 'b']);
  });

  test('reports the N and the seed of a run that throws', async () => {
    const run = failEveryNth(
      (context) => {
        const device = context.wrap(new MemoryDevice('disk', 8));
        issue(device, 'write', { data: filled(1) });
        if (issue(device, 'read', { sectorCount: 1 }).errno !== 0) throw new Error('cannot read');
      },
      { seed: 5, errno: Errno.ENOSPC },
    );
    await expect(run).rejects.toThrow('with n = 1, seed = 5 (ENOSPC for read 0+1 on disk): cannot read');
    await expect(run).rejects.toMatchObject({ n: 1, seed: 5, injected: ['read 0+1 on disk'] });
  });

  test('notices a failure in the run without one', async () => {
    const run = failEveryNth((context) => {
      if (!context.injected && context.n === 1) throw new Error('always');
      issue(context.wrap(new MemoryDevice('disk', 8)), 'write', { data: filled(1) });
    });
    await expect(run).rejects.toThrow('no request failed');
  });

  test('notices requests that were left in flight', async () => {
    const run = failEveryNth((context) => {
      const device = context.wrap(new HoldingDevice(new MemoryDevice('disk', 8)));
      issue(device, 'read', { sectorCount: 1 });
      issue(device, 'read', { sectorCount: 1 });
    });
    await expect(run).rejects.toThrow('1 request(s) still in flight on disk');
  });

  test('gives up on a scenario that never ends, and on one that never stops asking', async () => {
    const hangs = failEveryNth(() => new Promise<void>(() => {}), { timeoutMilliseconds: 20 });
    await expect(hangs).rejects.toThrow('did not end within 20 ms');
    const grows = failEveryNth(
      (context) => void issue(context.wrap(new MemoryDevice('d', 1)), 'read', { sectorCount: 1 }),
      { maxRunCount: 1 },
    );
    await expect(grows).rejects.toBeInstanceOf(FailEveryNthError);
  });

  test('a plan counts what the filter means and nothing else', () => {
    const plan = new FailurePlan({ n: 0, where: (bio) => bio.sector === 3 });
    const device = new FailNthDevice(new MemoryDevice('disk', 8), plan);
    expect(issue(device, 'read', { sector: 2, sectorCount: 1 }).errno).toBe(0);
    expect(issue(device, 'read', { sector: 3, sectorCount: 1 }).errno).toBe(Errno.EIO);
  });
});
