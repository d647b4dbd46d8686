// What both fuzzers draw with: one number decides everything of a round.
import { makeRandom } from '../../support/seed.ts';

/** Numbers where things break. */
const EDGES = [0, 1, 2, 3, 7, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1];

export class Random {
  readonly #next: () => number;

  constructor(seed: number) {
    this.#next = makeRandom(seed);
  }

  /** A whole number from 0 to `end` - 1. */
  below(end: number): number {
    return Math.floor(this.#next() * end);
  }

  /** True once in `n`. */
  oneIn(n: number): boolean {
    return this.below(n) === 0;
  }

  pick<Item>(items: readonly Item[]): Item {
    return items[this.below(items.length)]!;
  }

  /** A number of 32 bits that is often at an edge. */
  edge(): number {
    return this.oneIn(4) ? this.below(2 ** 32) : this.pick(EDGES);
  }

  bytes(byteLength: number): Buffer {
    const bytes = Buffer.alloc(byteLength);
    for (let i = 0; i < byteLength; i++) bytes[i] = this.below(256);
    return bytes;
  }

  /** The same bytes with some changed, left out, doubled or put in. */
  damage(bytes: Buffer): Buffer {
    const at = this.below(bytes.length + 1);
    switch (this.below(5)) {
      case 0:
        return Buffer.concat([bytes.subarray(0, at), this.bytes(this.below(9)), bytes.subarray(at)]);
      case 1:
        return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + this.below(9))]);
      case 2:
        return Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.max(0, at - 16))]);
      default: {
        const copy = Buffer.from(bytes);
        for (let i = this.below(4); i >= 0 && copy.length > 0; i--)
          copy[this.below(copy.length)] = this.pick([0, 255, this.below(256)]);
        return copy;
      }
    }
  }

  /** Cuts `bytes` into portions. */
  portions(bytes: Buffer): Buffer[] {
    const longest = this.pick([1, 5, 30, 1000, 100_000]);
    const portions: Buffer[] = [];
    for (let at = 0; at < bytes.length; ) {
      const end = at + 1 + this.below(longest);
      portions.push(bytes.subarray(at, end));
      at = end;
    }
    return portions.length > 400 ? [bytes] : portions;
  }
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
