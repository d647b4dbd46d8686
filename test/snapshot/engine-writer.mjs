// Does a plan with one engine until it is killed, and says on standard output which batch has begun and which ended.
import { writeSync } from 'node:fs';
import { Disk } from '../../dist/api/disk.js';
import { DeviceRegistry } from '../../dist/devices/index.js';
import { Mapper } from '../../dist/mapper/mapper.js';
import { NodeLoop } from '../../dist/reactor/node-loop.js';
import { Targets } from '../../dist/targets/index.js';
import { planOf, runPlan } from './engine-plan.mjs';

const [folder, seedText, engine] = process.argv.slice(2);
const loop = new NodeLoop();
const devices = new DeviceRegistry({ reactor: loop, engine, baseFolder: folder });
const mapper = new Mapper(new Targets(), devices, 253, { reactor: loop, engines: devices.engines });

const world = {
  async create(name, table) {
    mapper.create(name);
    await world.load(name, table);
    return new Disk(mapper.get(name), () => {});
  },
  async load(name, table) {
    mapper.load(mapper.get(name), table);
    await new Promise((resolve, reject) => {
      mapper.get(name).resume({}, (error) => (error === null ? resolve() : reject(error)));
    });
  },
  remove: (name) => new Promise((resolve) => mapper.remove(mapper.get(name), {}, resolve)),
  status: (name) => mapper.get(name).lines('info')[0],
};

await runPlan(world, planOf(Number(seedText), 300, true), (what, number) => {
  writeSync(1, `${what} ${number}\n`);
});
