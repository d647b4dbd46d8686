// snapshot-create.mjs FOLDER COUNT HOW: makes COUNT overlays of one image in a daemon of its own, through dmkit/client, and
// prints what each took as JSON: milliseconds, CPU time of this process and of the daemon in microseconds, and bytes of the
// daemon's memory. HOW: `overlay` (snapshots.create, files made and all), or `table` (create with a linear table).
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect } from '../../dist/client/index.js';

const [place, countText, how] = process.argv.slice(2);
const count = Number(countText);
const folder = join(place, `dmkit-overlays-${process.pid}`);
mkdirSync(folder, { mode: 0o700 });
const image = join(folder, 'golden.img');
writeFileSync(image, Buffer.alloc(8 << 20, 1));
const dm = connect({ folder: join(folder, 'd') });

const TICK_MICROSECONDS = 10_000;
const pid = await dm.create('first', `0 8 linear ${image} 0`).then(() => {
  const log = readFileSync(join(folder, 'd', 'daemon.log'), 'utf8');
  return JSON.parse(log.split('\n').find((line) => line.includes('"listening"'))).pid;
});

/** User and system time of the daemon. */
function daemonMicroseconds() {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  return (Number(fields[11]) + Number(fields[12])) * TICK_MICROSECONDS;
}

/** What it has in memory that is its own. */
function daemonBytes() {
  return Number(/^RssAnon:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) * 1024;
}

async function make(name) {
  if (how === 'overlay') await dm.snapshots.create({ origin: image, name, cowFolder: folder });
  else await dm.create(name, `0 16384 linear ${image} 0`);
}

for (let i = 0; i < 50; i += 1) await make(`warm${i}`);
const before = { cpu: process.cpuUsage(), daemon: daemonMicroseconds(), bytes: daemonBytes(), at: performance.now() };
for (let i = 0; i < count; i += 1) await make(`vm${i}`);
const milliseconds = performance.now() - before.at;
const { user, system } = process.cpuUsage(before.cpu);
const result = {
  milliseconds: milliseconds / count,
  cpuMicroseconds: (user + system) / count,
  daemonCpuMicroseconds: (daemonMicroseconds() - before.daemon) / count,
  daemonByteLength: (daemonBytes() - before.bytes) / count,
};
await dm.shutdown();
await dm.close();
rmSync(folder, { recursive: true, force: true });
process.stdout.write(JSON.stringify(result));
