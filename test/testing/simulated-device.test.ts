import { describe, expect, test } from 'vitest';
import { Bio, REQ_FUA, REQ_OP_WRITE, REQ_PREFLUSH } from '../../src/block/bio.ts';
import { submitBio } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import {
  DiskImage,
  issue,
  randomFromSeed,
  randomRequest,
  SimulatedDevice,
  type SimulatedDeviceOptions,
  SimulatedReactor,
} from '../../src/testing/index.ts';

const filled = (value: number, sectorCount = 1) => new Uint8Array(sectorCount * 512).fill(value);

/** A disk on virtual time whose requests take 10 ms unless told otherwise. */
function timed(options: SimulatedDeviceOptions = {}) {
  const reactor = new SimulatedReactor({ seed: 1 });
  return { reactor, disk: new SimulatedDevice('disk', 64, { seed: 1, reactor, latency: 10, ...options }) };
}

const instant = (options: SimulatedDeviceOptions = {}) => new SimulatedDevice('disk', 64, { seed: 1, ...options });

/** First byte of each sector. */
const firstBytes = (bytes: Uint8Array) => Array.from({ length: bytes.length / 512 }, (_, i) => bytes[i * 512]);

describe('determinism', () => {
  function run(seed: number): { log: readonly string[]; image: DiskImage } {
    const reactor = new SimulatedReactor({ seed });
    const disk = new SimulatedDevice('disk', 64, {
      seed,
      reactor,
      latency: { read: [1, 3], write: [2, 9], flush: 12 },
      faults: [{ kind: 'error', probability: 0.1, written: 'some' }],
      queueDepth: 6,
      cacheSectorCount: 40,
    });
    const random = randomFromSeed(77);
    for (let i = 0; i < 200; i++) {
      const { op, ...request } = randomRequest(random, {
        sectorCount: 64,
        flagProbability: 0.2,
        operations: ['read', 'write', 'write', 'discard', 'write-zeroes', 'flush'],
      });
      issue(disk, op, request);
      if (i % 10 === 9) reactor.run(5);
    }
    return { log: disk.log, image: disk.crash() };
  }

  test('the same seed gives the same run, another one another', () => {
    const [a, again, other] = [run(1), run(1), run(2)];
    expect(a.log).toEqual(again.log);
    expect(a.image.equals(again.image)).toBe(true);
    expect(a.log).not.toEqual(other.log);
    expect(a.image.equals(other.image)).toBe(false);
  });

  test('without a seed one is drawn, and can be read', () => {
    const disk = new SimulatedDevice('disk', 64);
    expect(disk.seed).toBe(disk.seed >>> 0);
    expect(new SimulatedDevice('disk', 64, { seed: -1 }).seed).toBe(0xffffffff);
  });
});

describe('reads', () => {
  test('find what has been acknowledged', () => {
    const disk = instant();
    issue(disk, 'write', { sector: 3, data: filled(1, 2) });
    expect(firstBytes(issue(disk, 'read', { sector: 2, sectorCount: 4 }).data)).toEqual([0, 1, 1, 0]);
    expect(firstBytes(disk.peek(3, 1))).toEqual([1]);
    expect(() => disk.peek(64, 1)).toThrow(RangeError);
  });

  test('that race with a write find old or new, sector by sector', () => {
    const { disk, reactor } = timed({ latency: { read: 1, write: 10 }, content: filled(1, 64) });
    issue(disk, 'write', { sector: 0, data: filled(2, 64) });
    const during = issue(disk, 'read', { sectorCount: 64 });
    reactor.run(1);
    expect(new Set(firstBytes(during.data))).toEqual(new Set([1, 2]));
    const across = [1, 2, 3].map(() => issue(disk, 'read', { sectorCount: 64 }));
    reactor.runUntilIdle();
    for (const read of across) expect(new Set(firstBytes(read.data))).toEqual(new Set([1, 2]));
    const after = issue(disk, 'read', { sectorCount: 64 });
    reactor.runUntilIdle();
    expect(new Set(firstBytes(after.data))).toEqual(new Set([2]));
  });

  test('that were submitted before a write ended may still find the old data', () => {
    const { disk, reactor } = timed({ latency: { read: 10, write: 1 }, content: filled(1, 64) });
    const read = issue(disk, 'read', { sectorCount: 64 });
    issue(disk, 'write', { data: filled(2, 64) });
    reactor.runUntilIdle();
    expect(new Set(firstBytes(read.data))).toEqual(new Set([1, 2]));
  });

  test('of two writes that race, each sector has one', () => {
    const { disk, reactor } = timed();
    issue(disk, 'write', { data: filled(1, 64) });
    issue(disk, 'write', { data: filled(2, 64) });
    reactor.runUntilIdle();
    expect(new Set(firstBytes(disk.peek(0, 64)))).toEqual(new Set([1, 2]));
    issue(disk, 'write', { data: filled(3, 64) });
    reactor.runUntilIdle();
    expect(new Set(firstBytes(disk.peek(0, 64)))).toEqual(new Set([3]));
  });
});

describe('what a crash leaves', () => {
  test('writes without a flush may go, those before a flush stay', () => {
    const disk = instant();
    issue(disk, 'write', { sector: 0, data: filled(1) });
    issue(disk, 'flush');
    issue(disk, 'write', { sector: 1, data: filled(2) });
    expect(firstBytes(disk.crashImage('none').read(0, 2))).toEqual([1, 0]);
    expect(firstBytes(disk.crashImage('all').read(0, 2))).toEqual([1, 2]);
    expect(disk.stats().cachedCount).toBe(1);
  });

  test('a flush covers what had ended when it was submitted, and nothing later', () => {
    const { disk, reactor } = timed({ latency: { write: 10, flush: 20 } });
    issue(disk, 'write', { sector: 0, data: filled(1) });
    reactor.run(10);
    issue(disk, 'write', { sector: 1, data: filled(2) });
    issue(disk, 'flush');
    reactor.run(15); // the second write has ended, the flush has not
    expect(firstBytes(disk.crashImage('none').read(0, 2))).toEqual([0, 0]);
    reactor.run(5);
    expect(firstBytes(disk.crashImage('none').read(0, 2))).toEqual([1, 0]);
  });

  test('FUA makes that write durable and no other, and nothing older covers it', () => {
    const disk = instant();
    issue(disk, 'write', { sector: 0, data: filled(1, 2) });
    issue(disk, 'write', { sector: 1, data: filled(2, 2), flags: REQ_FUA });
    expect(firstBytes(disk.crashImage('none').read(0, 3))).toEqual([0, 2, 2]);
    expect(firstBytes(disk.crashImage('all').read(0, 3))).toEqual([1, 2, 2]);
    issue(disk, 'write', { sector: 2, data: filled(3) });
    issue(disk, 'flush');
    expect(firstBytes(disk.crashImage('none').read(0, 3))).toEqual([1, 2, 3]);
  });

  test('PREFLUSH flushes what had ended, before its own data goes out', () => {
    const { disk, reactor } = timed({ latency: { write: 10, flush: 20 } });
    issue(disk, 'write', { sector: 0, data: filled(1) });
    reactor.run(10);
    issue(disk, 'write', { sector: 1, data: filled(2), flags: REQ_PREFLUSH });
    issue(disk, 'write', { sector: 2, data: filled(3) });
    reactor.run(19);
    expect(firstBytes(disk.crashImage({ only: 1 }).read(0, 3))).toEqual([0, 0, 3]); // the second is not on its way yet
    expect(firstBytes(disk.crashImage('all').read(0, 3))).toEqual([1, 0, 3]);
    reactor.run(1);
    expect(firstBytes(disk.crashImage('none').read(0, 3))).toEqual([1, 0, 0]);
    expect(firstBytes(disk.crashImage('all').read(0, 3))).toEqual([1, 2, 3]);
    reactor.runUntilIdle();
    expect(firstBytes(disk.crashImage('none').read(0, 3))).toEqual([1, 0, 0]);
  });

  test('without a cache a write is durable when it ends, and can be torn before', () => {
    const { disk, reactor } = timed({ limits: { hasWriteCache: false } });
    const write = issue(disk, 'write', { data: filled(1, 8) });
    reactor.run(9);
    const outcomes = new Set<string>();
    for (let seed = 0; seed < 100; seed++) outcomes.add(firstBytes(disk.crashImage({ seed }).read(0, 8)).join(''));
    expect(outcomes).toContain('00000000');
    expect(outcomes).toContain('11111111');
    expect(outcomes).toContain('11100000');
    expect(outcomes.size).toBeGreaterThan(15);
    reactor.run(1);
    expect(write.errno).toBe(0);
    expect(firstBytes(disk.crashImage('none').read(0, 8))).toEqual(new Array(8).fill(1));
  });

  test('a physical block is never torn', () => {
    const disk = instant({ limits: { physicalBlockSize: 4096 } });
    issue(disk, 'write', { sector: 4, data: filled(1, 24) });
    for (let seed = 0; seed < 200; seed++) {
      const bytes = firstBytes(disk.crashImage({ seed }).read(0, 32)).join('');
      expect(bytes).toMatch(/^0{4}(?:0000|1111)(?:0{8}|1{8})(?:0{8}|1{8})(?:0000|1111)0{4}$/);
    }
  });

  test('of overlapping writes the newest that survives is there', () => {
    const disk = instant();
    for (const value of [1, 2, 3]) issue(disk, 'write', { data: filled(value) });
    const left = (choice: Parameters<SimulatedDevice['crashImage']>[0]) => disk.crashImage(choice).read(0, 1)[0];
    expect([left({ only: 0 }), left({ only: 1 }), left({ except: 2 }), left('all'), left('none')]).toEqual([
      1, 2, 2, 3, 0,
    ]);
  });

  test('a crash leaves the object dead, and reopen is the disk afterwards', () => {
    const disk = instant();
    issue(disk, 'write', { data: filled(1), flags: REQ_FUA });
    expect(() => disk.reopen()).toThrow('has not crashed');
    const image = disk.crash();
    expect(image.read(0, 1)[0]).toBe(1);
    expect(disk.crashed).toBe(true);
    expect(issue(disk, 'read', { sectorCount: 1 }).errno).toBe(Errno.EIO);
    disk.queryExtent(0, 1, (errno) => expect(errno).toBe(Errno.EIO));
    expect(() => disk.crash()).toThrow('crashed already');
    const after = disk.reopen();
    expect(after.seed).not.toBe(disk.seed);
    expect(issue(after, 'read', { sectorCount: 1 }).data[0]).toBe(1);
  });

  test('requests in flight never end, or fail', () => {
    for (const inFlight of ['forget', 'fail'] as const) {
      const { disk, reactor } = timed({ queueDepth: 1 });
      const memory = filled(9);
      const requests = [issue(disk, 'read', { data: memory }), issue(disk, 'write', { data: filled(1) })];
      disk.crash({ inFlight });
      reactor.runUntilIdle();
      const expected = inFlight === 'fail' ? Errno.EIO : undefined;
      expect(requests.map((request) => request.errno)).toEqual([expected, expected]);
      expect(memory[0]).toBe(9);
    }
  });

  test('a full cache makes writes durable by itself', () => {
    const disk = instant({ cacheSectorCount: 4 });
    for (let sector = 0; sector < 16; sector++) issue(disk, 'write', { sector, data: filled(1) });
    expect(disk.stats().cachedCount).toBe(4);
    const durable = firstBytes(disk.crashImage('none').read(0, 16));
    expect(durable.filter((byte) => byte === 1).length).toBe(12);
    expect(durable.lastIndexOf(1)).toBeGreaterThan(11); // not simply the oldest
  });

  test('after a failed flush the next one covers the same writes, or not', () => {
    for (const failedFlush of ['keep', 'forget'] as const) {
      const disk = instant({ failedFlush, faults: [{ kind: 'error', op: 'flush', nth: 0 }] });
      issue(disk, 'write', { data: filled(1) });
      expect(issue(disk, 'flush').errno).toBe(Errno.EIO);
      expect(issue(disk, 'flush').errno).toBe(0);
      expect(disk.crashImage('none').read(0, 1)[0]).toBe(failedFlush === 'keep' ? 1 : 0);
    }
  });
});

describe('discard and write-zeroes', () => {
  test('discarded sectors read as old, zeroes or noise, and go on to do so', () => {
    const disk = instant({ content: filled(7, 64) });
    expect(issue(disk, 'discard', { sector: 0, sectorCount: 60 }).errno).toBe(0);
    const bytes = disk.peek(0, 64);
    const kinds = Array.from({ length: 64 }, (_, i) => {
      const sector = bytes.subarray(i * 512, i * 512 + 512);
      if (sector.every((byte) => byte === 7)) return 'old';
      return sector.every((byte) => byte === 0) ? 'zeroes' : 'noise';
    });
    expect(new Set(kinds)).toEqual(new Set(['old', 'zeroes', 'noise']));
    expect(kinds.slice(60)).toEqual(['old', 'old', 'old', 'old']);
    expect(disk.peek(0, 64)).toEqual(bytes);
    expect(firstBytes(disk.crashImage('none').read(0, 64)).every((byte) => byte === 7)).toBe(true);
  });

  test.each([
    ['zeroes', 0],
    ['old', 7],
  ] as const)('discardedSectors: %s', (discardedSectors, byte) => {
    const disk = instant({ content: filled(7, 64), discardedSectors });
    issue(disk, 'discard', { sectorCount: 64 });
    expect(new Set(disk.peek(0, 64))).toEqual(new Set([byte]));
  });

  test('zeroes are volatile as writes are, on a device of any size', () => {
    const disk = new SimulatedDevice('huge', 2 ** 50, { seed: 1 });
    issue(disk, 'write', { sector: 2 ** 49, data: filled(1), flags: REQ_FUA });
    expect(issue(disk, 'write-zeroes', { sectorCount: 2 ** 50 }).errno).toBe(0);
    expect(disk.peek(2 ** 49, 1)[0]).toBe(0);
    expect(disk.crashImage('none').read(2 ** 49, 1)[0]).toBe(1);
    expect(disk.crashImage('all').read(2 ** 49, 1)[0]).toBe(0);
    expect(issue(disk, 'discard', { sectorCount: 2 ** 50 }).errno).toBe(0);
  });

  test('the map says what is stored', () => {
    const disk = new SimulatedDevice('huge', 2 ** 50, { seed: 1 });
    issue(disk, 'write', { sector: 10, data: filled(1, 2) });
    const extents: (number | undefined)[][] = [];
    for (const sector of [0, 10, 12]) disk.queryExtent(sector, 2 ** 49, (...answer) => extents.push(answer));
    disk.queryExtent(8, 1, (...answer) => extents.push(answer));
    expect(extents).toEqual([
      [0, 10, 3],
      [0, 2, 0],
      [0, 2 ** 49, 3],
      [0, 1, 3],
    ]);
  });
});

describe('faults', () => {
  test('errors by region say where', () => {
    const disk = instant({ faults: [{ kind: 'error', op: 'read', region: { sector: 10, sectorCount: 2 } }] });
    expect(issue(disk, 'read', { sector: 8, sectorCount: 2 }).errno).toBe(0);
    expect(issue(disk, 'read', { sector: 8, sectorCount: 3 }).bio).toMatchObject({
      status: Errno.EIO,
      errorSector: 10,
      errorDevice: disk,
    });
    expect(issue(disk, 'read', { sector: 11, sectorCount: 3 }).bio.errorSector).toBe(11);
    expect(issue(disk, 'write', { sector: 10, data: filled(1) }).errno).toBe(0);
  });

  test('errors by count, with any errno', () => {
    const disk = instant({ faults: [{ kind: 'error', op: 'write', nth: 1, count: 2, errno: Errno.ENOSPC }] });
    const results = [0, 1, 2, 3].map((sector) => issue(disk, 'write', { sector, data: filled(1) }).errno);
    expect(results).toEqual([0, Errno.ENOSPC, Errno.ENOSPC, 0]);
    expect(firstBytes(disk.peek(0, 4))).toEqual([1, 0, 0, 1]);
    expect(disk.stats().faults).toEqual({ error: 2 });
  });

  test('a failed write has written nothing, some or all of it', () => {
    for (const [written, counts] of [
      ['none', [0]],
      ['all', [16]],
      ['some', [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]],
    ] as const) {
      const disk = instant({ seed: 5, faults: [{ kind: 'error', written }] });
      expect(issue(disk, 'write', { data: filled(1, 16) }).errno).toBe(Errno.EIO);
      expect(counts).toContain(firstBytes(disk.peek(0, 16)).filter((byte) => byte === 1).length);
    }
  });

  test('a failed FUA write is not durable', () => {
    const disk = instant({ faults: [{ kind: 'error', written: 'all' }] });
    issue(disk, 'write', { data: filled(1), flags: REQ_FUA });
    expect(disk.crashImage('none').read(0, 1)[0]).toBe(0);
  });

  test('probability is about a share', () => {
    const disk = instant({ faults: [{ kind: 'error', probability: 0.25 }] });
    let failed = 0;
    for (let i = 0; i < 1000; i++) if (issue(disk, 'read', { sectorCount: 1 }).errno !== 0) failed++;
    expect(failed).toBeGreaterThan(180);
    expect(failed).toBeLessThan(320);
  });

  test('writes that are lost, torn or misdirected are reported as done', () => {
    for (const kind of ['lost-write', 'torn-write', 'misdirected-write'] as const) {
      const disk = instant({ seed: 3, faults: [{ kind }] });
      expect(issue(disk, 'write', { sector: 8, data: filled(1, 8) }).errno).toBe(0);
      issue(disk, 'flush');
      const inPlace = firstBytes(disk.peek(8, 8)).filter((byte) => byte === 1).length;
      const anywhere = firstBytes(disk.peek(0, 64)).filter((byte) => byte === 1).length;
      if (kind === 'lost-write') expect(anywhere).toBe(0);
      else if (kind === 'misdirected-write') expect([inPlace, anywhere]).toEqual([0, 8]);
      else expect(inPlace).toBeLessThan(8);
      expect(disk.crashImage('none').equals(disk.image())).toBe(true);
    }
  });

  test('reads and writes go astray to where they are told', () => {
    const disk = instant({
      faults: [
        { kind: 'misdirected-write', toSector: 40 },
        { kind: 'misdirected-read', fromSector: 1000, op: 'read', nth: 1 },
      ],
    });
    issue(disk, 'write', { sector: 8, data: filled(1) });
    expect(issue(disk, 'read', { sector: 40, sectorCount: 1 }).data[0]).toBe(1);
    disk.clearFaults();
    issue(disk, 'write', { sector: 63, data: filled(2) });
    disk.addFault({ kind: 'misdirected-read', fromSector: 1000 });
    expect(issue(disk, 'read', { sector: 8, sectorCount: 1 }).data[0]).toBe(2); // the last sector that there is
  });

  test('bit rot turns one bit, for as long as the sector is not written', () => {
    const onesIn = (bytes: Uint8Array) =>
      bytes.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);
    const disk = instant({ faults: [{ kind: 'bit-rot', nth: 0, lasting: false }] });
    const read = () => onesIn(issue(disk, 'read', { sectorCount: 64 }).data);
    expect([read(), read()]).toEqual([1, 0]);
    disk.addFault({ kind: 'bit-rot', nth: 0 });
    expect([read(), read()]).toEqual([1, 1]);
    expect(onesIn(disk.crashImage('none').read(0, 64))).toBe(1);
    issue(disk, 'write', { data: filled(0, 64) });
    expect(read()).toBe(0);
    disk.rot(5, 4095);
    expect(disk.peek(5, 1)[511]).toBe(0x80);
  });

  test('a flush that is ignored covers nothing, nor do FUA and PREFLUSH', () => {
    const disk = instant({ faults: [{ kind: 'ignored-flush' }] });
    issue(disk, 'write', { sector: 0, data: filled(1) });
    issue(disk, 'write', { sector: 1, data: filled(1), flags: REQ_FUA | REQ_PREFLUSH });
    expect(issue(disk, 'flush').errno).toBe(0);
    expect(firstBytes(disk.crashImage('none').read(0, 2))).toEqual([0, 0]);
  });

  test('requests can take longer, or for ever', () => {
    const { disk, reactor } = timed({
      faults: [
        { kind: 'delay', milliseconds: 100, nth: 0 },
        { kind: 'hang', nth: 1 },
      ],
    });
    const [slow, never] = [issue(disk, 'read', { sectorCount: 1 }), issue(disk, 'read', { sectorCount: 1 })];
    reactor.run(109);
    expect(slow!.ended).toBe(false);
    reactor.runUntilIdle();
    expect([slow!.ended, never!.ended, disk.inFlightCount]).toEqual([true, false, 1]);
    disk.crash({ inFlight: 'fail' });
    expect(never!.errno).toBe(Errno.EIO);
  });

  test('a latency needs a reactor', () => {
    expect(() => instant({ latency: 5 })).toThrow('needs a reactor');
    expect(() => instant({ faults: [{ kind: 'delay', milliseconds: 1 }] })).toThrow('needs a reactor');
    expect(() => instant().addFault({ kind: 'delay', milliseconds: 1 })).toThrow('needs a reactor');
  });
});

describe('the queue, the log and the numbers', () => {
  test('past the depth requests wait in their order', () => {
    const { disk, reactor } = timed({ queueDepth: 2 });
    const ended: number[] = [];
    for (let i = 0; i < 5; i++)
      issue(disk, 'write', { sector: i, data: filled(1) }).bio.onEnd = () => ended.push(reactor.now());
    expect(disk.stats()).toMatchObject({ inFlightCount: 5, maxInFlightCount: 5, inFlightByteLength: 2560 });
    reactor.runUntilIdle();
    expect(ended).toEqual([10, 10, 20, 20, 30]);
    expect(disk.stats()).toMatchObject({ inFlightCount: 0, inFlightByteLength: 0, maxInFlightByteLength: 2560 });
    expect(disk.stats().totalLatencyMilliseconds).toBe(90);
  });

  test('the log reads well and is bounded', () => {
    const { disk, reactor } = timed({ maxLogCount: 2, faults: [{ kind: 'error', nth: 1, errno: Errno.ENOSPC }] });
    issue(disk, 'flush');
    issue(disk, 'write', { sector: 8, data: filled(1, 2), flags: REQ_FUA | REQ_PREFLUSH });
    reactor.runUntilIdle();
    issue(disk, 'read', { sector: 1, sectorCount: 1 });
    expect(disk.log).toEqual([
      '#2 write 8+2 preflush fua at 0 ms: ENOSPC at 20 ms (error)',
      '#3 read 1+1 at 20 ms: in flight',
    ]);
    expect(disk.stats().operations).toMatchObject({
      flush: { submitted: 1, succeeded: 1 },
      write: { submitted: 1, failed: 1, sectorCount: 0 },
      read: { submitted: 1, succeeded: 0, failed: 0 },
    });
  });

  test('too little memory is EFAULT', () => {
    const disk = instant();
    const bio = new Bio();
    bio.reset(REQ_OP_WRITE, 0, disk, 0, 2);
    bio.vecs = [{ page: new Uint8Array(512), offset: 0, byteLength: 512 }];
    bio.onEnd = () => {};
    submitBio(bio);
    expect(bio.status).toBe(Errno.EFAULT);
    expect(disk.inFlightCount).toBe(0);
  });

  test('sizes and content are checked, a read-only disk refuses', () => {
    expect(() => new SimulatedDevice('x', -1)).toThrow('no number of sectors');
    expect(() => new SimulatedDevice('x', 1, { content: filled(1, 2) })).toThrow('content of 2 sectors on 1');
    const disk = instant({ readOnly: true, content: DiskImage.fromBytes(filled(3)) });
    expect(issue(disk, 'write', { data: filled(1) }).errno).toBe(Errno.EPERM);
    expect(issue(disk, 'read', { sectorCount: 1 }).data[0]).toBe(3);
  });

  test('an image knows its differences', () => {
    const [a, b] = [
      DiskImage.fromBytes(filled(1, 4)),
      DiskImage.fromBytes(new Uint8Array([...filled(1, 3), ...filled(2)])),
    ];
    expect(a.differences(b)).toEqual([3]);
    expect(a.equals(DiskImage.fromBytes(filled(1, 3)))).toBe(false);
    expect(() => a.read(4, 1)).toThrow(RangeError);
    expect(() => DiskImage.fromBytes(new Uint8Array(5))).toThrow('whole number');
  });
});
