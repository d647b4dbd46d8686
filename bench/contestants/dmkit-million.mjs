// dmkit-million.mjs FOLDER COUNT ORDER, under --expose-gc: opens a persistent store of COUNT exceptions in chunks of 4 KiB,
// whose records are in ascending or random ORDER, and prints { milliseconds, cpuMicroseconds, memoryBytes }.
import { closeSync, ftruncateSync, openSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { DeviceMapper } from '../../dist/index.js';

const CHUNK_SECTORS = 8;
const CHUNK_BYTES = 4096;
const PER_AREA = CHUNK_BYTES / 16;

const [folder, countText, order] = process.argv.slice(2);
const count = Number(countText);
const [origin, store] = ['million.origin', 'million.store'].map((name) => join(folder, name));

/** Records alone, as the kernel would have written them: their data is holes. */
function writeStore() {
  const fd = openSync(store, 'w');
  ftruncateSync(fd, (count + Math.ceil(count / PER_AREA) + 3) * CHUNK_BYTES);
  const header = Buffer.alloc(CHUNK_BYTES);
  header.write('SnAp');
  for (const [at, value] of [
    [4, 1],
    [8, 1],
    [12, CHUNK_SECTORS],
  ]) {
    header.writeUInt32LE(value, at);
  }
  writeSync(fd, header, 0, CHUNK_BYTES, 0);
  for (let area = 0; area * PER_AREA < count; area++) {
    const records = Buffer.alloc(CHUNK_BYTES);
    for (let i = 0; i < Math.min(PER_AREA, count - area * PER_AREA); i++) {
      const number = area * PER_AREA + i;
      records.writeUInt32LE(order === 'random' ? (number * 7919) % count : number, 16 * i);
      records.writeUInt32LE(2 + number + area, 16 * i + 8);
    }
    writeSync(fd, records, 0, CHUNK_BYTES, (1 + area * (PER_AREA + 1)) * CHUNK_BYTES);
  }
  closeSync(fd);
}

/** The heap, and ArrayBuffers, which a collection gives back a little later. */
async function usedBytes() {
  for (let i = 0; i < 3; i++) {
    globalThis.gc();
    await pause(50);
  }
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

writeFileSync(origin, '');
truncateSync(origin, count * CHUNK_BYTES);
writeStore();
const dm = new DeviceMapper();
// What the first device of a process costs is not the store's.
await (await dm.open(origin, { readOnly: true })).close();
const before = await usedBytes();
const cpu = process.cpuUsage();
const start = performance.now();
const table = `0 ${count * CHUNK_SECTORS} snapshot ${origin} ${store} P ${CHUNK_SECTORS}`;
await dm.create('million', table);
const milliseconds = performance.now() - start;
const { user, system } = process.cpuUsage(cpu);
const memoryBytes = (await usedBytes()) - before;
await dm.close();
for (const path of [origin, store]) rmSync(path);
process.stdout.write(JSON.stringify({ milliseconds, cpuMicroseconds: user + system, memoryBytes }));
