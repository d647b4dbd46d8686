// A ring beside libuv's pool: reads that wait take no place in it, and a pool without places does not stop the ring.
import { pbkdf2 } from 'node:crypto';
import fs from 'node:fs/promises';
import { Pipe, sent } from './requests.mjs';

const path = process.argv[2];
const pipes = Array.from({ length: 8 }, () => new Pipe(path));
let ended = 0;
for (const pipe of pipes) for (let i = 0; i < 8; i++) pipe.read(undefined, () => ended++);
await sent();
for (let i = 0; i < 100; i++) await fs.stat(path);
console.log('fs.promises work');

let busyCount = 32;
for (let i = busyCount; i > 0; i--) pbkdf2('a', 'b', 200_000, 64, 'sha512', () => busyCount--);
const start = performance.now();
for (let i = 0; i < 64; i++) pipes[0].feed(1);
while (ended < 64) await new Promise((resolve) => setImmediate(resolve));
if (busyCount === 0) throw new Error('the pool was not busy');
console.log(`read beside a busy pool in ${Math.round(performance.now() - start)} ms`);
// Nothing is in flight: the process ends by itself once the pool is done.
