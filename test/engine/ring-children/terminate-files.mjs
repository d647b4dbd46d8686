// Terminates a worker of its own that has reads of an image in flight, and uses the memory that this frees.
// Arguments: the image, directIo of its device mapper, rounds.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';

const BYTE_LENGTH = 64 * 1024;

if (!isMainThread) {
  const { DeviceMapper } = await import(new URL('index.js', process.env.DMKIT_DIST).href);
  const { image, directIo, sectorCount } = workerData;
  const dm = new DeviceMapper({ directIo });
  const disk = await dm.create('a', `0 ${sectorCount} linear ${image} 0`);
  const slotCount = Math.floor((sectorCount * 512) / BYTE_LENGTH);
  let next = 0;
  const read = async () => {
    for (;;) await disk.read((next++ % slotCount) * (BYTE_LENGTH / 512), BYTE_LENGTH / 512);
  };
  for (let i = 0; i < 32; i++) void read();
  setTimeout(() => parentPort.postMessage('busy'), 50);
} else {
  const [image, directIo, rounds] = process.argv.slice(2);
  for (let round = 0; round < Number(rounds); round++) {
    const worker = new Worker(new URL(import.meta.url), { workerData: { image, directIo, sectorCount: 32768 } });
    worker.on('error', (error) => {
      throw error;
    });
    await new Promise((resolve) => worker.once('message', resolve));
    await worker.terminate();
    const buffers = Array.from({ length: 400 }, () => Buffer.alloc(BYTE_LENGTH, 7));
    await new Promise((resolve) => setTimeout(resolve, 50));
    if (buffers.some((buffer) => buffer.some((byte) => byte !== 7)))
      throw new Error('memory was written to after the end');
  }
  console.log('ended');
}
