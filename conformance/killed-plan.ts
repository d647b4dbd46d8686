// What is written to an origin and its snapshot until somebody is killed, drawn from a seed, and what may be there then.
import { Draw } from './draw.ts';
import { diskContent, noise, PAYLOAD_SECTOR_COUNT } from './noise.ts';

/** Sectors of a chunk, by turns: from the smallest to 1 MiB. */
export const CHUNK_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048] as const;
export const WRITE_COUNT = 1000;
/** At most, however small the chunks are. */
const MAX_WRITE_SECTOR_COUNT = 40;

interface KilledWrite {
  on: 's' | 'o';
  sector: number;
  sectorCount: number;
  from: number;
}

export interface KilledPlan {
  chunk: number;
  size: number;
  disks: string[];
  originTable: string;
  snapshotTable: string;
  writes: KilledWrite[];
}

/** @param number which of the runs: it chooses the chunks' size */
export function killedPlan(seed: number, number: number): KilledPlan {
  const draw = new Draw(seed, number);
  const chunk = CHUNK_SIZES[number % CHUNK_SIZES.length]!;
  const size = Math.max(150, 3 * chunk + draw.integer(1, 99));
  const writes = Array.from({ length: WRITE_COUNT }, (): KilledWrite => {
    const sector = draw.integer(0, size - 1);
    const sectorCount = Math.min(draw.integer(1, MAX_WRITE_SECTOR_COUNT), size - sector);
    const on = draw.chance(0.5) ? 's' : 'o';
    return { on, sector, sectorCount, from: draw.integer(0, PAYLOAD_SECTOR_COUNT - sectorCount) };
  });
  return {
    chunk,
    size,
    disks: [`a ${size} seed=1`, `c ${2 * size + 10 * chunk} zero`],
    originTable: `0 ${size} snapshot-origin @a`,
    snapshotTable: `0 ${size} snapshot @a @c ${draw.item(['P', 'PO'])} ${chunk}`,
    writes,
  };
}

/** What is wrong with the contents of one device after `endedCount` writes, with the next one under way; or null. */
export function killedProblem(plan: KilledPlan, on: 's' | 'o', endedCount: number, found: Uint8Array): string | null {
  const disk = { name: 'a', sectorCount: plan.size, seed: 1, blockSize: 512, isFile: false } as const;
  const before = diskContent(disk);
  const set = (to: Uint8Array, write: KilledWrite | undefined): void => {
    if (write?.on === on) to.set(noise(write.from, write.sectorCount), write.sector * 512);
  };
  for (const write of plan.writes.slice(0, endedCount)) set(before, write);
  const after = before.slice();
  set(after, plan.writes[endedCount]);
  const equal = (expected: Uint8Array, at: number): boolean =>
    Buffer.compare(found.subarray(at, at + 512), expected.subarray(at, at + 512)) === 0;
  for (let at = 0; at < before.byteLength; at += 512) {
    if (equal(before, at) || equal(after, at)) continue;
    return `${on}: sector ${at / 512} is neither what it was after ${endedCount} writes nor what the next one makes it`;
  }
  return null;
}
