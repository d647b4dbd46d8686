// FileHandle.read (with `?op=write`, write): what a program calls that wants promises and many requests in flight.
import { constants } from 'node:fs';
import { open as openFile } from 'node:fs/promises';
import { pages } from './memory.mjs';

export async function open(path, _byteLength, depth, query) {
  const isWrite = query.get('op') === 'write';
  const flags = (isWrite ? constants.O_RDWR : 0) | (query.has('direct') ? constants.O_DIRECT : 0);
  const handle = await openFile(path, flags);
  const buffers = pages(depth);
  const move = isWrite
    ? async (buffer, offset) => (await handle.write(buffer, 0, 4096, offset)).bytesWritten
    : async (buffer, offset) => (await handle.read(buffer, 0, 4096, offset)).bytesRead;
  return {
    async read(offset, lane) {
      if ((await move(buffers[lane], offset)) !== 4096) throw new Error('a short transfer');
    },
    close: () => handle.close(),
  };
}
