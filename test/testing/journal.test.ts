// A program that flushes correctly survives every crash of the simulated disk, and one that forgets a flush does not.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Fault, failEveryNth, SimulatedDevice, SimulatedReactor } from '../../src/testing/index.ts';
import { seed as runSeed, runs } from '../support/seed.ts';
import { commit, type Mistake, recover } from './journal.ts';

const SECTOR_COUNT = 32;

function makeDisk(seed: number, faults: readonly Fault[] = []) {
  const reactor = new SimulatedReactor({ seed });
  const disk = new SimulatedDevice('disk', SECTOR_COUNT, { seed, reactor, latency: [1, 10], faults });
  return { reactor, disk };
}

/** Commits until the power fails after `milliseconds`, recovers, and throws where the outcome is wrong. */
async function crashOnce(seed: number, milliseconds: number, mistake: Mistake): Promise<void> {
  const { reactor, disk } = makeDisk(seed);
  let acknowledged = 0;
  const work = (async () => {
    for (let value = 1; ; value++) {
      await commit(disk, value, mistake);
      acknowledged = value;
    }
  })();
  work.catch(() => {});
  const powerFailure = new Promise<void>((resolve) => void reactor.after(milliseconds, resolve));
  await reactor.settle(powerFailure);
  disk.crash({ inFlight: 'fail' });
  const recovered = await reactor.settle(recover(disk.reopen(), mistake));
  if (recovered < acknowledged) throw new Error(`value ${acknowledged} was acknowledged, and ${recovered} is there`);
  if (recovered > acknowledged + 1) throw new Error(`value ${recovered} comes from nowhere`);
}

/** Commits three values and tries every crash. */
async function crashEverywhere(seed: number, mistake: Mistake): Promise<number> {
  const { reactor, disk } = makeDisk(seed);
  const recording = disk.record();
  for (const value of [1, 2, 3]) {
    await reactor.settle(commit(disk, value, mistake));
    recording.note(value);
  }
  let count = 0;
  for (const state of recording.crashStates()) {
    const recovered = await reactor.settle(recover(state.open(), mistake));
    const acknowledged = (state.notes.at(-1) as number | undefined) ?? 0;
    if (recovered < acknowledged) throw new Error(`${state}: ${acknowledged} is lost`);
    count++;
  }
  return count;
}

async function problemOf(work: Promise<unknown>): Promise<string | null> {
  try {
    await work;
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

describe('a journal that flushes', () => {
  test('recovers from a crash at any time', async () => {
    const property = fc.asyncProperty(fc.integer(), fc.integer({ min: 0, max: 150 }), (seed, milliseconds) =>
      crashOnce(seed, milliseconds, 'none'),
    );
    await fc.assert(property);
  });

  test('recovers from every recorded crash', async () => {
    await fc.assert(
      fc.asyncProperty(fc.integer(), async (seed) => {
        expect(await crashEverywhere(seed, 'none')).toBeGreaterThan(50);
      }),
      { numRuns: runs(10) },
    );
  });

  test('reports every error, and recovers from it', async () => {
    await failEveryNth(async (context) => {
      const { reactor, disk } = makeDisk(context.seed);
      const device = context.wrap(disk);
      let acknowledged = 0;
      const failure = await problemOf(
        reactor.settle(
          (async () => {
            for (const value of [1, 2]) {
              await commit(device, value, 'none');
              acknowledged = value;
            }
          })(),
        ),
      );
      expect(failure !== null).toBe(context.injected);
      disk.crash();
      expect(await reactor.settle(recover(disk.reopen(), 'none'))).toBeGreaterThanOrEqual(acknowledged);
    });
  });
});

describe('a journal with a mistake is caught', () => {
  const mistakes = ['no flush after the journal', 'no flush after the cells', 'no checksum'] as const;

  test.each(mistakes)('%s: by crashes at drawn times, within 500 seeds', async (mistake) => {
    const problems: string[] = [];
    for (let i = 0; i < 500 && problems.length === 0; i++) {
      const problem = await problemOf(crashOnce(runSeed + i, 20 + (i % 50), mistake));
      if (problem !== null) problems.push(problem);
    }
    expect(problems).toHaveLength(1);
  });

  test.each(mistakes)('%s: by every crash of a recorded run, within 5 seeds', async (mistake) => {
    const problems: string[] = [];
    for (let i = 0; i < 5 && problems.length === 0; i++) {
      const problem = await problemOf(crashEverywhere(runSeed + i, mistake));
      if (problem !== null) problems.push(problem);
    }
    expect(problems.join()).toMatch(/parts of different values|is lost/);
  });
});

describe('a disk that lies is noticed', () => {
  const lies: Fault[] = [
    { kind: 'torn-write', op: 'write', probability: 0.5 },
    { kind: 'misdirected-write', op: 'write', probability: 0.5 },
    { kind: 'lost-write', op: 'write', probability: 0.5 },
    { kind: 'ignored-flush' },
    { kind: 'bit-rot', region: { sector: 0, sectorCount: 8 } },
  ];

  test.each(lies)('$kind', async (lie) => {
    const problems = new Set<string>();
    for (let i = 0; i < 60 && problems.size === 0; i++) {
      const { reactor, disk } = makeDisk(runSeed + i, [lie]);
      for (const value of [1, 2, 3]) await reactor.settle(commit(disk, value, 'none'));
      disk.crash();
      const problem = await problemOf(
        (async () => {
          // Rot is in what recovery reads; everything else has been done before.
          const after = disk.reopen({ faults: lie.kind === 'bit-rot' ? [{ kind: 'bit-rot' }, lie] : [] });
          expect(await reactor.settle(recover(after, 'none'))).toBe(3);
        })(),
      );
      if (problem !== null) problems.add(problem);
    }
    expect(problems.size).toBe(1);
  });
});
