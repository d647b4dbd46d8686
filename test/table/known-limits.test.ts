// Limits found at a load serve the resume, as long as they follow from the same facts; the kernel finds them anew.
import { describe, expect, test } from 'vitest';
import type { QueueLimits } from '../../src/block/limits.ts';
import { type AnyTargetType, DM_MAPIO_KILL } from '../../src/block/target.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { builtinTargets, Targets } from '../../src/targets/index.ts';
import { SimulatedReactor } from '../../src/testing/simulated-reactor.ts';
import { activate, CountingResolver, RecordingDevice, resume } from '../support/stack.ts';

/** A plain line on a device whose lines are counted as they are looked at. */
function looked(isStateless: boolean): { type: AnyTargetType; count(): number } {
  let count = 0;
  return {
    count: () => count,
    type: {
      name: 'looked',
      version: [1, 0, 0],
      stateless: isStateless,
      construct: (target, _args, setup) => {
        Object.assign(target, { flushBioCount: 1, discardBioCount: 1, writeZeroesBioCount: 1 });
        return setup.getDevice('a');
      },
      map: () => DM_MAPIO_KILL,
      iterateDevices: (target, visit) => visit(target.context, target.begin, target.sectorCount),
      ioHints: () => void count++,
    },
  };
}

function world(isStateless = true) {
  const a = new RecordingDevice('a', 4096);
  const lines = looked(isStateless);
  const reactor = new SimulatedReactor({ seed: 1 });
  const registry = new Targets([...builtinTargets, lines.type]);
  const mapper = new Mapper(registry, new CountingResolver(a), 253, { reactor });
  return { a, reactor, mapper, lookCount: lines.count };
}

const TABLE = Array.from({ length: 2048 }, (_, line) => `${2 * line} 2 looked`).join('\n');

describe.each(['a first load', 'a later load'])('after %s', (which) => {
  function loaded(isStateless = true) {
    const made = world(isStateless);
    const device = made.mapper.create('d');
    if (which === 'a later load') made.mapper.load(device, '0 8 zero');
    made.mapper.loadSliced(device, TABLE, {}, (error) => expect(error).toBeNull());
    made.reactor.runUntilIdle();
    return { ...made, device };
  }

  test('no line is looked at again at the resume, and the limits are the right ones', () => {
    const { device, a, lookCount } = loaded();
    expect(lookCount()).toBe(2048);
    resume(device);
    expect([lookCount(), device.limits]).toEqual([2048, { ...a.limits }]);
  });

  test('lines of a type that has a state are always looked at at the resume', () => {
    const { device, lookCount } = loaded(false);
    const before = lookCount();
    resume(device);
    expect(lookCount()).toBe(before + 2048);
  });

  test('a device that has become too small by then refuses the table', () => {
    const { device, a } = loaded();
    a.sectorCount = 4095;
    expect(() => resume(device)).toThrow('a too small for target: start=4094, len=2, dev_size=4095');
    expect([device.inactiveTable, device.table]).toEqual([null, null]);
  });

  test('a device with larger blocks by then refuses the table', () => {
    const { device, a } = loaded();
    a.limits.logicalBlockSize = 2048;
    expect(() => resume(device)).toThrow('not aligned to h/w logical block size 2048');
  });

  test.each([
    ['logicalBlockSize', 1024],
    ['physicalBlockSize', 4096],
    ['ioMin', 8192],
    ['ioOpt', 65_536],
    ['maxDiscardSectorCount', 0],
    ['discardGranularity', 4096],
    ['maxWriteZeroesSectorCount', 0],
    ['hasWriteCache', false],
    ['hasFua', true],
  ] satisfies [keyof QueueLimits, number | boolean][])(
    'a device that has another %s by then gives it',
    (name, value) => {
      const { device, a, lookCount } = loaded();
      const before = lookCount();
      Object.assign(a.limits, { [name]: value });
      resume(device);
      expect(lookCount()).toBe(before + 2048);
      const b = new RecordingDevice('a', 4096, { [name]: value });
      const other = new Mapper(new Targets([...builtinTargets, looked(true).type]), new CountingResolver(b), 253);
      const expected = activate(other, 'd', TABLE).limits;
      expect(device.limits).toEqual(expected);
    },
  );
});

test('a device that changes while the limits are found, and is as before at the resume or not', () => {
  const { a, reactor, mapper, lookCount } = world();
  const device = mapper.create('d');
  mapper.loadSliced(device, TABLE, {}, (error) => expect(error).toBeNull());
  while (lookCount() === 0) reactor.step();
  expect(lookCount()).toBeLessThan(2048);
  a.limits.physicalBlockSize = 4096;
  reactor.runUntilIdle();
  resume(device);
  expect(device.limits.physicalBlockSize).toBe(4096);
});

test('a mapped device below that gets a smaller table between load and resume refuses the one above', () => {
  const { mapper } = world();
  const low: MappedDevice = activate(mapper, 'low', '0 64 zero');
  const top = mapper.create('top');
  mapper.load(top, '0 64 linear /dev/mapper/low 0');
  mapper.load(low, '0 32 zero');
  resume(low);
  expect(() => resume(top)).toThrow('too small for target: start=0, len=64, dev_size=32');
});
