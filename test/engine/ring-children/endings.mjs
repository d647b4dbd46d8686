// Ends in the way that it is told, with reads in flight that would never end.
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { Pipe, sent } from './requests.mjs';

const [path, ending] = isMainThread ? process.argv.slice(2) : [workerData, 'stay'];
const pipe = new Pipe(path);
for (let i = 0; i < 20; i++) pipe.read();
await sent();

function busyWorker() {
  return new Promise((resolve) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: path });
    worker.once('message', () => resolve(worker));
  });
}

const endings = {
  exit: () => process.exit(3),
  throw: () => {
    setImmediate(() => {
      throw new Error('on purpose');
    });
  },
  signal: () => process.kill(process.pid, 'SIGTERM'),
  handler: () => {
    process.on('SIGTERM', () => process.exit(5));
    process.kill(process.pid, 'SIGTERM');
  },
  'exit of a worker': async () => {
    const worker = await busyWorker();
    worker.once('exit', (code) => process.exit(code));
    worker.postMessage('exit');
  },
  stay: () => {
    parentPort.on('message', () => process.exit(6));
    parentPort.postMessage('busy');
  },
};

if (isMainThread) console.log('busy');
await endings[ending]();
