// The reserve: what is in flight never passes it, whoever came first goes first, and nothing waits for ever.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import { type BlockDevice, submitBio } from '../../src/block/block-device.ts';
import { DM_MAPIO_SUBMITTED, type TargetType } from '../../src/block/target.ts';
import { DmIoClient, type DmIoMemory, dmIo } from '../../src/dm-io/index.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { builtinTargets, Targets } from '../../src/targets/index.ts';
import { activate, CountingResolver, numbered, RecordingDevice } from '../support/stack.ts';
import { expectOne, ManualReactor, MeteredDevice, makeClient, PageMeter, region } from './support.ts';

function buffer(sectorCount: number): DmIoMemory {
  return { type: 'buffer', buffer: numbered(sectorCount) };
}

describe('the bound', () => {
  it.each([0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY])('cannot be %d', (pageCount) => {
    const invalid = expect.objectContaining({ code: 'EINVAL' });
    expect(() => new DmIoClient({ reactor: new ManualReactor(), pageCount })).toThrow(invalid);
    const { client } = makeClient(3);
    expect(() => client.resize(pageCount)).toThrow(invalid);
    expect(client.pageCount).toBe(3);
  });

  it('is 1024 pages unless given', () => {
    expect(new DmIoClient({ reactor: new ManualReactor() }).pageCount).toBe(1024);
  });

  it('serves a request that is larger, in pieces', () => {
    const { client, reactor } = makeClient(3);
    const a = new MeteredDevice('a', 64);
    a.hold = true;
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_WRITE, memory: buffer(64), client, notify }, [region(a, 0, 64)]);
    let most = 0;
    while (a.held.length > 0) {
      most = Math.max(most, client.pagesInFlight);
      a.finish(a.held.shift()!);
    }
    reactor.run();
    expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
    expect(a.bytes).toEqual(numbered(64));
    expect(a.log).toEqual(['write 0+24', 'write 24+24', 'write 48+16']);
    expect([most, a.meter.highWater, client.pagesInFlight]).toEqual([3, 3, 0]);
  });

  it('counts a bio without data as a page', () => {
    const { client, reactor } = makeClient(2);
    const a = new MeteredDevice('a', 64, undefined, { maxDiscardSectorCount: 8 });
    a.hold = true;
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_DISCARD, client, notify }, [region(a, 0, 64)]);
    expect(a.held).toHaveLength(2);
    while (a.held.length > 0) a.finish(a.held.shift()!);
    reactor.run();
    expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
    expect(a.meter.highWater).toBe(2);
  });

  it('lets a logical block that is larger go alone', () => {
    const { client, reactor } = makeClient(2);
    const a = new MeteredDevice('a', 256, undefined, { logicalBlockSize: 65536 });
    a.hold = true;
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_WRITE, memory: buffer(256), client, notify }, [region(a, 0, 256)]);
    for (let i = 0; i < 2; i++) {
      expect(a.held).toHaveLength(1);
      a.finish(a.held.shift()!);
    }
    reactor.run();
    expect(outcome.callCount).toBe(1);
    expect(a.log).toEqual(['write 0+128', 'write 128+128']);
  });

  it('gives other code in the reactor its turn during a long request', () => {
    const { client, reactor } = makeClient(1);
    const a = new MeteredDevice('a', 2048);
    const { outcome, notify } = expectOne();
    dmIo({ op: REQ_OP_WRITE, memory: buffer(2048), client, notify }, [region(a, 0, 2048)]);
    expect(a.log).toHaveLength(64);
    reactor.turn();
    expect(a.log).toHaveLength(128);
    reactor.run();
    expect(a.log).toHaveLength(256);
    expect(outcome.callCount).toBe(1);
  });
});

describe('waiting', () => {
  it('is first come first served: a small request does not pass a large one', () => {
    const { client, reactor } = makeClient(4);
    const a = new MeteredDevice('a', 128);
    a.hold = true;
    const write = (sector: number, count: number) =>
      dmIo({ op: REQ_OP_WRITE, memory: buffer(count), client, notify: expectOne().notify }, [region(a, sector, count)]);
    write(0, 24);
    write(32, 32);
    write(64, 8);
    expect(a.log).toEqual(['write 0+24']);
    a.finish(a.held.shift()!);
    expect(a.log).toEqual(['write 0+24', 'write 32+32']);
    a.finish(a.held.shift()!);
    expect(a.log).toEqual(['write 0+24', 'write 32+32', 'write 64+8']);
    a.release();
    reactor.run();
    expect(client.pagesInFlight).toBe(0);
  });

  it('ends when the bound grows', () => {
    const { client } = makeClient(1);
    const a = new MeteredDevice('a', 64);
    a.hold = true;
    const { notify } = expectOne();
    for (let i = 0; i < 4; i++) {
      dmIo({ op: REQ_OP_READ, memory: buffer(8), client, notify }, [region(a, i * 8, 8)]);
    }
    expect(a.held).toHaveLength(1);
    client.resize(3);
    expect(a.held).toHaveLength(3);
    client.resize(9);
    expect(a.held).toHaveLength(4);
  });

  it('starts again below a bound that was made smaller', () => {
    const { client } = makeClient(4);
    const a = new MeteredDevice('a', 64);
    a.hold = true;
    const { notify } = expectOne();
    for (let i = 0; i < 6; i++) {
      dmIo({ op: REQ_OP_READ, memory: buffer(8), client, notify }, [region(a, i * 8, 8)]);
    }
    client.resize(2);
    expect([client.pageCount, client.pagesInFlight]).toEqual([2, 4]);
    for (const expected of [3, 2, 2, 2, 1, 0]) {
      a.finish(a.held.shift()!);
      expect(client.pagesInFlight).toBe(expected);
    }
    expect(a.log).toHaveLength(6);
  });

  it('is over for a callback that makes the next request', () => {
    const { client, reactor } = makeClient(2);
    const a = new MeteredDevice('a', 64);
    const rounds: bigint[] = [];
    const again = (errorBits: bigint): void => {
      rounds.push(errorBits);
      expect(client.pagesInFlight).toBe(0);
      if (rounds.length === 5) return;
      const notify = { fn: again };
      dmIo({ op: REQ_OP_WRITE, memory: buffer(16), client, notify }, [region(a, 0, 16)]);
      expect(dmIo({ op: REQ_OP_READ, memory: buffer(16), client }, [region(a, 0, 16)])).toBe(0);
    };
    dmIo({ op: REQ_OP_WRITE, memory: buffer(16), client, notify: { fn: again } }, [region(a, 0, 16)]);
    reactor.run();
    expect(rounds).toEqual([0n, 0n, 0n, 0n, 0n]);
    expect(a.meter.highWater).toBe(2);
  });
});

/** A target that copies each request to two devices through its own dm-io client, as a mirror does. */
function fanOutTarget(client: DmIoClient): TargetType<BlockDevice[]> {
  return {
    name: 'fan-out',
    version: [1, 0, 0],
    construct: (_target, args, setup) => args.map((argument) => setup.getDevice(argument)),
    map(target, bio) {
      const { sector, sectorCount: count, op, flags } = bio;
      const regions = target.context.map((bdev) => ({ bdev, sector: sector - target.begin, count }));
      const fn = (errorBits: bigint): void => bio.endIo(errorBits === 0n ? 0 : 5);
      client.io({ op, flags, memory: { type: 'bio', bio }, notify: { fn, immediate: true } }, regions);
      return DM_MAPIO_SUBMITTED;
    },
    iterateDevices: (target, visit) => {
      for (const device of target.context) visit(device, 0, target.sectorCount);
    },
  };
}

/** dm-io over `depth` mapped devices, each of which writes through dm-io to the next, and to a disk of its own. */
function makeStack(depth: number, reactor: ManualReactor, meter: PageMeter) {
  const disks = Array.from({ length: depth + 1 }, (_, i) => new MeteredDevice(`disk${i}`, 256, meter));
  const clients = Array.from({ length: depth + 1 }, () => new DmIoClient({ reactor, pageCount: 1 }));
  let top: BlockDevice = disks[0]!;
  for (let level = 1; level <= depth; level++) {
    const resolver = new CountingResolver(top, disks[level]!);
    const mapper = new Mapper(new Targets([...builtinTargets, fanOutTarget(clients[level]!)]), resolver, 300 + level);
    top = activate(mapper, `level${level}`, `0 256 fan-out ${top.name} disk${level}`);
  }
  return { disks, clients, client: clients[0]!, top };
}

describe('requests within requests', () => {
  it.each([1, 2, 5])('each draw on the reserve of their layer (%i deep), asynchronously', (depth) => {
    const reactor = new ManualReactor();
    const { disks, clients, client, top } = makeStack(depth, reactor, new PageMeter());
    for (const disk of disks) disk.hold = true;
    const outcomes = [0, 1, 2].map((i) => {
      const { outcome, notify } = expectOne();
      dmIo({ op: REQ_OP_WRITE, memory: buffer(64), client, notify }, [region(top, i * 64, 64)]);
      return outcome;
    });
    for (let busy = true; busy; ) {
      busy = false;
      for (const disk of disks) {
        const bio = disk.held.shift();
        if (bio === undefined) continue;
        disk.finish(bio);
        busy = true;
      }
      reactor.run();
    }
    for (const outcome of outcomes) expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
    for (const disk of disks)
      for (const i of [0, 1, 2]) expect(disk.bytes.subarray(i * 32768, (i + 1) * 32768)).toEqual(numbered(64));
    for (const each of clients) expect(each.pagesInFlight).toBe(0);
  });

  it.each([1, 2, 5])('and end inside a synchronous call (%i deep)', (depth) => {
    const reactor = new ManualReactor();
    const { disks, client, top } = makeStack(depth, reactor, new PageMeter());
    expect(dmIo({ op: REQ_OP_WRITE, memory: buffer(64), client }, [region(top, 100, 64)])).toBe(0);
    for (const disk of disks) expect(disk.bytes.subarray(100 * 512, 164 * 512)).toEqual(numbered(64));
    const memory = new Uint8Array(64 * 512);
    const source = region(disks[0]!, 100, 64);
    expect(dmIo({ op: REQ_OP_READ, memory: { type: 'buffer', buffer: memory }, client }, [source])).toBe(0);
    expect(memory).toEqual(numbered(64));
    expect(reactor.waitingCount).toBe(0);
  });
});

describe('the high-water mark', () => {
  it('never passes the bound, whatever is asked and however it ends', () => {
    const step = fc.oneof(
      {
        weight: 4,
        arbitrary: fc.record({
          kind: fc.constant('io'),
          regions: fc.array(fc.nat(40), { minLength: 1, maxLength: 4 }),
          op: fc.constantFrom(REQ_OP_WRITE, REQ_OP_DISCARD),
        }),
      },
      { weight: 4, arbitrary: fc.record({ kind: fc.constant('end'), which: fc.nat(50) }) },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant('resize'), pageCount: fc.integer({ min: 1, max: 12 }) }) },
    );
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 12 }),
        fc.array(step as fc.Arbitrary<Step>, { maxLength: 40 }),
        (pageCount, steps) => {
          const { client, reactor } = makeClient(pageCount);
          const meter = new PageMeter();
          const disks = [0, 1, 2].map((i) => new MeteredDevice(`d${i}`, 64, meter, { maxDiscardSectorCount: 16 }));
          for (const disk of disks) disk.hold = true;
          let asked = 0;
          let answered = 0;
          let allowed = pageCount;
          const check = (): void => {
            expect(meter.now).toBeLessThanOrEqual(allowed);
            expect(client.pagesInFlight).toBe(meter.now);
            // What was in flight above a bound that shrank may end, and counts until then.
            allowed = Math.max(client.pageCount, Math.min(allowed, meter.now));
          };
          for (const each of steps) {
            if (each.kind === 'io') {
              asked++;
              const regions = each.regions.map((count, i) => region(disks[i % 3]!, 0, count));
              const notify = { fn: () => void answered++ };
              dmIo({ op: each.op, memory: buffer(64), client, notify }, regions);
            } else if (each.kind === 'resize') {
              allowed = Math.max(each.pageCount, meter.now);
              client.resize(each.pageCount);
            } else {
              const busy = disks.filter((disk) => disk.held.length > 0);
              const disk = busy[each.which % Math.max(1, busy.length)];
              disk?.finish(disk.held.splice(each.which % disk.held.length, 1)[0]!);
              if (each.which % 5 === 0) reactor.run();
            }
            check();
          }
          for (let left = true; left; ) {
            left = false;
            for (const disk of disks) {
              const bio = disk.held.pop();
              if (bio !== undefined) disk.finish(bio);
              left ||= bio !== undefined;
              check();
            }
            reactor.run();
            left ||= disks.some((disk) => disk.held.length > 0);
          }
          expect([answered, client.pagesInFlight, client.unfinishedCount]).toEqual([asked, 0, 0]);
        },
      ),
    );
  });
});

type Step =
  | { kind: 'io'; regions: number[]; op: number }
  | { kind: 'end'; which: number }
  | { kind: 'resize'; pageCount: number };

it('a device that ends some bios at once and others later, mixed, loses none', () => {
  const { client, reactor } = makeClient(2);
  const disk = new MeteredDevice('a', 512);
  const later: (() => void)[] = [];
  let turn = 0;
  const mixed = new RecordingDevice('mixed', 512);
  mixed.submit = (bio) => {
    const go = (): void => {
      bio.device = disk;
      submitBio(bio);
    };
    if (turn++ % 3 === 0) later.push(go);
    else go();
  };
  const { outcome, notify } = expectOne();
  dmIo({ op: REQ_OP_WRITE, memory: buffer(512), client, notify }, [region(mixed, 0, 512)]);
  while (outcome.callCount === 0) {
    later.shift()?.();
    reactor.run();
  }
  expect(outcome).toMatchObject({ callCount: 1, errorBits: 0n });
  expect(Buffer.compare(disk.bytes, numbered(512))).toBe(0);
});
