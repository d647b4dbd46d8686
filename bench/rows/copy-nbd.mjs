// nbdcopy of a whole image to and from each server, as people move disks.
import { statfsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { imageFor, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { cpuMicroseconds } from '../proc.mjs';
import { run } from '../process.mjs';
import { DMKIT_ONE_THREAD, missing, placeFor, SERVERS } from '../servers.mjs';
import { READY_MILLISECONDS } from './nbd.mjs';

const MIB = 2 ** 20;
const RUN_SECONDS = 120;
/** A server that has a process for each client takes note of its end. */
const SETTLE_MILLISECONDS = 50;

/** What nbdcopy is told, and what is said about it. */
const WAYS = {
  'to null': { what: 'from NBD to nowhere', ends: ({ uri }) => [uri, 'null:'] },
  'to file': { what: 'from NBD to a file that is there already', ends: ({ uri, file }) => [uri, file] },
  'from file': { what: 'from a file to NBD', ends: ({ uri, file }) => [file, uri] },
};

const [DMKIT, ...OTHERS] = SERVERS;
const CONTESTANTS = [DMKIT, DMKIT_ONE_THREAD, ...OTHERS];

function contestant(server, way, folder, byteLength) {
  let running;
  const file = () => imageFor(folder, 'nbdcopy other end', byteLength);
  // Four connections at the most is nbdcopy's own default; zeroes are not looked for, because there are none.
  const copy = () => run('nbdcopy', ['--sparse=0', ...way.ends({ uri: running.uri, file: file() })], RUN_SECONDS);
  return {
    name: server.name,
    available: () => missing('nbdcopy') ?? server.available(),
    async start() {},
    async measure() {
      // One image for all, for which pages of the machine it has makes a difference.
      const image = imageFor(folder, 'nbdcopy image', byteLength);
      warm(image);
      warm(file());
      running = await server.serve(image, await placeFor(folder, server.name));
      await sleep(READY_MILLISECONDS);
      await copy();
      await run('sync', ['-f', image], RUN_SECONDS);
      const before = cpuMicroseconds(running.pid);
      const start = performance.now();
      await copy();
      const seconds = (performance.now() - start) / 1000;
      await sleep(SETTLE_MILLISECONDS);
      const cpu = (cpuMicroseconds(running.pid) - before) / (byteLength / MIB);
      await running.stop();
      running = undefined;
      return { value: byteLength / MIB / seconds, cpuMicroseconds: cpu };
    },
    async stop() {
      await running?.stop();
      running = undefined;
    },
  };
}

/** The image and the other end, with room to spare. */
function fitting(folder, wantedBytes) {
  const { bavail, bsize } = statfsSync(folder);
  let bytes = wantedBytes;
  while (bytes > 16 * MIB && bytes * 3 > bavail * bsize) bytes /= 2;
  return bytes;
}

export function nbdcopyRows(folders, options) {
  return Object.entries(folders).flatMap(([place, folder]) => {
    if (folder === undefined) return [];
    const fileSystem = fileSystemOf(folder);
    const copyBytes = fitting(folder, options.copyBytes);
    const size = copyBytes / MIB >= 1024 ? `${copyBytes / MIB / 1024} GiB` : `${copyBytes / MIB} MiB`;
    return Object.entries(WAYS).map(([direction, way]) => ({
      name: `nbdcopy ${direction} ${place}`,
      what: `nbdcopy of ${size} ${way.what}, up to 4 connections; CPU time for each MiB`,
      section: `nbdcopy, ${size}, ${fileSystem}`,
      label: way.what,
      unit: 'MiB/s',
      fileSystem,
      contestants: CONTESTANTS.map((server) => contestant(server, way, folder, copyBytes)),
    }));
  });
}
