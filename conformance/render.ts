// docs/differences.md, made from the list.
import { writeFileSync } from 'node:fs';
import { type Difference, differences } from './differences.ts';

export function renderDifferences(path: string): void {
  writeFileSync(path, differencesPage());
}

export function differencesPage(): string {
  const shown = differences.filter((one) => one.match !== null);
  const unseen = differences.filter((one) => one.match === null);
  return `# Differences from the kernel

The kernel is Linux 6.1. This page is made from \`conformance/differences.ts\`, which the conformance run loads: an answer
of dmkit's that is not the kernel's and not in that list is a failure, and so is an entry that no case shows.

## Shown by cases

${table(shown)}

## Not to be seen by a case

${table(unseen)}
`;
}

function table(rows: readonly Difference[]): string {
  const lines = rows.map(({ here, kernel, why }) => `| ${[here, kernel, why].map(cell).join(' | ')} |`);
  return ['| dmkit | Linux 6.1 | why |', '| --- | --- | --- |', ...lines].join('\n');
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}
