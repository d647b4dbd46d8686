// What a snapshot costs a write: for the first time, again, and without one.
import { fileURLToPath } from 'node:url';
import { imageFor, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { run } from '../process.mjs';
import { dmkitMissing } from './in-process.mjs';

const writer = fileURLToPath(new URL('../contestants/dmkit-snapshot.mjs', import.meta.url));
const LIMIT_SECONDS = 120;

const CONTESTANTS = [
  ['no snapshot', 'bare', ''],
  ['first, chunk 8', 'first', 'P 8'],
  ['first, chunk 8, lazy_commit', 'first', 'P 8 1 lazy_commit'],
  ['first, chunk 128', 'first', 'P 128'],
  ['again, chunk 8', 'again', 'P 8'],
];

function contestant([name, what, words], depth, folder, options) {
  let path;
  return {
    name,
    available: dmkitMissing,
    start() {
      path = imageFor(folder, 'snapshot', options.imageBytes);
      warm(path);
    },
    measure: async () =>
      Number(
        await run(process.execPath, [writer, path, options.seconds, depth, what, words].map(String), LIMIT_SECONDS),
      ),
    stop() {},
  };
}

export function snapshotRows(folders, options) {
  return Object.entries(folders)
    .filter(([, folder]) => folder !== undefined)
    .flatMap(([place, folder]) =>
      [1, 32].map((depth) => ({
        name: `snapshot randwrite ${place} ${depth}`,
        what: `4 KiB random writes, no flush asked for, ${depth} in flight, one process`,
        fileSystem: fileSystemOf(folder),
        contestants: CONTESTANTS.map((one) => contestant(one, depth, folder, options)),
      })),
    );
}
