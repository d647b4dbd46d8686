// SIGKILL at random moments. The kernel keeps what was written to the files, so that everything that had ended must be there,
// and of what was under way each sector is old or new.
import { closeSync, openSync, readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import { makeRandom, printSeedOnFailure, runs } from '../support/seed.ts';
import { makeImage, tempDir } from '../support/tmp.ts';
import { afterKill, killedAtLine } from './kill-child.ts';
// @ts-expect-error: plain JavaScript, shared with the writer
import { batch, SECTOR_COUNT } from './kill-plan.mjs';

const writer = fileURLToPath(new URL('kill-writer.mjs', import.meta.url));
const random = makeRandom();

/** What both devices may hold: the last contents that ended, and those of the batch under way. */
function expectations(base: Buffer, log: string, seed: number) {
  const numbers = (word: string) => Array.from(log.matchAll(new RegExp(`${word} (\\d+)\n`, 'g')), (m) => Number(m[1]));
  const endedCount = numbers('end').length;
  const contents: Record<string, Buffer> = { snapshot: Buffer.from(base), origin: Buffer.from(base) };
  for (let number = 0; number < endedCount; number++) {
    for (const { on, sector, data } of batch(seed, number)) data.copy(contents[on], sector * 512);
  }
  const underWay = numbers('begin').length > endedCount ? batch(seed, endedCount) : [];
  return { contents, underWay, endedCount };
}

function check(
  name: string,
  found: Buffer,
  expected: Buffer,
  underWay: { on: string; sector: number; data: Buffer }[],
) {
  const later = Buffer.from(expected);
  for (const { on, sector, data } of underWay) if (on === name) data.copy(later, sector * 512);
  for (let at = 0; at < found.byteLength; at += 512) {
    const sector = found.subarray(at, at + 512);
    const right = sector.equals(expected.subarray(at, at + 512)) || sector.equals(later.subarray(at, at + 512));
    if (!right) throw new Error(`${name}: sector ${at / 512} is neither what it was nor what was being written`);
  }
}

test('what had ended is there after a SIGKILL at any moment', async () => {
  printSeedOnFailure();
  let batchCount = 0;
  for (let round = 0; round < runs(30); round++) {
    const folder = tempDir('kill');
    const seed = Math.floor(random() * 2 ** 31);
    const base = makeImage(join(folder, 'o.img'), SECTOR_COUNT, seed);
    closeSync(openSync(join(folder, 'c.img'), 'w'));
    truncateSync(join(folder, 'c.img'), 4 * SECTOR_COUNT * 512);
    const words = `P ${[1, 4, 8, 16, 32][round % 5]}${round % 3 === 2 ? ' 1 lazy_commit' : ''}`;
    const log = await killedAtLine([writer, folder, String(seed), words], folder, random, 40);
    const { contents, underWay, endedCount } = expectations(base, log, seed);
    batchCount += endedCount;
    const dm = new DeviceMapper({ baseFolder: folder });
    const table = `0 ${SECTOR_COUNT} snapshot o.img c.img ${words}`;
    const snapshot = await afterKill(() => dm.create('s', table));
    check('snapshot', await snapshot.read(0, SECTOR_COUNT), contents.snapshot!, underWay);
    check('origin', readFileSync(join(folder, 'o.img')), contents.origin!, underWay);
    await dm.close();
  }
  expect(batchCount).toBeGreaterThan(0);
});
