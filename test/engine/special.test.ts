// Discard, write-zeroes and extents, on file systems that can and with calls that say they can't.
import fs from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  REQ_FUA,
  REQ_NOFALLBACK,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
} from '../../src/block/bio.ts';
import { EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, queryExtent } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { threadCalls } from '../../src/engine/calls.ts';
import type { Libc } from '../../src/engine/index.ts';
import {
  callsWith,
  FOLDERS,
  folderIn,
  libcWith,
  memoryFolder,
  openImage,
  request,
  start,
  type TestDevice,
  vecOf,
} from './harness.ts';

const PUNCH_HOLE = 3;
const ZERO_RANGE = 0x11;
const HOLE = EXTENT_HOLE | EXTENT_ZERO;

/** A libc whose fallocate refuses the modes given; `modes` takes down every call. */
function refusing(refused: readonly number[], modes: number[] = [], errno: number = Errno.EOPNOTSUPP): Libc {
  return libcWith((real) => {
    let refusedLast = false;
    return {
      fallocate: (fd, mode, offset, length) => {
        modes.push(mode);
        refusedLast = refused.includes(mode);
        return refusedLast ? -1 : real.fallocate(fd, mode, offset, length);
      },
      fallocateOnThread: (fd, mode, offset, length, done) => {
        modes.push(mode);
        if (refused.includes(mode)) done(-1, errno);
        else real.fallocateOnThread(fd, mode, offset, length, done);
      },
      errno: () => (refusedLast ? errno : real.errno()),
    };
  });
}

function extents(device: TestDevice): [number, number, number][] {
  const list: [number, number, number][] = [];
  for (let sector = 0; sector < device.sectorCount; ) {
    queryExtent(device, sector, device.sectorCount - sector, (errno, sectorCount, flags) => {
      expect(errno).toBe(0);
      expect(sectorCount).toBeGreaterThan(0);
      list.push([sector, sectorCount, flags]);
      sector += sectorCount;
    });
  }
  return list;
}

describe.each(FOLDERS)('on %s', (_name, parent) => {
  it.each([
    ['small, inline', 8, 16],
    ['large, on a thread', 8, 1024],
  ])('a discard makes a hole: %s', async (_size, sector, sectorCount) => {
    const device = openImage('direct', { folder: folderIn(parent), byte: 1, sectorCount: 4096 });
    const before = fs.statSync(device.name).blocks;
    expect((await request(device, REQ_OP_DISCARD, sector, sectorCount)).status).toBe(0);
    const content = fs.readFileSync(device.name);
    expect(content.byteLength).toBe(4096 * 512);
    const zeroed = content.subarray(sector * 512, (sector + sectorCount) * 512);
    expect(zeroed.every((byte) => byte === 0)).toBe(true);
    expect(content.filter((byte) => byte === 0)).toHaveLength(sectorCount * 512);
    expect(fs.statSync(device.name).blocks).toBe(before - sectorCount);
  });

  it('write-zeroes unmaps, unless it must not', async () => {
    const device = openImage('direct', { folder: folderIn(parent), byte: 1 });
    const before = fs.statSync(device.name).blocks;
    const kept = await request(device, REQ_OP_WRITE_ZEROES, 16, 16, { flags: REQ_NOUNMAP });
    expect(kept.status).toBe(0);
    expect(fs.statSync(device.name).blocks).toBe(before);
    expect((await request(device, REQ_OP_WRITE_ZEROES, 64, 16)).status).toBe(0);
    expect(fs.statSync(device.name).blocks).toBe(before - 16);
    const odd = await request(device, REQ_OP_WRITE_ZEROES, 101, 3);
    expect(odd.status).toBe(0);
    const zeroes = [...fs.readFileSync(device.name).entries()].filter(([, byte]) => byte === 0);
    expect(new Set(zeroes.map(([at]) => Math.floor(at / 512)))).toEqual(
      new Set([...range(16, 32), ...range(64, 80), ...range(101, 104)]),
    );
  });

  it('extents tell data from holes, to whole sectors', async () => {
    const device = openImage('direct', { folder: folderIn(parent), sectorCount: 0 });
    // 4096 is the size of a page and of most file systems' blocks.
    fs.truncateSync(device.name, 64 * 4096);
    device.sectorCount = 512;
    expect(extents(device)).toEqual([[0, 512, HOLE]]);
    await request(device, REQ_OP_WRITE, 80, 8, { vecs: vecOf(new Uint8Array(4096).fill(1)) });
    await request(device, REQ_OP_WRITE, 504, 8, { vecs: vecOf(new Uint8Array(4096).fill(1)) });
    expect(extents(device)).toEqual([
      [0, 80, HOLE],
      [80, 8, EXTENT_DATA],
      [88, 416, HOLE],
      [504, 8, EXTENT_DATA],
    ]);
    const inside: number[][] = [];
    queryExtent(device, 84, 2, (errno, count, flags) => inside.push([errno, count, flags]));
    queryExtent(device, 70, 5, (errno, count, flags) => inside.push([errno, count, flags]));
    expect(inside).toEqual([
      [0, 2, EXTENT_DATA],
      [0, 5, HOLE],
    ]);
  });

  it('extents behind the end of a file that was cut are data, which then fails to read', async () => {
    const device = openImage('direct', { folder: folderIn(parent) });
    fs.truncateSync(device.name, 4096);
    expect(extents(device).at(-1)?.[2]).toBe(EXTENT_DATA);
    const bio = await request(device, REQ_OP_READ, 8, 8, { vecs: vecOf(new Uint8Array(4096)) });
    expect(bio.status).toBe(Errno.EIO);
  });

  it('everything ends inside submit while blocking', () => {
    const device = openImage('direct', { folder: folderIn(parent), byte: 1, sectorCount: 4096 });
    device.engines.blocking = true;
    const ends: number[] = [];
    const end = (bio: { status: number }): void => void ends.push(bio.status);
    start(device, REQ_OP_DISCARD, 0, 2048, end);
    start(device, REQ_OP_WRITE_ZEROES, 2048, 2048, end);
    start(device, REQ_OP_WRITE_ZEROES, 0, 2048, end, { flags: REQ_NOUNMAP | REQ_FUA });
    expect(ends).toEqual([0, 0, 0]);
    device.engines.blocking = false;
  });
});

describe('a file system', () => {
  it('that punches no holes gets ZERO_RANGE for zeroes, and no more discards', async () => {
    const modes: number[] = [];
    const device = openImage('direct', { byte: 1, libc: refusing([PUNCH_HOLE], modes) });
    const told: string[] = [];
    device.file.onUnsupported = (operation) => told.push(operation);
    expect((await request(device, REQ_OP_WRITE_ZEROES, 0, 8)).status).toBe(0);
    expect((await request(device, REQ_OP_WRITE_ZEROES, 0, 8)).status).toBe(0);
    expect(modes).toEqual([PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE]);
    expect(told).toEqual([]);
    const discard = await request(device, REQ_OP_DISCARD, 8, 8);
    expect([discard.status, discard.errorSector]).toEqual([Errno.EOPNOTSUPP, 8]);
    expect(told).toContain('discard');
  });

  it.each([
    ['inline', 8],
    ['on a thread', 1024],
  ])('that zeroes nothing has zeroes written to it, unless that is ruled out: %s', async (_where, sectorCount) => {
    const modes: number[] = [];
    const device = openImage('direct', { byte: 1, libc: refusing([PUNCH_HOLE, ZERO_RANGE], modes) });
    const told: string[] = [];
    device.file.onUnsupported = (operation) => told.push(operation);
    const refused = await request(device, REQ_OP_WRITE_ZEROES, 8, sectorCount, { flags: REQ_NOFALLBACK });
    expect([refused.status, refused.errorSector]).toEqual([Errno.EOPNOTSUPP, 8]);
    expect(fs.readFileSync(device.name).every((byte) => byte === 1)).toBe(true);
    expect(told).toContain('write-zeroes');
    expect((await request(device, REQ_OP_WRITE_ZEROES, 8, sectorCount)).status).toBe(0);
    expect(modes).toEqual([PUNCH_HOLE, ZERO_RANGE]);
    const content = fs.readFileSync(device.name);
    expect(content.filter((byte) => byte === 0)).toHaveLength(sectorCount * 512);
    expect(content.subarray(4096, 4096 + sectorCount * 512).every((byte) => byte === 0)).toBe(true);
  });

  it.each([1, 129, 2047])('gets %i sectors of zeroes written, though calls come short', async (sectorCount) => {
    const device = openImage('direct', {
      byte: 1,
      libc: refusing([PUNCH_HOLE, ZERO_RANGE]),
      threads: callsWith({
        write: (fd, views, position, done) => threadCalls.write(fd, [views.at(-1)!.subarray(0, 5000)], position, done),
      }),
    });
    expect((await request(device, REQ_OP_WRITE_ZEROES, 1, sectorCount)).status).toBe(0);
    const content = fs.readFileSync(device.name);
    expect(content.subarray(512, 512 + sectorCount * 512).every((byte) => byte === 0)).toBe(true);
    expect(content.filter((byte) => byte === 1)).toHaveLength((2048 - sectorCount) * 512);
  });

  it('that fails says why, and is not asked another way', async () => {
    const modes: number[] = [];
    const device = openImage('direct', { libc: refusing([PUNCH_HOLE], modes, Errno.ENOSPC) });
    const bio = await request(device, REQ_OP_WRITE_ZEROES, 8, 8);
    expect([bio.status, bio.errorSector, modes]).toEqual([Errno.ENOSPC, 8, [PUNCH_HOLE]]);
    const onThread = await request(device, REQ_OP_DISCARD, 8, 1024);
    expect(onThread.status).toBe(Errno.ENOSPC);
  });

  it('that has no SEEK_HOLE is all data', () => {
    const libc = libcWith(() => ({ lseek: () => -1, errno: () => Errno.EINVAL }));
    expect(extents(openImage('direct', { libc }))).toEqual([[0, 2048, EXTENT_DATA]]);
  });

  it('in memory is known as such, and its calls are not timed', async () => {
    if (memoryFolder === undefined) return;
    let asked = 0;
    const reactor = { now: () => ++asked, after: () => ({ cancel() {} }), wake: () => {}, afterSockets: () => {} };
    const device = openImage('direct', { folder: folderIn(memoryFolder), reactor });
    await request(device, REQ_OP_WRITE, 0, 1, { vecs: vecOf(new Uint8Array(512)) });
    expect(asked).toBe(0);
  });
});

describe('the portable engine', () => {
  it('knows neither discard nor extents', async () => {
    const device = openImage('portable', { byte: 1 });
    expect((await request(device, REQ_OP_DISCARD, 0, 8)).status).toBe(Errno.EOPNOTSUPP);
    expect(extents(device)).toEqual([[0, 2048, EXTENT_DATA]]);
    expect(device.file.engine.capabilities).toEqual({
      fallocate: false,
      seekHole: false,
      ioctl: false,
      locks: false,
      inline: false,
    });
  });
});

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, index) => from + index);
}
