import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { HoldingDevice, issue, randomFromSeed } from '../../src/testing/index.ts';

const filled = (value: number) => new Uint8Array(512).fill(value);

describe('HoldingDevice', () => {
  test('holds what the filter means, and lets go in any order', () => {
    const memory = new MemoryDevice('memory', 64);
    const device = new HoldingDevice(memory, { op: ['write', 'discard'] });
    const writes = [1, 2, 3].map((value) => issue(device, 'write', { sector: value, data: filled(value) }));
    expect(issue(device, 'read', { sector: 1, sectorCount: 1 }).data[0]).toBe(0);
    expect(device.heldRequests).toEqual(['write 1+1', 'write 2+1', 'write 3+1']);
    expect(device.inFlightCount).toBe(3);
    device.release(device.held[2]);
    device.release();
    expect(writes.map((write) => write.ended)).toEqual([true, false, true]);
    expect(memory.peek(2, 1)[0]).toBe(0);
    device.open();
    expect(issue(device, 'write', { sector: 9, data: filled(9) }).errno).toBe(0);
    expect(device.inFlightCount).toBe(0);
  });

  test('with "after" the data is below and only the end waits', () => {
    const memory = new MemoryDevice('memory', 64);
    const device = new HoldingDevice(memory, { when: 'after' });
    const write = issue(device, 'write', { sector: 1, data: filled(1) });
    expect([write.ended, memory.peek(1, 1)[0], device.held.length]).toEqual([false, 1, 1]);
    device.release();
    expect(write.errno).toBe(0);
  });

  test('a held request can fail, and does not reach the device', () => {
    const memory = new MemoryDevice('memory', 64);
    const device = new HoldingDevice(memory);
    const [a, b] = [
      issue(device, 'write', { data: filled(1) }),
      issue(device, 'write', { sector: 1, data: filled(1) }),
    ];
    device.fail();
    device.fail(b!.bio, Errno.ENOSPC);
    expect([a!.errno, b!.errno, memory.peek(0, 1)[0]]).toEqual([Errno.EIO, Errno.ENOSPC, 0]);
    expect(device.inFlightCount).toBe(0);
  });

  test('releases all in an order drawn from a random function', () => {
    const order = (seed: number): number[] => {
      const device = new HoldingDevice(new MemoryDevice('memory', 64));
      const ended: number[] = [];
      for (let sector = 0; sector < 8; sector++) {
        const { bio } = issue(device, 'write', { sector, data: filled(1) });
        bio.onEnd = () => ended.push(sector);
      }
      device.releaseAll(randomFromSeed(seed));
      return ended;
    };
    expect(order(1)).toEqual(order(1));
    expect(order(1)).not.toEqual(order(2));
    expect(order(1).toSorted()).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
  });

  test('what comes while others are released is held', () => {
    const device = new HoldingDevice(new MemoryDevice('memory', 64));
    const { bio } = issue(device, 'read', { sectorCount: 1 });
    bio.onEnd = () => issue(device, 'read', { sector: 5, sectorCount: 1 });
    device.releaseAll();
    expect(device.heldRequests).toEqual(['read 5+1']);
  });

  test('says what is not held', () => {
    const device = new HoldingDevice(new MemoryDevice('memory', 64));
    expect(() => device.release()).toThrow('no request is held');
    const { bio } = issue(device, 'read', { sectorCount: 1 });
    device.release();
    expect(() => device.fail(bio)).toThrow('read 0+1 is not held');
  });
});

describe('issue', () => {
  test('refuses data that is no whole number of sectors, and a missing size', () => {
    const memory = new MemoryDevice('memory', 64);
    expect(() => issue(memory, 'write', { data: new Uint8Array(100) })).toThrow('no whole number');
    expect(() => issue(memory, 'write', { sectorCount: 1 })).toThrow('no data');
    expect(() => issue(memory, 'read')).toThrow('no whole number');
    expect(() => issue(memory, 'read', { sectorCount: 2, data: new Uint8Array(512) })).toThrow();
  });

  test('rejects with an IoError', async () => {
    const request = issue(new MemoryDevice('memory', 64), 'read', { sector: 64, sectorCount: 1 });
    await expect(request.done).rejects.toMatchObject({ name: 'IoError', code: 'EIO', sector: 64 });
  });
});
