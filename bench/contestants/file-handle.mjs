// FileHandle.read: what a program writes that wants promises and many reads in flight.
import { open as openFile } from 'node:fs/promises';

export async function open(path, _byteLength, depth) {
  const handle = await openFile(path, 'r');
  const buffers = Array.from({ length: depth }, () => Buffer.alloc(4096));
  return {
    async read(offset, lane) {
      const { bytesRead } = await handle.read(buffers[lane], 0, 4096, offset);
      if (bytesRead !== 4096) throw new Error('a short read');
    },
    close: () => handle.close(),
  };
}
