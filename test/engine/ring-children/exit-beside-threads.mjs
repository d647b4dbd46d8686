// Ends this process while threads of its NBD server have requests in flight.
// Arguments: a folder with an image, directIo of the device mapper, and how: exit, throw, or deaf (a thread that hears nothing).
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

const dist = new URL(process.env.DMKIT_DIST);
const { DeviceMapper } = await import(new URL('index.js', dist).href);
const { connectNbd, serveNbd } = await import(new URL('nbd/index.js', dist).href);

const [folder, directIo, how] = process.argv.slice(2);
const BYTE_LENGTH = 16 * 1024;

if (how === 'deaf') {
  const { holdAtExit } = await import(new URL('nbd/thread-hold.js', dist).href);
  const worker = new Worker('for (;;) ;', { eval: true });
  await new Promise((resolve) => worker.once('online', resolve));
  holdAtExit({ held: new Int32Array(new SharedArrayBuffer(4)), tellToHold: () => worker.postMessage('hold') });
}

const dm = new DeviceMapper({ directIo });
(await dm.create('a', `0 32768 linear ${join(folder, 'image')} 0`)).close();
const listen = `unix:${join(folder, 's')}`;
const service = await serveNbd(dm, { listen, threads: 3, threadWaitMilliseconds: 60_000 });
let next = 0;
let readCount = 0;
for (let i = 0; i < 6; i++) {
  const client = await connectNbd(service.uri('a'));
  const read = async () => {
    for (;;) {
      await client.read((next++ % 1024) * BYTE_LENGTH, BYTE_LENGTH);
      readCount++;
    }
  };
  for (let j = 0; j < 16; j++) read().catch(() => {});
}
while (readCount < 500) await new Promise((resolve) => setTimeout(resolve, 5));
console.log('busy');
if (how === 'throw') {
  setImmediate(() => {
    throw new Error('on purpose');
  });
} else process.exit(9);
