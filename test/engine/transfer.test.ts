// Data through every engine, on a disk's file system and on tmpfs: against a model, in odd layouts, and when it goes wrong.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { type BioVec, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { itPeer } from '../support/peers.ts';
import { runs } from '../support/seed.ts';
import { randomBytes } from '../support/tmp.ts';
import {
  ENGINES,
  FOLDERS,
  folderIn,
  memoryFolder,
  openImage,
  request,
  start,
  type TestDevice,
  vecOf,
} from './harness.ts';

const SECTOR_COUNT = 512;

interface Step {
  op: number;
  sector: number;
  sectorCount: number;
  /** Where the memory is cut, in bytes; pieces need not be whole sectors. */
  cuts: number[];
  /** Bytes in front of the data in the list of pieces, to be skipped by the iterator. */
  skip: number;
  seed: number;
}

const steps = fc.array(
  fc.record({
    op: fc.constantFrom(REQ_OP_READ, REQ_OP_WRITE),
    sector: fc.nat(SECTOR_COUNT - 1),
    sectorCount: fc.integer({ min: 1, max: 64 }),
    cuts: fc.array(fc.nat(64 * 512), { maxLength: 12 }),
    skip: fc.nat(1500),
    seed: fc.nat(),
  }),
  { minLength: 1, maxLength: 20 },
);

/** Memory in pieces, each in a page of its own with some bytes around it. */
function scatter(content: Uint8Array, cuts: readonly number[]): BioVec[] {
  const ends = [...new Set(cuts.filter((cut) => cut > 0 && cut < content.byteLength))].sort((a, b) => a - b);
  const vecs: BioVec[] = [];
  let from = 0;
  for (const to of [...ends, content.byteLength]) {
    const page = new Uint8Array(to - from + 23);
    page.set(content.subarray(from, to), 11);
    vecs.push({ page, offset: 11, byteLength: to - from });
    from = to;
  }
  return vecs;
}

function gather(vecs: readonly BioVec[]): Uint8Array {
  return Buffer.concat(vecs.map((vec) => vec.page.subarray(vec.offset, vec.offset + vec.byteLength)));
}

/** Where byte `skip` of a list is. */
function position(vecs: readonly BioVec[], skip: number): { vecIndex: number; vecOffset: number } {
  let vecIndex = 0;
  let vecOffset = skip;
  while (vecOffset >= vecs[vecIndex]!.byteLength) vecOffset -= vecs[vecIndex++]!.byteLength;
  return { vecIndex, vecOffset };
}

async function performStep(device: TestDevice, model: Uint8Array, step: Step): Promise<void> {
  const sectorCount = Math.min(step.sectorCount, SECTOR_COUNT - step.sector);
  const byteLength = sectorCount * 512;
  const start = step.sector * 512;
  const content = randomBytes(step.skip + byteLength + 100, step.seed);
  const vecs = scatter(content, step.cuts);
  const bio = await request(device, step.op, step.sector, sectorCount, { vecs, ...position(vecs, step.skip) });
  expect(bio.status).toBe(0);
  if (step.op === REQ_OP_WRITE) {
    model.set(content.subarray(step.skip, step.skip + byteLength), start);
    return;
  }
  content.set(model.subarray(start, start + byteLength), step.skip);
  expect(Buffer.compare(gather(vecs), content)).toBe(0);
}

describe.each(ENGINES)('the %s engine', (engine) => {
  describe.each(FOLDERS)('on %s', (_name, parent) => {
    it('is as a byte array, whatever the layout of memory', async () => {
      const folder = folderIn(parent);
      await fc.assert(
        fc.asyncProperty(steps, fc.boolean(), async (list, small) => {
          const bounds = small ? { threads: { bounds: { maxIovecCount: 3, maxTransferByteLength: 1000 } } } : {};
          const device = openImage(engine, { folder, sectorCount: SECTOR_COUNT, ...bounds });
          const model = new Uint8Array(SECTOR_COUNT * 512);
          for (const step of list) await performStep(device, model, step);
          expect(Buffer.compare(fs.readFileSync(device.name), model)).toBe(0);
          device.close();
        }),
        { numRuns: runs(25) },
      );
    });

    it('moves 1,500 pieces', async () => {
      const device = openImage(engine, { folder: folderIn(parent) });
      const content = randomBytes(1500 * 512, 5);
      const cuts = Array.from({ length: 1499 }, (_, index) => (index + 1) * 512);
      const written = await request(device, REQ_OP_WRITE, 3, 1500, { vecs: scatter(content, cuts) });
      expect(written.status).toBe(0);
      const vecs = scatter(new Uint8Array(1500 * 512), cuts);
      expect(vecs).toHaveLength(1500);
      const read = await request(device, REQ_OP_READ, 3, 1500, { vecs });
      expect(read.status).toBe(0);
      expect(Buffer.compare(gather(vecs), content)).toBe(0);
    });

    it('fails a read that ends early at the sector that is missing', async () => {
      const device = openImage(engine, { folder: folderIn(parent), byte: 7 });
      fs.truncateSync(device.name, 10 * 512 + 100);
      const page = new Uint8Array(8 * 512);
      const bio = await request(device, REQ_OP_READ, 6, 8, { vecs: vecOf(page) });
      expect(bio.status).toBe(Errno.EIO);
      expect([bio.errorSector, bio.errorDevice, bio.errorDeviceSector]).toEqual([10, device, 10]);
      const beyond = await request(device, REQ_OP_READ, 100, 1, { vecs: vecOf(new Uint8Array(512)) });
      expect([beyond.status, beyond.errorSector]).toEqual([Errno.EIO, 100]);
      const pieces = await request(device, REQ_OP_READ, 6, 8, { vecs: scatter(page, [512, 1000, 2048]) });
      expect([pieces.status, pieces.errorSector]).toEqual([Errno.EIO, 10]);
    });

    it('never changes the iterator of a bio', async () => {
      const device = openImage(engine, { folder: folderIn(parent) });
      const vecs = scatter(new Uint8Array(4096), [100, 2000]);
      const bio = await request(device, REQ_OP_WRITE, 0, 2, { vecs, vecIndex: 1, vecOffset: 50 });
      expect([bio.status, bio.vecIndex, bio.vecOffset]).toEqual([0, 1, 50]);
      expect(bio.vecs).toBe(vecs);
    });

    it('ends requests that came before close, and closes then', async () => {
      const device = openImage(engine, { folder: folderIn(parent), byte: 3 });
      const pages = Array.from({ length: 50 }, () => new Uint8Array(4096));
      const all = pages.map((page, index) => request(device, REQ_OP_READ, index * 8, 8, { vecs: vecOf(page) }));
      device.close();
      for (const bio of await Promise.all(all)) expect(bio.status).toBe(0);
      expect(pages.every((page) => page.every((byte) => byte === 3))).toBe(true);
      expect(() => fs.fstatSync(device.file.fd)).toThrow('EBADF');
      const late = await request(device, REQ_OP_READ, 0, 1, { vecs: vecOf(new Uint8Array(512)) });
      expect(late.status).toBe(Errno.EIO);
    });
  });

  it('fails a write through a descriptor for reading with its own errno', async () => {
    const device = openImage(engine);
    fs.closeSync(device.file.fd);
    const fd = fs.openSync(device.name, 'r');
    expect(fd).toBe(device.file.fd);
    const bio = await request(device, REQ_OP_WRITE, 4, 1, { vecs: vecOf(new Uint8Array(512)) });
    expect([bio.status, bio.errorSector]).toEqual([Errno.EBADF, 4]);
  });

  it('fails with EFAULT where the memory is shorter than the range', async () => {
    const device = openImage(engine, { byte: 1 });
    for (const op of [REQ_OP_READ, REQ_OP_WRITE]) {
      const bio = await request(device, op, 0, 4, { vecs: vecOf(new Uint8Array(3 * 512)) });
      expect(bio.status).toBe(Errno.EFAULT);
      const outside = [{ page: new Uint8Array(512), offset: 256, byteLength: 512 }];
      expect((await request(device, op, 0, 1, { vecs: outside })).status).toBe(Errno.EFAULT);
    }
    expect(fs.readFileSync(device.name).every((byte) => byte === 1)).toBe(true);
  });

  itPeer(['root'], 'gives ENOSPC with the first sector that was not written', async () => {
    const folder = folderIn(memoryFolder);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', folder]);
    onTestFinished(() => {
      execFileSync('umount', ['--lazy', folder]);
    });
    const device = openImage(engine, { folder, sectorCount: 0 });
    fs.truncateSync(device.name, 4 << 20);
    device.sectorCount = 8192;
    const bio = await request(device, REQ_OP_WRITE, 0, 4096, { vecs: vecOf(new Uint8Array(2 << 20).fill(1)) });
    expect([bio.status, bio.errorSector]).toEqual([Errno.ENOSPC, 2048]);
    const again = await request(device, REQ_OP_WRITE, 4096, 8, { vecs: vecOf(new Uint8Array(4096)) });
    expect([again.status, again.errorSector]).toEqual([Errno.ENOSPC, 4096]);
    // What is there can be written again.
    const over = await request(device, REQ_OP_WRITE, 8, 8, { vecs: vecOf(new Uint8Array(4096)) });
    expect(over.status).toBe(0);
  });

  it('keeps a chain of 100,000 requests, each submitted by the end of the one before, off the stack', async () => {
    const device = openImage(engine, { folder: folderIn(memoryFolder) });
    const vecs = vecOf(new Uint8Array(512));
    const length = engine === 'direct' ? 100_000 : 5_000;
    let ended = 0;
    await new Promise<void>((resolve) => {
      const next = (): void => {
        start(
          device,
          ended % 2 === 0 ? REQ_OP_WRITE : REQ_OP_READ,
          ended % 2048,
          1,
          (bio) => {
            expect(bio.status).toBe(0);
            if (++ended === length) resolve();
            else next();
          },
          { vecs },
        );
      };
      next();
    });
    expect(ended).toBe(length);
  });

  it('ends everything inside submit while it is blocking', () => {
    const device = openImage(engine);
    device.engines.blocking = true;
    const content = randomBytes(8192, 3);
    const ends: number[] = [];
    start(device, REQ_OP_WRITE, 8, 16, (bio) => ends.push(bio.status), { vecs: scatter(content, [100, 5000]) });
    const page = new Uint8Array(8192);
    start(device, REQ_OP_READ, 8, 16, (bio) => ends.push(bio.status), { vecs: vecOf(page) });
    expect(ends).toEqual([0, 0]);
    expect(Buffer.compare(page, content)).toBe(0);
    device.engines.blocking = false;
  });

  it('reads what is not in the page cache', async () => {
    const device = openImage(engine, { byte: 9 });
    execFileSync('dd', [`of=${device.name}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
    const page = new Uint8Array(1024 * 512);
    const bio = await request(device, REQ_OP_READ, 0, 1024, { vecs: scatter(page, [5000, 100_000]) });
    expect(bio.status).toBe(0);
    expect(gather(bio.vecs).every((byte) => byte === 9)).toBe(true);
  });
});

describe('without a C library', () => {
  it('the engine of choice is the portable one', async () => {
    const device = openImage('portable', { byte: 2, libc: null });
    expect(device.file.engine.kind).toBe('portable');
    const page = new Uint8Array(512);
    expect((await request(device, REQ_OP_READ, 1, 1, { vecs: vecOf(page) })).status).toBe(0);
    expect(page[0]).toBe(2);
  });
});

describe('the path of an image', () => {
  it('is not needed any more once it is open', async () => {
    const device = openImage('direct', { byte: 4 });
    fs.renameSync(device.name, join(device.name, '..', 'moved'));
    const page = new Uint8Array(512);
    expect((await request(device, REQ_OP_READ, 1, 1, { vecs: vecOf(page) })).status).toBe(0);
    expect(page[0]).toBe(4);
  });
});
