// The memory device against a byte array, its extents and what it costs.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  REQ_FUA,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
} from '../../src/block/bio.ts';
import { EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, queryExtent } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { start, vecOf } from '../engine/harness.ts';
import { randomBytes } from '../support/tmp.ts';

const CHUNK = 128;
const HOLE = EXTENT_HOLE | EXTENT_ZERO;

/** Status of a request, which must end inside submit. */
function perform(device: MemoryDevice, op: number, sector: number, sectorCount: number, data?: Uint8Array, flags = 0) {
  let status = -1;
  const vecs = data === undefined ? [] : splitAt(data, 700);
  start(device, op, sector, sectorCount, (bio) => (status = bio.status), { vecs, flags });
  return status;
}

function splitAt(data: Uint8Array, at: number) {
  return data.byteLength <= at ? vecOf(data) : [...vecOf(data.subarray(0, at)), ...vecOf(data.subarray(at))];
}

function extents(device: MemoryDevice, first = 0, end: number = device.sectorCount): [number, number, number][] {
  const list: [number, number, number][] = [];
  for (let sector = first; sector < end; ) {
    queryExtent(device, sector, end - sector, (errno, sectorCount, flags) => {
      expect(errno).toBe(0);
      list.push([sector, sectorCount, flags]);
      sector += sectorCount;
    });
  }
  return list;
}

describe('a memory device', () => {
  it('is as a byte array', () => {
    const size = 5 * CHUNK + 17;
    const ops = fc.constantFrom(REQ_OP_READ, REQ_OP_WRITE, REQ_OP_DISCARD, REQ_OP_WRITE_ZEROES);
    const step = fc.record({
      op: ops,
      sector: fc.nat(size - 1),
      count: fc.integer({ min: 1, max: 300 }),
      seed: fc.nat(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), fc.boolean(), (steps, keep) => {
        const device = new MemoryDevice('memory', size);
        const model = new Uint8Array(size * 512);
        for (const { op, sector, count, seed } of steps) {
          const sectorCount = Math.min(count, size - sector);
          const data = randomBytes(sectorCount * 512, seed);
          expect(perform(device, op, sector, sectorCount, data, keep ? REQ_NOUNMAP : 0)).toBe(0);
          const range = model.subarray(sector * 512, (sector + sectorCount) * 512);
          if (op === REQ_OP_READ) expect(Buffer.compare(data, range)).toBe(0);
          else if (op === REQ_OP_WRITE) range.set(data);
          else range.fill(0);
        }
        expect(Buffer.compare(device.peek(0, size), model)).toBe(0);
        for (const [sector, sectorCount, flags] of extents(device)) {
          const range = model.subarray(sector * 512, (sector + sectorCount) * 512);
          if (flags === HOLE) expect(range.every((byte) => byte === 0)).toBe(true);
        }
      }),
    );
  });

  it('allocates 64 KiB at the first write of each, and frees them when they are discarded whole', () => {
    const device = new MemoryDevice('memory', 10 * CHUNK + 5);
    const sector = new Uint8Array(512).fill(1);
    expect(device.allocatedByteLength).toBe(0);
    perform(device, REQ_OP_READ, 0, 1, new Uint8Array(512));
    expect(device.allocatedByteLength).toBe(0);
    perform(device, REQ_OP_WRITE, 3 * CHUNK, 1, sector);
    perform(device, REQ_OP_WRITE, 10 * CHUNK + 4, 1, sector);
    expect(device.allocatedByteLength).toBe(2 * 65536);
    expect(extents(device)).toEqual([
      [0, 3 * CHUNK, HOLE],
      [3 * CHUNK, CHUNK, EXTENT_DATA],
      [4 * CHUNK, 6 * CHUNK, HOLE],
      [10 * CHUNK, 5, EXTENT_DATA],
    ]);
    perform(device, REQ_OP_DISCARD, 3 * CHUNK, CHUNK - 1);
    expect(device.allocatedByteLength).toBe(2 * 65536);
    perform(device, REQ_OP_DISCARD, 3 * CHUNK, CHUNK);
    expect(device.allocatedByteLength).toBe(65536);
    // The last one is short: its five sectors are all of it.
    perform(device, REQ_OP_WRITE_ZEROES, 10 * CHUNK, 5);
    expect(device.allocatedByteLength).toBe(0);
    perform(device, REQ_OP_WRITE_ZEROES, CHUNK, CHUNK, undefined, REQ_NOUNMAP);
    expect(device.allocatedByteLength).toBe(65536);
  });

  it('can be as large as a device can be', () => {
    const device = new MemoryDevice('memory', Number.MAX_SAFE_INTEGER);
    const last = Number.MAX_SAFE_INTEGER - 1;
    expect(perform(device, REQ_OP_WRITE, last, 1, new Uint8Array(512).fill(7))).toBe(0);
    const page = new Uint8Array(512);
    expect(perform(device, REQ_OP_READ, last, 1, page)).toBe(0);
    expect(page[511]).toBe(7);
    expect(perform(device, REQ_OP_READ, last - CHUNK * 4, 1, page)).toBe(0);
    expect(page[0]).toBe(0);
    const flags = extents(device).map((extent) => extent[2]);
    expect(flags).toEqual([HOLE, EXTENT_DATA]);
    expect(perform(device, REQ_OP_DISCARD, 0, Number.MAX_SAFE_INTEGER)).toBe(0);
    expect(device.allocatedByteLength).toBe(0);
  });

  it('moves a piece of memory that is longer than 64 KiB and starts inside a sector of it', () => {
    const device = new MemoryDevice('memory', 4 * CHUNK);
    const content = randomBytes(3 * 65536, 9);
    const pieces = [...vecOf(content.subarray(0, 65536 + 100)), ...vecOf(content.subarray(65536 + 100))];
    let status = -1;
    start(device, REQ_OP_WRITE, 3, 3 * CHUNK, (bio) => (status = bio.status), { vecs: pieces });
    expect(status).toBe(0);
    expect(Buffer.compare(device.peek(3, 3 * CHUNK), content)).toBe(0);
  });

  it('refuses sizes that no device has', () => {
    for (const size of [-1, 1.5, 2 ** 53, Number.NaN]) expect(() => new MemoryDevice('x', size)).toThrow('no number');
    expect(new MemoryDevice('x', 0).sectorCount).toBe(0);
  });

  it('takes limits and a read-only mark', () => {
    const limits = { logicalBlockSize: 4096, hasWriteCache: true, maxDiscardSectorCount: 0 };
    const device = new MemoryDevice('m', 64, { readOnly: true, limits });
    expect(device.limits).toMatchObject({ logicalBlockSize: 4096, physicalBlockSize: 512, hasWriteCache: true });
    expect(perform(device, REQ_OP_WRITE, 0, 1, new Uint8Array(512))).toBe(Errno.EPERM);
    // In the kernel's order: what a device cannot do at all comes before what it may not.
    expect(perform(device, REQ_OP_DISCARD, 0, 1)).toBe(Errno.EOPNOTSUPP);
    const discarding = new MemoryDevice('m', 64, { readOnly: true });
    expect(perform(discarding, REQ_OP_DISCARD, 0, 1)).toBe(Errno.EPERM);
    const writable = new MemoryDevice('m', 64, { limits });
    expect(perform(writable, REQ_OP_DISCARD, 0, 1)).toBe(Errno.EOPNOTSUPP);
    expect(perform(writable, REQ_OP_FLUSH, 0, 0)).toBe(0);
    expect(perform(writable, REQ_OP_WRITE, 0, 1, new Uint8Array(512), REQ_FUA)).toBe(0);
  });

  it('fails what reaches past the end whole, and memory that is too short or gone', () => {
    const device = new MemoryDevice('m', 8);
    device.poke(0, new Uint8Array(8 * 512).fill(1));
    const page = new Uint8Array(1024);
    const ends: [number, number][] = [];
    start(device, REQ_OP_READ, 7, 2, (bio) => ends.push([bio.status, bio.errorSector]), { vecs: vecOf(page) });
    expect(ends).toEqual([[Errno.EIO, 8]]);
    expect(page.every((byte) => byte === 0)).toBe(true);
    expect(perform(device, REQ_OP_WRITE, 0, 2, new Uint8Array(512))).toBe(Errno.EFAULT);
    const gone = new Uint8Array(512);
    const vecs = vecOf(gone);
    structuredClone(gone.buffer, { transfer: [gone.buffer] });
    start(device, REQ_OP_WRITE, 0, 1, (bio) => ends.push([bio.status, bio.errorSector]), { vecs });
    expect(ends[1]).toEqual([Errno.EFAULT, 0]);
    expect(perform(device, 77, 0, 1)).toBe(Errno.EOPNOTSUPP);
  });

  it('keeps a chain of 100,000 requests off the stack', () => {
    const device = new MemoryDevice('m', 8);
    const vecs = vecOf(new Uint8Array(512));
    let ended = 0;
    const next = (): void => {
      start(device, REQ_OP_WRITE, 0, 1, () => (++ended < 100_000 ? next() : undefined), { vecs });
    };
    next();
    expect(ended).toBe(100_000);
  });
});
