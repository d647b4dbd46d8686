// dm-io on one region against what Node.js and fio do with the same file: cached, around the page cache, and a loop
// device.
import { execFileSync } from 'node:child_process';
import { fioFile } from '../contestants/fio.mjs';
import { imageFor, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { which } from '../process.mjs';
import { dmkitMissing, inNode, noFio } from './in-process.mjs';

/** Who meets whom: each row compares one way of waiting. */
const MATCHES = {
  sync: [
    ['dm-io, sync', 'dmkit-dm-io.mjs', 1, 'sync'],
    ['fs.*Sync loop', 'fs-read-sync.mjs', 1],
    ['fio psync', 'psync', 1],
  ],
  'async 1': [
    ['dm-io, callbacks', 'dmkit-dm-io.mjs', 1],
    ['FileHandle', 'file-handle.mjs', 1],
    ['fio io_uring', 'io_uring', 1],
  ],
  'async 32': [
    ['dm-io, callbacks', 'dmkit-dm-io.mjs', 32],
    ['FileHandle', 'file-handle.mjs', 32],
    ['fio io_uring', 'io_uring', 32],
  ],
};

const loops = new Set();
process.on('exit', () => {
  for (const loop of loops) execFileSync('losetup', ['--detach', loop], { stdio: 'ignore' });
});

function attachLoop(path) {
  const loop = execFileSync('losetup', ['--find', '--show', path], { encoding: 'utf8' }).trim();
  loops.add(loop);
  return loop;
}

function noLoop() {
  if (process.getuid?.() !== 0) return 'a loop device needs root';
  return which('losetup') === undefined ? 'no losetup: the Debian package mount' : undefined;
}

function contestant([name, way, depth, sync], place, op, options) {
  const isFio = !way.endsWith('.mjs');
  let path;
  return {
    name,
    available: () => place.unavailable?.() ?? (isFio ? noFio() : way.startsWith('dmkit') ? dmkitMissing() : undefined),
    start() {
      path = place.path(name, options);
    },
    measure(round) {
      const common = { ...options, path, round, direct: place.direct };
      if (isFio) return fioFile({ ...common, ioengine: way, rw: `rand${op}`, depth });
      const query = `?op=${op}${place.direct ? '&direct' : ''}${sync ? `&${sync}` : ''}`;
      return inNode(`${way}${query}`, depth, common);
    },
    stop() {},
  };
}

/** Writers get an image each, because dmkit locks its own. */
function cached(folder) {
  return (name, { imageBytes }) => {
    const path = imageFor(folder, `dm-io ${name}`, imageBytes);
    warm(path);
    return path;
  };
}

function places(folders) {
  const found = [];
  if (folders.memory) found.push({ name: 'memory', folder: folders.memory, path: cached(folders.memory) });
  if (folders.disk === undefined) return found;
  const attached = new Map();
  const onLoop = (name, options) => {
    if (!attached.has(name)) attached.set(name, attachLoop(cached(folders.disk)(`loop ${name}`, options)));
    return attached.get(name);
  };
  return [
    ...found,
    { name: 'disk', folder: folders.disk, path: cached(folders.disk) },
    { name: 'O_DIRECT', folder: folders.disk, path: cached(folders.disk), direct: true },
    { name: 'loop', folder: folders.disk, path: onLoop, unavailable: noLoop },
  ];
}

export function dmIoRows(folders, options) {
  return places(folders).flatMap((place) =>
    ['read', 'write'].flatMap((op) =>
      Object.entries(MATCHES).map(([match, ways]) => ({
        name: `dm-io ${op} ${place.name} ${match}`,
        what: `4 KiB random ${op}s of one region, ${place.name}, ${match}`,
        fileSystem: fileSystemOf(place.folder),
        contestants: ways.map((way) => contestant(way, place, op, options)),
      })),
    ),
  );
}
