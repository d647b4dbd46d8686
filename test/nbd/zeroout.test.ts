// Ranges in pieces: what the device takes at a time, where the work pauses for others, how it ends.
import { describe, expect, it } from 'vitest';
import { REQ_NOUNMAP, REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { RangeRequest } from '../../src/block/zeroout.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { HeldDevice, ManualReactor, pattern } from './support.ts';

/** Ends every request as it comes and notes what they were. */
function drain(device: HeldDevice, errnoOf: (index: number) => number = () => 0): number[][] {
  const seen: number[][] = [];
  while (device.bios.length > 0) {
    const { op, sector, sectorCount } = device.bios[0]!;
    seen.push([op, sector, sectorCount]);
    device.finish(0, errnoOf(seen.length - 1));
  }
  return seen;
}

function zeroOut(device: HeldDevice | MemoryDevice, sector: number, count: number, options = {}) {
  const reactor = new ManualReactor();
  const result: { errno?: number; reactor: ManualReactor; range: RangeRequest } = {
    reactor,
    range: new RangeRequest(reactor),
  };
  result.range.zeroOut(device, sector, count, options, (errno) => {
    expect(result.errno).toBe(undefined);
    result.errno = errno;
  });
  return result;
}

describe('zero-out', () => {
  it('asks for as much as the device takes at a time', () => {
    const device = new HeldDevice(1000, { maxWriteZeroesSectorCount: 128 });
    const result = zeroOut(device, 10, 300, { fua: true, noUnmap: true });
    expect(device.bios[0]!.flags).toBe(REQ_NOUNMAP);
    expect(drain(device)).toEqual([
      [REQ_OP_WRITE_ZEROES, 10, 128],
      [REQ_OP_WRITE_ZEROES, 138, 128],
      [REQ_OP_WRITE_ZEROES, 266, 44],
      [REQ_OP_FLUSH, 0, 0],
    ]);
    expect(result.errno).toBe(0);
  });

  it('writes from where the device gave up', () => {
    const device = new HeldDevice(10_000, { maxWriteZeroesSectorCount: 128 });
    device.memory.poke(0, pattern(10_000 * 512));
    const result = zeroOut(device, 0, 5000);
    expect(drain(device, (index) => (index === 1 ? Errno.EOPNOTSUPP : 0))).toEqual([
      [REQ_OP_WRITE_ZEROES, 0, 128],
      [REQ_OP_WRITE_ZEROES, 128, 128],
      [REQ_OP_WRITE, 128, 2048],
      [REQ_OP_WRITE, 2176, 2048],
      [REQ_OP_WRITE, 4224, 776],
    ]);
    expect(result.errno).toBe(0);
    expect(device.memory.peek(0, 5000).every((byte) => byte === 0)).toBe(true);
    expect(Buffer.compare(device.memory.peek(5000, 1), pattern(10_000 * 512).subarray(5000 * 512, 5001 * 512))).toBe(0);
  });

  it('does not write when that is not wanted', () => {
    expect(zeroOut(new HeldDevice(64), 0, 64, { noFallback: true }).errno).toBe(Errno.EOPNOTSUPP);
  });

  it('ends at the first failure and says where', () => {
    const device = new HeldDevice(1000, { maxWriteZeroesSectorCount: 100 });
    const result = zeroOut(device, 0, 1000, { fua: true });
    expect(drain(device, (index) => (index === 3 ? Errno.EIO : 0))).toHaveLength(4);
    expect(result.errno).toBe(Errno.EIO);
    expect(result.range.errorSector).toBe(300);
  });

  it('of nothing ends, with FUA after a flush', () => {
    const device = new HeldDevice(64, { maxWriteZeroesSectorCount: 64 });
    const result = zeroOut(device, 0, 0, { fua: true });
    expect(drain(device)).toEqual([[REQ_OP_FLUSH, 0, 0]]);
    expect(result.errno).toBe(0);
    expect(zeroOut(device, 0, 0).errno).toBe(undefined);
    drain(device);
  });

  it('lets others have their turn when the device answers at once', () => {
    const device = new MemoryDevice('disk', 65536, { limits: { maxWriteZeroesSectorCount: 0 } });
    device.poke(0, pattern(512));
    const result = zeroOut(device, 0, 65536);
    expect(result.errno).toBe(undefined);
    let turns = 0;
    const count = (): void => {
      turns++;
      if (result.errno === undefined) result.reactor.wake(count);
    };
    result.reactor.wake(count);
    result.reactor.turn();
    expect(result.errno).toBe(0);
    expect(turns).toBeGreaterThan(2);
    expect(device.peek(0, 1).every((byte) => byte === 0)).toBe(true);
  });

  it('takes any number of pieces without stack', () => {
    const device = new MemoryDevice('disk', 200_000, { limits: { maxWriteZeroesSectorCount: 1 } });
    const result = zeroOut(device, 0, 200_000);
    result.reactor.turn();
    expect(result.errno).toBe(0);
  });

  it('may be used again from its end', () => {
    const device = new MemoryDevice('disk', 64);
    const range = new RangeRequest(new ManualReactor());
    const ended: number[] = [];
    range.zeroOut(device, 0, 64, {}, (errno) => {
      ended.push(errno);
      range.discard(device, 0, 64, true, (again) => ended.push(again));
    });
    expect(ended).toEqual([0, 0]);
  });
});

describe('discard', () => {
  it('cuts at multiples of the granularity', () => {
    const device = new HeldDevice(1000, { maxDiscardSectorCount: 100, discardGranularity: 32 * 512 });
    let ended: number | undefined;
    new RangeRequest(new ManualReactor()).discard(device, 0, 250, false, (errno) => {
      ended = errno;
    });
    expect(drain(device)).toEqual([
      [REQ_OP_DISCARD, 0, 96],
      [REQ_OP_DISCARD, 96, 96],
      [REQ_OP_DISCARD, 192, 58],
    ]);
    expect(ended).toBe(0);
  });

  it('says that the device cannot', () => {
    const ended: number[] = [];
    const range = new RangeRequest(new ManualReactor());
    range.discard(new HeldDevice(64), 0, 64, false, (errno) => ended.push(errno));
    expect(ended).toEqual([Errno.EOPNOTSUPP]);
  });
});
