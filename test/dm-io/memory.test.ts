// The kinds of memory, and what is refused before anything is sent.
import { describe, expect, it } from 'vitest';
import { Bio, type BioVec, REQ_OP_DISCARD, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { type DmIoMemory, type DmIoRegion, dmIo, type PageList } from '../../src/dm-io/index.ts';
import { numbered, RecordingDevice } from '../support/stack.ts';
import { expectOne, MEMORY_KINDS, makeClient, memoryOf, pageListOf, region, vecsOf } from './support.ts';

describe.each(MEMORY_KINDS)('%s', (kind) => {
  it.each([0, 1, 2, 3, 5])('is written to several regions and read back (shape %i)', (shape) => {
    const { client, reactor } = makeClient();
    const data = numbered(21);
    const devices = ['a', 'b'].map((name) => new RecordingDevice(name, 64));
    const source = memoryOf(kind, data, shape);
    const regions = [region(devices[0]!, 3, 21), region(devices[1]!, 40, 7)];
    expect(dmIo({ op: REQ_OP_WRITE, memory: source.memory, client }, regions)).toBe(0);
    expect(devices[0]!.bytes.subarray(3 * 512, 24 * 512)).toEqual(data);
    expect(devices[1]!.bytes.subarray(40 * 512, 47 * 512)).toEqual(data.subarray(0, 7 * 512));
    expect(Buffer.compare(source.content(), data)).toBe(0);

    const target = memoryOf(kind, new Uint8Array(21 * 512), shape);
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_READ, memory: target.memory, client, notify }, [regions[0]!]);
    reactor.run();
    expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
    expect(Buffer.compare(target.content(), data)).toBe(0);
  });

  it('may be longer than the largest region, and is left alone there', () => {
    const { client } = makeClient();
    const device = new RecordingDevice('a', 64);
    device.bytes.fill(1);
    const { memory, content } = memoryOf(kind, new Uint8Array(40 * 512).fill(9), 1);
    expect(dmIo({ op: REQ_OP_READ, memory, client }, [region(device, 0, 9)])).toBe(0);
    expect(Buffer.compare(content(), Buffer.concat([Buffer.alloc(9 * 512, 1), Buffer.alloc(31 * 512, 9)]))).toBe(0);
  });

  it('is refused where it is shorter, before anything is sent', () => {
    const device = new RecordingDevice('a', 64);
    const { memory } = memoryOf(kind, new Uint8Array(8 * 512));
    expectRefusal({ memory }, [region(device, 0, 1), region(device, 0, 9)], /has 4096 bytes.* takes 4608/);
  });
});

/** Tries it both ways: an exception, no I/O, no callback, nothing in flight. */
function expectRefusal(
  request: { op?: number; memory?: DmIoMemory; flags?: number },
  regions: DmIoRegion[],
  message: RegExp,
  code = 'EINVAL',
): void {
  const { client, reactor } = makeClient();
  const { outcome, notify } = expectOne();
  const result = { errorBits: 77n, error: null };
  for (const attempt of [
    () => dmIo({ op: REQ_OP_WRITE, ...request, client }, regions, result),
    () => dmIo({ op: REQ_OP_WRITE, ...request, client, notify }, regions),
  ]) {
    let thrown: unknown;
    try {
      attempt();
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(DmError);
    expect((thrown as DmError).message).toMatch(message);
    expect((thrown as DmError).code).toBe(code);
  }
  reactor.run();
  expect(outcome.callCount).toBe(0);
  expect(result.errorBits).toBe(77n);
  expect([client.pagesInFlight, client.unfinishedCount]).toEqual([0, 0]);
  for (const { bdev } of regions) if (bdev instanceof RecordingDevice) expect(bdev.log).toEqual([]);
}

const device = new RecordingDevice('a', 64);
const one = [region(device, 0, 1)];
const page = (next: PageList | null = null): PageList => ({ next, page: new Uint8Array(4096) });

describe('page lists', () => {
  it('take the offset in the first page alone, the last page in part, and no further one', () => {
    const { client } = makeClient();
    const disk = new RecordingDevice('a', 64);
    disk.bytes.set(numbered(64));
    const third = page(page());
    const pages = page(page(third));
    expect(
      dmIo({ op: REQ_OP_READ, memory: { type: 'page-list', pages, offset: 3584 }, client }, [region(disk, 0, 10)]),
    ).toBe(0);
    expect(pages.page.subarray(0, 3584).every((byte) => byte === 0)).toBe(true);
    expect(pages.page.subarray(3584)).toEqual(numbered(1, 1));
    expect(pages.next!.page).toEqual(numbered(8, 2));
    expect(third.page.subarray(0, 512)).toEqual(numbered(1, 10));
    expect(third.page.subarray(512).every((byte) => byte === 0)).toBe(true);
    expect(third.next!.page.every((byte) => byte === 0)).toBe(true);
  });

  it('may be a ring', () => {
    const { client } = makeClient();
    const disk = new RecordingDevice('a', 64);
    const ring = page();
    ring.next = ring;
    ring.page.fill(5);
    expect(dmIo({ op: REQ_OP_WRITE, memory: { type: 'page-list', pages: ring }, client }, [region(disk, 0, 64)])).toBe(
      0,
    );
    expect(disk.bytes.every((byte) => byte === 5)).toBe(true);
  });

  it.each([1, 511, 513, -512, 0.5, Number.NaN])('refuse offset %d', (offset) => {
    expectRefusal({ memory: { type: 'page-list', pages: page(), offset } }, one, /is no multiple of 512/);
  });

  it('refuse an offset past the first page', () => {
    const memory: DmIoMemory = { type: 'page-list', pages: page(page()), offset: 4096 };
    expectRefusal({ memory }, one, /offset 4096 is not within the first page/);
  });

  it('refuse a list that is too short, and odd pages', () => {
    const short: DmIoMemory = { type: 'page-list', pages: pageListOf(new Uint8Array(8192)), offset: 512 };
    expectRefusal({ memory: short }, [region(device, 0, 16)], /list of 2 pages has 7680 bytes/);
    const odd: DmIoMemory = { type: 'page-list', pages: { next: null, page: new Uint8Array(1000) } };
    expectRefusal({ memory: odd }, one, /page 0 of the list has 1000 bytes/);
    const gone = page();
    structuredClone(gone.page.buffer, { transfer: [gone.page.buffer as ArrayBuffer] });
    const memory: DmIoMemory = { type: 'page-list', pages: page(gone) };
    expectRefusal({ memory }, [region(device, 0, 9)], /transferred away/, 'EFAULT');
  });
});

describe('a bio', () => {
  it('goes to three devices in three portions, and is unchanged afterwards', () => {
    const { client, reactor } = makeClient();
    const data = numbered(24);
    const bio = new Bio();
    bio.reset(REQ_OP_WRITE, 0, null, 0, 24);
    bio.vecs = vecsOf(Buffer.concat([Buffer.alloc(700), data]), [1000, 3000]);
    bio.vecOffset = 700;
    const before = { ...bio };
    const vecs = bio.vecs.map((vec) => ({ ...vec }));
    const disks = ['a', 'b', 'c'].map((name) => new RecordingDevice(name, 64));
    const outcomes = disks.map((disk, i) => {
      disk.hold = true;
      const { outcome, notify } = expectOne();
      const memory: DmIoMemory = { type: 'bio', bio, byteOffset: i * 8 * 512 };
      dmIo({ op: REQ_OP_WRITE, memory, client, notify }, [region(disk, i, 8)]);
      return outcome;
    });
    for (const disk of [...disks].reverse()) disk.release();
    reactor.run();
    for (const outcome of outcomes) expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
    disks.forEach((disk, i) => {
      expect(disk.bytes.subarray(i * 512, (i + 8) * 512)).toEqual(data.subarray(i * 4096, (i + 1) * 4096));
    });
    expect({ ...bio }).toEqual(before);
    expect(bio.vecs).toEqual(vecs);
    expect([bio.vecIndex, bio.vecOffset]).toEqual([0, 700]);
  });

  it('is refused past its range, with pieces that end before it, and with odd offsets', () => {
    const bio = new Bio();
    bio.reset(REQ_OP_WRITE, 0, null, 0, 8);
    bio.vecs = [{ page: new Uint8Array(8192), offset: 0, byteLength: 8192 }];
    expectRefusal({ memory: { type: 'bio', bio, byteOffset: 4096 } }, one, /bio from byte 4096 on has 0 bytes/);
    expectRefusal({ memory: { type: 'bio', bio, byteOffset: -1 } }, one, /byteOffset -1/);
    bio.reset(REQ_OP_WRITE, 0, null, 0, 80);
    expectRefusal({ memory: { type: 'bio', bio } }, [region(device, 0, 17)], /the bio has 8192 bytes/);
    expectRefusal({ memory: { type: 'bio', bio, byteOffset: 8193 } }, one, /pieces end before its range/);
  });
});

describe('refused before any I/O', () => {
  it.each<[string, DmIoMemory | undefined, RegExp, string?]>([
    ['no memory', undefined, /a read or write needs some/],
    ['no known kind', { type: 'vma' } as unknown as DmIoMemory, /"vma" is no kind of memory/],
    ['a resizable buffer', { type: 'buffer', buffer: new Uint8Array(resizable()) }, /resizable/, 'EFAULT'],
    ['WebAssembly memory', { type: 'buffer', buffer: wasmMemory() }, /WebAssembly/, 'EFAULT'],
    ['a detached buffer', { type: 'buffer', buffer: detached() }, /transferred away/, 'EFAULT'],
    [
      'a detached piece',
      { type: 'bvec', vecs: [{ page: detached(), offset: 0, byteLength: 512 }] },
      /transferred away/,
      'EFAULT',
    ],
    ['a piece past its page', { type: 'bvec', vecs: vec(4096, 3585, 512) }, /asked of memory that is 4096 bytes/],
    ['a piece before its page', { type: 'bvec', vecs: vec(4096, -1, 512) }, /asked of memory/],
  ])('%s', (_name, memory, message, code = 'EINVAL') => {
    expectRefusal(memory === undefined ? {} : { memory }, one, message, code);
  });

  it('needs no memory where none is used', () => {
    const { client } = makeClient();
    expect(dmIo({ op: REQ_OP_DISCARD, client }, [region(new RecordingDevice('b', 8), 0, 8)])).toBe(0);
    expect(dmIo({ op: REQ_OP_WRITE, client }, [region(new RecordingDevice('b', 8), 0, 0)])).toBe(0);
  });

  const memory: DmIoMemory = { type: 'buffer', buffer: new Uint8Array(4096) };

  it('a 65th region', () => {
    expectRefusal(
      { memory },
      Array.from({ length: 65 }, () => one[0]!),
      /65 regions, and a request has at most 64/,
    );
  });

  it.each([
    [-1, 1],
    [0.5, 1],
    [0, -1],
    [0, 1.5],
    [Number.NaN, 1],
    [0, Number.POSITIVE_INFINITY],
    [Number.MAX_SAFE_INTEGER, 1],
    [2 ** 53, 0],
  ])('sector %d, count %d', (sector, count) => {
    expectRefusal({ memory }, [one[0]!, region(device, sector, count)], /region 1: sector .* is no range of sectors/);
  });

  it('a region without a device, and operations that are none', () => {
    expectRefusal({ memory }, [region(null as unknown as BlockDevice, 0, 1)], /region 0 has no block device/);
    expectRefusal({ memory, op: 5 }, one, /operation 5/);
    expectRefusal({ memory, flags: 0.5 }, one, /flags 0.5/);
  });

  it('anything on a closed client', () => {
    const { client, reactor } = makeClient();
    const held = new RecordingDevice('a', 64);
    held.hold = true;
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_WRITE, memory, client, notify }, [region(held, 0, 1)]);
    expect(client.close()).toBe(1);
    expect(client.closed).toBe(true);
    const closed = expect.objectContaining({ code: 'ESHUTDOWN', errno: Errno.ESHUTDOWN });
    expect(() => dmIo({ op: REQ_OP_WRITE, memory, client }, [])).toThrow(closed);
    expect(() => dmIo({ op: REQ_OP_WRITE, memory, client, notify }, one)).toThrow(closed);
    expect(() => client.resize(1)).toThrow(closed);
    held.release();
    reactor.run();
    expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
    expect(client.close()).toBe(0);
  });
});

describe('memory that goes away while it is used', () => {
  it('fails the read, and the callback still comes', () => {
    const { client, reactor } = makeClient();
    const disk = new RecordingDevice('a', 64);
    disk.hold = true;
    disk.fail = () => Errno.EFAULT;
    const buffer = new Uint8Array(4096);
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_READ, memory: { type: 'buffer', buffer }, client, notify }, [region(disk, 0, 8)]);
    structuredClone(buffer.buffer, { transfer: [buffer.buffer] });
    disk.release();
    reactor.run();
    expect(outcome).toMatchObject({ callCount: 1, errorBits: 1n });
    expect(outcome.error!.failedRegions[0]!.cause.code).toBe('EFAULT');
  });
});

function resizable(): ArrayBuffer {
  const Resizable = ArrayBuffer as unknown as new (byteLength: number, options: object) => ArrayBuffer;
  return new Resizable(4096, { maxByteLength: 8192 });
}

function detached(): Uint8Array {
  const bytes = new Uint8Array(4096);
  structuredClone(bytes.buffer, { transfer: [bytes.buffer] });
  return bytes;
}

function vec(pageByteLength: number, offset: number, byteLength: number): BioVec[] {
  return [{ page: new Uint8Array(pageByteLength), offset, byteLength }];
}

function wasmMemory(): Uint8Array {
  const { WebAssembly } = globalThis as unknown as {
    WebAssembly: { Memory: new (options: { initial: number }) => { buffer: ArrayBuffer } };
  };
  return new Uint8Array(new WebAssembly.Memory({ initial: 1 }).buffer);
}
