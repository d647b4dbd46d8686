// What happens to an origin and three snapshots of it, as numbers from a seed: requests to all of them at a time, now and
// then a snapshot that goes home and is made anew. The test and the process that is killed know it without being told.

export const SECTOR_COUNT = 128;
export const STORE_SECTOR_COUNT = 1024;
export const ORIGIN = 'og';

/** mulberry32 */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const integer = (random, min, max) => min + Math.floor(random() * (max - min + 1));
const item = (random, list) => list[integer(random, 0, list.length - 1)];

/** The byte that fills a sector of the origin at first. */
export const firstFill = (sector) => (sector * 7 + 1) & 0xff;

/** @param survives without stores that a crash forgets */
export function planOf(seed, batchCount, survives) {
  const random = generator(seed);
  const kinds = ['P', 'PO', survives ? 'P' : 'N'];
  const lines = kinds.map((word, index) => {
    const features = index === 1 ? ' 1 discard_zeroes_cow' : word === 'P' && random() < 0.5 ? ' 1 lazy_commit' : '';
    return { name: `s${index}`, store: `c${index}.img`, words: `${word} ${item(random, [1, 4, 8, 16])}${features}` };
  });
  const batches = [];
  let merging = null;
  for (let number = 0; number < batchCount; number++) {
    const living = lines.filter((line) => line !== merging);
    const ops = [ORIGIN, ...living.map((line) => line.name)].flatMap((on) => opsOn(random, on, living));
    let then = null;
    if (merging !== null && random() < 0.3) {
      then = { kind: 'settle', line: merging };
      merging = null;
    } else if (merging === null && random() < 0.15) {
      merging = item(
        random,
        lines.filter((line) => !line.words.startsWith('N')),
      );
      then = { kind: 'merge', line: merging };
    }
    batches.push({ ops, then });
  }
  return { lines, batches };
}

function opsOn(random, on, living) {
  const sector = integer(random, 0, SECTOR_COUNT - 1);
  const count = integer(random, 1, Math.min(24, SECTOR_COUNT - sector));
  const fill = integer(random, 1, 255);
  const discards = living.some((line) => line.name === on && line.words.includes('discard'));
  if (random() < 0.3) return [];
  return [{ on, kind: discards && random() < 0.3 ? 'discard' : 'write', sector, count, fill }];
}

export const snapshotTable = (line, type = 'snapshot') => `0 ${SECTOR_COUNT} ${type} o.img ${line.store} ${line.words}`;
export const originTable = `0 ${SECTOR_COUNT} snapshot-origin o.img`;

const isMerged = (status) => / (\d+)\/\d+ \1$/.test(status);

/** Waits until the origin's merge is over. */
export async function mergeEnded(world) {
  while (!isMerged(world.status(ORIGIN))) {
    if (/failed|Invalid/.test(world.status(ORIGIN))) throw new Error(world.status(ORIGIN));
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

/** Does the plan in `world`; `tell` hears about the beginning and the end of each batch. */
export async function runPlan(world, { lines, batches }, tell) {
  const disks = new Map([[ORIGIN, await world.create(ORIGIN, originTable)]]);
  for (const line of lines) disks.set(line.name, await world.create(line.name, snapshotTable(line)));
  for (const [number, { ops, then }] of batches.entries()) {
    await tell('begin', number, disks);
    await Promise.all(
      ops.map(({ on, kind, sector, count, fill }) => {
        const disk = disks.get(on);
        if (kind === 'write') return disk.write(sector, Buffer.alloc(count * 512, fill));
        // The portable engine has none.
        return disk.device.limits.maxDiscardSectorCount === 0 ? undefined : disk.discard(sector, count);
      }),
    );
    // What waits in memory for a flush is not there after a kill.
    const lazy = lines.filter((line) => line.words.includes('lazy') && disks.has(line.name));
    await Promise.all(lazy.map((line) => disks.get(line.name).flush()));
    if (then?.kind === 'merge') {
      await world.remove(then.line.name);
      disks.delete(then.line.name);
      await world.load(ORIGIN, snapshotTable(then.line, 'snapshot-merge'));
    } else if (then?.kind === 'settle') {
      await mergeEnded(world);
      await world.load(ORIGIN, originTable);
      disks.set(then.line.name, await world.create(then.line.name, snapshotTable(then.line)));
    }
    await tell('end', number, disks);
  }
}
