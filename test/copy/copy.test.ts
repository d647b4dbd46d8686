// The driver of dmkit copy: paces, failures, maps, verification; on devices that fail and wait on demand.
import { closeSync, existsSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { REQ_OP_READ, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { FILE_PIECE_SECTOR_COUNT, MAX_BLOCK_COUNT } from '../../src/copy/bounds.ts';
import { Copy, type CopyOptions } from '../../src/copy/copy.ts';
import { FileCopier } from '../../src/copy/files.ts';
import { DONE } from '../../src/copy/ranges.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { hasCopyRange } from '../../src/engine/copy-range.ts';
import { failEveryNth, HoldingDevice, SimulatedDevice } from '../../src/testing/index.ts';
import { runs, seed } from '../support/seed.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';
import { copied, failuresOf, mapperWith } from './support.ts';

const MIB = 2048;

function filled(name: string, sectorCount: number): MemoryDevice {
  const device = new MemoryDevice(name, sectorCount);
  device.poke(0, randomBytes(sectorCount * 512, 7));
  return device;
}

function same(a: MemoryDevice | SimulatedDevice, b: MemoryDevice | SimulatedDevice, count = a.sectorCount): boolean {
  return Buffer.compare(a.peek(0, count), b.peek(0, count)) === 0;
}

/** A disk whose sectors fail, written or read, while they are in `bad`. */
function failing(name: string, sectorCount: number, op: 'read' | 'write', bad: [number, number][]): SimulatedDevice {
  const faults = bad.map(([sector, count]) => ({ kind: 'error', op, region: { sector, sectorCount: count } }) as const);
  const disk = new SimulatedDevice(name, sectorCount, { seed: 1, faults });
  // It would tell that nothing was written to it yet, and what reads as zeroes is not read.
  return Object.assign(disk, { queryExtent: undefined });
}

describe('a copy', () => {
  it('gives every destination the source, zeroes where it has holes, and reads once', async () => {
    const source = new MemoryDevice('source', 12 * MIB + 5);
    source.poke(3 * MIB, randomBytes(5 * MIB * 512, 1));
    source.poke(10 * MIB, randomBytes(MIB * 512, 2));
    const dests = Array.from({ length: 64 }, (_, i) => new MemoryDevice(`d${i}`, 12 * MIB + 5));
    for (const dest of dests.slice(0, 3)) dest.poke(0, new Uint8Array(2 * MIB * 512).fill(9));
    const dm = mapperWith([source, ...dests]);
    const copy = await copied(
      dm,
      'source',
      dests.map(({ name }) => name),
      { verify: true },
    );
    expect(copy.complete).toBe(true);
    for (const dest of dests) expect(same(source, dest)).toBe(true);
    expect(copy.destinations.every(({ verified }) => verified !== null)).toBe(true);
    // The limit is there for a copy that hangs: a loaded machine takes its time for 64 destinations.
  });

  it('moves regions, to places within devices', async () => {
    const source = filled('source', 1000);
    const dest = filled('dest', 2000);
    const expected = dest.peek(0, 2000);
    expected.set(source.peek(100, 333), 1500 * 512);
    const dm = mapperWith([source, dest]);
    expect((await copied(dm, 'source:100+333', ['dest:1500+333'], { verify: true })).complete).toBe(true);
    expect(Buffer.compare(dest.peek(0, 2000), expected)).toBe(0);
    // Within one device, apart from each other.
    expect((await copied(dm, 'dest:0+100', ['dest:100+100'])).complete).toBe(true);
    expect(Buffer.compare(dest.peek(0, 100), dest.peek(100, 100))).toBe(0);
  });

  it('zeroes', async () => {
    const [a, b] = [filled('a', 3 * MIB), new MemoryDevice('b', 2 * MIB, { limits: { maxWriteZeroesSectorCount: 0 } })];
    b.poke(0, randomBytes(2 * MIB * 512, 3));
    const before = a.peek(0, 3 * MIB);
    const dm = mapperWith([a, b]);
    const copy = await copied(dm, null, [`a:5+${2 * MIB}`, 'b'], { verify: true });
    expect(copy.complete).toBe(true);
    expect(copy.destinations[0]!.verified).not.toBeNull();
    before.fill(0, 5 * 512, (5 + 2 * MIB) * 512);
    expect(Buffer.compare(a.peek(0, 3 * MIB), before)).toBe(0);
    expect(Buffer.compare(b.peek(0, 2 * MIB), new Uint8Array(2 * MIB * 512))).toBe(0);
  });

  it('leaves holes alone when it is told to', async () => {
    const source = new MemoryDevice('source', 4 * MIB);
    source.poke(MIB, randomBytes(MIB * 512, 1));
    const dest = new MemoryDevice('dest', 4 * MIB);
    dest.poke(0, new Uint8Array(4 * MIB * 512).fill(9));
    const copy = await copied(mapperWith([source, dest]), 'source', ['dest'], { skipHoles: true, verify: true });
    expect(copy.complete).toBe(true);
    expect(dest.peek(0, 1)).toEqual(new Uint8Array(512).fill(9));
    expect(Buffer.compare(dest.peek(MIB, MIB), source.peek(MIB, MIB))).toBe(0);
    expect(copy.destinations[0]!.map.count(DONE)).toBe(MIB);
  });
});

describe('paces', () => {
  it('a destination that stands still keeps nobody back, and memory stays bounded', async () => {
    const source = filled('source', 200 * MIB);
    const slow = new HoldingDevice(new MemoryDevice('slow', 200 * MIB), { op: 'write' });
    const quick = new MemoryDevice('quick', 200 * MIB);
    const dm = mapperWith([source, slow, quick]);
    const copy = await Copy.open(dm, 'source', ['slow', 'quick']);
    const done = copy.run();
    await expect.poll(() => copy.destinations[1]!.handledSectorCount).toBe(200 * MIB);
    expect(copy.destinations[0]!.handledSectorCount).toBe(0);
    expect(slow.held.length).toBeLessThanOrEqual(8);
    slow.open();
    await done;
    await copy.close();
    expect(copy.complete).toBe(true);
    expect(same(source, slow.device as MemoryDevice)).toBe(true);
    expect(same(source, quick)).toBe(true);
    expect(MAX_BLOCK_COUNT).toBe(128);
  });

  it('keep to a rate', async () => {
    const dm = mapperWith([filled('source', 4 * MIB), new MemoryDevice('dest', 4 * MIB)]);
    const start = performance.now();
    await copied(dm, 'source', ['dest'], { bytesPerSecond: 8 << 20 });
    expect(performance.now() - start).toBeGreaterThan(200);
  });
});

describe('failures', () => {
  it('drop the destination that has them; the others finish', async () => {
    const source = filled('source', 8 * MIB);
    const bad = failing('bad', 8 * MIB, 'write', [[5000, 1]]);
    const good = new MemoryDevice('good', 8 * MIB);
    const copy = await copied(mapperWith([source, bad, good]), 'source', ['bad', 'good']);
    expect(copy.complete).toBe(false);
    expect(copy.destinations.map(({ failed }) => failed)).toEqual([true, false]);
    expect(copy.destinations[0]!.dead?.message).toContain('sector 5000');
    expect(failuresOf(copy)).toEqual(['4096-6143 write: Input/output error']);
    expect(same(source, good)).toBe(true);
  });

  it('are narrowed to logical blocks with keepGoing, of writes and of reads', async () => {
    const source = filled('source', 8 * MIB);
    const reading = failing('reading', 8 * MIB, 'read', [
      [100, 3],
      [9000, 1],
    ]);
    const dm = mapperWith([
      source,
      reading,
      failing('bad', 8 * MIB, 'write', [[5000, 2]]),
      new MemoryDevice('good', 8 * MIB),
    ]);
    const copy = await copied(dm, 'source', ['bad', 'good'], { keepGoing: true });
    expect(failuresOf(copy)).toEqual(['5000-5001 write: Input/output error']);
    expect(copy.destinations[0]!.dead).toBeNull();
    expect(copy.destinations[0]!.map.count(DONE)).toBe(8 * MIB - 2);
    const rescue = await copied(dm, 'reading', ['good'], { keepGoing: true });
    expect(failuresOf(rescue)).toEqual(['100-102 read: Input/output error', '9000-9000 read: Input/output error']);
  });

  it('keep the error that the device gave: side, errno, device and sector', async () => {
    const reading = failing('reading', 8 * MIB, 'read', [[100, 1]]);
    const bad = failing('bad', 8 * MIB, 'write', [[5000, 1]]);
    const copy = await copied(mapperWith([reading, bad]), 'reading', ['bad'], { keepGoing: true });
    const failures = copy.destinations[0]!.failures.map(({ start, end, side, cause }) => ({
      range: [start, end],
      side,
      cause: [cause.code, cause.operation, cause.device, cause.sector],
    }));
    expect(failures.sort((a, b) => a.range[0]! - b.range[0]!)).toEqual([
      { range: [100, 101], side: 'read', cause: ['EIO', 'read', 'reading', 100] },
      { range: [5000, 5001], side: 'write', cause: ['EIO', 'write', 'bad', 5000] },
    ]);
  });

  it('take four reads for one bad sector of 2,048, two of which meet it', async () => {
    const source = failing('source', 2048, 'read', [[1000, 1]]);
    const requests: { sector: number; sectorCount: number }[] = [];
    const submit = source.submit.bind(source);
    source.submit = (bio) => {
      if (bio.op === REQ_OP_READ) requests.push({ sector: bio.sector, sectorCount: bio.sectorCount });
      submit(bio);
    };
    const copy = await copied(mapperWith([source, new MemoryDevice('dest', 2048)]), 'source', ['dest'], {
      keepGoing: true,
    });
    expect(failuresOf(copy)).toEqual(['1000-1000 read: Input/output error']);
    const meeting = requests.filter(({ sector, sectorCount }) => sector <= 1000 && sector + sectorCount > 1000);
    expect([requests.length, meeting.length]).toEqual([4, 2]);
  });

  it('never write what could not be read', async () => {
    const source = failing('source', 4 * MIB, 'read', [[3000, 5]]);
    const dest = new MemoryDevice('dest', 4 * MIB);
    dest.poke(0, new Uint8Array(4 * MIB * 512).fill(9));
    const dm = mapperWith([source, dest]);
    await copied(dm, 'source', ['dest'], { keepGoing: true });
    expect(dest.peek(3000, 5)).toEqual(new Uint8Array(5 * 512).fill(9));
    expect(dest.peek(2999, 1)).toEqual(new Uint8Array(512));
    const stopped = await copied(dm, 'source', ['dest:0+8192']);
    expect(stopped.failure?.message).toContain('sector 3000');
    expect(stopped.complete).toBe(false);
  });

  it('of all that is written make a destination dead, also with keepGoing', async () => {
    const source = filled('source', 40 * MIB);
    const dead = failing('dead', 40 * MIB, 'write', [[2 * MIB, 38 * MIB]]);
    Object.assign(dead.limits, { logicalBlockSize: 4096 });
    const copy = await copied(mapperWith([source, dead]), 'source', ['dead'], { keepGoing: true });
    expect(copy.destinations[0]!.dead).not.toBeNull();
    expect(copy.destinations[0]!.handledSectorCount).toBeLessThan(40 * MIB);
  });
});

describe('maps', () => {
  function setUp(bad: [number, number][]) {
    const source = filled('source', 8 * MIB);
    const disk = failing('disk', 8 * MIB, 'write', bad);
    const map = join(tempDir(), 'copy.map');
    return { source, disk, map };
  }

  it('finish a copy after the fault is gone, without copying the rest again', async () => {
    const { source, disk, map } = setUp([[5000, 2]]);
    const first = await copied(mapperWith([source, disk]), 'source', ['disk'], { keepGoing: true, mapfile: map });
    expect(first.complete).toBe(false);
    expect(readFileSync(map, 'utf8')).toContain('0x00271000  0x00000400  -');
    await expect(Copy.open(mapperWith([source, disk]), 'source', ['disk'], { mapfile: map })).rejects.toThrow(
      /--retry/,
    );
    const whole = new SimulatedDevice('disk', 8 * MIB, { seed: 1 });
    const second = await copied(mapperWith([source, whole]), 'source', ['disk'], { mapfile: map, retry: true });
    expect(second.complete).toBe(true);
    expect(second.destinations[0]!.totalSectorCount).toBe(2);
    expect(whole.peek(5000, 2)).toEqual(new Uint8Array(source.peek(5000, 2)));
    expect(whole.peek(4999, 1)).toEqual(new Uint8Array(512));
  });

  it('have a number each for several destinations', async () => {
    const { source, disk, map } = setUp([]);
    const dm = mapperWith([source, disk, new MemoryDevice('other', 8 * MIB)]);
    await copied(dm, 'source', ['disk', 'other'], { mapfile: map });
    expect([existsSync(map), existsSync(`${map}.1`), existsSync(`${map}.2`)]).toEqual([false, true, true]);
  });

  it('are true after a stop in the middle: what they call done is there', async () => {
    const { source, map } = setUp([]);
    const dest = new MemoryDevice('dest', 8 * MIB);
    const aborter = new AbortController();
    const dm = mapperWith([source, dest]);
    const options: CopyOptions = { mapfile: map, bytesPerSecond: 2 << 20, signal: aborter.signal };
    const copy = await Copy.open(dm, 'source', ['dest'], options);
    const run = copy.run();
    await expect.poll(() => copy.destinations[0]!.handledSectorCount).toBeGreaterThan(0);
    aborter.abort();
    await run;
    await copy.close();
    expect(copy.stopped).toBe(true);
    const ranges = [...copy.destinations[0]!.map.ranges([DONE])];
    expect(ranges.length).toBeGreaterThan(0);
    for (const { start, end } of ranges) {
      expect(Buffer.compare(dest.peek(start, end - start), source.peek(start, end - start))).toBe(0);
    }
    const rest = await copied(mapperWith([source, dest]), 'source', ['dest'], { mapfile: map, retry: true });
    expect(rest.complete).toBe(true);
    expect(same(source, dest)).toBe(true);
  });

  it('call nothing done that a failed flush may have lost', async () => {
    const source = filled('source', 2 * MIB);
    const disk = new SimulatedDevice('disk', 2 * MIB, {
      seed: 1,
      faults: [{ kind: 'error', op: 'flush' }],
    });
    const copy = await copied(mapperWith([source, disk]), 'source', ['disk']);
    expect(copy.destinations[0]!.map.count(DONE)).toBe(0);
    expect(copy.destinations[0]!.dead).not.toBeNull();
  });
});

describe('verification', () => {
  it('names what does not hold what was written, and has it copied again', async () => {
    const source = filled('source', 4 * MIB);
    const liar = new MemoryDevice('liar', 4 * MIB);
    const submit = liar.submit.bind(liar);
    liar.submit = (bio) => {
      submit(bio);
      if (bio.op === 1 && bio.sector <= 3000 && 3000 < bio.sector + bio.sectorCount)
        liar.poke(3000, new Uint8Array(512));
    };
    const copy = await copied(mapperWith([source, liar]), 'source', ['liar'], { verify: true });
    expect(copy.complete).toBe(false);
    expect(copy.destinations[0]!.differing).toEqual([{ start: 3000, end: 3001 }]);
    expect(copy.destinations[0]!.map.count(DONE)).toBe(4 * MIB - 1);
  });
});

describe('verification of holes', () => {
  it('reads nothing where both sides have none, and finds data where the source has none', async () => {
    const folder = tempDir();
    const [from, to] = [join(folder, 's.img'), join(folder, 'd.img')];
    writeFileSync(from, '');
    truncateSync(from, 2 ** 41);
    const bytes = randomBytes(1 << 20, 1);
    for (const at of [0, 2 ** 40, 2 ** 41 - (1 << 20)]) {
      const fd = openSync(from, 'r+');
      writeSync(fd, bytes, 0, bytes.byteLength, at);
      closeSync(fd);
    }
    const copy = await Copy.open(mapperWith([]), from, [to], { verify: true });
    await copy.run();
    await copy.close();
    expect(copy.complete).toBe(true);
    expect(copy.verifiedSectorCount).toBe(2 ** 32);
    const other = new MemoryDevice('other', 4 * MIB);
    const submit = other.submit.bind(other);
    // A device that keeps its old bytes where it was told to zero.
    other.submit = (bio) => {
      submit(bio);
      if (bio.op === REQ_OP_WRITE_ZEROES) other.poke(3000, new Uint8Array(512).fill(7));
    };
    const empty = new MemoryDevice('empty', 4 * MIB);
    const lied = await copied(mapperWith([empty, other]), 'empty', ['other'], { verify: true });
    expect(lied.destinations[0]!.differing).toEqual([{ start: 3000, end: 3001 }]);
  });
});

describe('what is refused', () => {
  it.each<[string, string | null, string[], RegExp, string]>([
    ['the source itself', 'a', ['a'], /a is the source/, 'EINVAL'],
    ['a part of it', 'a:0+60', ['a:40+60'], /is the source/, 'EINVAL'],
    ['one destination twice', 'a', ['b', 'b'], /is the destination b/, 'EINVAL'],
    [
      'one too small',
      'b',
      ['a'],
      /a is too small: 200 sectors \(100 KiB\) are wanted, and there are 100 sectors \(50\.0 KiB\)/,
      'ENOSPC',
    ],
    ['a region too small', 'a', ['b:0+50'], /too small/, 'ENOSPC'],
    ['a region past the end', 'a:90+20', ['b'], /a:90\+20 is too small/, 'ENOSPC'],
    ['a read-only one', 'a', ['ro'], /read-only/, 'EROFS'],
    ['65 of them', 'a', Array.from({ length: 65 }, () => 'b'), /1 to 64/, 'EINVAL'],
    ['none', 'a', [], /0 destinations/, 'EINVAL'],
    ['no sectors', 'a:0+0', ['b'], /no range/, 'EINVAL'],
    ['a source that is not there', 'nowhere.img', ['b'], /does not exist/, 'ENODEV'],
  ])('%s', async (_, source, dests, message, code) => {
    const devices = [
      new MemoryDevice('a', 100),
      new MemoryDevice('b', 200),
      new MemoryDevice('ro', 200, { readOnly: true }),
    ];
    await expect(Copy.open(mapperWith(devices), source, dests)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
  });

  it('leaves no image behind that was made for it', async () => {
    const path = join(tempDir(), 'new.img');
    const dm = mapperWith([new MemoryDevice('a', 100)]);
    await expect(Copy.open(dm, 'a', [path, join(tempDir(), 'no', 'folder', 'b.img')])).rejects.toThrow(/can't be made/);
    expect(existsSync(path)).toBe(false);
  });

  it('is one destination of several that is too small; the others get all of it', async () => {
    const source = filled('source', 100);
    const [good, small] = [new MemoryDevice('good', 100), new MemoryDevice('small', 99)];
    const dm = mapperWith([source, good, small]);
    const copy = await copied(dm, 'source', ['small', 'good'], { verify: true });
    expect(copy.complete).toBe(false);
    expect(same(source, good)).toBe(true);
    expect(small.peek(0, 99)).toEqual(new Uint8Array(99 * 512));
    expect(copy.results[0]).toMatchObject({ label: 'small', error: { code: 'ENOSPC' } });
    // Others that can't be opened stop the copy, unless it is to keep going.
    await expect(Copy.open(dm, 'source', ['nowhere/x', 'good'])).rejects.toThrow(/can't be made/);
    const going = await copied(dm, 'source', ['nowhere/x', 'good'], { keepGoing: true });
    expect([going.complete, going.destinations.length, going.results.length]).toEqual([false, 1, 2]);
  });
});

describe('file to file', () => {
  it.each(['copied', 'refused', 'refused now and then'] as const)(
    'the bytes are the same where it is %s',
    async (how) => {
      const folder = tempDir();
      const [from, to] = [join(folder, 'a.img'), join(folder, 'b.img')];
      const bytes = randomBytes(40 * MIB * 512 + 512 * 3, 11);
      writeFileSync(from, bytes);
      const real = FileCopier.prototype.copy;
      let count = 0;
      const spy = vi.spyOn(FileCopier.prototype, 'copy').mockImplementation(function (this: FileCopier, start, end) {
        const isRefused = how === 'refused' || (how !== 'copied' && ++count % 3 === 0);
        return isRefused ? Promise.resolve(false) : real.call(this, start, end);
      });
      onTestFinished(() => spy.mockRestore());
      const copy = await copied(mapperWith([]), `${from}:1+${40 * MIB}`, [to], { verify: true });
      expect(copy.complete).toBe(true);
      expect(readFileSync(to).equals(bytes.subarray(512, 512 + 40 * MIB * 512))).toBe(true);
      if (hasCopyRange()) expect(spy).toHaveBeenCalledTimes((40 * MIB) / FILE_PIECE_SECTOR_COUNT);
    },
  );
});

describe('files, one of which stands still', () => {
  it.runIf(hasCopyRange())('keep to one piece each under way, and the others finish', async () => {
    const folder = tempDir();
    const from = join(folder, 'a.img');
    const bytes = randomBytes(3 * FILE_PIECE_SECTOR_COUNT * 512, 17);
    writeFileSync(from, bytes);
    const real = FileCopier.prototype.copy;
    const copiers = new Set<FileCopier>();
    let open = (): void => {};
    const opened = new Promise<void>((resolve) => {
      open = resolve;
    });
    let waitingCount = 0;
    const spy = vi.spyOn(FileCopier.prototype, 'copy').mockImplementation(async function (
      this: FileCopier,
      start,
      end,
    ) {
      copiers.add(this);
      if ([...copiers][0] === this) {
        waitingCount++;
        await opened;
      }
      return real.call(this, start, end);
    });
    onTestFinished(() => spy.mockRestore());
    const paths = ['b.img', 'c.img', 'd.img'].map((name) => join(folder, name));
    const copy = await Copy.open(mapperWith([]), from, paths);
    const done = copy.run();
    const handled = (): number[] => copy.destinations.map(({ handledSectorCount }) => handledSectorCount);
    await expect.poll(handled).toEqual([0, 3 * FILE_PIECE_SECTOR_COUNT, 3 * FILE_PIECE_SECTOR_COUNT]);
    expect(waitingCount).toBe(1);
    open();
    await done;
    await copy.close();
    expect(copy.complete).toBe(true);
    for (const path of paths) expect(readFileSync(path).equals(bytes)).toBe(true);
  });
});

describe('a source that is cut while it is copied from file to file', () => {
  const CUT = 9 * MIB + 1001;

  async function cutAndCopy(destinations: string[], options: CopyOptions = {}) {
    const folder = tempDir();
    const from = join(folder, 'a.img');
    const bytes = randomBytes(12 * MIB * 512, 13);
    writeFileSync(from, bytes);
    const paths = destinations.map((name) => join(folder, name));
    const copy = await Copy.open(mapperWith([]), from, paths, options);
    truncateSync(from, CUT * 512);
    await copy.run();
    await copy.close();
    return { copy, bytes, paths };
  }

  it('is named with its block, on every destination, and the map is true', async () => {
    const { copy, bytes, paths } = await cutAndCopy(['b.img', 'c.img']);
    expect(copy.failure?.message).toContain(`sector ${CUT}`);
    for (const [index, path] of paths.entries()) {
      const { map } = copy.destinations[index]!;
      const to = readFileSync(path);
      for (const { start, end } of map.ranges([DONE])) {
        expect(to.subarray(start * 512, end * 512).equals(bytes.subarray(start * 512, end * 512))).toBe(true);
      }
    }
    // What is told begins with a block of the copy, not with what the kernel was to move in one piece.
    const failures = copy.destinations.flatMap((_, index) => failuresOf(copy, index));
    expect(failures.join('\n')).toMatch(new RegExp(`^${9 * MIB}-\\d+ read: Input/output error$`, 'm'));
  });

  it('loses with keepGoing what is gone, and no sector more', async () => {
    const { copy, bytes, paths } = await cutAndCopy(['b.img', 'c.img'], { keepGoing: true });
    for (const [index, path] of paths.entries()) {
      expect(failuresOf(copy, index)).toEqual([`${CUT}-${12 * MIB - 1} read: Input/output error`]);
      expect(copy.destinations[index]!.map.count(DONE)).toBe(CUT);
      expect(
        readFileSync(path)
          .subarray(0, CUT * 512)
          .equals(bytes.subarray(0, CUT * 512)),
      ).toBe(true);
    }
  });
});

describe('a copy and its model', () => {
  it('agree, whatever fails where', async () => {
    const place = fc.record({ start: fc.nat(4 * MIB - 1), count: fc.integer({ min: 1, max: 300 }) });
    const plan = fc.record({
      reads: fc.array(place, { maxLength: 3 }),
      writes: fc.array(place, { maxLength: 3 }),
      keepGoing: fc.boolean(),
    });
    await fc.assert(
      fc.asyncProperty(plan, async ({ reads, writes, keepGoing }) => {
        const spans = (places: typeof reads): [number, number][] =>
          places.map(({ start, count }) => [start, Math.min(count, 4 * MIB - start)]);
        const content = randomBytes(4 * MIB * 512, 5);
        const faults = spans(reads).map(
          ([sector, sectorCount]) => ({ kind: 'error', op: 'read', region: { sector, sectorCount } }) as const,
        );
        const source = new SimulatedDevice('source', 4 * MIB, { seed: 1, content, faults });
        const disk = failing('disk', 4 * MIB, 'write', spans(writes));
        const copy = await copied(mapperWith([source, disk]), 'source', ['disk'], { keepGoing });
        const isBad = (at: number): boolean =>
          [...spans(reads), ...spans(writes)].some(([start, count]) => at >= start && at < start + count);
        for (const { start, end } of copy.destinations[0]!.map.ranges([DONE])) {
          expect(Buffer.compare(disk.peek(start, end - start), content.subarray(start * 512, end * 512))).toBe(0);
        }
        if (!keepGoing) return;
        // Everything that could be had is there, and nothing else is missing.
        let badCount = 0;
        for (let at = 0; at < 4 * MIB; at++) if (isBad(at)) badCount++;
        expect(copy.destinations[0]!.map.count(DONE)).toBe(4 * MIB - badCount);
      }),
      { numRuns: runs(20) },
    );
  });

  it('with the Nth request failing, for every N', async () => {
    await failEveryNth(
      async (context) => {
        const source = filled('source', 3 * MIB);
        const disk = new SimulatedDevice('disk', 3 * MIB, { seed });
        const dm = mapperWith([]);
        dm.devices.register('source', context.wrap(source));
        dm.devices.register('disk', context.wrap(disk));
        const copy = await copied(dm, 'source', ['disk'], { verify: true });
        expect(copy.complete).toBe(!context.injected);
        for (const { start, end } of copy.destinations[0]!.map.ranges([DONE])) {
          expect(Buffer.compare(disk.peek(start, end - start), source.peek(start, end - start))).toBe(0);
        }
      },
      { seed },
    );
  });
});
