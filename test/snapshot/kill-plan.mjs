// What the writer of the SIGKILL test does, as numbers from a seed: the test knows it without being told.

export const SECTOR_COUNT = 256;

function scramble(value) {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** One write to the snapshot and one to the origin, under way at the same time. */
export function batch(seed, number) {
  return ['snapshot', 'origin'].map((on, index) => {
    const draw = scramble(seed ^ scramble(number * 2 + index));
    const sector = draw % SECTOR_COUNT;
    const count = 1 + Math.min((draw >>> 8) % 24, SECTOR_COUNT - sector - 1);
    return { on, sector, data: Buffer.alloc(count * 512, 1 + (scramble(draw) % 255)) };
  });
}
