// 4 KiB reads of one image through tables of different shapes, named by `?shape=`: bare (no table), line, layers (three
// devices on top of each other), stripe (four stripes of 64 KiB), million (2^20 lines in shuffled order).
import { DeviceMapper } from '../../dist/index.js';

const SECTOR_BYTES = 512;
const LINE_COUNT = 1 << 20;
const LINE_SECTORS = 8;

/** Each line leads to another block of the image than its neighbours. */
function millionLines(path, sectors) {
  const blocks = sectors / LINE_SECTORS;
  return Array.from({ length: LINE_COUNT }, (_, i) => ({
    sector: i * LINE_SECTORS,
    sectorCount: LINE_SECTORS,
    type: 'linear',
    params: `${path} ${((i * 40503) % blocks) * LINE_SECTORS}`,
  }));
}

function stripe(path, sectors) {
  const leg = sectors / 4;
  return `0 ${sectors} striped 4 128 ${[0, 1, 2, 3].map((i) => `${path} ${i * leg}`).join(' ')}`;
}

async function make(mapper, shape, path, sectors) {
  const options = { readOnly: true };
  if (shape === 'bare') return mapper.open(path, options);
  if (shape === 'stripe') return mapper.create('stripe', stripe(path, sectors), options);
  if (shape === 'million') return mapper.create('million', millionLines(path, sectors), options);
  let disk = await mapper.create('low', `0 ${sectors} linear ${path} 0`, options);
  for (const [name, below] of shape === 'layers'
    ? [
        ['middle', 'low'],
        ['top', 'middle'],
      ]
    : []) {
    disk = await mapper.create(name, `0 ${sectors} linear /dev/mapper/${below} 0`, options);
  }
  return disk;
}

export async function open(path, byteLength, depth, query) {
  const mapper = new DeviceMapper();
  const disk = await make(mapper, query.get('shape'), path, byteLength / SECTOR_BYTES);
  const buffers = Array.from({ length: depth }, () => Buffer.alloc(4096));
  const windows = disk.byteLength / byteLength;
  let window = 0;
  return {
    read(offset, lane) {
      // The random offsets are within the image; a device larger than it is visited window by window.
      window = (window + 1) % windows;
      return disk.readInto((offset + window * byteLength) / SECTOR_BYTES, buffers[lane]);
    },
    close: () => mapper.close(),
  };
}
