// npm run conformance:record: asks the kernel everything again and writes down what it did; with --only, the cases whose
// name begins so, and keeps what is recorded of the others.
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { randomCases, writtenCases } from './cases.ts';
import { Tally } from './compare.ts';
import { Kernel, prepareGuest } from './guest/kernel.ts';
import { judge } from './judge.ts';
import { type RecordedCase, readRecorded, readRecordedKernel, writeRecorded } from './recorded.ts';
import { renderDifferences } from './render.ts';

const DEFAULT_SEED = 1;
const DEFAULT_CASE_COUNT = 560;

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
  const seed = Number(values.seed ?? DEFAULT_SEED);
  const count = Number(values.cases ?? DEFAULT_CASE_COUNT);
  const version = prepareGuest(join(folder, 'guest', 'build-guest'));
  const kernel = await Kernel.start(Number(values.jobs ?? 2), console.log);
  const only = values.only ?? '';
  const cases = [...writtenCases(), ...randomCases(seed, count)].filter((one) => one.name.startsWith(only));
  const kept = only === '' ? [] : keptCases(join(folder, 'recorded'), only, version.sha256);
  const tally = new Tally();
  const { recorded, failures, trouble } = await judge(kernel, cases, tally);
  // What the kernel did is worth keeping whether dmkit agrees or not; a run with holes is not.
  if (trouble.length === 0) {
    const all = [...kept, ...recorded];
    writeRecorded(join(folder, 'recorded'), { ...version, seed, cases: all.length }, all);
  }
  renderDifferences(join(folder, '..', 'docs', 'differences.md'));
  for (const text of [...trouble, ...failures]) console.log(`\n${text}`);
  for (const id of only === '' ? tally.unused() : []) console.log(`\nno case shows the difference "${id}" any more`);
  console.log(`\n${recorded.length} of ${cases.length} cases recorded; dmkit differs in ${failures.length}`);
  if (trouble.length + failures.length > 0) process.exitCode = 1;
}

/** What stays as it is recorded. @throws Error where that is another kernel's: one set of answers has one judge */
function keptCases(folder: string, only: string, sha256: string): RecordedCase[] {
  if (readRecordedKernel(folder).sha256 !== sha256) {
    throw new Error('what is recorded is from another kernel: record everything, without --only');
  }
  return readRecorded(folder).filter(({ one }) => !one.name.startsWith(only));
}
