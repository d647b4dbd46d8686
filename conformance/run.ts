// npm run conformance: both sides now, on cases from a fresh seed.
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { freshSeed } from '../src/testing/random.ts';
import type { Case } from './case.ts';
import { randomCases, writtenCases } from './cases.ts';
import { Tally } from './compare.ts';
import { Kernel, prepareGuest } from './guest/kernel.ts';
import { judge } from './judge.ts';
import { readRecordedKernel } from './recorded.ts';

const DEFAULT_CASE_COUNT = 100;

export async function main(folder: string, args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      seed: { type: 'string' },
      cases: { type: 'string' },
      only: { type: 'string' },
      jobs: { type: 'string' },
    },
  });
  const seed = Number(values.seed ?? freshSeed());
  const count = Number(values.cases ?? DEFAULT_CASE_COUNT);
  const version = prepareGuest(join(folder, 'guest', 'build-guest'));
  const recorded = readRecordedKernel(join(folder, 'recorded'));
  if (version.sha256 !== recorded.sha256) {
    console.log(`this kernel is ${version.package} ${version.version}; recorded were answers of ${recorded.version}`);
  }
  console.log(`seed ${seed}: repeat with npm run conformance -- --seed ${seed} --cases ${count}`);
  const kernel = await Kernel.start(Number(values.jobs ?? 2), console.log);
  const cases = chooseCases(seed, count, values.only);
  const { failures, trouble } = await judge(kernel, cases, new Tally());
  for (const text of [...trouble, ...failures]) console.log(`\n${text}`);
  console.log(`\n${cases.length} cases, seed ${seed}: ${failures.length} differ`);
  if (trouble.length + failures.length > 0) process.exitCode = 1;
}

/** All written cases that hand disks over, and the drawn ones; with `only`, those whose name begins so. */
function chooseCases(seed: number, count: number, only: string | undefined): Case[] {
  const drawn = randomCases(seed, count);
  if (only !== undefined) return [...writtenCases(), ...drawn].filter((one) => one.name.startsWith(only));
  const exchanged = writtenCases().filter((one) => one.steps.some((step) => step.verb === 'handover'));
  return [...exchanged, ...drawn];
}
