// Writes to a snapshot and its origin until it is killed, and says on standard output which batch has begun and which ended.
import { writeSync } from 'node:fs';
import { DeviceMapper } from '../../dist/index.js';
import { batch, SECTOR_COUNT } from './kill-plan.mjs';

const [folder, seedText, words] = process.argv.slice(2);
const dm = new DeviceMapper({ baseFolder: folder });
const origin = await dm.create('og', `0 ${SECTOR_COUNT} snapshot-origin o.img`);
const snapshot = await dm.create('s', `0 ${SECTOR_COUNT} snapshot o.img c.img ${words}`);
for (let number = 0; ; number++) {
  writeSync(1, `begin ${number}\n`);
  const [first, second] = batch(Number(seedText), number);
  await Promise.all([snapshot.write(first.sector, first.data), origin.write(second.sector, second.data)]);
  if (words.includes('lazy')) await snapshot.flush();
  writeSync(1, `end ${number}\n`);
  if (number === 2000) break;
}
