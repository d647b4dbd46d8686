// Disks that go from one side to the other. A case with handovers is several phases; a phase begins with the disks that
// the one before left, whoever ran that, and must end as it does where one side runs them all.
import { type Case, fullSteps, type Outcome } from './case.ts';
import { compare, type Tally } from './compare.ts';
import type { Contents } from './disks.ts';
import { runHere } from './here.ts';
import { shortHash } from './noise.ts';

/** A phase of a case, as a case of its own. */
export interface Phase {
  one: Case;
  number: number;
  /** What the kernel did in it, and how the disks were afterwards. */
  kernel: Outcome;
}

/** The phases of a case that the kernel ran as a whole; one, for a case without handovers. */
export function phasesOf(one: Case, kernel: Outcome): Phase[] {
  const phases: Phase[] = [];
  const cuts = fullSteps(one).flatMap((step, index) => (step.verb === 'handover' ? [index] : []));
  const parts = split(one);
  let offset = 0;
  for (const [number, steps] of parts.entries()) {
    const end = cuts[number] ?? kernel.answers.length;
    const state = kernel.states[number];
    const disks = state === undefined ? kernel.disks : hashes(state);
    phases.push({
      one: { ...one, name: `${one.name}, phase ${number + 1}`, steps },
      number,
      kernel: { answers: kernel.answers.slice(offset, end), disks, states: [] },
    });
    offset = end + 1;
  }
  return phases;
}

function split(one: Case): Case['steps'][] {
  const parts: Case['steps'][] = [[]];
  for (const step of one.steps) {
    if (step.verb === 'handover') parts.push([]);
    else parts.at(-1)!.push(step);
  }
  return parts;
}

function hashes(state: Contents): Record<string, string> {
  return Object.fromEntries(Object.entries(state).map(([name, bytes]) => [name, shortHash(bytes)]));
}

/** Each phase but the first, here, with the disks as the kernel left them: image files. */
export async function continueHere(one: Case, kernel: Outcome, tally: Tally): Promise<string[]> {
  const problems: string[] = [];
  for (const phase of phasesOf(one, kernel).slice(1)) {
    const here = await runHere(phase.one, { contents: kernel.states[phase.number - 1]!, files: true });
    const found = compare(phase.one, phase.kernel, here, tally);
    problems.push(...found.map((problem) => `dmkit with the kernel's disks, phase ${phase.number + 1}, ${problem}`));
  }
  return problems;
}

/** The same the other way round: cases for the guest, with the disks as dmkit left them. */
export function phasesForKernel(one: Case, kernel: Outcome, here: Outcome): { phase: Phase; contents: Contents }[] {
  return phasesOf(one, kernel)
    .slice(1)
    .map((phase) => ({ phase, contents: here.states[phase.number - 1]! }));
}
