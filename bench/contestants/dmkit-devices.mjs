// dmkit-devices.mjs FOLDER COUNT, under --expose-gc: COUNT devices, each over an image of its own, all served by this
// process. Prints a line of JSON: memory of a device that nobody uses (KiB), milliseconds to make and to remove one.
import { DeviceMapper } from '../../dist/index.js';
import { serveNbd } from '../../dist/nbd/index.js';
import { pssKiB } from '../proc.mjs';

const [folder, countText] = process.argv.slice(2);
const count = Number(countText);
const WARM_UP = 100;
const SECTORS = 8;

const dm = new DeviceMapper({ baseFolder: folder });

async function make(from, to) {
  for (let i = from; i < to; i++) (await dm.create(`d${i}`, `0 ${SECTORS} linear ${i}.img 0`)).close();
}

async function remove(from, to) {
  for (let i = from; i < to; i++) await dm.remove(`d${i}`);
}

function memory() {
  gc();
  gc();
  return { pss: pssKiB(process.pid), heap: process.memoryUsage().heapUsed / 1024 };
}

async function timed(work) {
  const start = performance.now();
  await work();
  return (performance.now() - start) / count;
}

// Code is compiled and pools are filled before anything counts.
await make(0, WARM_UP);
await (await serveNbd(dm, { listen: `unix:${folder}/dmkit.sock` })).close();
await remove(0, WARM_UP);

const before = memory();
const made = await timed(() => make(0, count));
let service;
const served = await timed(async () => {
  service = await serveNbd(dm, { listen: `unix:${folder}/dmkit.sock` });
});
const after = memory();
await service.close();
const removed = await timed(() => remove(0, count));
process.stdout.write(
  JSON.stringify({
    memoryKiB: (after.pss - before.pss) / count,
    heapKiB: (after.heap - before.heap) / count,
    makeMilliseconds: made + served,
    removeMilliseconds: removed,
  }),
);
await dm.close();
