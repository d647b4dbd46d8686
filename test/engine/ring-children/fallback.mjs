// Opens a file both ways, reads what is not cached, writes and flushes, and says how.
import { execFileSync } from 'node:child_process';

const dist = new URL(process.env.DMKIT_DIST);
const { DeviceRegistry } = await import(new URL('devices/index.js', dist).href);
const { NodeLoop } = await import(new URL('reactor/node-loop.js', dist).href);
const { Bio, REQ_FUA, REQ_OP_READ, REQ_OP_WRITE } = await import(new URL('block/bio.js', dist).href);
const { submitBio } = await import(new URL('block/block-device.js', dist).href);

const path = process.argv[2];
const registry = new DeviceRegistry({ reactor: new NodeLoop() });

function request(device, op, flags) {
  return new Promise((resolve) => {
    const bio = new Bio();
    bio.reset(op, flags, device, 0, 8);
    bio.vecs = [{ page: new Uint8Array(4096), offset: 0, byteLength: 4096 }];
    bio.onEnd = ({ status }) => resolve(status);
    submitBio(bio);
  });
}

for (const direct of [false, true]) {
  const device = registry.open(path, false, { direct });
  execFileSync('dd', [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
  const statuses = [await request(device, REQ_OP_READ, 0), await request(device, REQ_OP_WRITE, REQ_FUA)];
  console.log(direct ? 'direct I/O' : 'cached', registry.info(device).engine, ...statuses);
  registry.close(device, false);
}
console.log(registry.engines.ringReason);
