// Servers of a writable layer over one base image, each with a new layer at every start: dmkit's snapshot, qemu-nbd with a
// qcow2 file, nbdkit with its cow filter (whose layer is gone when it ends).
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, rmSync, statSync, truncateSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { serve, which } from '../process.mjs';

const command = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const SECTOR_BYTES = 512;

const missing = (program) => (which(program) === undefined ? `no ${program}: scripts/install-peers` : undefined);

function dmkitMissing() {
  try {
    statSync(command);
    return undefined;
  } catch {
    return 'dist/ is not built: npm run build';
  }
}

/** Room for every chunk and its record. */
function makeStore(path, base, chunkSectors) {
  closeSync(openSync(path, 'w'));
  const chunks = Math.ceil(statSync(base).size / SECTOR_BYTES / chunkSectors);
  truncateSync(path, (chunks + Math.ceil(chunks / (32 * chunkSectors)) + 3) * chunkSectors * SECTOR_BYTES);
}

function serveDmkit({ base, layer, socket, chunkSectors }, feature) {
  makeStore(layer, base, chunkSectors);
  const sectors = statSync(base).size / SECTOR_BYTES;
  const table = `0 ${sectors} snapshot ${base} ${layer} P ${chunkSectors}${feature}`;
  const args = [command, 'serve', 'disk', '--table', table, '--nbd', `unix:${socket}`];
  return serve(process.execPath, args, socket, { ready: ({ stdout }) => /nbd\S*:\S+/.test(stdout) });
}

function makeQcow2(layer, base, chunkSectors) {
  const options = `cluster_size=${chunkSectors * SECTOR_BYTES}`;
  const args = ['create', '-q', '-f', 'qcow2', '-o', options, '-b', base, '-F', 'raw', layer];
  const { status, stderr } = spawnSync('qemu-img', args, { encoding: 'utf8', timeout: 30_000, killSignal: 'SIGKILL' });
  if (status !== 0) throw new Error(`qemu-img create: ${stderr}`);
}

const dmkitUri = (server) => server.output.stdout.match(/nbd\S*:\S+/)[0];

/** `serve({ base, layer, socket, folder, chunkSectors })` makes the layer and starts; `uri` where it is not the usual. */
export const OVERLAYS = [
  { name: 'dmkit serve', available: dmkitMissing, serve: (place) => serveDmkit(place, ''), uri: dmkitUri },
  {
    name: 'dmkit serve, lazy_commit',
    available: dmkitMissing,
    serve: (place) => serveDmkit(place, ' 1 lazy_commit'),
    uri: dmkitUri,
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
