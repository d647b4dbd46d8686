// What a thread of a server does when something goes wrong: it is ready, and at the end does not answer, or says that it
// still has something open.
import { parentPort } from 'node:worker_threads';

const answer = process.env.STUCK_ANSWER === '1';
// Keeps the thread, as requests would that never end.
setInterval(() => {}, 1000);
parentPort.on('message', (message) => {
  if (message.kind === 'stop' && answer) {
    parentPort.postMessage({ kind: 'stopped', reason: 'its requests take too long', hasEnded: false });
  }
});
parentPort.postMessage({ kind: 'ready' });
