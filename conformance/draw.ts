// Drawing cases from a seed.
import { mixSeed, type Random, randomFromSeed, randomInteger, randomItem } from '../src/testing/random.ts';

/** One stream of choices. The same seed and words give the same ones, whatever else was drawn. */
export class Draw {
  readonly #random: Random;

  constructor(...seed: readonly number[]) {
    this.#random = randomFromSeed(mixSeed(...seed));
  }

  /** A whole number from `min` to `max`. */
  integer(min: number, max: number): number {
    return randomInteger(this.#random, min, Math.max(min, max));
  }

  /** True with the probability given. */
  chance(probability: number): boolean {
    return this.#random() < probability;
  }

  item<Item>(list: readonly Item[]): Item {
    return randomItem(this.#random, list);
  }

  times<Item>(min: number, max: number, make: (index: number) => Item): Item[] {
    return Array.from({ length: this.integer(min, max) }, (_, index) => make(index));
  }
}
