// Two outcomes of one case, answer by answer. What differs is either in the list of differences or a failure.
import { type Case, formatDisk, formatStep, fullSteps, type Outcome } from './case.ts';
import { type Difference, differences } from './differences.ts';

/** Counts which entries of the list of differences were seen. */
export class Tally {
  readonly #seen = new Set<string>();

  note(difference: Difference): void {
    this.#seen.add(difference.id);
  }

  /** Entries that some case should have shown and none did. */
  unused(): string[] {
    return differences.filter((one) => one.match !== null && !this.#seen.has(one.id)).map((one) => one.id);
  }
}

/** What is wrong with a case, ready to be read; an empty list: nothing. */
export function compare(one: Case, kernel: Outcome, here: Outcome, tally: Tally): string[] {
  const problems: string[] = [];
  const steps = fullSteps(one);
  let excused = false;
  for (const [number, step] of steps.entries()) {
    const theirs = kernel.answers[number] ?? 'nothing';
    const ours = here.answers[number] ?? 'nothing';
    const line = formatStep(step);
    if (step.fails && !isRefusal(theirs))
      problems.push(`${number}: ${line}\n    the kernel did not refuse it: ${theirs}`);
    if (theirs === ours) continue;
    const difference = findDifference(one.name, line, theirs, ours);
    if (difference === undefined) problems.push(`${number}: ${line}\n    kernel: ${theirs}\n    dmkit:  ${ours}`);
    else {
      tally.note(difference);
      excused = true;
    }
  }
  for (const [name, hash] of Object.entries(kernel.disks)) {
    const ours = here.disks[name] ?? 'nothing';
    // Steps that may end differently may leave other contents; everything else has to be equal.
    if (ours === hash || excused) continue;
    const difference = findDifference(one.name, `disk ${name}`, hash, ours);
    if (difference !== undefined) tally.note(difference);
    else problems.push(`disk ${name} in the end\n    kernel: ${hash}\n    dmkit:  ${ours}`);
  }
  return problems;
}

function isRefusal(answer: string): boolean {
  return /^(?:E[A-Z0-9]+|bad format|type name too long)\b/.test(answer);
}

function findDifference(name: string, step: string, theirs: string, ours: string): Difference | undefined {
  return differences.find(({ match }) => {
    if (match === null) return false;
    return match.name.test(name) && match.step.test(step) && match.kernel.test(theirs) && match.here.test(ours);
  });
}

/** A case as text, for a report. */
export function describeCase(one: Case): string {
  return [
    `case ${one.name}`,
    ...one.disks.map((d) => `  disk ${formatDisk(d)}`),
    ...one.steps.map((s) => `  ${formatStep(s)}`),
  ].join('\n');
}
