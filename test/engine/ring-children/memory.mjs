// Run with --expose-gc: drops, transfers and collects memory that the kernel will write to.
import { Pipe, sent } from './requests.mjs';

const pipe = new Pipe(process.argv[2]);
const COUNT = 50;
let ended = 0;
const outcome = [];
function startReads() {
  for (let i = 0; i < COUNT; i++) {
    pipe.read(new Uint8Array(4096), (status) => {
      outcome.push(status);
      ended++;
    });
  }
}

// Dropped: only the request knows the memory.
startReads();
const kept = new Uint8Array(4096);
let keptStatus = -1;
pipe.read(kept, (status) => {
  keptStatus = status;
});
await sent();
for (let i = 0; i < 5; i++) globalThis.gc();
const others = Array.from({ length: 2000 }, () => new Uint8Array(4096));
for (let i = 0; i < 5; i++) globalThis.gc();
// Transferred: refused, or a copy.
let moved = null;
try {
  moved = structuredClone(kept.buffer, { transfer: [kept.buffer] });
} catch {
  // Newer Nodes say so.
}
if (kept.byteLength !== 4096) throw new Error('the memory was taken away');
for (let i = 0; i < COUNT + 1; i++) {
  pipe.feed(0xaa);
  await new Promise((resolve) => setImmediate(resolve));
}
while (ended < COUNT || keptStatus === -1) await sent();
if (outcome.some((status) => status !== 0) || keptStatus !== 0) throw new Error(`failed: ${outcome}`);
if (others.some((page) => page.some((byte) => byte !== 0))) throw new Error('other memory was written to');
if (kept.some((byte) => byte !== 0xaa)) throw new Error('the memory was not written to');
console.log('intact', moved === null ? 'refused' : 'copied');
