// The same tables as in tables.mjs, but behind an NBD socket: what is left of their cost there.
import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fioNbd } from '../contestants/fio.mjs';
import { LINE_COUNT, LINE_SECTORS, layers, lineTexts, stripe } from '../contestants/shapes.mjs';
import { imageFor, scratchIn, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { dmkitCommandMissing, missing, placeFor, serveDmkit } from '../servers.mjs';
import { measureNbd } from './nbd.mjs';

const SECTOR_BYTES = 512;

/** The words of `dmkit serve` for each shape; the device that is measured is the last. */
const SHAPES = {
  'one line': (image, sectors) => ({ devices: [['disk', `0 ${sectors} linear ${image} 0`]], sectors }),
  '3 layers': (image, sectors) => ({ devices: layers(image, sectors), sectors }),
  'stripe of 4': (image, sectors) => ({ devices: [['disk', stripe(image, sectors)]], sectors }),
  '2^20 lines': (image, sectors) => ({
    devices: [['disk', lineTexts(image, sectors).join('\n')]],
    sectors: LINE_COUNT * LINE_SECTORS,
  }),
};

function words(devices, folder) {
  // A million lines are too long for a command line.
  return devices.flatMap(([name, table]) => {
    const file = join(scratchIn(folder), `${name}.table`);
    writeFileSync(file, table);
    return [name, '--table-file', file];
  });
}

function contestant([name, shape], { folder, options, ...work }) {
  let running;
  let imageBytes;
  return {
    name,
    available: () => missing('fio') ?? dmkitCommandMissing(),
    async start() {
      const image = imageFor(folder, 'tables', options.imageBytes);
      warm(image);
      const { devices, sectors } = shape(image, statSync(image).size / SECTOR_BYTES);
      imageBytes = sectors * SECTOR_BYTES;
      const place = await placeFor(folder, `tables ${name}`);
      running = await serveDmkit([...words(devices, folder), '--read-only'], place, { lines: devices.length });
      const warmUp = { uri: running.uri, round: 0, seconds: Math.max(0.3, options.seconds / 3) };
      await fioNbd({ ...options, ...work, imageBytes, ...warmUp });
    },
    measure: (round) => measureNbd(running, { ...options, ...work, imageBytes, round }),
    async stop() {
      await running?.stop();
      running = undefined;
    },
  };
}

export function tableNbdRows(folders, options) {
  const folder = folders.memory ?? folders.disk;
  if (folder === undefined) return [];
  return [1, 16].map((depth) => ({
    name: `tables nbd randread ${depth}`,
    what: `4 KiB random reads of a file in the page cache through tables, over NBD, ${depth} in flight`,
    section: 'Tables, over NBD',
    label: `randread ${depth} in flight`,
    fileSystem: fileSystemOf(folder),
    contestants: Object.entries(SHAPES).map((shape) =>
      contestant(shape, { rw: 'randread', depth, blockSize: '4k', folder, options }),
    ),
  }));
}
