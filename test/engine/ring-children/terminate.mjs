// Terminates a worker that has reads in flight, and looks whether they are gone.
import fs from 'node:fs';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { Pipe, sent } from './requests.mjs';

if (!isMainThread) {
  const pipe = new Pipe(workerData);
  for (let i = 0; i < 20; i++) pipe.read();
  await sent();
  parentPort.postMessage('busy');
} else {
  const path = process.argv[2];
  // Its own end of the pipe stays open, or what is fed would be lost with the worker's.
  const fd = fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_NONBLOCK);
  for (let round = 0; round < 5; round++) {
    const worker = new Worker(new URL(import.meta.url), { workerData: path });
    await new Promise((resolve) => worker.once('message', resolve));
    const start = performance.now();
    await worker.terminate();
    const took = performance.now() - start;
    if (took > 1000) throw new Error(`terminate took ${took} ms`);
    // Nobody else takes what is fed: a read that went on without its worker would.
    fs.writeSync(fd, Buffer.alloc(4096, round + 1));
    await new Promise((resolve) => setTimeout(resolve, 50));
    const page = Buffer.alloc(8192);
    const length = fs.readSync(fd, page, 0, 8192, null);
    if (length !== 4096 || page[4095] !== round + 1) throw new Error(`${length} of 4096 bytes are left`);
  }
  console.log('cancelled');
}
