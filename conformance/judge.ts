// Both sides of many cases, and what is wrong with them.
import type { Case, Outcome } from './case.ts';
import { compare, describeCase, type Tally } from './compare.ts';
import { continueHere, phasesForKernel } from './exchange.ts';
import type { Kernel } from './guest/kernel.ts';
import { runHere } from './here.ts';
import type { RecordedCase } from './recorded.ts';

export interface Verdict {
  recorded: RecordedCase[];
  /** Ready to be read, one for each case that differs. */
  failures: string[];
  /** What kept the guest from answering. */
  trouble: string[];
}

/** dmkit against what the kernel did with one case: the whole case, and every phase with the kernel's disks. */
export async function judgeHere(
  one: Case,
  kernel: Outcome,
  tally: Tally,
): Promise<{ here: Outcome; problems: string[] }> {
  let here: Outcome = { answers: [], disks: {}, states: [] };
  const problems: string[] = [];
  try {
    here = await runHere(one);
    problems.push(...compare(one, kernel, here, tally), ...(await continueHere(one, kernel, tally)));
  } catch (error) {
    // What the kernel did is not lost for it.
    problems.push(`dmkit: ${(error as Error).stack}`);
  }
  return { here, problems };
}

/** Runs `cases` in the guest and here. */
export async function judge(kernel: Kernel, cases: readonly Case[], tally: Tally): Promise<Verdict> {
  const run = await kernel.run(cases.map((one) => ({ one })));
  const verdict: Verdict = { recorded: [], failures: [], trouble: [...run.trouble] };
  const problems = new Map<Case, string[]>();
  const handed: { one: Case; theirs: Outcome; here: Outcome }[] = [];
  for (const [index, one] of cases.entries()) {
    const theirs = run.outcomes[index];
    if (theirs === null || theirs === undefined) continue;
    verdict.recorded.push({ one, kernel: theirs });
    const judged = await judgeHere(one, theirs, tally);
    problems.set(one, judged.problems);
    if (judged.here.states.length > 0) handed.push({ one, theirs, here: judged.here });
  }
  await judgeOurDisks(kernel, handed, problems, verdict, tally);
  for (const [one, found] of problems) {
    if (found.length > 0) verdict.failures.push(`${describeCase(one)}\n${found.join('\n')}`);
  }
  return verdict;
}

/** The kernel goes on with disks that dmkit wrote. */
async function judgeOurDisks(
  kernel: Kernel,
  handed: readonly { one: Case; theirs: Outcome; here: Outcome }[],
  problems: Map<Case, string[]>,
  verdict: Verdict,
  tally: Tally,
): Promise<void> {
  const works = handed.flatMap(({ one, theirs, here }) =>
    phasesForKernel(one, theirs, here).map((work) => ({ ...work, whole: one })),
  );
  if (works.length === 0) return;
  const run = await kernel.run(works.map(({ phase, contents }) => ({ one: phase.one, contents })));
  verdict.trouble.push(...run.trouble);
  for (const [index, { phase, whole }] of works.entries()) {
    const outcome = run.outcomes[index];
    if (outcome === null || outcome === undefined) continue;
    // Both are the kernel's: what it does with our disks, and what it did with its own.
    const found = compare(phase.one, phase.kernel, outcome, tally);
    problems
      .get(whole)!
      .push(...found.map((problem) => `the kernel with dmkit's disks, phase ${phase.number + 1}, ${problem}`));
  }
}
