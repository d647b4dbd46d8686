// What tables cost: the same reads with and without them, and how fast they load.
import { fileURLToPath } from 'node:url';
import { imageFor, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { run } from '../process.mjs';
import { dmkitMissing, inNode } from './in-process.mjs';

const loader = fileURLToPath(new URL('../contestants/dmkit-load.mjs', import.meta.url));
const LOAD_SECONDS = 60;

const SHAPES = [
  ['no table', 'bare'],
  ['one line', 'line'],
  ['3 layers', 'layers'],
  ['stripe of 4', 'stripe'],
  ['2^20 lines', 'million'],
];

function throughTable([name, shape], folder, options) {
  let path;
  return {
    name,
    available: dmkitMissing,
    start() {
      path = imageFor(folder, 'tables', options.imageBytes);
      warm(path);
    },
    measure: (round) => inNode(`dmkit-tables.mjs?shape=${shape}`, 32, { ...options, path, round }),
    stop() {},
  };
}

function loading(lines, folder, options) {
  let path;
  return {
    name: `${lines} lines`,
    available: dmkitMissing,
    start() {
      path = imageFor(folder, 'tables', options.imageBytes);
    },
    measure: async () =>
      Number(await run(process.execPath, [loader, path, lines, options.seconds].map(String), LOAD_SECONDS)),
    stop() {},
  };
}

export function tableRows(folders, options) {
  const folder = folders.memory ?? folders.disk;
  if (folder === undefined) return [];
  const fileSystem = fileSystemOf(folder);
  return [
    {
      name: 'tables randread',
      what: '4 KiB random reads of a file in the page cache through tables, 32 in flight, one process',
      fileSystem,
      contestants: SHAPES.map((shape) => throughTable(shape, folder, options)),
    },
    {
      name: 'tables load',
      what: 'lines a second from text to a live device and its removal',
      fileSystem,
      contestants: [1000, 2 ** 20].map((lines) => loading(lines, folder, options)),
    },
  ];
}
