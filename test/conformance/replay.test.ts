// What the kernel did, as recorded, against what dmkit does now. Without QEMU: `npm run conformance` asks the kernel anew.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { formatStep, groupOf } from '../../conformance/case.ts';
import { describeCase, Tally } from '../../conformance/compare.ts';
import { judgeHere } from '../../conformance/judge.ts';
import { readRecorded, readRecordedKernel, recordedGroups } from '../../conformance/recorded.ts';
import { differencesPage } from '../../conformance/render.ts';

const folder = fileURLToPath(new URL('../../conformance/recorded', import.meta.url));
const tally = new Tally();
const ran = new Set<string>();

test.each(recordedGroups(folder))('dmkit does what the kernel did: %s', async (group) => {
  const failures: string[] = [];
  for (const { one, kernel } of readRecorded(folder, group)) {
    const { problems } = await judgeHere(one, kernel, tally);
    if (problems.length > 0) failures.push(`${describeCase(one)}\n${problems.join('\n')}`);
  }
  ran.add(group);
  expect(failures.join('\n\n')).toBe('');
});

test('every entry of the list of differences is shown by some case', () => {
  // With -t or .only not every group has run.
  if (ran.size < recordedGroups(folder).length) return;
  expect(tally.unused()).toEqual([]);
});

test('the page of differences is made from the list', () => {
  const page = fileURLToPath(new URL('../../docs/differences.md', import.meta.url));
  expect(readFileSync(page, 'utf8')).toBe(differencesPage());
});

test('what is recorded has names of its own, and covers every operation', () => {
  const recorded = readRecorded(folder);
  const names = recorded.map(({ one }) => one.name);
  expect(new Set(names).size).toBe(names.length);
  expect(names.length).toBe(readRecordedKernel(folder).cases);
  expect(names.length).toBeGreaterThanOrEqual(500);
  const verbs = new Set(recorded.flatMap(({ one }) => one.steps.map((step) => step.verb)));
  for (const verb of [
    'read',
    'write',
    'discard',
    'write-zeroes',
    'zero-out',
    'flush',
    'load',
    'resume',
    'suspend',
  ] as const) {
    expect(verbs).toContain(verb);
  }
  for (const verb of ['remove', 'clear', 'message', 'status', 'table', 'deps', 'info', 'handover', 'finish'] as const) {
    expect(verbs).toContain(verb);
  }
  expect(recorded.some(({ one }) => one.steps.some((step) => formatStep(step).startsWith('fails ')))).toBe(true);
  expect([...new Set(names.map(groupOf))].sort()).toEqual(recordedGroups(folder).sort());
});
