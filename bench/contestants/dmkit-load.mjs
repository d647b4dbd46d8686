// How fast tables load: dmkit-load.mjs FILE LINES SECONDS prints lines per second, text to live device and removal.
import { DeviceMapper } from '../../dist/index.js';

const [path, lines, seconds] = process.argv.slice(2);
const count = Number(lines);
const text = Array.from({ length: count }, (_, i) => `${i * 8} 8 linear ${path} ${(i % 1024) * 8}`).join('\n');
const mapper = new DeviceMapper();

let done = 0;
const start = performance.now();
do {
  const disk = await mapper.create('loaded', text, { readOnly: true });
  disk.close();
  await mapper.remove('loaded');
  done += count;
} while (performance.now() - start < Number(seconds) * 1000);
process.stdout.write(String(done / ((performance.now() - start) / 1000)));
await mapper.close();
