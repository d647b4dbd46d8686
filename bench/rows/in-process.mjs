// 4 KiB random reads of a cached file from inside one process.
import { fileURLToPath } from 'node:url';
import { fioFile } from '../contestants/fio.mjs';
import { imageFor, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { run, which } from '../process.mjs';

const child = fileURLToPath(new URL('../contestants/child.mjs', import.meta.url));

/** A way to read that is a module of bench/contestants/: each measurement is a fresh Node.js process. */
export async function inNode(module, depth, { path, seconds, imageBytes, round }) {
  const args = [child, module, path, imageBytes, seconds, depth, round].map(String);
  return Number(await run(process.execPath, args, seconds * 2 + 15));
}

export async function dmkitMissing() {
  try {
    const { DeviceMapper } = await import('../../dist/index.js');
    return DeviceMapper === undefined ? 'dist/index.js exports no DeviceMapper yet' : undefined;
  } catch {
    return 'dist/ is not built: npm run build';
  }
}

export const noFio = () => (which('fio') === undefined ? 'no fio: scripts/install-peers' : undefined);

const WAYS = [
  { name: 'dmkit, 32 in flight', available: dmkitMissing, measure: (o) => inNode('dmkit-inprocess.mjs', 32, o) },
  { name: 'dmkit, 1 in flight', available: dmkitMissing, measure: (o) => inNode('dmkit-inprocess.mjs', 1, o) },
  { name: 'fs.readSync loop', measure: (o) => inNode('fs-read-sync.mjs', 1, o) },
  { name: 'FileHandle.read, 32 in flight', measure: (o) => inNode('file-handle.mjs', 32, o) },
  {
    name: 'fio psync',
    available: noFio,
    measure: (o) => fioFile({ ...o, ioengine: 'psync', rw: 'randread', depth: 1 }),
  },
  {
    name: 'fio io_uring, 32 in flight',
    available: noFio,
    measure: (o) => fioFile({ ...o, ioengine: 'io_uring', rw: 'randread', depth: 32 }),
  },
];

function contestant(way, folder, options) {
  let path;
  return {
    name: way.name,
    available: way.available ?? (() => undefined),
    start() {
      // Nobody writes: one file serves all.
      path = imageFor(folder, 'in-process', options.imageBytes);
      warm(path);
    },
    measure: (round) => way.measure({ ...options, path, round }),
    stop() {},
  };
}

export function inProcessRows(folders, options) {
  return Object.entries(folders)
    .filter(([, folder]) => folder !== undefined)
    .map(([place, folder]) => ({
      name: `in-process randread ${place}`,
      what: '4 KiB random reads of a file in the page cache, one process',
      fileSystem: fileSystemOf(folder),
      contestants: WAYS.map((way) => contestant(way, folder, options)),
    }));
}
