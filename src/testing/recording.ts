// A recorded run of a simulated disk, and the states in which a crash could have left it: after every event of the run,
// several each. Recovery code that opens every one of them has seen what a power failure can do to it.
import type { DiskImage } from './disk-image.ts';
import type { Change, CrashChoice, DiskEvent, DiskModel } from './disk-model.ts';
import { mixSeed, type Random, randomFromSeed, shuffled } from './random.ts';
import type { SimulatedDevice, SimulatedDeviceOptions } from './simulated-device.ts';

/** Events that a recording keeps; past it the run fails loudly instead of being replayed in part. */
const MAX_EVENT_COUNT = 200_000;
/** A choice by `units` is a 32-bit mask. */
const MAX_UNIT_COUNT = 30;

/** One state that a crash may leave. */
export interface CrashState {
  /** The crash came after so many events of the recording. */
  readonly eventIndex: number;
  /** The last of these: `write 8+2 submitted`, `flush ended`. */
  readonly event: string;
  /** What had been noted until then. */
  readonly notes: readonly unknown[];
  readonly choice: CrashChoice;
  readonly image: DiskImage;
  /** A disk with this content, with the options of the recorded one but its faults. Its seed follows from the recorded one's. */
  open(options?: SimulatedDeviceOptions): SimulatedDevice;
  /** For messages: what repeats this state. */
  toString(): string;
}

export interface CrashStatesOptions {
  /** At the most, for each event; 8 unless given. Where fewer outcomes are possible than that, all of them come. */
  statesPerEvent?: number;
  /** Which of many outcomes come; the device's seed unless given. */
  seed?: number;
  /** Only crashes after at least so many events; 0 unless given. */
  fromEvent?: number;
  /** Only crashes after at most so many; all unless given. */
  toEvent?: number;
}

interface Note {
  readonly eventIndex: number;
  readonly value: unknown;
}

/**
 * Made by {@link SimulatedDevice.record}. An event is a write that started, a write or flush that ended, and the like.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { issue, SimulatedDevice } from 'dmkit/testing';
 *
 * const disk = new SimulatedDevice('disk', 64, { seed: 1 });
 * const recording = disk.record();
 * issue(disk, 'write', { sector: 0, data: new Uint8Array(512).fill(1) });
 * issue(disk, 'flush');
 * recording.note('the first is durable');
 * issue(disk, 'write', { sector: 1, data: new Uint8Array(512).fill(2) });
 *
 * for (const state of recording.crashStates()) {
 *   const [first, second] = [state.image.read(0, 1)[0], state.image.read(1, 1)[0]];
 *   if (second === 2 || state.notes.length > 0) assert.equal(first, 1, `${state}`);
 * }
 * ```
 */
export class Recording {
  readonly seed: number;
  readonly #start: DiskModel;
  readonly #events: DiskEvent[] = [];
  readonly #words: string[] = [];
  readonly #notes: Note[] = [];
  readonly #open: (image: DiskImage, options: SimulatedDeviceOptions) => SimulatedDevice;
  #stopped = false;

  /** @param start the model at the beginning; the recording keeps it */
  constructor(
    start: DiskModel,
    seed: number,
    open: (image: DiskImage, options: SimulatedDeviceOptions) => SimulatedDevice,
  ) {
    this.#start = start;
    this.seed = seed;
    this.#open = open;
  }

  get eventCount(): number {
    return this.#events.length;
  }

  /** The events in words, in their order. */
  get events(): readonly string[] {
    return this.#words;
  }

  /** Marks this moment: a crash state lists what was noted before it. For example the name of a transaction that was acknowledged. */
  note(value: unknown): void {
    this.#notes.push({ eventIndex: this.#events.length, value });
  }

  /** Later requests are not recorded. */
  stop(): void {
    this.#stopped = true;
  }

  /** The device's: takes an event. @throws Error past 200,000 events */
  add(event: DiskEvent, words: string): void {
    if (this.#stopped) return;
    if (this.#events.length >= MAX_EVENT_COUNT) throw new Error(`a recording keeps ${MAX_EVENT_COUNT} events: stop it`);
    this.#events.push(event);
    this.#words.push(words);
  }

  /**
   * The disk after a crash that came when `eventCount` events had happened. By `choice` nothing, everything, or a part of
   * what was volatile then survives.
   *
   * @throws RangeError for more events than were recorded
   */
  replayUntil(eventCount: number, choice: CrashChoice): DiskImage {
    if (eventCount < 0 || eventCount > this.#events.length) {
      throw new RangeError(`${eventCount} events of ${this.#events.length}`);
    }
    const model = this.#start.clone();
    for (const event of this.#events.slice(0, eventCount)) model.apply(event);
    return model.crashImage(choice);
  }

  /**
   * States that a crash may leave, earliest crash first, each different from the others of its event: with nothing and
   * with everything that was volatile, with all but one and with only one of the writes, and torn.
   */
  *crashStates(options: CrashStatesOptions = {}): Generator<CrashState, void, undefined> {
    const { statesPerEvent = 8, seed = this.seed, fromEvent = 0, toEvent = this.#events.length } = options;
    const model = this.#start.clone();
    for (let index = 0; index <= Math.min(toEvent, this.#events.length); index++) {
      if (index > 0) model.apply(this.#events[index - 1]!);
      if (index < fromEvent) continue;
      const images: DiskImage[] = [];
      for (const choice of choicesFor(model, statesPerEvent, mixSeed(seed, index))) {
        const image = model.crashImage(choice);
        if (images.some((other) => other.equals(image))) continue;
        images.push(image);
        yield this.#state(index, choice, image);
        if (images.length >= statesPerEvent) break;
      }
    }
  }

  #state(eventIndex: number, choice: CrashChoice, image: DiskImage): CrashState {
    const event = eventIndex === 0 ? 'nothing' : this.#words[eventIndex - 1]!;
    const notes = this.#notes.filter((note) => note.eventIndex <= eventIndex).map((note) => note.value);
    return {
      eventIndex,
      event,
      notes,
      choice,
      image,
      open: (options = {}) => this.#open(image, { seed: mixSeed(this.seed, eventIndex), ...options }),
      toString: () => `crash after event ${eventIndex} (${event}), choice ${JSON.stringify(choice)}, seed ${this.seed}`,
    };
  }
}

/** Choices in the order in which they are worth trying; some may come to the same. */
function* choicesFor(model: DiskModel, maxCount: number, seed: number): Generator<CrashChoice> {
  const pending = model.pending;
  yield 'none';
  if (pending.length === 0) return;
  const unitCount = model.countUnits(MAX_UNIT_COUNT + 1);
  if (unitCount <= MAX_UNIT_COUNT && 2 ** unitCount <= maxCount) {
    for (let units = 1; units < 2 ** unitCount; units++) yield { units };
    return;
  }
  yield 'all';
  const random = randomFromSeed(seed);
  // Half of what is left for single writes, half for free choices. A bound on the latter: many may be alike.
  yield* singleChoices(pending, Math.floor((maxCount - 2) / 2), random);
  for (let i = 0; i < 4 * maxCount; i++) yield { seed: mixSeed(seed, i) };
}

function* singleChoices(pending: readonly Change[], maxCount: number, random: Random): Generator<CrashChoice> {
  const indexes = shuffled(random, [...pending.keys()]);
  for (const [i, index] of indexes.slice(0, maxCount).entries())
    yield i % 2 === 0 ? { except: index } : { only: index };
}
