// How a copy is watched: bars on a terminal, a line now and then elsewhere, events for programs.
import { SECTOR_SIZE } from '../block/sector.ts';
import type { Copy } from '../copy/copy.ts';
import { bytesText } from '../copy/units.ts';

export { bytesText };

const BAR_MILLISECONDS = 200;
const LINE_MILLISECONDS = 5000;
const EVENT_MILLISECONDS = 1000;
/** What a rate is taken over. */
const RATE_MILLISECONDS = 5000;

export interface Watch {
  stop(): void;
}

function timeText(seconds: number): string {
  if (!Number.isFinite(seconds)) return '-';
  const whole = Math.ceil(seconds);
  const rest = `${Math.floor(whole / 60) % 60}:${String(whole % 60).padStart(2, '0')}`;
  return whole < 3600 ? rest : `${Math.floor(whole / 3600)}:${rest.padStart(5, '0')}`;
}

/** Bytes a second over the last seconds. */
class Rate {
  readonly #samples: { at: number; byteLength: number }[] = [];

  add(byteLength: number): number {
    const at = performance.now();
    this.#samples.push({ at, byteLength });
    while (this.#samples.length > 2 && at - this.#samples[0]!.at > RATE_MILLISECONDS) this.#samples.shift();
    const first = this.#samples[0]!;
    return at === first.at ? 0 : ((byteLength - first.byteLength) * 1000) / (at - first.at);
  }
}

interface State {
  label: string;
  doneByteLength: number;
  totalByteLength: number;
  bytesPerSecond: number;
  secondsLeft: number;
  note: string;
}

/** Looks at every destination, and at the verification as a whole. */
class Observer {
  readonly #copy: Copy;
  readonly #rates: Rate[];
  readonly #verifyRate = new Rate();

  constructor(copy: Copy) {
    this.#copy = copy;
    this.#rates = copy.destinations.map(() => new Rate());
  }

  states(): State[] {
    return this.#copy.destinations.map((destination, index) => {
      const note = destination.dead === null ? (destination.failures.length > 0 ? 'errors' : '') : 'FAILED';
      const { handledByteLength, totalByteLength, region } = destination;
      return state(region.label, handledByteLength, totalByteLength, this.#rates[index]!, note);
    });
  }

  verification(): State {
    const copy = this.#copy;
    return state(
      'verifying',
      copy.verifiedSectorCount * SECTOR_SIZE,
      copy.verifiableSectorCount * SECTOR_SIZE,
      this.#verifyRate,
      '',
    );
  }
}

function state(label: string, doneByteLength: number, totalByteLength: number, rate: Rate, note: string): State {
  const bytesPerSecond = rate.add(doneByteLength);
  return {
    label,
    doneByteLength,
    totalByteLength,
    bytesPerSecond,
    secondsLeft: (totalByteLength - doneByteLength) / bytesPerSecond,
    note,
  };
}

function payloadOf(state: State): Record<string, string> {
  return {
    label: state.label,
    note: state.note,
    done: bytesText(state.doneByteLength),
    size: bytesText(state.totalByteLength),
    rate: `${bytesText(state.bytesPerSecond)}/s`,
    left: timeText(state.secondsLeft),
  };
}

function every(milliseconds: number, work: () => void): Watch {
  const timer = setInterval(work, milliseconds);
  return { stop: () => clearInterval(timer) };
}

/** Bars on standard error. */
export async function watchWithBars(copy: Copy): Promise<Watch> {
  const { default: cliProgress } = await import('cli-progress');
  const width = Math.max(9, ...copy.destinations.map(({ region }) => region.label.length));
  const bars = new cliProgress.MultiBar(
    {
      format: '{label} {bar} {percentage}% {done} of {size}, {rate}, {left} left {note}',
      hideCursor: true,
      stream: process.stderr,
      barsize: 24,
    },
    cliProgress.Presets.legacy,
  );
  const observer = new Observer(copy);
  const pad = (one: State): Record<string, string> => ({ ...payloadOf(one), label: one.label.padEnd(width) });
  const own = observer.states().map((one) => bars.create(1, 0, pad(one)));
  let verifying: ReturnType<typeof bars.create> | null = null;
  const show = (): void => {
    for (const [index, one] of observer.states().entries()) {
      own[index]!.setTotal(Math.max(1, one.totalByteLength));
      own[index]!.update(one.totalByteLength === 0 ? 1 : one.doneByteLength, pad(one));
    }
    if (copy.phase !== 'verifying') return;
    const one = observer.verification();
    verifying ??= bars.create(1, 0, pad(one));
    verifying.setTotal(Math.max(1, one.totalByteLength));
    verifying.update(one.doneByteLength, pad(one));
  };
  const timer = every(BAR_MILLISECONDS, show);
  return {
    stop: () => {
      timer.stop();
      show();
      bars.stop();
    },
  };
}

/** A line for each destination now and then, on standard error. */
export function watchWithLines(copy: Copy): Watch {
  const observer = new Observer(copy);
  return every(LINE_MILLISECONDS, () => {
    const states = copy.phase === 'verifying' ? [observer.verification()] : observer.states();
    for (const one of states) {
      const { label, done, size, rate, left, note } = payloadOf(one);
      process.stderr.write(`${label}: ${done} of ${size}, ${rate}, ${left} left${note === '' ? '' : `, ${note}`}\n`);
    }
  });
}

/** One JSON object a line, on standard output. */
export function watchWithEvents(copy: Copy): Watch {
  const observer = new Observer(copy);
  return every(EVENT_MILLISECONDS, () => {
    const states = copy.phase === 'verifying' ? [observer.verification()] : observer.states();
    for (const { label, doneByteLength, totalByteLength, bytesPerSecond } of states) {
      writeEvent({
        event: copy.phase === 'verifying' ? 'verify' : 'progress',
        ...(copy.phase === 'verifying' ? {} : { device: label }),
        doneByteLength,
        totalByteLength,
        bytesPerSecond: Math.round(bytesPerSecond),
      });
    }
  });
}

export function writeEvent(event: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}
