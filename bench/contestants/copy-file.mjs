// Node's own copy in a process of its own: copy-file.mjs SOURCE DESTINATION [durable]
import { closeSync, copyFileSync, fdatasyncSync, openSync } from 'node:fs';

const [source, destination, durable] = process.argv.slice(2);
copyFileSync(source, destination);
if (durable !== undefined) {
  const fd = openSync(destination, 'r+');
  fdatasyncSync(fd);
  closeSync(fd);
}
