// How a copy is watched: bars on a terminal, a line now and then elsewhere, events for programs.
import { SECTOR_SIZE } from '../block/sector.ts';
import type { Copy } from '../copy/copy.ts';
import { bytesText } from '../copy/units.ts';
import type { CopyOutput } from './copy-output.ts';

export { bytesText };

const BAR_MILLISECONDS = 200;
const LINE_MILLISECONDS = 5000;
const EVENT_MILLISECONDS = 1000;
/** Time that a rate is taken over. */
const RATE_MILLISECONDS = 5000;
const DEFAULT_COLUMN_COUNT = 80;
const MIN_BAR_LENGTH = 8;
const MAX_BAR_LENGTH = 24;

export interface Watch {
  /** Prints a line for people, above the bars where there are some. */
  note(text: string): void;
  stop(): void;
}

/** `0:07`, `1:02:03`. */
export function timeText(seconds: number): string {
  if (!Number.isFinite(seconds)) return '-';
  const whole = Math.ceil(seconds);
  const rest = `${Math.floor(whole / 60) % 60}:${String(whole % 60).padStart(2, '0')}`;
  return whole < 3600 ? rest : `${Math.floor(whole / 3600)}:${rest.padStart(5, '0')}`;
}

/** A name in at most `length` characters: its middle is left out, because names differ at their ends. */
export function shortened(name: string, length: number): string {
  if (name.length <= length) return name;
  const end = Math.ceil((length - 1) / 2);
  return `${name.slice(0, Math.max(0, length - 1 - end))}…${name.slice(name.length - end)}`;
}

/** Bytes a second over the last seconds. */
class Rate {
  readonly #samples = [{ at: performance.now(), byteLength: 0 }];

  /** Null where no time has passed yet. */
  add(byteLength: number): number | null {
    const at = performance.now();
    this.#samples.push({ at, byteLength });
    while (this.#samples.length > 2 && at - this.#samples[0]!.at > RATE_MILLISECONDS) this.#samples.shift();
    const first = this.#samples[0]!;
    return at === first.at ? null : ((byteLength - first.byteLength) * 1000) / (at - first.at);
  }
}

export interface ProgressState {
  label: string;
  doneByteLength: number;
  totalByteLength: number;
  /** Null where it is not known, or counts no more. */
  bytesPerSecond: number | null;
  /** It was given up, or some of its sectors failed. */
  note: '' | 'errors' | 'FAILED';
}

/** Looks at every destination, and at the verification as a whole. */
class Observer {
  readonly #copy: Copy;
  readonly #rates: Rate[];
  #verifyRate: Rate | null = null;
  readonly #told = new Set<unknown>();

  constructor(copy: Copy) {
    this.#copy = copy;
    this.#rates = copy.destinations.map(() => new Rate());
  }

  states(): ProgressState[] {
    return this.#copy.destinations.map((destination, index) => {
      const { handledByteLength, totalByteLength, region, dead, failures } = destination;
      const note = dead === null ? (failures.length > 0 ? 'errors' : '') : 'FAILED';
      return state(region.label, handledByteLength, totalByteLength, this.#rates[index]!, note);
    });
  }

  verification(): ProgressState {
    this.#verifyRate ??= new Rate();
    const { verifiedSectorCount, verifiableSectorCount } = this.#copy;
    const done = verifiedSectorCount * SECTOR_SIZE;
    return state('verifying', done, verifiableSectorCount * SECTOR_SIZE, this.#verifyRate, '');
  }

  /** Destinations that were given up since the last call. */
  *newlyFailed(): Generator<{ label: string; message: string }> {
    for (const destination of this.#copy.destinations) {
      if (destination.dead === null || this.#told.has(destination)) continue;
      this.#told.add(destination);
      yield { label: destination.region.label, message: destination.dead.message };
    }
  }
}

function state(
  label: string,
  doneByteLength: number,
  totalByteLength: number,
  rate: Rate,
  note: ProgressState['note'],
): ProgressState {
  const bytesPerSecond = rate.add(doneByteLength);
  const isOver = note === 'FAILED' || doneByteLength >= totalByteLength;
  return { label, doneByteLength, totalByteLength, bytesPerSecond: isOver ? null : bytesPerSecond, note };
}

function rateAndTime({ doneByteLength, totalByteLength, bytesPerSecond, note }: ProgressState): string {
  if (note === 'FAILED') return 'FAILED';
  if (doneByteLength >= totalByteLength) return note === '' ? 'done' : note;
  const rate = bytesPerSecond === null ? '-' : `${bytesText(bytesPerSecond)}/s`;
  const left = bytesPerSecond === null ? '-' : timeText((totalByteLength - doneByteLength) / bytesPerSecond);
  return `${rate}, ${left} left${note === '' ? '' : `, ${note}`}`;
}

/** One line of at most `columnCount` characters: percent, rate and time are never cut off, names are. */
export function barLine(one: ProgressState, labelLength: number, columnCount: number): string {
  const ratio = one.totalByteLength === 0 ? 1 : one.doneByteLength / one.totalByteLength;
  const percent = `${String(Math.floor(ratio * 100)).padStart(3)}%`;
  const facts = `${percent} ${rateAndTime(one)}`;
  const amount = ` ${bytesText(one.doneByteLength)} of ${bytesText(one.totalByteLength)},`;
  // As wide for all of them, so that the lines stand below each other: the longest rate, time and note.
  const factsLength = 36;
  const room = columnCount - factsLength - MIN_BAR_LENGTH - 2;
  const label = shortened(one.label, Math.max(8, Math.min(labelLength, room))).padEnd(
    Math.min(labelLength, Math.max(8, room)),
  );
  const left = columnCount - label.length - 2 - factsLength;
  const barLength = Math.max(0, Math.min(MAX_BAR_LENGTH, left));
  const filled = Math.round(barLength * Math.min(1, ratio));
  const bar = `${'='.repeat(filled)}${'-'.repeat(barLength - filled)}`;
  const isWide = left - barLength >= 26;
  return `${label} ${bar} ${isWide ? facts.replace('%', `%${amount}`) : facts}`.slice(0, columnCount);
}

function every(milliseconds: number, work: () => void): { stop(): void } {
  const timer = setInterval(work, milliseconds);
  return { stop: () => clearInterval(timer) };
}

const failureText = ({ label, message }: { label: string; message: string }): string =>
  `dmkit: ${label} FAILED: ${message}\n`;

/** Bars on standard error. */
export async function watchWithBars(copy: Copy): Promise<Watch> {
  const { default: cliProgress } = await import('cli-progress');
  const labelLength = Math.max(9, ...copy.destinations.map(({ region }) => region.label.length));
  const columnCount = (): number => (process.stderr.columns ?? DEFAULT_COLUMN_COUNT) - 1;
  const bars = new cliProgress.MultiBar(
    {
      format: (_options, _params, payload: ProgressState) => barLine(payload, labelLength, columnCount()),
      hideCursor: true,
      stream: process.stderr,
    },
    cliProgress.Presets.legacy,
  );
  const observer = new Observer(copy);
  const own = observer.states().map((one) => bars.create(1, 0, one));
  let verifying: ReturnType<typeof bars.create> | null = null;
  const note = (text: string): void => bars.log(text);
  const show = (): void => {
    for (const failure of observer.newlyFailed()) note(failureText(failure));
    for (const [index, one] of observer.states().entries()) {
      own[index]!.setTotal(Math.max(1, one.totalByteLength));
      own[index]!.update(one.totalByteLength === 0 ? 1 : one.doneByteLength, one);
    }
    if (copy.phase !== 'verifying') return;
    const one = observer.verification();
    verifying ??= bars.create(1, 0, one);
    verifying.setTotal(Math.max(1, one.totalByteLength));
    verifying.update(one.doneByteLength, one);
  };
  const timer = every(BAR_MILLISECONDS, show);
  return {
    note: (text) => {
      note(text);
      bars.update();
    },
    stop: () => {
      timer.stop();
      show();
      bars.stop();
    },
  };
}

/** A line for each destination now and then, on standard error. */
export function watchWithLines(copy: Copy, output: CopyOutput): Watch {
  const observer = new Observer(copy);
  const tellFailures = (): void => {
    for (const failure of observer.newlyFailed()) output.err(failureText(failure));
  };
  const failures = every(BAR_MILLISECONDS, tellFailures);
  const lines = every(LINE_MILLISECONDS, () => {
    const states = copy.phase === 'verifying' ? [observer.verification()] : observer.states();
    for (const one of states) {
      const amount = `${bytesText(one.doneByteLength)} of ${bytesText(one.totalByteLength)}`;
      output.err(`${one.label}: ${amount}, ${rateAndTime(one)}\n`);
    }
  });
  return {
    note: (text) => output.err(text),
    stop: () => {
      failures.stop();
      lines.stop();
    },
  };
}

/** One JSON object a line, on standard output. */
export function watchWithEvents(copy: Copy, output: CopyOutput): Watch {
  const observer = new Observer(copy);
  const failures = every(BAR_MILLISECONDS, () => {
    for (const { label, message } of observer.newlyFailed()) output.event({ event: 'failed', device: label, message });
  });
  const events = every(EVENT_MILLISECONDS, () => {
    const states = copy.phase === 'verifying' ? [observer.verification()] : observer.states();
    for (const { label, doneByteLength, totalByteLength, bytesPerSecond } of states) {
      output.event({
        event: copy.phase === 'verifying' ? 'verify' : 'progress',
        ...(copy.phase === 'verifying' ? {} : { device: label }),
        doneByteLength,
        totalByteLength,
        bytesPerSecond: bytesPerSecond === null ? null : Math.round(bytesPerSecond),
      });
    }
  });
  return {
    note: (text) => output.err(text),
    stop: () => {
      failures.stop();
      events.stop();
    },
  };
}
