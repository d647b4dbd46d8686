// dm-io against a model of byte arrays: random regions, devices, memory and failures; and every single failure in turn.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { DmIoClient, type DmIoMemory, type DmIoRegion, dmIo } from '../../src/dm-io/index.ts';
import { failEveryNth } from '../../src/testing/fail-nth.ts';
import { makeRandom, runs, seed } from '../support/seed.ts';
import {
  expectOne,
  ManualReactor,
  MEMORY_KINDS,
  type MemoryKind,
  MeteredDevice,
  makeClient,
  memoryOf,
  newResult,
  PageMeter,
  region,
} from './support.ts';

const SIZE = 96;
const DEVICE_COUNT = 3;

interface Plan {
  pageCount: number;
  op: number;
  kind: MemoryKind;
  shape: number;
  sync: boolean;
  regions: { device: number; sector: number; count: number }[];
  /** Sectors of each device that fail what touches them. */
  bad: (number | null)[];
  order: number;
}

/** At places of their own, so that the order of the bios does not matter; some reach past the end. */
const arbitraryPlan: fc.Arbitrary<Plan> = fc.record({
  pageCount: fc.integer({ min: 1, max: 9 }),
  op: fc.constantFrom(REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE, REQ_OP_WRITE, REQ_OP_DISCARD, REQ_OP_WRITE_ZEROES),
  kind: fc.constantFrom(...MEMORY_KINDS),
  shape: fc.nat(7),
  sync: fc.boolean(),
  regions: fc.array(fc.record({ device: fc.nat(DEVICE_COUNT - 1), sector: fc.nat(SIZE), count: fc.nat(40) }), {
    minLength: 1,
    maxLength: 64,
  }),
  bad: fc.array(fc.option(fc.nat(SIZE - 1)), { minLength: DEVICE_COUNT, maxLength: DEVICE_COUNT }),
  order: fc.nat(),
});

function withoutOverlap(regions: Plan['regions']): Plan['regions'] {
  const taken = Array.from({ length: DEVICE_COUNT }, () => new Set<number>());
  return regions.map(({ device, sector, count }) => {
    let free = 0;
    while (free < count && !taken[device]!.has(sector + free)) taken[device]!.add(sector + free++);
    return { device, sector, count: free };
  });
}

/** Made once: filling arrays byte by byte would be most of this test's time. */
const initial = Array.from({ length: DEVICE_COUNT }, (_, device) =>
  Uint8Array.from({ length: SIZE * 512 }, (_unused, i) => (i * 7 + (i >> 9) + device * 50) & 0xff),
);
const pattern = Uint8Array.from({ length: SIZE * 512 }, (_, i) => (i * 11 + (i >> 9) * 3 + 1) & 0xff);

function initialBytes(device: number): Uint8Array {
  return initial[device]!.slice();
}

function runPlan(plan: Plan): void {
  const specs = withoutOverlap(plan.op === REQ_OP_READ ? plan.regions.slice(0, 1) : plan.regions);
  const meter = new PageMeter();
  const limits = { maxDiscardSectorCount: 16, maxWriteZeroesSectorCount: 11 };
  const devices = plan.bad.map((bad, i) => {
    const device = new MeteredDevice(`d${i}`, SIZE, meter, i === 2 ? { ...limits, maxDiscardSectorCount: 0 } : limits);
    device.bytes.set(initialBytes(i));
    device.fail = (bio) => (bad !== null && bio.sector <= bad && bad < bio.sector + bio.sectorCount ? Errno.EILSEQ : 0);
    device.hold = !plan.sync;
    return device;
  });
  const random = makeRandom(plan.order);
  const largest = Math.max(0, ...specs.map(({ count }) => count));
  const data = pattern.slice(0, largest * 512);
  const { memory, content } = memoryOf(plan.kind, data, plan.shape);
  const regions: DmIoRegion[] = specs.map(({ device, sector, count }) => region(devices[device]!, sector, count));
  const { client, reactor } = makeClient(plan.pageCount);

  let errorBits: bigint;
  const result = newResult();
  if (plan.sync) {
    expect(dmIo({ op: plan.op, memory, client }, regions, result)).toBe(result.errorBits === 0n ? 0 : Errno.EIO);
    errorBits = result.errorBits;
  } else {
    const { outcome, notify } = expectOne();
    dmIo({ op: plan.op, memory, client, notify }, regions);
    for (let busy = devices.filter((d) => d.held.length > 0); ; busy = devices.filter((d) => d.held.length > 0)) {
      const device = busy[Math.floor(random() * busy.length)];
      if (device === undefined && reactor.waitingCount === 0) break;
      device?.finish(device.held.splice(Math.floor(random() * device.held.length), 1)[0]!);
      reactor.run();
    }
    expect(outcome.callCount).toBe(1);
    errorBits = outcome.errorBits;
  }
  checkAgainstModel(plan, specs, devices, data, content(), errorBits);
  expect(meter.highWater).toBeLessThanOrEqual(plan.pageCount);
  expect([meter.now, client.pagesInFlight, client.unfinishedCount]).toEqual([0, 0, 0]);
}

/** The bios of a region, as its device has written them down: sector and count. */
function piecesOf(spec: Plan['regions'][number], log: readonly string[]): [number, number][] {
  const pieces: [number, number][] = [];
  for (const line of log) {
    const [sector, count] = line.split(' ')[1]!.split('+').map(Number) as [number, number];
    if (sector >= spec.sector && sector < spec.sector + spec.count) pieces.push([sector, count]);
  }
  return pieces;
}

function checkAgainstModel(
  plan: Plan,
  specs: Plan['regions'],
  devices: MeteredDevice[],
  data: Uint8Array,
  content: Uint8Array,
  errorBits: bigint,
): void {
  let expectedBits = 0n;
  const expected = devices.map((_, i) => initialBytes(i));
  const expectedContent = Uint8Array.from(data);
  for (const [index, spec] of specs.entries()) {
    const { device, sector, count } = spec;
    const bad = plan.bad[device];
    const isUnsupported = plan.op === REQ_OP_DISCARD && device === 2 && count > 0;
    const touchesBad = bad !== null && bad !== undefined && sector <= bad && bad < sector + count;
    if (isUnsupported || touchesBad || (count > 0 && sector + count > SIZE)) expectedBits |= 1n << BigInt(index);
    // Which bios there were is the device's record; together with those past the end they have to make up the region.
    let covered = 0;
    for (const [at, length] of piecesOf(spec, devices[device]!.log)) {
      covered += length;
      const failed = bad !== null && bad !== undefined && at <= bad && bad < at + length;
      const start = (at - sector) * 512;
      if (plan.op === REQ_OP_READ) {
        const bytes = failed ? new Uint8Array(length * 512) : expected[device]!.subarray(at * 512, (at + length) * 512);
        expectedContent.set(bytes, start);
      } else if (!failed) {
        const bytes =
          plan.op === REQ_OP_WRITE ? data.subarray(start, start + length * 512) : new Uint8Array(length * 512);
        expected[device]!.set(bytes, at * 512);
      }
    }
    if (sector + count <= SIZE && !isUnsupported) expect(covered).toBe(count);
    // What reached past the end was not sent: a read leaves zeroes there.
    if (plan.op === REQ_OP_READ) expectedContent.fill(0, covered * 512);
  }
  expect(errorBits).toBe(expectedBits);
  devices.forEach((device, i) => {
    expect(Buffer.compare(device.bytes, expected[i]!)).toBe(0);
  });
  expect(Buffer.compare(content, expectedContent)).toBe(0);
}

describe('dm-io and a model of byte arrays', () => {
  it('agree on bits and contents', () => {
    fc.assert(fc.property(arbitraryPlan, runPlan), { numRuns: runs(1000) });
  });
});

describe.each(MEMORY_KINDS)('with the Nth bio failing, for every N (%s)', (kind) => {
  const SECTOR_COUNT = 44;
  const PIECES_PER_REGION = 3;

  async function checkEveryFailure(op: number, regionCount: number, start: Start, when: 'before' | 'after') {
    const { runCount } = await failEveryNth(
      (context) => {
        const reactor = new ManualReactor();
        const client = new DmIoClient({ reactor, pageCount: 2 });
        const plain = Array.from({ length: regionCount }, (_, i) => new MemoryDevice(`m${i}`, 64));
        for (const device of plain) device.poke(0, new Uint8Array(64 * 512).fill(0x55));
        const regions = plain.map((device) => region(context.wrap(device), 5, SECTOR_COUNT));
        const data = Uint8Array.from({ length: SECTOR_COUNT * 512 }, (_, i) => (i >> 9) + 1);
        const { memory, content } = memoryOf(kind, data, 3);
        const errorBits = start(client, reactor, op, memory, regions);
        const failedRegion = Math.floor(context.n / PIECES_PER_REGION);
        expect(errorBits).toBe(context.injected ? 1n << BigInt(failedRegion) : 0n);
        expect([client.pagesInFlight, client.unfinishedCount, reactor.waitingCount]).toEqual([0, 0, 0]);
        if (op === REQ_OP_READ) checkRead(content(), context.injected ? context.n : null);
        else for (const [i, device] of plain.entries()) checkWritten(device, data, failedPiece(context, i), when);
      },
      { seed, errno: Errno.ENODATA, when },
    );
    expect(runCount).toBe(regionCount * PIECES_PER_REGION + 1);
  }

  function failedPiece(context: { n: number; injected: boolean }, index: number): number | null {
    const piece = context.n - index * PIECES_PER_REGION;
    return context.injected && piece >= 0 && piece < PIECES_PER_REGION ? piece : null;
  }

  function checkRead(content: Uint8Array, failed: number | null): void {
    for (let sector = 0; sector < SECTOR_COUNT; sector++) {
      expect(content[sector * 512]).toBe(Math.floor(sector / 16) === failed ? 0 : 0x55);
    }
  }

  function checkWritten(device: MemoryDevice, data: Uint8Array, failed: number | null, when: 'before' | 'after'): void {
    const bytes = device.peek(5, SECTOR_COUNT);
    for (let sector = 0; sector < SECTOR_COUNT; sector++) {
      const isOld = Math.floor(sector / 16) === failed && when === 'before';
      expect(bytes[sector * 512]).toBe(isOld ? 0x55 : data[sector * 512]);
    }
  }

  it.each(['before', 'after'] as const)('has the exact bits (lost %s it was done), synchronously', async (when) => {
    await checkEveryFailure(REQ_OP_WRITE, 5, startSync, when);
    await checkEveryFailure(REQ_OP_READ, 1, startSync, when);
  });

  it.each(['before', 'after'] as const)('has the exact bits (lost %s it was done), asynchronously', async (when) => {
    await checkEveryFailure(REQ_OP_WRITE, 5, startAsync, when);
    await checkEveryFailure(REQ_OP_READ, 1, startAsync, when);
  });
});

type Start = (
  client: DmIoClient,
  reactor: ManualReactor,
  op: number,
  memory: DmIoMemory,
  regions: DmIoRegion[],
) => bigint;

const startSync: Start = (client, _reactor, op, memory, regions) => {
  const result = newResult();
  expect(dmIo({ op, memory, client }, regions, result)).toBe(result.errorBits === 0n ? 0 : Errno.EIO);
  checkCauses(result.error?.failedRegions ?? []);
  return result.errorBits;
};

const startAsync: Start = (client, reactor, op, memory, regions) => {
  const { outcome, notify } = expectOne();
  dmIo({ op, memory, client, notify }, regions);
  expect(outcome.callCount).toBe(0);
  reactor.run();
  expect(outcome.callCount).toBe(1);
  checkCauses(outcome.error?.failedRegions ?? []);
  return outcome.errorBits;
};

function checkCauses(failed: readonly { index: number; cause: { code: string; device: string } }[]): void {
  for (const { index, cause } of failed) {
    expect(cause).toMatchObject({ code: 'ENODATA', device: `m${index}` });
  }
}
