// kcopyd against a model of byte arrays: random jobs, overlaps, failures, orders of completion; every single failure.
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { KCOPYD_IGNORE_ERROR, KCOPYD_WRITE_SEQ, KcopydClient } from '../../src/kcopyd/index.ts';
import { failEveryNth } from '../../src/testing/fail-nth.ts';
import { SimulatedReactor } from '../../src/testing/simulated-reactor.ts';
import { makeRandom, runs, seed } from '../support/seed.ts';
import { apart, arbitraryPlan, check, PART, type Plan, SIZE } from './plan.ts';
import { expectOne, pattern, region, sameBytes, TapedDevice } from './support.ts';

function runPlan(plan: Plan): void {
  const dests = apart(plan);
  const devices = plan.bad.map((bad, i) => {
    const device = new TapedDevice(`d${i}`, SIZE, i === 1 ? { maxWriteZeroesSectorCount: 0 } : {});
    device.poke(0, pattern(SIZE, i));
    device.fail = (bio) => (bad !== null && bio.sector <= bad && bad < bio.sector + bio.sectorCount ? Errno.EIO : 0);
    device.hold = !plan.sync;
    return device;
  });
  const before = devices.map((device) => device.peek(0, SIZE));
  const reactor = new SimulatedReactor({ seed });
  const { splitCount, pageCount } = plan;
  const client = new KcopydClient({ reactor, splitCount, pageCount, subJobSectorCount: PART });
  const from = region(devices[plan.from.device]!, plan.from.sector, plan.count);
  const regions = dests.map(({ device, sector }) => region(devices[device]!, sector, plan.count));
  const flags = (plan.ignore ? 1 << KCOPYD_IGNORE_ERROR : 0) | (plan.sequence ? 1 << KCOPYD_WRITE_SEQ : 0);

  const result = { readErr: -1, writeErr: -1, error: null as unknown };
  let cancelled = false;
  try {
    if (plan.sync) client.copySync(plan.kind === 'copy' ? from : null, regions, flags, result as never);
    else {
      const { outcome, fn } = expectOne();
      const job = plan.kind === 'copy' ? client.copy(from, regions, flags, fn) : client.zero(regions, flags, fn);
      finishAll(devices, reactor, makeRandom(plan.order), (endedCount) => {
        if (endedCount !== plan.cancelAfter) return;
        cancelled = true;
        job.cancel();
      });
      expect(outcome.callCount).toBe(1);
      Object.assign(result, { readErr: outcome.readErr, writeErr: outcome.writeErr, error: outcome.error });
    }
  } catch (error) {
    // What no order of copying can serve; everything else is a bug.
    expect((error as Error).message).toMatch(/both of its sides|written backwards/);
    expect(client.unfinishedCount).toBe(0);
    return;
  }
  check({ plan, dests, before, after: devices.map((device) => device.bytes), result, cancelled });
  expect([client.usedPageCount, client.unfinishedCount]).toEqual([0, 0]);
  expect(client.pageHighWater).toBeLessThanOrEqual(pageCount);
}

function finishAll(
  devices: TapedDevice[],
  reactor: SimulatedReactor,
  random: () => number,
  onEnd: (endedCount: number) => void,
): void {
  for (let endedCount = 0; ; endedCount++) {
    reactor.runUntilIdle();
    onEnd(endedCount);
    const busy = devices.filter((device) => device.held.length > 0);
    const device = busy[Math.floor(random() * busy.length)];
    if (device === undefined) return;
    device.finish(device.held.splice(Math.floor(random() * device.held.length), 1)[0]!);
  }
}

describe('kcopyd and a model of byte arrays', () => {
  it('agree on results and contents', () => {
    fc.assert(fc.property(arbitraryPlan, runPlan), { numRuns: runs(1500) });
  });
});

describe.each([
  ['plainly', 0],
  ['ignoring errors', 1 << KCOPYD_IGNORE_ERROR],
  ['in sequence', 1 << KCOPYD_WRITE_SEQ],
])('with the Nth request failing, for every N (%s)', (_, flags) => {
  it.each(['before', 'after'] as const)('%s it was done: bits are right and no page stays behind', async (when) => {
    const COUNT = 5 * PART + 3;
    const { runCount } = await failEveryNth(
      (context) => {
        const reactor = new SimulatedReactor({ seed });
        const client = new KcopydClient({ reactor, splitCount: 3, pageCount: 4, subJobSectorCount: PART });
        const source = new MemoryDevice('source', SIZE);
        source.poke(0, pattern(SIZE));
        const plain = [new MemoryDevice('a', SIZE), new MemoryDevice('b', SIZE)];
        const dests = plain.map((device) => region(context.wrap(device), 7, COUNT));
        const { outcome, fn } = expectOne();
        client.copy(region(context.wrap(source), 1, COUNT), dests, flags, fn);
        reactor.runUntilIdle();
        expect(outcome.callCount).toBe(1);
        expect(outcome.readErr + outcome.writeErr > 0).toBe(context.injected);
        const complete = plain.map((device) => sameBytes(device.peek(7, COUNT), source.peek(1, COUNT)));
        if (!context.injected) expect(complete).toEqual([true, true]);
        // A destination without its bit, and a source that was read, mean a copy that is right.
        const noted = plain.map((_device, i) => (outcome.writeErr & (1 << i)) !== 0);
        if (flags === 1 << KCOPYD_IGNORE_ERROR && outcome.readErr === 0) {
          for (const [i, isComplete] of complete.entries()) expect(isComplete || noted[i]!).toBe(true);
        }
        expect([client.usedPageCount, client.unfinishedCount, reactor.idle]).toEqual([0, 0, true]);
      },
      { seed, when },
    );
    expect(runCount).toBe(6 * 3 + 1);
  });
});
