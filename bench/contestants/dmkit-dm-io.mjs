// dm-io on one region of a device without a table: `?op=read|write`, `sync` for the call that returns when it is done,
// `direct` for O_DIRECT.
import { DeviceMapper, REQ_OP_READ, REQ_OP_WRITE } from '../../dist/index.js';
import { pages } from './memory.mjs';

const SECTOR_BYTES = 512;
const SECTORS = 8;

export async function open(path, _byteLength, depth, query) {
  const isWrite = query.get('op') === 'write';
  const mapper = new DeviceMapper();
  const bdev = mapper.devices.open(path, !isWrite, query.has('direct') ? { direct: true } : {});
  const client = mapper.dmIoClient(4096);
  const op = isWrite ? REQ_OP_WRITE : REQ_OP_READ;
  const lanes = pages(depth).map((buffer) => lane(bdev, op, buffer, query.has('sync')));
  const close = async () => {
    client.close();
    mapper.devices.close(bdev, !isWrite);
    await mapper.close();
  };
  if (query.has('sync')) {
    const { request, regions } = lanes[0];
    return {
      read(offset) {
        regions[0].sector = offset / SECTOR_BYTES;
        if (client.io(request, regions) !== 0) throw new Error('a request failed');
      },
      close,
    };
  }
  return {
    read(offset, index) {
      const one = lanes[index];
      one.regions[0].sector = offset / SECTOR_BYTES;
      return new Promise((resolve) => {
        one.resolve = resolve;
        client.io(one.request, one.regions);
      });
    },
    close,
  };
}

/** A request that is made over and over, as a program in a hurry does it. */
function lane(bdev, op, buffer, isSync) {
  const one = { resolve: undefined, regions: [{ bdev, sector: 0, count: SECTORS }], request: undefined };
  const fn = (errorBits) => {
    if (errorBits !== 0n) throw new Error('a request failed');
    one.resolve();
  };
  one.request = { op, memory: { type: 'buffer', buffer }, ...(isSync ? {} : { notify: { fn } }) };
  return one;
}
