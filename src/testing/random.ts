// Everything random in a simulated run comes from one 32-bit seed: streams of numbers for what happens in order, hashes
// for decisions that must not depend on the order in which they are asked for.

/** Numbers in [0, 1), as Math.random gives them. */
export type Random = () => number;

/** Scrambles 32 bits, so that neighbouring numbers have nothing in common (the finaliser of MurmurHash3). */
function scramble(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * A 32-bit number that depends on every one of `parts` and on nothing else. Parts may be sectors: both halves count.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { mixSeed } from 'dmkit/testing';
 *
 * assert.equal(mixSeed(7, 1), mixSeed(7, 1));
 * assert.notEqual(mixSeed(7, 1), mixSeed(7, 2));
 * ```
 */
export function mixSeed(...parts: readonly number[]): number {
  let hash = 0x2545f491;
  for (const part of parts) {
    hash = scramble(hash ^ (part | 0)) + 0x9e3779b9;
    hash = scramble(hash ^ (Math.floor(part / 0x1_0000_0000) | 0));
  }
  return hash >>> 0;
}

/** {@link mixSeed} as a number in [0, 1): one decision, without a stream. */
export function chance(...parts: readonly number[]): number {
  return mixSeed(...parts) / 0x1_0000_0000;
}

/**
 * A stream of numbers in [0, 1) from a 32-bit seed (a Weyl sequence, scrambled): the same seed gives the same numbers.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { randomFromSeed } from 'dmkit/testing';
 *
 * const [a, b] = [randomFromSeed(1), randomFromSeed(1)];
 * assert.equal(a(), b());
 * ```
 */
export function randomFromSeed(seed: number): Random {
  let state = scramble(seed ^ 0x5bd1e995);
  return () => {
    state = (state + 0x9e3779b9) | 0;
    return scramble(state) / 0x1_0000_0000;
  };
}

/** A whole number from `min` to `max`, both included. */
export function randomInteger(random: Random, min: number, max: number): number {
  return min + Math.floor(random() * (max - min + 1));
}

/** One of `list`, which is not empty. */
export function randomItem<Item>(random: Random, list: readonly Item[]): Item {
  return list[randomInteger(random, 0, list.length - 1)] as Item;
}

/** A new list with the same items in an order drawn from `random`. */
export function shuffled<Item>(random: Random, list: readonly Item[]): Item[] {
  const result = [...list];
  for (let i = result.length - 1; i > 0; i--) {
    const other = randomInteger(random, 0, i);
    [result[i], result[other]] = [result[other] as Item, result[i] as Item];
  }
  return result;
}

/** `byteLength` bytes that look like noise. */
export function randomBytes(random: Random, byteLength: number): Uint8Array {
  const bytes = new Uint8Array(byteLength);
  for (let i = 0; i < byteLength; i += 4) {
    const word = Math.floor(random() * 0x1_0000_0000);
    for (let k = 0; k < 4 && i + k < byteLength; k++) bytes[i + k] = word >>> (8 * k);
  }
  return bytes;
}

/** A 32-bit seed, drawn now: for runs that are not repeated from a known one. */
export function freshSeed(): number {
  return Math.floor(Math.random() * 0x1_0000_0000);
}
