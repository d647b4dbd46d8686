// What the kernel did, as files: one for each group of cases, one line for each case.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Case, formatDisk, formatStep, groupOf, type Outcome, readCase } from './case.ts';
import type { GuestVersion } from './guest/kernel.ts';
import { packContent, unpackContent } from './noise.ts';

/** One line of a file. */
interface RecordedLine {
  name: string;
  disks: string[];
  steps: string[];
  /** For each of fullSteps(). */
  answers: string[];
  /** The disks' hashes in the end. */
  end: Record<string, string>;
  /** At each handover, what the kernel left on the disks. */
  states?: Record<string, string>[];
}

/** A case and what the kernel did with it. */
export interface RecordedCase {
  one: Case;
  kernel: Outcome;
}

/** Which kernel, and from which seed the drawn cases come. */
export interface RecordedKernel extends GuestVersion {
  seed: number;
  cases: number;
}

const KERNEL_FILE = 'kernel.json';

function toLine({ one, kernel }: RecordedCase): string {
  const line: RecordedLine = {
    name: one.name,
    disks: one.disks.map(formatDisk),
    steps: one.steps.map(formatStep),
    answers: kernel.answers,
    end: kernel.disks,
  };
  if (kernel.states.length > 0) {
    line.states = kernel.states.map((state) =>
      Object.fromEntries(Object.entries(state).map(([name, bytes]) => [name, packContent(bytes)])),
    );
  }
  return JSON.stringify(line);
}

function fromLine(text: string): RecordedCase {
  const { name, disks, steps, answers, end, states = [] } = JSON.parse(text) as RecordedLine;
  const contents = states.map((state) =>
    Object.fromEntries(Object.entries(state).map(([disk, packed]) => [disk, unpackContent(packed)])),
  );
  return { one: readCase(name, disks, steps), kernel: { answers, disks: end, states: contents } };
}

/** Replaces what is recorded in `folder`. */
export function writeRecorded(folder: string, version: RecordedKernel, recorded: readonly RecordedCase[]): void {
  mkdirSync(folder, { recursive: true });
  for (const file of readdirSync(folder)) if (file.endsWith('.jsonl')) rmSync(join(folder, file));
  const lines = new Map<string, string[]>();
  for (const each of recorded) {
    const group = groupOf(each.one.name);
    lines.set(group, [...(lines.get(group) ?? []), toLine(each)]);
  }
  for (const [group, own] of lines) writeFileSync(join(folder, `${group}.jsonl`), `${own.join('\n')}\n`);
  writeFileSync(join(folder, KERNEL_FILE), `${JSON.stringify(version, null, 2)}\n`);
}

/** The cases of one group, or of all. */
export function readRecorded(folder: string, group?: string): RecordedCase[] {
  if (!existsSync(folder)) return [];
  const files = readdirSync(folder).filter((file) =>
    group === undefined ? file.endsWith('.jsonl') : file === `${group}.jsonl`,
  );
  return files.sort().flatMap((file) => readFileSync(join(folder, file), 'utf8').trimEnd().split('\n').map(fromLine));
}

export function recordedGroups(folder: string): string[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith('.jsonl'))
    .map((file) => file.slice(0, -'.jsonl'.length));
}

export function readRecordedKernel(folder: string): RecordedKernel {
  return JSON.parse(readFileSync(join(folder, KERNEL_FILE), 'utf8')) as RecordedKernel;
}
