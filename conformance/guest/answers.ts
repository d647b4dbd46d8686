// From what the guest wrote to answers that can be compared: errors by name, devices by the names that the case gave them.

import { Errno, errnoMessage, errnoName } from '../../src/block/errno.ts';
import type { Case, Step } from '../case.ts';
import { shortHash } from '../noise.ts';
import type { PlannedCase } from './job.ts';

/** What the guest wrote about one step. */
interface Raw {
  output: string[];
  /** `0`, `1`, or `missing` for a device without a node. */
  code: string;
  /** The kernel's messages, where the step failed. */
  log: string[];
}

export interface RawCase {
  /** What the kernel calls the disks: `vdd1` and `254:49`, to names of the case. */
  names: Map<string, string>;
  steps: Map<number, Raw>;
  /** What went wrong that is no answer. */
  trouble: string[];
}

/** The cases of a boot by their numbers, as far as the guest came. */
export function parseAnswers(text: string): { cases: Map<number, RawCase>; finished: boolean } {
  const cases = new Map<number, RawCase>();
  let finished = false;
  let one: RawCase | null = null;
  let step: Raw | null = null;
  for (const line of text.split(/\r?\n/)) {
    const [word, first = '', second = '', third = ''] = line.split(' ');
    if (word === '@end') finished = true;
    else if (word === '@case') {
      one = { names: new Map(), steps: new Map(), trouble: [] };
      step = null;
      cases.set(Number(first), one);
    } else if (one === null) continue;
    else if (word === '@disk') one.names.set(second, first).set(third, first);
    else if (word === '@trouble') one.trouble.push(line);
    else if (word === '@step') {
      step = { output: [], code: '', log: [] };
      one.steps.set(Number(first), step);
    } else if (word === '@rc' && step !== null) step.code = first;
    else if (step !== null) (step.code === '' ? step.output : step.log).push(line);
    else if (line !== '') one.trouble.push(line);
  }
  return { cases, finished };
}

const ERRNO_BY_MESSAGE = new Map(Object.values(Errno).map((errno) => [errnoMessage(errno), errnoName(errno)]));

/** The name of the error that a tool's message ends with. */
function errnoIn(lines: readonly string[]): string | null {
  for (const line of lines) {
    // util-linux's own words for EOPNOTSUPP of a call with FALLOC_FL_KEEP_SIZE.
    if (line.includes('keep size mode is unsupported')) return 'EOPNOTSUPP';
    const name = ERRNO_BY_MESSAGE.get(line.slice(line.lastIndexOf(': ') + 2));
    if (name !== undefined) return name;
  }
  return null;
}

/** Puts the case's names in the place of the guest's. */
function rename(text: string, names: ReadonlyMap<string, string>): string {
  const named = text.replace(/\b(?:vd[a-z][0-9]+|25[49]:[0-9]+)\b/g, (word) => names.get(word) ?? word);
  return named.replace(/\bdm-([0-9]+)\b/g, '253:$1');
}

// What the kernel says beside the reason: that the load failed, and a warning that does not make it fail.
const REMARKS = [
  /^error adding target to table$/,
  /^unable to set up device queue/,
  /^adding target device .* alignment inconsist/,
  /: preresume failed, error = -[0-9]+$/,
];

// A target may refuse a resume; snapshots say why under a name of their own, among remarks about what goes on.
const REASON = /device-mapper: (?:(?:table|ioctl): (?:253:[0-9]+: )?|snapshots: (?=Unable to ))(.*)$/;

/** The reason that the kernel logged for refusing a table or a resume, or an empty string. */
function loggedReason(log: readonly string[], names: ReadonlyMap<string, string>): string {
  const reasons: string[] = [];
  for (const line of log) {
    const text = REASON.exec(line)?.[1];
    if (text === undefined || REMARKS.some((remark) => remark.test(text))) continue;
    reasons.push(rename(text, names));
  }
  return reasons.join('; ');
}

function controlAnswer(step: Step, raw: Raw, names: ReadonlyMap<string, string>): string {
  const output = raw.output.join('\n');
  if (raw.code === '0') return output === '' ? 'ok' : rename(output, names);
  const line = /Invalid format on line ([0-9]+)/.exec(output)?.[1];
  if (line !== undefined) return `bad format on line ${line}`;
  if (/^Target type name .* is too long/.test(output)) return 'type name too long';
  const match = /device-mapper: ([a-z-]+) ioctl on .* failed: (.*)/.exec(output);
  const errno = match === null ? null : ERRNO_BY_MESSAGE.get(match[2]!);
  if (errno === undefined || errno === null) return `? ${output}`;
  const stage = step.verb === 'create' ? ` at ${match![1]}` : '';
  const reason = ['create', 'load', 'resume'].includes(step.verb) ? loggedReason(raw.log, names) : '';
  return `${errno}${stage}${reason === '' ? '' : `: ${reason}`}`;
}

function queryAnswer(step: Step, raw: Raw, names: ReadonlyMap<string, string>): string {
  const output = raw.output.join('\n');
  if (raw.code !== '0')
    return errnoIn(raw.output) ?? (output.startsWith('Device does not exist') ? 'ENXIO' : `? ${output}`);
  if (output === 'No devices found') return '';
  if (step.verb !== 'deps') return rename(output, names);
  const devices = Array.from(output.matchAll(/\(([0-9]+), ([0-9]+)\)/g), ([, major, minor]) => `${major}:${minor}`);
  return rename(devices.join(' '), names);
}

/** An answer; `bytes` reads from the result disk. */
export function answerOf(
  planned: PlannedCase,
  rawCase: RawCase,
  number: number,
  bytes: (byteOffset: number, byteLength: number) => Uint8Array,
): string {
  const step = planned.steps[number]!;
  const raw = rawCase.steps.get(number);
  if (raw === undefined || raw.code === '') return '? no answer';
  if (raw.code === 'missing') return 'no device';
  const slot = planned.slots.get(number)?.[0];
  if (step.verb === 'contents') {
    const byteLength = Number(/^([0-9]+) bytes/.exec(raw.output.at(-1) ?? '')?.[1] ?? 'NaN');
    // A node without a table behind it.
    if (Number.isNaN(byteLength) && errnoIn(raw.output) === 'ENXIO') return 'no device';
    if (Number.isNaN(byteLength)) return `? ${raw.output.join('\n')}`;
    return byteLength === 0 ? 'no device' : `${byteLength / 512} ${shortHash(bytes(slot!.byteOffset, byteLength))}`;
  }
  if (isIo(step)) {
    if (raw.code !== '0') return errnoIn(raw.output) ?? `? ${raw.output.join('\n')}`;
    if ('sectorCount' in step && step.started) return 'started';
    return slot === undefined ? 'ok' : shortHash(bytes(slot.byteOffset, slot.byteLength));
  }
  if (['table', 'status', 'deps', 'info', 'tables', 'statuses', 'until'].includes(step.verb)) {
    return queryAnswer(step, raw, rawCase.names);
  }
  return step.verb === 'handover' ? 'ok' : controlAnswer(step, raw, rawCase.names);
}

function isIo(step: Step): boolean {
  return 'sectorCount' in step || step.verb === 'flush' || step.verb === 'poke' || step.verb === 'finish';
}

/** Why the guest's word on a case cannot be used, or null. */
export function troubleOf(one: Case, rawCase: RawCase | undefined, answers: readonly string[]): string | null {
  if (rawCase === undefined) return `${one.name}: the guest never came to it`;
  const odd = [...rawCase.trouble, ...answers.filter((answer) => answer.startsWith('? '))];
  return odd.length === 0 ? null : `${one.name}: ${odd.join('\n  ')}`;
}
