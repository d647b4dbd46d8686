// Servers of a writable layer over one base image, each with a new layer at every start: dmkit's snapshot, qemu-nbd with a
// qcow2 file, nbdkit with its cow filter (whose layer is gone when it ends).
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, rmSync, statSync, truncateSync } from 'node:fs';
import { serve } from '../process.mjs';
import { dmkitCommandMissing, missing, serveDmkit } from '../servers.mjs';

const SECTOR_BYTES = 512;

/** Room for every chunk and its record. */
function makeStore(path, base, chunkSectors) {
  closeSync(openSync(path, 'w'));
  const chunks = Math.ceil(statSync(base).size / SECTOR_BYTES / chunkSectors);
  truncateSync(path, (chunks + Math.ceil(chunks / (32 * chunkSectors)) + 3) * chunkSectors * SECTOR_BYTES);
}

function serveSnapshot({ base, layer, socket, chunkSectors }, feature) {
  makeStore(layer, base, chunkSectors);
  const sectors = statSync(base).size / SECTOR_BYTES;
  const table = `0 ${sectors} snapshot ${base} ${layer} P ${chunkSectors}${feature}`;
  return serveDmkit(['disk', '--table', table], { socket });
}

function makeQcow2(layer, base, chunkSectors) {
  const options = `cluster_size=${chunkSectors * SECTOR_BYTES}`;
  const args = ['create', '-q', '-f', 'qcow2', '-o', options, '-b', base, '-F', 'raw', layer];
  const { status, stderr } = spawnSync('qemu-img', args, { encoding: 'utf8', timeout: 30_000, killSignal: 'SIGKILL' });
  if (status !== 0) throw new Error(`qemu-img create: ${stderr}`);
}

/** `serve({ base, layer, socket, folder, chunkSectors })` makes the layer and starts. */
export const OVERLAYS = [
  { name: 'dmkit serve', available: dmkitCommandMissing, serve: (place) => serveSnapshot(place, '') },
  {
    name: 'dmkit serve, lazy_commit',
    available: dmkitCommandMissing,
    serve: (place) => serveSnapshot(place, ' 1 lazy_commit'),
  },
  {
    name: 'qemu-nbd qcow2',
    available: () => missing('qemu-nbd') ?? missing('qemu-img'),
    serve({ base, layer, socket, chunkSectors }) {
      rmSync(layer, { force: true });
      makeQcow2(layer, base, chunkSectors);
      const how = ['--format=qcow2', '--persistent', '--shared=16', '--cache=writeback'];
      return serve('qemu-nbd', [...how, '--socket', socket, layer], socket);
    },
  },
  {
    name: 'nbdkit cow',
    available: () => missing('nbdkit') ?? missing('env'),
    serve({ base, socket, folder, chunkSectors }) {
      const args = ['--foreground', '--unix', socket, '--filter=cow', 'file', base];
      const block = `cow-block-size=${chunkSectors * SECTOR_BYTES}`;
      // Its layer is a file without a name in TMPDIR.
      return serve('env', [`TMPDIR=${folder}`, 'nbdkit', ...args, block], socket);
    },
  },
];
