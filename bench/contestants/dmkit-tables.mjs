// 4 KiB reads of one image through tables of different shapes, named by `?shape=`: bare (no table), line, layers (three
// devices on top of each other), stripe (four stripes of 64 KiB), million (2^20 lines in shuffled order).
import { DeviceMapper } from '../../dist/index.js';
import { layers, lineEntries, stripe } from './shapes.mjs';

const SECTOR_BYTES = 512;

async function make(mapper, shape, path, sectors) {
  const options = { readOnly: true };
  if (shape === 'bare') return mapper.open(path, options);
  if (shape === 'stripe') return mapper.create('stripe', stripe(path, sectors), options);
  if (shape === 'million') return mapper.create('million', lineEntries(path, sectors), options);
  let disk;
  for (const [name, table] of layers(path, sectors).slice(0, shape === 'line' ? 1 : undefined)) {
    disk = await mapper.create(name, table, options);
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
