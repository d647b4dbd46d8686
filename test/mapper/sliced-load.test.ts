// A load in slices: the same outcome as a load in one go, whatever the table, and whatever happens to the device between
// two slices nothing stays open.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { REQ_OP_READ } from '../../src/block/bio.ts';
import type { DmError } from '../../src/block/errors.ts';
import { TableError } from '../../src/block/errors.ts';
import { type AnyTargetType, DM_MAPIO_KILL } from '../../src/block/target.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import type { StateChange } from '../../src/mapper/state-change.ts';
import { parseTable, type TableEntry } from '../../src/table/text.ts';
import { builtinTargets, Targets } from '../../src/targets/index.ts';
import { SimulatedReactor } from '../../src/testing/simulated-reactor.ts';
import { runs } from '../support/seed.ts';
import { activate, CountingResolver, RecordingDevice, submit } from '../support/stack.ts';

const SECTORS = 20_000;

/** A mapper on a simulated reactor, and what is alive in it. */
class World {
  readonly reactor = new SimulatedReactor({ seed: 1 });
  readonly a = new RecordingDevice('a', SECTORS);
  readonly b = new RecordingDevice('b', 100);
  readonly big = new RecordingDevice('big', SECTORS, { logicalBlockSize: 4096 });
  readonly resolver = new CountingResolver(this.a, this.b, this.big);
  /** Lines of the type `counted` that were constructed and not destructed. */
  liveCount = 0;
  readonly mapper: Mapper;

  constructor() {
    const counted: AnyTargetType = {
      name: 'counted',
      version: [1, 0, 0],
      construct: (_target, _args, setup) => {
        setup.getDevice('b');
        this.liveCount++;
      },
      destruct: () => void this.liveCount--,
      map: () => DM_MAPIO_KILL,
    };
    this.mapper = new Mapper(new Targets([...builtinTargets, counted]), this.resolver, 253, { reactor: this.reactor });
  }

  /** Takes everything away; what was open has to be closed then. */
  expectNothingLeft(): void {
    for (const device of this.mapper.list()) this.mapper.remove(device);
    this.reactor.runUntilIdle();
    expect([this.liveCount, this.resolver.totalOpenCount]).toEqual([0, 0]);
  }
}

/** `count` lines of one sector, of the types in turn. */
function manyLines(count: number, ...types: string[]): string[] {
  return Array.from({ length: count }, (_, index) => `${index} 1 ${types[index % types.length]}`);
}

function outcomeOf(error: unknown): unknown {
  if (error === null) return 'loaded';
  const { name, code, errno, message } = error as DmError;
  return { name, code, errno, message, line: error instanceof TableError ? error.lineIndex : null };
}

function loadAtOnce(world: World, device: MappedDevice, table: string | readonly TableEntry[]): unknown {
  try {
    world.mapper.load(device, table);
    return outcomeOf(null);
  } catch (error) {
    return outcomeOf(error);
  }
}

function loadInSlices(world: World, device: MappedDevice, table: string | readonly TableEntry[]): unknown {
  const outcomes: unknown[] = [];
  world.mapper.loadSliced(device, table, {}, (error) => outcomes.push(outcomeOf(error)));
  world.reactor.runUntilIdle();
  expect(outcomes.length).toBe(1);
  return outcomes[0];
}

const LONG = manyLines(3000, 'linear a 7', 'zero', 'counted').join('\n');

function loadedBefore(world: World, device: MappedDevice): void {
  world.mapper.load(device, '0 8 zero');
}

/** The turns of the reactor that a load of LONG takes after its first slice. */
function turnsOf(setUp: (world: World, device: MappedDevice) => void): number[] {
  const world = new World();
  const device = world.mapper.create('d');
  setUp(world, device);
  let isDone = false;
  world.mapper.loadSliced(device, LONG, {}, () => {
    isDone = true;
  });
  const turns: number[] = [];
  for (let turn = 0; !isDone; turn++) {
    turns.push(turn);
    world.reactor.step();
  }
  world.expectNothingLeft();
  return turns;
}

/** What can be wrong with a line, put in place of one; the last two only show in the check against the devices. */
const WRONG = [
  (sector: number) => `${sector} x zero`,
  () => 'nonsense',
  (sector: number) => `${sector} 0 zero`,
  (sector: number) => `${sector + 1} 1 zero`,
  (sector: number) => `${sector} 1 nosuch`,
  (sector: number) => `${sector} 1 linear a`,
  (sector: number) => `${sector} 1 linear nosuch 0`,
  (sector: number) => `${sector} 1 striped 2 4 a 0`,
  (sector: number) => `${sector} 1 snapshot-origin`,
  (sector: number) => `${sector} 1 linear b 100`,
  (sector: number) => `${sector} 1 linear big 3`,
];

describe('a load in slices does what a load in one go does', () => {
  test('for any table, with something wrong in any line or nowhere, as text and as entries', () => {
    const scenario = fc.record({
      types: fc.array(fc.constantFrom('linear a 0', 'linear a 9', 'linear b 3', 'zero', 'error', 'counted'), {
        minLength: 1,
        maxLength: 8,
      }),
      count: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1, max: 4000 })),
      wrong: fc.array(fc.record({ kind: fc.nat(WRONG.length - 1), at: fc.nat() }), { maxLength: 2 }),
      blanks: fc.array(fc.nat(), { maxLength: 3 }),
      asEntries: fc.boolean(),
      isFirst: fc.boolean(),
    });
    fc.assert(
      fc.property(scenario, ({ types, count, wrong, blanks, asEntries, isFirst }) => {
        const lines = manyLines(count, ...types);
        for (const { kind, at } of wrong) lines[at % count] = WRONG[kind]!(at % count);
        for (const at of blanks) lines.splice(at % count, 0, '# a comment');
        const text = lines.join('\n');
        let table: string | TableEntry[] = text;
        try {
          if (asEntries) table = parseTable(text);
        } catch {
          // Only as text, then.
        }
        const results = [loadAtOnce, loadInSlices].map((load) => {
          const world = new World();
          const device = world.mapper.create('d');
          if (!isFirst) world.mapper.load(device, '0 8 zero');
          const outcome = load(world, device, table);
          const inactive = device.lines('table', true);
          const open = [...world.resolver.openCounts.values()];
          let resumed: unknown;
          world.mapper.resume(device, {}, (error) => {
            resumed = outcomeOf(error);
          });
          const { limits, sectorCount } = device;
          const live = device.lines('table');
          world.expectNothingLeft();
          return { outcome, inactive, open, resumed, limits, sectorCount, live };
        });
        expect(results[1]).toEqual(results[0]);
      }),
      { numRuns: runs(60) },
    );
  });

  test.each([0, 1, 62, 63, 64, 65, 1022, 1023, 1024, 1025, 2047, 2048, 2999])('where line %i is refused', (line) => {
    for (const wrong of WRONG) {
      const lines = LONG.split('\n');
      lines[line] = wrong(line);
      const world = new World();
      const expected = loadAtOnce(world, world.mapper.create('x'), lines.join('\n'));
      expect(expected).not.toBe('loaded');
      expect(loadInSlices(world, world.mapper.create('y'), lines.join('\n'))).toEqual(expected);
      expect([world.liveCount, world.resolver.totalOpenCount]).toEqual([0, 0]);
      world.expectNothingLeft();
    }
  });

  test('without a line, or with one too many', () => {
    for (const [table, message] of [
      ['', 'populate_table: no targets specified'],
      ['\n# nothing\n', 'populate_table: no targets specified'],
      [[], 'populate_table: no targets specified'],
      ['0 1 zero\n'.repeat(2 ** 20 + 1), 'a table has at most 1048576 lines, this one has 1048577'],
    ] as const) {
      const world = new World();
      expect(loadInSlices(world, world.mapper.create('d'), table)).toMatchObject({ code: 'EINVAL', message });
    }
  });

  test('where an immutable target would be replaced, also by a table that went live meanwhile', () => {
    const immutable: AnyTargetType = {
      name: 'fixed',
      version: [1, 0, 0],
      immutable: true,
      construct: () => undefined,
      map: () => DM_MAPIO_KILL,
    };
    const text = "can't replace immutable target type fixed";
    for (let turn = 0, isDone = false; !isDone; turn++) {
      const reactor = new SimulatedReactor({ seed: 1 });
      const registry = new Targets([...builtinTargets, immutable]);
      const mapper = new Mapper(registry, new CountingResolver(), 253, { reactor });
      const device = mapper.create('d');
      const outcomes: unknown[] = [];
      const done = (error: DmError | null) => outcomes.push(error?.message);
      mapper.loadSliced(device, manyLines(3000, 'zero').join('\n'), {}, done);
      for (let step = 0; step < turn; step++) reactor.step();
      isDone = outcomes.length > 0;
      mapper.load(device, '0 8 fixed');
      device.resume({}, () => {});
      reactor.runUntilIdle();
      // Now it is live from the beginning.
      mapper.loadSliced(device, manyLines(3000, 'zero').join('\n'), {}, done);
      reactor.runUntilIdle();
      expect([turn, ...outcomes]).toEqual([turn, isDone ? undefined : text, text]);
    }
  });

  test('a mapper without a reactor loads everything inside the call', () => {
    const a = new RecordingDevice('a', SECTORS);
    const mapper = new Mapper(new Targets(), new CountingResolver(a), 253);
    const device = mapper.create('d');
    let isDone = false;
    mapper.loadSliced(device, manyLines(5000, 'linear a 0').join('\n'), {}, () => {
      isDone = true;
    });
    expect([isDone, device.inactiveTable?.targets.length]).toEqual([true, 5000]);
  });
});

describe('the turns of a load', () => {
  test.each([1, 64, 65, 255])(
    'a table of %i lines is loaded inside the call, the first one and a later one',
    (count) => {
      const world = new World();
      const device = world.mapper.create('d');
      for (const table of [
        manyLines(count, 'zero', 'counted').join('\n'),
        parseTable(manyLines(count, 'zero').join('\n')),
      ]) {
        const told: unknown[] = [];
        world.mapper.loadSliced(device, table, {}, (error) => told.push(error));
        expect(told).toEqual([null]);
        expect(world.reactor.idle).toBe(true);
      }
      world.expectNothingLeft();
    },
  );

  test('a load of 100,000 lines lets others have at least 190 turns, and their requests are answered in each', () => {
    const world = new World();
    const other = activate(world.mapper, 'other', '0 64 linear a 0');
    const device = world.mapper.create('d');
    let isDone = false;
    world.mapper.loadSliced(device, manyLines(100_000, 'linear a 0', 'zero').join('\n'), {}, (error) => {
      expect(error).toBeNull();
      isDone = true;
    });
    let answered = 0;
    while (!isDone) {
      world.reactor.afterSockets(() => {
        if (submit(other, REQ_OP_READ, 0, 8).ended) answered++;
      });
      world.reactor.step();
      world.reactor.step();
    }
    // Two passes over the text alone are 2 * 100,000 / 1,024.
    expect(answered).toBeGreaterThanOrEqual(190);
    world.expectNothingLeft();
  });

  test('thousands of short loads that wait for a long one end in their order', () => {
    const world = new World();
    const device = world.mapper.create('d');
    const ended: number[] = [];
    world.mapper.loadSliced(device, LONG, {}, () => ended.push(0));
    for (let load = 1; load <= 20_000; load++) {
      world.mapper.loadSliced(device, `0 ${load} zero`, {}, (error) => {
        expect(error).toBeNull();
        ended.push(load);
      });
    }
    expect(ended).toEqual([]);
    world.reactor.runUntilIdle();
    expect(ended).toEqual(Array.from({ length: 20_001 }, (_, load) => load));
    expect(device.lines('table', true)).toEqual(['0 20000 zero ']);
    world.expectNothingLeft();
  });
});

/** Starts a long load, and stops between two of its slices. */
function stopped(turn: number, setUp: (world: World, device: MappedDevice) => void = () => {}) {
  const world = new World();
  const device = world.mapper.create('d');
  setUp(world, device);
  const told: (DmError | null)[] = [];
  const change = world.mapper.loadSliced(device, LONG, {}, (error) => told.push(error));
  for (let step = 0; step < turn; step++) world.reactor.step();
  expect(told).toEqual([]);
  return { world, device, told, change };
}

describe.each(turnsOf(loadedBefore))('after turn %i of a later load', (turn) => {
  test('a cancel closes everything at once, leaves the slot as it was, and the next load has its turn', () => {
    const { world, device, told, change } = stopped(turn, loadedBefore);
    change.cancel();
    change.cancel();
    expect([world.liveCount, world.resolver.totalOpenCount, device.building.size]).toEqual([0, 0, 0]);
    expect(device.lines('table', true)).toEqual(['0 8 zero ']);
    expect(loadInSlices(world, device, '0 8 error')).toBe('loaded');
    expect(told).toEqual([]);
    world.expectNothingLeft();
  });

  test('a suspend, a resume and a new name happen at once and do not hinder it', () => {
    const { world, device, told } = stopped(turn, loadedBefore);
    device.resume({}, (error) => told.push(error));
    device.suspend({}, () => {});
    world.mapper.rename(device, 'e');
    expect([device.lines('table'), device.suspended, told]).toEqual([['0 8 zero '], true, [null]]);
    world.reactor.runUntilIdle();
    expect([told, device.inactiveTable?.targets.length]).toEqual([[null, null], 3000]);
    world.expectNothingLeft();
  });
});

describe.each(turnsOf(() => {}))('after turn %i of a first load', (turn) => {
  test('a removal fails it with ENXIO, and everything is closed when the removal is done; so do those that wait', () => {
    const { world, device, told } = stopped(turn);
    world.mapper.loadSliced(device, LONG, {}, (error) => told.push(error));
    let open = -1;
    world.mapper.remove(device, {}, () => {
      open = world.resolver.totalOpenCount;
    });
    expect([open, world.liveCount]).toEqual([0, 0]);
    expect(told.map((error) => [error?.code, error?.message])).toEqual(
      Array(2).fill(['ENXIO', 'd was removed while its table was loaded']),
    );
    world.expectNothingLeft();
  });

  test('a device that has to stay as it is by then refuses it', () => {
    const { world, device, told } = stopped(turn);
    device.pinned = 'it is being tested';
    world.reactor.runUntilIdle();
    expect(told.map((error) => error?.code)).toEqual(['EBUSY']);
    expect([world.liveCount, world.resolver.totalOpenCount, device.inactiveTable]).toEqual([0, 0, null]);
    device.pinned = null;
    world.expectNothingLeft();
  });

  test('no cycle can be closed through the table that is being built', () => {
    const world = new World();
    const low = activate(world.mapper, 'low', '0 3000 zero');
    const device = activate(world.mapper, 'd', '0 8 zero');
    const outcomes: unknown[] = [];
    world.mapper.loadSliced(device, manyLines(3000, 'linear /dev/mapper/low 0').join('\n'), {}, (error) =>
      outcomes.push(outcomeOf(error)),
    );
    for (let step = 0; step < turn; step++) world.reactor.step();
    outcomes.push(loadAtOnce(world, low, '0 8 linear /dev/mapper/d 0'));
    world.reactor.runUntilIdle();
    // One of the two is refused, whichever comes first.
    expect(outcomes.filter((outcome) => outcome === 'loaded').length).toBe(1);
    for (const { dmName } of [device, low]) world.mapper.get(dmName).clear();
    world.expectNothingLeft();
  });
});

test.each([
  ['removes its own device', 'in a first load'],
  ['removes its own device', 'in a later load'],
  ['cancels its own load', 'in a first load'],
  ['cancels its own load', 'in a later load'],
])('a constructor that %s %s goes on, and nothing stays open', (how, which) => {
  const world = new World();
  const told: unknown[] = [];
  let hasGoneOn = false;
  const meddle = (): void => {
    if (how === 'cancels its own load') change.cancel();
    else mapper.remove(device);
    hasGoneOn = true;
  };
  const meddler: AnyTargetType = { name: 'meddler', version: [1, 0, 0], construct: meddle, map: () => DM_MAPIO_KILL };
  const { reactor, resolver } = world;
  const mapper = new Mapper(new Targets([...builtinTargets, meddler]), resolver, 253, { reactor });
  const device = mapper.create('d');
  if (which === 'in a later load') {
    mapper.load(device, '0 8 zero');
    device.clear();
  }
  const table = [...manyLines(2999, 'linear a 0'), '2999 1 meddler'].join('\n');
  const change = mapper.loadSliced(device, table, {}, (error) => told.push(error?.code));
  reactor.runUntilIdle();
  expect([hasGoneOn, resolver.totalOpenCount]).toEqual([true, 0]);
  expect([told, device.inactiveTable]).toEqual([how === 'cancels its own load' ? [] : ['ENXIO'], null]);
});

type Step = {
  kind: 'step' | 'long' | 'short' | 'refused' | 'load' | 'cancel' | 'suspend' | 'resume' | 'clear' | 'rename';
  pick: number;
};

test('any mix of loads, cancels, suspends, resumes and new names: each load ends once, in order, and the last one stays', () => {
  const step: fc.Arbitrary<Step> = fc.record({
    kind: fc.constantFrom(
      ...([
        'step',
        'step',
        'step',
        'long',
        'short',
        'refused',
        'load',
        'cancel',
        'suspend',
        'resume',
        'clear',
        'rename',
      ] as const),
    ),
    pick: fc.nat(20),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 30 }), fc.boolean(), (steps, removes) => {
      const world = new World();
      const device = world.mapper.create('d');
      const ended: number[] = [];
      const changes: StateChange[] = [];
      const cancelled = new Set<number>();
      /** Sector count of the tables in the slots, as they must be. */
      let inactive: number | null = null;
      let live: number | null = null;
      let nextCount = 1100;
      let renames = 0;
      const start = (lineCount: number, ...types: string[]): void => {
        const id = changes.length;
        changes.push({ cancel: () => {} });
        changes[id] = world.mapper.loadSliced(device, manyLines(lineCount, ...types).join('\n'), {}, (error) => {
          ended.push(id);
          if (error === null) inactive = lineCount;
        });
      };
      for (const { kind, pick } of steps) {
        if (kind === 'step') for (let turn = 0; turn < pick; turn++) world.reactor.step();
        else if (kind === 'long') start(nextCount++, 'linear a 0', 'counted');
        else if (kind === 'short') start((nextCount++ % 50) + 1, 'counted');
        else if (kind === 'refused') start(nextCount++, 'counted', 'zero', 'counted', 'linear a 99999');
        else if (kind === 'load') {
          world.mapper.load(device, manyLines((++nextCount % 40) + 1, 'zero').join('\n'));
          inactive = (nextCount % 40) + 1;
        } else if (kind === 'cancel' && changes.length > 0) {
          const id = pick % changes.length;
          changes[id]!.cancel();
          if (!ended.includes(id)) cancelled.add(id);
        } else if (kind === 'suspend') device.suspend({}, () => {});
        else if (kind === 'clear') {
          device.clear();
          inactive = null;
        } else if (kind === 'rename') world.mapper.rename(device, `d${renames++}`);
        else if (kind === 'resume') {
          device.resume({}, (error) => {
            if (error === null && inactive !== null) live = inactive;
          });
          // One that does not fit is gone.
          inactive = null;
        }
        expect([device.table?.sectorCount ?? null, device.inactiveTable?.sectorCount ?? null]).toEqual([
          live,
          inactive,
        ]);
      }
      if (removes) world.mapper.remove(device);
      else world.reactor.runUntilIdle();
      const expected = changes.map((_, id) => id).filter((id) => !cancelled.has(id));
      expect(ended).toEqual(expected);
      if (!removes) expect(device.inactiveTable?.sectorCount ?? null).toBe(inactive);
      world.expectNothingLeft();
    }),
    { numRuns: runs(60) },
  );
});
