// What it costs to start the command: from nothing to the end of a small piece of work, against Node.js that does none.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { endedChildrenMicroseconds } from '../proc.mjs';
import { run } from '../process.mjs';
import { dmkitCommand, dmkitCommandMissing, serveDmkit } from '../servers.mjs';

const RUN_SECONDS = 20;

/** Each gives the words behind `node`, for a folder with an image of 1 MiB. */
const COMMANDS = {
  'dmkit version': () => [dmkitCommand, 'version'],
  'dmkit ls': () => [dmkitCommand, 'ls'],
  'dmkit --help': () => [dmkitCommand, '--help'],
  'dmkit copy': (folder) => [dmkitCommand, 'copy', join(folder, 'a.img'), join(folder, 'b.img')],
};

const runCommand = (words) => run(process.execPath, words, RUN_SECONDS);

/** Until it listens; it is stopped off the clock. */
async function startServe(folder) {
  const image = join(folder, 'a.img');
  const socket = join(folder, 'serve.sock');
  const start = performance.now();
  const server = await serveDmkit(['disk', '--table', `0 2048 linear ${image} 0`], { socket, pollMilliseconds: 1 });
  const milliseconds = performance.now() - start;
  await server.stop();
  return milliseconds;
}

async function timed(work) {
  const start = performance.now();
  await work();
  return performance.now() - start;
}

function starting(name, available, startOnce, { seconds }) {
  let folder;
  return {
    name,
    available,
    start() {
      folder = mkdtempSync(join(tmpdir(), 'dmkit-bench-'));
      writeFileSync(join(folder, 'a.img'), Buffer.alloc(1 << 20, 7));
      // No daemon of this user takes part.
      process.env.DMKIT_DIR = join(folder, 'none');
    },
    async measure() {
      let count = 0;
      let milliseconds = 0;
      const cpu = endedChildrenMicroseconds();
      while (count === 0 || milliseconds < seconds * 1000) {
        milliseconds += await startOnce(folder);
        count += 1;
      }
      return { value: milliseconds / count, cpuMicroseconds: (endedChildrenMicroseconds() - cpu) / count };
    },
    stop() {
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

export function startUpRows(_folders, options) {
  const bare = starting(
    'node -e 0',
    () => undefined,
    () => timed(() => runCommand(['-e', '0'])),
    options,
  );
  const commands = Object.entries(COMMANDS).map(([name, words]) =>
    starting(name, dmkitCommandMissing, (folder) => timed(() => runCommand(words(folder))), options),
  );
  const serve = starting('dmkit serve, until it listens', dmkitCommandMissing, startServe, options);
  return [
    {
      name: 'start-up',
      what: 'one process from its start to its end, CPU time of each',
      section: 'Start of the command',
      unit: 'ms',
      lessIsBetter: true,
      fileSystem: 'none',
      contestants: [bare, ...commands, serve],
    },
  ];
}
