// The NBD servers that are compared: how each is started on one image, and what its clients call it.
import { rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { scratchIn } from './images.mjs';
import { serve, which } from './process.mjs';

export const dmkitCommand = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));

export const missing = (program) => (which(program) === undefined ? `no ${program}: scripts/install-peers` : undefined);

export function dmkitCommandMissing() {
  try {
    statSync(dmkitCommand);
    return undefined;
  } catch {
    return 'dist/ is not built: npm run build';
  }
}

/** What `dmkit serve` prints when it is ready; the last line is the device that was named last. */
const printedUri = ({ stdout }) => stdout.match(/nbd\S*:\S+(?=\n)/g)?.at(-1);

/** Starts `dmkit serve` with arguments of its own: names and tables. */
export async function serveDmkit(words, place, { env, lines = 1 } = {}) {
  const listen = place.socket === undefined ? `tcp:127.0.0.1:${place.port}` : `unix:${place.socket}`;
  const args = [dmkitCommand, 'serve', ...words, '--nbd', listen];
  const ready = ({ stdout }) => stdout.split('\n').length > lines;
  const server = await serve(process.execPath, args, undefined, { ...polling(place), ready, env });
  return { ...server, uri: printedUri(server.output) };
}

/** How often it is asked whether it is there; where that is what is measured, more often. */
const polling = ({ pollMilliseconds }) => (pollMilliseconds === undefined ? {} : { pollMilliseconds });

function uriAt({ socket, port }, name = '') {
  return socket === undefined ? `nbd://127.0.0.1:${port}/${name}` : `nbd+unix:///${name}?socket=${socket}`;
}

function dmkit(name, { env, options = [] } = {}) {
  return {
    name,
    available: dmkitCommandMissing,
    serve: (image, place) =>
      serveDmkit(['disk', '--table', `0 ${statSync(image).size / 512} linear ${image} 0`, ...options], place, { env }),
  };
}

async function serveNbdkit(args, place) {
  const listen = place.socket === undefined ? ['--ipaddr=127.0.0.1', `--port=${place.port}`] : ['--unix', place.socket];
  const server = await serve(
    'nbdkit',
    ['--foreground', ...listen, ...args],
    place.socket ?? place.port,
    polling(place),
  );
  return { ...server, uri: uriAt(place) };
}

/** It serves one client alone unless it goes to the background, and takes its exports from a file. */
async function serveNbdServer(image, place) {
  const config = `${image}.nbd-server.conf`;
  const pidFile = `${image}.nbd-server.pid`;
  const listen =
    place.socket === undefined ? `listenaddr = 127.0.0.1\nport = ${place.port}` : `unixsock = ${place.socket}`;
  writeFileSync(
    config,
    `[generic]\n${listen}\n[disk]\nexportname = ${image}\nfilesize = ${statSync(image).size}\nflush = true\nfua = true\ntrim = true\n`,
  );
  const args = ['-C', config, '-p', pidFile];
  const server = await serve('nbd-server', args, place.socket ?? place.port, { ...polling(place), pidFile });
  return { ...server, uri: uriAt(place, 'disk') };
}

const DMKIT = dmkit('dmkit serve');

/** Each has `serve(image, place)`, which gives `{ uri, pid, output, stop() }`. */
export const SERVERS = [
  DMKIT,
  {
    name: 'nbdkit file',
    available: () => missing('nbdkit'),
    serve: (image, place) => serveNbdkit(['file', image], place),
  },
  {
    name: 'qemu-nbd',
    available: () => missing('qemu-nbd'),
    async serve(image, place) {
      const listen =
        place.socket === undefined ? ['--bind=127.0.0.1', `--port=${place.port}`] : ['--socket', place.socket];
      const args = ['--format=raw', '--persistent', '--shared=0', '--cache=writeback', ...listen, image];
      const server = await serve('qemu-nbd', args, place.socket ?? place.port, polling(place));
      return { ...server, uri: uriAt(place) };
    },
  },
  {
    name: 'nbd-server',
    available: () => missing('nbd-server'),
    serve: serveNbdServer,
  },
];

/** What happens where io_uring is refused, as containers do: threads take its place. */
export const DMKIT_WITHOUT_RING = dmkit('dmkit serve, no ring', { env: { DMKIT_ENGINE: 'direct' } });

/** What the threads give that several connections are shared out to. */
export const DMKIT_ONE_THREAD = dmkit('dmkit serve, one thread', { options: ['--threads', '1'] });

/** What the client can do at all with answers in dmkit's way: whatever it asks for is there, and what it writes is dropped. */
export const DMKIT_ZERO = {
  name: 'dmkit zero (ceiling)',
  isCeiling: true,
  available: dmkitCommandMissing,
  serve: (image, place) => serveDmkit(['disk', '--table', `0 ${statSync(image).size / 512} zero`], place),
};

/** A server that moves no data: what the client can do at all. */
export const NULL_SERVER = {
  name: 'nbdkit null (ceiling)',
  isCeiling: true,
  available: () => missing('nbdkit'),
  serve: (image, place) => serveNbdkit(['null', `size=${statSync(image).size}`], place),
};

/** A port of this machine that nobody has now. */
function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** Where the server of that name shall listen: at a socket beside the images in `folder`, or at a port. */
export async function placeFor(folder, name, overTcp = false) {
  const scratch = scratchIn(folder);
  if (overTcp) return { port: await freePort() };
  const socket = join(scratch, `${name.replace(/\W+/g, '-')}.sock`);
  rmSync(socket, { force: true });
  return { socket };
}
