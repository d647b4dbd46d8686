// The process that is killed: does a plan's writes on two image files, and says how many have ended.
import { writeSync } from 'node:fs';
import { DeviceMapper } from '../src/api/device-mapper.ts';
import { killedPlan } from './killed-plan.ts';
import { noise } from './noise.ts';

const [folder, seed, number] = process.argv.slice(2);
const plan = killedPlan(Number(seed), Number(number));
const dm = new DeviceMapper({ baseFolder: folder! });
const files = (table: string): string => table.replace(/@([a-z])/g, '$1.img');
const disks = {
  o: await dm.create('o', files(plan.originTable)),
  s: await dm.create('s', files(plan.snapshotTable)),
};
writeSync(1, '@begin\n');
for (const { on, sector, sectorCount, from } of plan.writes) {
  await disks[on].write(sector, noise(from, sectorCount));
  writeSync(1, '@end\n');
}
