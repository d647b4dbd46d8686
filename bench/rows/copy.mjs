// dmkit copy against other ways to copy an image: to a file, to four, to an NBD export. Whole processes, their start and
// end included. What each makes is compared with the source once, before the first round.
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  copyFileSync,
  existsSync,
  openSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { ONE_TO_FOUR, ONE_TO_ONE, TO_NBD } from '../contestants/copy-commands.mjs';
import { forgetImage, imageFor, scratchIn, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { endedChildrenMicroseconds } from '../proc.mjs';
import { run } from '../process.mjs';
import { placeFor, SERVERS } from '../servers.mjs';

const MIB = 2 ** 20;
const RUN_SECONDS = 300;
/** Data and holes of a half-sparse image take turns. */
const STRETCH = 4 * MIB;
const DISK_ROUNDS = 3;

/** The source: written out without a hole, or with every other stretch one. */
function sourceFor(folder, content, byteLength) {
  if (content === 'random') return imageFor(folder, 'copy random', byteLength);
  const path = join(scratchIn(folder), 'copy-half.img');
  if (existsSync(path)) return path;
  const fd = openSync(path, 'w');
  const data = randomBytes(STRETCH);
  for (let at = 0; at < byteLength; at += 2 * STRETCH) writeSync(fd, data, 0, Math.min(STRETCH, byteLength - at), at);
  closeSync(fd);
  truncateSync(path, byteLength);
  return path;
}

/** A destination as a copy meets it: as large as the source, and empty or full. */
function prepare(path, state, byteLength, source) {
  if (state === 'full' && existsSync(path) && statSync(path).blocks * 512 >= byteLength) return;
  // A server may have it open.
  if (!existsSync(path)) closeSync(openSync(path, 'w'));
  truncateSync(path, 0);
  if (state === 'full') copyFileSync(source, path);
  else truncateSync(path, byteLength);
}

/** Whole copies, in MiB of the source a second; CPU time for each MiB. */
function contestant({ name, available = () => undefined, command }, setup) {
  const { folder, content, state, byteLength, count, durable, serverOf } = setup;
  const files = Array.from({ length: count }, (_, index) => join(scratchIn(folder), `copy-to-${index + 1}.img`));
  let source;
  let server;
  const copy = async () => {
    for (const file of files) prepare(file, state, byteLength, source);
    // What others left to be written is not this one's to wait for.
    if (durable) await run('sync', ['-f', folder], RUN_SECONDS);
    const cpu = endedChildrenMicroseconds();
    const start = performance.now();
    await run(...command(source, server === undefined ? files : [server.uri], durable), RUN_SECONDS);
    const seconds = (performance.now() - start) / 1000;
    const cpuMicroseconds = (endedChildrenMicroseconds() - cpu) / (byteLength / MIB);
    return { value: byteLength / MIB / seconds, cpuMicroseconds };
  };
  return {
    name,
    available: async () => (await available()) ?? (await serverOf?.available()),
    async start() {
      source = sourceFor(folder, content, byteLength);
      warm(source);
      for (const file of files) prepare(file, 'empty', byteLength, source);
      server = await serverOf?.serve(files[0], await placeFor(folder, `copy ${name}`));
      await copy();
      for (const file of files) await run('cmp', [source, file], RUN_SECONDS);
    },
    measure: copy,
    async stop() {
      await server?.stop();
      server = undefined;
      forgetImage(source);
      for (const file of files) rmSync(file, { force: true });
    },
  };
}

const CONTENTS = { random: 'random data', half: 'every other 4 MiB a hole' };
const STATES = { empty: 'without a block', full: 'written before' };

function row([place, folder], [target, content, state], options) {
  const { count, commands } = TARGETS[target];
  const durable = place === 'disk';
  const serverOf = target === 'nbd' ? SERVERS.find(({ name }) => name === 'nbdkit file') : undefined;
  const byteLength = fitting(folder, options.copyBytes, count + 1);
  const where = serverOf === undefined ? `${count} file${count > 1 ? 's' : ''}` : 'an export of nbdkit file';
  return {
    name: `copy ${place} ${target} ${content} ${state}`,
    what: `${byteLength / MIB} MiB, ${CONTENTS[content]}, to ${where} of the same size ${STATES[state]}${durable ? ', durable' : ''}; CPU time for each MiB`,
    section: `Copies, ${fileSystemOf(folder)}`,
    label: `${target.replaceAll('-', ' ')}, ${content}, ${state}`,
    unit: 'MiB/s',
    fileSystem: fileSystemOf(folder),
    ...(durable ? { rounds: DISK_ROUNDS } : {}),
    contestants: commands.map((one) =>
      contestant(one, { folder, content, state, byteLength, count, durable, serverOf }),
    ),
  };
}

/** As large as there is room for. */
function fitting(folder, wantedBytes, fileCount) {
  const { bavail, bsize } = statfsSync(folder);
  let bytes = wantedBytes;
  while (bytes > 16 * MIB && bytes * (fileCount + 1) > bavail * bsize) bytes /= 2;
  return bytes;
}

const TARGETS = {
  '1-to-1': { count: 1, commands: ONE_TO_ONE },
  '1-to-4': { count: 4, commands: ONE_TO_FOUR },
  nbd: { count: 1, commands: TO_NBD },
};

const SHAPES = {
  memory: [
    ['1-to-1', 'random', 'empty'],
    ['1-to-1', 'random', 'full'],
    ['1-to-1', 'half', 'empty'],
    ['1-to-4', 'random', 'empty'],
    ['1-to-4', 'random', 'full'],
    ['1-to-4', 'half', 'empty'],
    ['nbd', 'random', 'empty'],
  ],
  disk: [
    ['1-to-1', 'random', 'empty'],
    ['1-to-1', 'half', 'empty'],
    ['1-to-4', 'random', 'empty'],
  ],
};

export function copyRows(folders, options) {
  return Object.entries(folders)
    .filter(([, folder]) => folder !== undefined)
    .flatMap((place) => SHAPES[place[0]].map((shape) => row(place, shape, options)));
}
