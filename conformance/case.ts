// A case: disks, and steps that the kernel and dmkit both take. Its form is text, one line a disk and one line a step, the
// same by hand, in the recorded files and in reports; here are the types behind the text, and both ways between them.

/** A disk at the bottom. Its content is noise from `seed`, so that a sector in the wrong place shows; or zeros. */
export interface DiskSpec {
  name: string;
  sectorCount: number;
  /** null: zeros. */
  seed: number | null;
  blockSize: 512 | 4096;
  /** A regular file, which the kernel does not take as a device. */
  isFile: boolean;
}

/** Requests that name a range. `zero-out` falls back to writing, `write-zeroes` does not. */
export const RANGE_VERBS = ['read', 'write', 'discard', 'write-zeroes', 'zero-out'] as const;
/** What concerns a mapped device as such. */
export const CONTROL_VERBS = ['resume', 'suspend', 'clear', 'remove'] as const;
export const QUERY_VERBS = ['table', 'status', 'deps', 'info'] as const;
/** Without a device. `tables` and `statuses` list them all; `handover` gives the disks to the other side. */
export const BARE_VERBS = ['tables', 'statuses', 'remove-all', 'finish', 'handover'] as const;

type RangeVerb = (typeof RANGE_VERBS)[number];

export interface IoStep {
  verb: RangeVerb;
  on: string;
  sector: number;
  sectorCount: number;
  /** Writes: the first sector of the noise that is written. */
  from: number;
  fua: boolean;
  /** Runs while the next steps do, up to `finish`. */
  started: boolean;
}

export interface CreateStep {
  verb: 'create' | 'load';
  on: string;
  readOnly: boolean;
  /** null: `create` without a table. */
  table: string | null;
}

export interface ControlStep {
  verb: (typeof CONTROL_VERBS)[number];
  on: string;
  noflush: boolean;
}

export interface QueryStep {
  verb: (typeof QUERY_VERBS)[number];
  on: string;
  inactive: boolean;
}

export interface MessageStep {
  verb: 'message';
  on: string;
  sector: string;
  text: string;
}

/** Waits until the status holds `text`, for what goes on in the background: a merge, a resynchronisation. */
interface UntilStep {
  verb: 'until';
  on: string;
  text: string;
}

/** Writes bytes past everything, to damage what a target wrote: on a disk that no device holds. */
export interface PokeStep {
  verb: 'poke';
  on: string;
  byteOffset: number;
  hex: string;
}

export interface WholeStep {
  verb: 'flush' | 'contents';
  on: string;
}

export interface BareStep {
  verb: (typeof BARE_VERBS)[number];
}

type AnyStep =
  | IoStep
  | CreateStep
  | ControlStep
  | QueryStep
  | MessageStep
  | UntilStep
  | PokeStep
  | WholeStep
  | BareStep;

export type Step = AnyStep & {
  /** The case is wrong unless this step is refused. */
  fails: boolean;
};

export interface Case {
  /** `linear/numbers`: the part before the slash is the recorded file's name. */
  name: string;
  disks: DiskSpec[];
  steps: Step[];
}

/** The part of a name before the slash. */
export function groupOf(name: string): string {
  return name.split('/')[0]!;
}

/** A case from its text. @throws Error that names the case and the line */
export function readCase(name: string, disks: readonly string[], steps: readonly string[]): Case {
  try {
    return { name, disks: disks.map(parseDisk), steps: steps.map(parseStep) };
  } catch (error) {
    throw new Error(`${name}: ${(error as Error).message}`);
  }
}

/** `a 2048 seed=3 block=4096`, `cow 512 zero`, `f 64 seed=1 file`. */
export function parseDisk(text: string): DiskSpec {
  const [name, count, ...rest] = text.split(' ');
  const disk: DiskSpec = { name: name!, sectorCount: Number(count), seed: null, blockSize: 512, isFile: false };
  for (const word of rest) {
    const [key, value] = word.split('=');
    if (key === 'seed') disk.seed = Number(value);
    else if (key === 'block' && value === '4096') disk.blockSize = 4096;
    else if (word === 'file') disk.isFile = true;
    else if (word !== 'zero') throw new Error(`"${text}": what is ${word}?`);
  }
  const unit = disk.blockSize / 512;
  if (!/^[a-z][a-z0-9]*$/.test(disk.name) || !(disk.sectorCount > 0) || disk.sectorCount % unit !== 0) {
    throw new Error(`"${text}" is no disk`);
  }
  return disk;
}

export function formatDisk(disk: DiskSpec): string {
  const words = [disk.name, String(disk.sectorCount), disk.seed === null ? 'zero' : `seed=${disk.seed}`];
  if (disk.blockSize !== 512) words.push(`block=${disk.blockSize}`);
  if (disk.isFile) words.push('file');
  return words.join(' ');
}

const TEXT_MARK = ' :: ';

/** One step; what the words mean is in docs/conformance.md. */
export function parseStep(line: string): Step {
  const mark = line.indexOf(TEXT_MARK);
  const head = mark < 0 ? line : line.slice(0, mark);
  const text = mark < 0 ? null : line.slice(mark + TEXT_MARK.length);
  const words = head.split(' ');
  const fails = words[0] === 'fails';
  if (fails) words.shift();
  const started = words[0] === 'start';
  if (started) words.shift();
  const step = parseWords(words, text, started);
  if (step === null) throw new Error(`"${line}" is no step`);
  return { ...step, fails };
}

function includes<Word extends string>(list: readonly Word[], word: string | undefined): word is Word {
  return (list as readonly (string | undefined)[]).includes(word);
}

function parseWords(words: readonly string[], text: string | null, started: boolean): AnyStep | null {
  const [verb, on, ...options] = words;
  if (includes(BARE_VERBS, verb)) return on === undefined ? { verb } : null;
  if (on === undefined) return null;
  if (includes(RANGE_VERBS, verb)) return parseIo(verb, on, options, started);
  if (started) return null;
  const flag = (name: string) => options.includes(name);
  if (verb === 'create' || verb === 'load') return { verb, on, readOnly: flag('ro'), table: text } as CreateStep;
  if (includes(CONTROL_VERBS, verb)) return { verb, on, noflush: flag('noflush') } as ControlStep;
  if (includes(QUERY_VERBS, verb)) return { verb, on, inactive: flag('inactive') } as QueryStep;
  if (verb === 'message') return { verb, on, sector: options[0] ?? '0', text: text ?? '' } as MessageStep;
  if (verb === 'until' && text !== null) return { verb, on, text };
  if (verb === 'poke') return parsePoke(on, options[0] ?? '', text ?? '');
  return verb === 'flush' || verb === 'contents' ? ({ verb, on } as WholeStep) : null;
}

function parsePoke(on: string, byteOffset: string, hex: string): PokeStep | null {
  if (!/^[0-9]+$/.test(byteOffset) || !/^(?:[0-9a-f]{2})+$/.test(hex)) return null;
  return { verb: 'poke', on, byteOffset: Number(byteOffset), hex };
}

function parseIo(verb: RangeVerb, on: string, options: readonly string[], started: boolean): IoStep | null {
  const range = /^([0-9]+)\+([0-9]+)$/.exec(options[0] ?? '');
  if (range === null) return null;
  const from = options.find((word) => word.startsWith('from='))?.slice(5) ?? '0';
  return {
    verb,
    on,
    sector: Number(range[1]),
    sectorCount: Number(range[2]),
    from: Number(from),
    fua: options.includes('fua'),
    started,
  };
}

export function formatStep(step: Step): string {
  const prefix = step.fails ? 'fails ' : '';
  return prefix + formatWords(step);
}

function formatWords(step: Step): string {
  if ('sectorCount' in step) {
    const words = [step.verb, step.on, `${step.sector}+${step.sectorCount}`];
    if (step.verb === 'write') words.push(`from=${step.from}`);
    if (step.fua) words.push('fua');
    if (step.started) words.unshift('start');
    return words.join(' ');
  }
  if ('table' in step) {
    const head = `${step.verb} ${step.on}${step.readOnly ? ' ro' : ''}`;
    return step.table === null ? head : head + TEXT_MARK + step.table;
  }
  if ('hex' in step) return `poke ${step.on} ${step.byteOffset}${TEXT_MARK}${step.hex}`;
  if (step.verb === 'until') return `until ${step.on}${TEXT_MARK}${step.text}`;
  if ('text' in step) return `message ${step.on} ${step.sector}${TEXT_MARK}${step.text}`;
  if ('noflush' in step) return `${step.verb} ${step.on}${step.noflush ? ' noflush' : ''}`;
  if ('inactive' in step) return `${step.verb} ${step.on}${step.inactive ? ' inactive' : ''}`;
  return 'on' in step ? `${step.verb} ${step.on}` : step.verb;
}

/**
 * The steps as they are run: a phase ends (at a handover, and at the end) with a look at every device that is left, and
 * without devices. The kernel tells tables and status of all devices in one go, which saves most of a boot's time.
 */
export function fullSteps(one: Case): Step[] {
  const steps: Step[] = [];
  for (const step of one.steps) {
    if (step.verb === 'handover') steps.push(...closingSteps(one, steps));
    steps.push(step);
  }
  steps.push(...closingSteps(one, steps));
  return steps;
}

function closingSteps(one: Case, before: readonly Step[]): Step[] {
  const phase = before.slice(before.map((step) => step.verb).lastIndexOf('handover') + 1);
  const disks = new Set(one.disks.map((disk) => disk.name));
  const made = phase.flatMap((step) => (step.verb === 'create' ? [step.on] : []));
  const names = [...new Set(made)].filter((name) => !disks.has(name));
  const paused = new Set(
    phase.flatMap((step) => (['suspend', 'resume', 'load'].includes(step.verb) && 'on' in step ? [step.on] : [])),
  );
  const lines: string[] = [];
  // A device that was left suspended would keep the reader of its contents waiting for ever.
  for (const name of names) if (paused.has(name)) lines.push(`resume ${name}`);
  if (names.length > 0) lines.push('tables', 'statuses');
  for (const name of names) lines.push(`contents ${name}`);
  if (names.length > 0) lines.push('remove-all');
  return lines.map(parseStep);
}

/** What one side did: an answer for each of {@link fullSteps}, and what the disks hold in the end. */
export interface Outcome {
  answers: string[];
  /** Hash by disk. */
  disks: Record<string, string>;
  /** At each handover, the content of every disk. */
  states: Record<string, Uint8Array>[];
}

/** What `contents` reads at the most of one device, in sectors. */
export const MAX_CONTENT_SECTOR_COUNT = 2048;

/** In what units `contents` goes on after a read failed, in bytes. */
export function retryBlockSize(one: Case): number {
  return Math.max(...one.disks.map((disk) => disk.blockSize), 512);
}
