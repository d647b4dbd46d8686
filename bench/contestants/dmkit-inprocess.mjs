// dmkit's own API in this process: a linear table over the file, read through the promise edge. The one place of the
// benchmarks that names the API.
import { DeviceMapper } from '../../dist/index.js';

const SECTOR_BYTES = 512;

export async function open(path, byteLength, depth) {
  const mapper = new DeviceMapper();
  const table = `0 ${byteLength / SECTOR_BYTES} linear ${path} 0`;
  const disk = await mapper.create('bench', table, { readOnly: true });
  const buffers = Array.from({ length: depth }, () => Buffer.alloc(4096));
  return {
    read: (offset, lane) => disk.readInto(offset / SECTOR_BYTES, buffers[lane]),
    close: () => mapper.close(),
  };
}
