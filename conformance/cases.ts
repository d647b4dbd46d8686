// All cases: those written by hand, by group, and those drawn from a seed.
import { type Case, readCase } from './case.ts';
import { coreCases } from './core-cases.ts';
import { Draw } from './draw.ts';
import { drawnCases } from './drawn-cases.ts';
import { targets } from './targets/index.ts';
import type { CaseText } from './targets/target.ts';

function read(group: string, { name, disks, steps }: CaseText): Case {
  return readCase(`${group}/${name}`, disks, steps);
}

export function writtenCases(): Case[] {
  const core = coreCases().map((text) => read('core', text));
  return [...core, ...targets.flatMap(({ name, cases }) => cases.map((text) => read(name, text)))];
}

/** `count` random stacks and wrong tables, and as many of every target that draws cases of its own. */
export function randomCases(seed: number, count: number): Case[] {
  const own = targets.flatMap(({ name, drawCases }, number) => {
    const texts = drawCases?.((index) => new Draw(seed, number + 1, index), count) ?? [];
    return texts.map((text) => read(name, text));
  });
  return [...drawnCases(seed, count).map(({ group, text }) => read(group, text)), ...own];
}
