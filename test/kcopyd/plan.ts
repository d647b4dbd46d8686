// Jobs of kcopyd drawn at random, and what must be true after one: the model that every test of random jobs shares.
import fc from 'fast-check';
import { expect } from 'vitest';
import { sameBytes } from './support.ts';

export const SIZE = 160;
export const DEVICE_COUNT = 3;
export const PART = 16;

export interface Plan {
  kind: 'copy' | 'zero';
  from: { device: number; sector: number };
  dests: { device: number; sector: number }[];
  count: number;
  ignore: boolean;
  sequence: boolean;
  sync: boolean;
  splitCount: number;
  pageCount: number;
  /** A sector of each device that fails requests that touch it. */
  bad: (number | null)[];
  /** The job is cancelled after so many requests have ended. */
  cancelAfter: number | null;
  order: number;
}

const place = fc.record({ device: fc.nat(DEVICE_COUNT - 1), sector: fc.nat(60) });
export const arbitraryPlan: fc.Arbitrary<Plan> = fc.record({
  kind: fc.constantFrom('copy', 'copy', 'copy', 'zero'),
  from: place,
  dests: fc.array(place, { minLength: 1, maxLength: 8 }),
  count: fc.nat(100),
  ignore: fc.boolean(),
  sequence: fc.boolean(),
  sync: fc.boolean(),
  splitCount: fc.integer({ min: 1, max: 4 }),
  pageCount: fc.integer({ min: 2, max: 9 }),
  bad: fc.array(fc.option(fc.nat(SIZE - 1), { freq: 2 }), { minLength: DEVICE_COUNT, maxLength: DEVICE_COUNT }),
  cancelAfter: fc.option(fc.nat(12), { freq: 4 }),
  order: fc.nat(),
});

/** Destinations do not touch each other: between them there is no order. */
export function apart(plan: Plan): Plan['dests'] {
  const kept: Plan['dests'] = [];
  for (const dest of plan.dests) {
    const clashes = kept.some((k) => k.device === dest.device && Math.abs(k.sector - dest.sector) < plan.count);
    if (!clashes) kept.push(dest);
  }
  return kept;
}

/** @param run `before` and `after`: what each device held */
export function check(run: {
  plan: Plan;
  dests: Plan['dests'];
  before: Uint8Array[];
  after: Uint8Array[];
  result: { readErr: number; writeErr: number; error: unknown };
  cancelled: boolean;
}): void {
  const { plan, dests, before, after, result } = run;
  const bytes = plan.count * 512;
  const start = plan.from.sector * 512;
  const data = plan.kind === 'copy' ? before[plan.from.device]!.slice(start, start + bytes) : new Uint8Array(bytes);
  const expected = before.map((content) => content.slice());
  for (const { device, sector } of dests) expected[device]!.set(data, sector * 512);
  const clean = result.readErr === 0 && result.writeErr === 0;
  expect(result.error === null).toBe(clean);
  if (clean) {
    for (const [i, bytes] of after.entries()) expect(sameBytes(bytes, expected[i]!)).toBe(true);
    return;
  }
  expect(run.cancelled || plan.bad.some((bad) => bad !== null)).toBe(true);
  // Every sector holds what it held, or what was to come there; a read that failed and is ignored leaves zeroes.
  const zero = new Uint8Array(512);
  for (const [i, bytes] of after.entries()) {
    for (let at = 0; at < SIZE * 512; at += 512) {
      const now = bytes.subarray(at, at + 512);
      const right =
        sameBytes(now, before[i]!.subarray(at, at + 512)) || sameBytes(now, expected[i]!.subarray(at, at + 512));
      if (!right) expect(result.readErr === 1 && plan.ignore && !plan.sequence && sameBytes(now, zero)).toBe(true);
    }
  }
}
