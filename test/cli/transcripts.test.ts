// Recorded sessions of the real dmsetup, repeated on devices in memory: output, stream and exit code to the byte.
import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { USAGE } from '../../src/cli/dmsetup/usage.ts';
import { DIFFERENCES, type Difference } from './differences.ts';
import { MiniShell, type Printed } from './mini-shell.ts';

interface Recorded {
  command: string;
  output: string[];
  kernel: string[];
  code: number;
}

interface Session {
  name: string;
  commands: Recorded[];
}

function readSessions(): Session[] {
  const sessions: Session[] = [];
  let current: Recorded | null = null;
  for (const line of readFileSync(new URL('transcripts/sessions.txt', import.meta.url), 'utf8').split('\n')) {
    const code = /^\[rc=(\d+)\]$/.exec(line);
    if (line.startsWith('=== ')) sessions.push({ name: line.slice(4), commands: [] });
    else if (code !== null) {
      sessions.at(-1)!.commands.push({ ...current!, code: Number(code[1]) });
      current = null;
    } else if (current === null) {
      if (line.startsWith('$ ')) current = { command: line.slice(2), output: [], kernel: [], code: 0 };
    } else if (quotesAreOpen(current.command)) current.command += `\n${line}`;
    else if (line.startsWith('[kernel] ')) current.kernel.push(line.slice(9));
    else current.output.push(line);
  }
  return sessions;
}

function quotesAreOpen(command: string): boolean {
  return (command.match(/'/g)?.length ?? 0) % 2 === 1;
}

const SESSIONS = readSessions();
const USAGE_LINES = USAGE.replace(/\n$/, '').split('\n');

/** With the usage text as the recordings abbreviate it. */
function withoutUsage(printed: readonly Printed[]): Printed[] {
  const texts = printed.map(({ text }) => text);
  const start = texts.indexOf(USAGE_LINES[0]!);
  if (start < 0) return [...printed];
  return [
    ...printed.slice(0, start),
    { stream: 'stderr', text: '<usage text>' },
    ...printed.slice(start + USAGE_LINES.length),
  ];
}

function isSubsequence(part: readonly string[], whole: readonly string[]): boolean {
  let at = 0;
  for (const line of whole) if (line === part[at]) at++;
  return at === part.length;
}

/** The recordings hold both streams in one, and what was buffered came late: each stream keeps its order. */
function sameOutput(printed: readonly Printed[], expected: readonly string[]): boolean {
  const of = (stream: Printed['stream']): string[] =>
    printed.filter((line) => line.stream === stream).map(({ text }) => text);
  const all = printed.filter(({ stream }) => stream !== 'note').map(({ text }) => text);
  return (
    [...all].sort().join('\n') === [...expected].sort().join('\n') &&
    isSubsequence(of('stdout'), expected) &&
    isSubsequence(of('stderr'), expected)
  );
}

interface Expected {
  output: readonly string[];
  code: number;
}

function matches(printed: readonly Printed[], code: number, expected: Expected): boolean {
  // Of help texts the recordings say only that there was one.
  if (expected.output[0] === '<help text>') return code === expected.code && printed.length > 1;
  return code === expected.code && sameOutput(printed, expected.output);
}

describe.each(SESSIONS)('$name', ({ commands }) => {
  test('says what dmsetup said', async () => {
    const shell = new MiniShell();
    shell.files.set('multi.tbl', MULTI_TABLE);
    const problems: string[] = [];
    for (const recorded of commands) {
      const { printed: raw, code } = await shell.run(recorded.command);
      const printed = withoutUsage(raw);
      const known = DIFFERENCES.find((difference) => difference.command === recorded.command);
      const same = matches(printed, code, recorded);
      const told = printed.filter(({ stream }) => stream === 'note').map(({ text }) => text);
      const problem = known === undefined ? !same : same || !matches(printed, code, differing(known, recorded));
      const untold = known === undefined ? recorded.kernel.filter((line) => !told.includes(line)) : [];
      if (problem || untold.length > 0) {
        const ours = printed.map(({ stream, text }) => `  ${stream}: ${text}`);
        const theirs = recorded.output.map((line) => `  ${line}`);
        problems.push(
          [
            `$ ${recorded.command}`,
            `ours, ${code}:`,
            ...ours,
            `recorded, ${recorded.code}:`,
            ...theirs,
            ...untold,
          ].join('\n'),
        );
      }
    }
    expect(problems.join('\n\n')).toBe('');
  });
});

function differing(known: Difference, recorded: Recorded): Expected {
  return { output: known.output, code: known.code ?? recorded.code };
}

test('every difference is one of a recorded command', () => {
  const commands = new Set(SESSIONS.flatMap((session) => session.commands.map(({ command }) => command)));
  expect(DIFFERENCES.filter(({ command }) => !commands.has(command))).toEqual([]);
});

test('the recordings are there', () => {
  expect(SESSIONS.reduce((count, session) => count + session.commands.length, 0)).toBeGreaterThan(220);
});

const MULTI_TABLE =
  '# leading comment\n\n  0 1000 linear 254:16 5 # trailing comment\n\t1000 24 zero\n1024   10\terror   \n';
