// A table's limits, kept from a calculation for the next one (a table is checked at its load and again at its resume), and
// the facts about its devices that they followed from.
import type { BlockDevice } from '../block/block-device.ts';
import { defaultLimits, type QueueLimits } from '../block/limits.ts';

const LIMIT_NAMES = Object.keys(defaultLimits()) as (keyof QueueLimits)[];

/** What a calculation of limits asks of one device. */
function factsOf(device: BlockDevice): (number | boolean)[] {
  const { limits, sectorCount } = device;
  return [sectorCount, ...LIMIT_NAMES.map((name) => limits[name])];
}

/** The sizes and limits of some devices at one moment. */
export class DeviceFacts {
  readonly #devices: readonly BlockDevice[];
  readonly #facts: readonly (number | boolean)[][];

  constructor(devices: readonly BlockDevice[]) {
    this.#devices = devices;
    this.#facts = devices.map(factsOf);
  }

  /** They are as they were: a device may have grown, or may have got another table. */
  areCurrent(): boolean {
    return this.#devices.every((device, index) => {
      const known = this.#facts[index]!;
      return factsOf(device).every((fact, at) => fact === known[at]);
    });
  }
}

/** Limits that were found for a table whose lines all fitted. */
export class KnownLimits {
  readonly #limits: QueueLimits;
  readonly #facts: DeviceFacts;

  /** @param facts taken before the first line was looked at */
  constructor(limits: QueueLimits, facts: DeviceFacts) {
    this.#limits = { ...limits };
    this.#facts = facts;
  }

  /** The limits; null where a device has changed, and with it may have what follows from it. */
  whileUnchanged(): QueueLimits | null {
    return this.#facts.areCurrent() ? { ...this.#limits } : null;
  }
}
