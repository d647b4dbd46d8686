// dmkit-snapshot.mjs IMAGE SECONDS DEPTH WHAT WORDS prints 4 KiB writes a second to random blocks of a device over a sparse
// store beside the image: `bare` (the store itself), `first` (each block of a snapshot for the first time) or `again`.
import { closeSync, openSync, rmSync, statSync, truncateSync } from 'node:fs';
import { DeviceMapper } from '../../dist/index.js';

const [image, secondsText, depthText, what, words] = process.argv.slice(2);
const sectors = Math.floor(statSync(image).size / 512 / 8) * 8;
const blocks = sectors / 8;
const store = `${image}.store`;
closeSync(openSync(store, 'w'));
truncateSync(store, sectors * 512 * 2);

const dm = new DeviceMapper();
const table = what === 'bare' ? `0 ${sectors} linear ${store} 0` : `0 ${sectors} snapshot ${image} ${store} ${words}`;
const disk = await dm.create('d', table);

/** Every block once, in an order that is none. */
async function write(from, until) {
  let next = from;
  const begun = performance.now();
  const lanes = Array.from({ length: Number(depthText) }, async (_, lane) => {
    const data = Buffer.alloc(4096, lane);
    while (next < blocks && performance.now() < until) {
      const block = (next++ * 7919) % blocks;
      await disk.write(block * 8, data);
    }
  });
  await Promise.all(lanes);
  return { perSecond: (next - from) / ((performance.now() - begun) / 1000), next };
}

const seconds = Number(secondsText);
const warm = await write(0, what === 'again' ? Number.POSITIVE_INFINITY : performance.now() + seconds * 200);
const start = what === 'again' ? 0 : warm.next;
process.stdout.write(String((await write(start, performance.now() + seconds * 1000)).perSecond));
await dm.close();
rmSync(store);
