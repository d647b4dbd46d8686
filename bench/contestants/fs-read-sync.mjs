// fs.readSync (with `?op=write`, fs.writeSync) in a loop: the quickest that Node.js itself has for a cached file.
import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs';
import { pages } from './memory.mjs';

export function open(path, _byteLength, _depth, query) {
  const isWrite = query.get('op') === 'write';
  const fd = openSync(path, (isWrite ? constants.O_RDWR : 0) | (query.has('direct') ? constants.O_DIRECT : 0));
  const [buffer] = pages(1);
  const move = isWrite ? writeSync : readSync;
  return {
    read(offset) {
      if (move(fd, buffer, 0, 4096, offset) !== 4096) throw new Error('a short transfer');
    },
    close: () => closeSync(fd),
  };
}
