// 4 KiB random reads and writes over NBD, with fio as the client for every server.
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fioNbd } from '../contestants/fio.mjs';
import { imageFor, scratchIn, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { serve, which } from '../process.mjs';

const command = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

const missing = (program) => (which(program) === undefined ? `no ${program}: scripts/install-peers` : undefined);

/** How each server is started on an image and a socket. The arguments are the ones its own manual gives for speed. */
const SERVERS = [
  {
    name: 'dmkit serve',
    available: () => {
      try {
        statSync(command);
        return undefined;
      } catch {
        return 'dist/ is not built: npm run build';
      }
    },
    serve: (image, socket) => {
      const table = `0 ${statSync(image).size / 512} linear ${image} 0`;
      const args = [command, 'serve', 'disk', '--table', table, '--nbd', `unix:${socket}`];
      return serve(process.execPath, args, socket, { ready: ({ stdout }) => /nbd\S*:\S+/.test(stdout) });
    },
    // The command prints the address that its clients shall use.
    uri: (server) => server.output.stdout.match(/nbd\S*:\S+/)[0],
  },
  {
    name: 'nbdkit file',
    available: () => missing('nbdkit'),
    serve: (image, socket) => serve('nbdkit', ['--foreground', '--unix', socket, 'file', image], socket),
  },
  {
    name: 'qemu-nbd',
    available: () => missing('qemu-nbd'),
    serve: (image, socket) => {
      const args = ['--format=raw', '--persistent', '--shared=16', '--cache=writeback', '--socket', socket, image];
      return serve('qemu-nbd', args, socket);
    },
  },
];

function contestant(server, { folder, rw, depth, options }) {
  let running;
  let uri;
  return {
    name: server.name,
    available: () => missing('fio') ?? server.available(),
    async start() {
      const image = imageFor(folder, server.name, options.imageBytes);
      warm(image);
      const socket = join(scratchIn(folder), `${server.name.replace(/\W+/g, '-')}.sock`);
      rmSync(socket, { force: true });
      running = await server.serve(image, socket);
      uri = server.uri?.(running) ?? `nbd+unix:///?socket=${socket}`;
    },
    measure: (round) => fioNbd({ uri, rw, depth, round, ...options }),
    async stop() {
      await running?.stop();
      running = undefined;
    },
  };
}

export function nbdRows(folders, options) {
  const rows = [];
  for (const [place, folder] of Object.entries(folders)) {
    if (folder === undefined) continue;
    for (const rw of ['randread', 'randwrite']) {
      for (const depth of [1, 16, 64]) {
        rows.push({
          name: `nbd ${rw} ${place} ${depth}`,
          what: `NBD over a Unix socket, 4 KiB ${rw}, ${depth} in flight, file in the page cache`,
          fileSystem: fileSystemOf(folder),
          contestants: SERVERS.map((server) => contestant(server, { folder, rw, depth, options })),
        });
      }
    }
  }
  return rows;
}
