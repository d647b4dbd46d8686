// What a snapshot costs a write: for the first time, again, and without one.
import { fileURLToPath } from 'node:url';
import { imageFor, scratchIn, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { run } from '../process.mjs';
import { dmkitMissing } from './in-process.mjs';

const writer = fileURLToPath(new URL('../contestants/dmkit-snapshot.mjs', import.meta.url));
const million = fileURLToPath(new URL('../contestants/dmkit-million.mjs', import.meta.url));
const MILLION_COUNT = 1_000_000;
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

/** Milliseconds, or MiB, of one and the same opening. */
function millionRow(place, folder, name, what, unit, figureOf) {
  return {
    name: `snapshot open million ${place} ${name}`,
    what: `a store of ${MILLION_COUNT} exceptions in chunks of 4 KiB, from its file to a live device: ${what}`,
    unit,
    lessIsBetter: true,
    fileSystem: fileSystemOf(folder),
    contestants: ['ascending', 'random'].map((order) => ({
      name: `${order} records`,
      available: dmkitMissing,
      start() {},
      async measure() {
        const words = ['--expose-gc', million, scratchIn(folder), MILLION_COUNT, order].map(String);
        const measured = JSON.parse(await run(process.execPath, words, LIMIT_SECONDS));
        return { value: figureOf(measured), cpuMicroseconds: measured.cpuMicroseconds };
      },
      stop() {},
    })),
  };
}

function millionRows([place, folder]) {
  return [
    millionRow(place, folder, 'time', 'how long', 'ms', ({ milliseconds }) => milliseconds),
    millionRow(place, folder, 'memory', 'heap and ArrayBuffers', 'MiB', ({ memoryBytes }) => memoryBytes / 2 ** 20),
  ];
}

export function snapshotRows(folders, options) {
  const present = Object.entries(folders).filter(([, folder]) => folder !== undefined);
  return [...writeRows(folders, options), ...present.flatMap(millionRows)];
}

function writeRows(folders, options) {
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
