// Random 4 KiB and sequential 1 MiB over NBD, with fio as the client of every server.
import { setTimeout as sleep } from 'node:timers/promises';
import { fioNbd } from '../contestants/fio.mjs';
import { imageFor, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { cpuMicroseconds } from '../proc.mjs';
import { run } from '../process.mjs';
import {
  DMKIT_ONE_THREAD,
  DMKIT_WITHOUT_RING,
  DMKIT_ZERO,
  missing,
  NULL_SERVER,
  placeFor,
  SERVERS,
} from '../servers.mjs';

const MIB = 2 ** 20;
/** A server that has a process for each client takes note of its end. */
const SETTLE_MILLISECONDS = 50;

/** A server that starts threads when it listens has them by then. */
export const READY_MILLISECONDS = 200;
const SYNC_SECONDS = 60;

/** One fio run against a running server, with the server's own CPU time. */
export async function measureNbd(server, work) {
  const before = cpuMicroseconds(server.pid);
  const { value, bytesPerSecond, requests, latency } = await fioNbd({ ...work, uri: server.uri });
  await sleep(SETTLE_MILLISECONDS);
  const cpu = (cpuMicroseconds(server.pid) - before) / requests;
  return { value: work.blockSize === '1m' ? bytesPerSecond / MIB : value, cpuMicroseconds: cpu, latency };
}

function contestant(server, { folder, overTcp, isShared, options, ...work }) {
  let running;
  async function start() {
    const image = imageFor(folder, isShared ? 'nbd shared' : server.name, options.imageBytes);
    warm(image);
    running = await server.serve(image, await placeFor(folder, server.name, overTcp));
    await sleep(READY_MILLISECONDS);
    await fioNbd({ ...options, ...work, uri: running.uri, round: 0, seconds: Math.max(0.3, options.seconds / 3) });
    if (isShared) await run('sync', ['-f', image], SYNC_SECONDS);
  }
  async function stop() {
    await running?.stop();
    running = undefined;
  }
  return {
    name: server.name,
    isCeiling: server.isCeiling,
    available: () => missing('fio') ?? server.available(),
    start: isShared ? async () => {} : start,
    async measure(round) {
      if (!isShared) return measureNbd(running, { ...options, ...work, round });
      await start();
      try {
        return await measureNbd(running, { ...options, ...work, round });
      } finally {
        await stop();
      }
    },
    stop,
  };
}

const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;

function row(place, folder, { rw, inFlight, jobs = 1, overTcp = false, servers }, options) {
  const isRandom = rw.startsWith('rand');
  const name = ['nbd', rw, place, ...(overTcp ? ['tcp'] : []), inFlight, ...(jobs > 1 ? [`${jobs}conn`] : [])].join(
    ' ',
  );
  const size = isRandom ? '4 KiB' : '1 MiB';
  const way = `${overTcp ? 'TCP on this machine' : 'a Unix socket'}, ${plural(jobs, 'connection')}`;
  const work = { rw, jobs, depth: inFlight / jobs, blockSize: isRandom ? '4k' : '1m', folder, overTcp, options };
  // Where much is copied it counts which pages of the machine an image has (15 % were seen between two), and on a disk
  // how many of them wait to be written. So these have one image, and one server after the other.
  work.isShared = !isRandom || (place === 'disk' && rw === 'randwrite');
  return {
    name,
    what: `NBD over ${way}, ${size} ${rw}, ${inFlight} in flight, file in the page cache`,
    section: `NBD, ${size} ${isRandom ? 'random' : 'sequential'}, ${fileSystemOf(folder)}`,
    label: `${rw} ${inFlight} in flight${jobs > 1 ? `, ${jobs} connections` : ''}${overTcp ? ', TCP' : ''}`,
    unit: isRandom ? 'ops/s' : 'MiB/s',
    fileSystem: fileSystemOf(folder),
    contestants: servers.map((server) => contestant(server, work)),
  };
}

/** In flight and connections: 16 MiB on the way at once fill every buffer there is, more measures none of them better. */
const SHAPES = {
  random: [
    [1, 1],
    [16, 1],
    [64, 1],
    [16, 4],
    [64, 4],
  ],
  sequential: [
    [1, 1],
    [4, 1],
    [16, 1],
    [4, 4],
    [16, 4],
  ],
};

/**
 * Which servers meet in a row: for one connection the ceilings, with dmkit's threads or without its ring where that
 * makes a difference.
 */
function serversOf(inFlight, jobs) {
  const [first, ...others] = SERVERS;
  if (jobs > 1) return [first, DMKIT_ONE_THREAD, ...others];
  return [
    first,
    ...(inFlight >= 16 ? [DMKIT_WITHOUT_RING] : []),
    ...others,
    NULL_SERVER,
    ...(inFlight === 64 ? [DMKIT_ZERO] : []),
  ];
}

export function nbdRows(folders, options) {
  return Object.entries(folders).flatMap(([place, folder]) => {
    if (folder === undefined) return [];
    const rows = ['randread', 'randwrite', 'read', 'write'].flatMap((rw) =>
      SHAPES[rw.startsWith('rand') ? 'random' : 'sequential'].map(([inFlight, jobs]) =>
        row(place, folder, { rw, inFlight, jobs, servers: serversOf(inFlight, jobs) }, options),
      ),
    );
    if (place !== 'memory') return rows;
    const overTcp = ['randread', 'randwrite'].map((rw) =>
      row(place, folder, { rw, inFlight: 16, overTcp: true, servers: [...SERVERS, NULL_SERVER] }, options),
    );
    return [...rows, ...overTcp];
  });
}
