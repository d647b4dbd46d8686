// Many devices that nobody uses at the moment: what one costs in memory, and how long it takes to make and to remove it.
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { scratchIn } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { pssKiB } from '../proc.mjs';
import { run, serve, which } from '../process.mjs';
import { missing, SERVERS } from '../servers.mjs';
import { dmkitMissing } from './in-process.mjs';

const child = fileURLToPath(new URL('../contestants/dmkit-devices.mjs', import.meta.url));
const RUN_SECONDS = 60;
const DEVICE_COUNT = 1000;
/** Processes of one export each are all alike: so many are started. */
const PROCESS_COUNT = 20;
const IMAGE_BYTES = 4096;

function imagesIn(folder) {
  const images = join(scratchIn(folder), 'many');
  mkdirSync(images, { recursive: true });
  for (let i = 0; i < DEVICE_COUNT; i++) writeFileSync(join(images, `${i}.img`), Buffer.alloc(IMAGE_BYTES, i));
  return images;
}

async function measureDmkit(images) {
  const args = ['--expose-gc', child, images, DEVICE_COUNT].map(String);
  return JSON.parse(await run(process.execPath, args, RUN_SECONDS));
}

/** One process after the other, each until it takes clients; then all are stopped. */
async function measureProcesses(server, images) {
  const running = [];
  try {
    const start = performance.now();
    for (let i = 0; i < PROCESS_COUNT; i++) {
      const place = { socket: join(images, `${i}.sock`), pollMilliseconds: 1 };
      rmSync(place.socket, { force: true });
      running.push(await server.serve(join(images, `${i}.img`), place));
    }
    const made = performance.now();
    const memoryKiB = running.reduce((sum, { pid }) => sum + pssKiB(pid), 0) / PROCESS_COUNT;
    const stopping = performance.now();
    while (running.length > 0) await running.pop().stop();
    return {
      memoryKiB,
      makeMilliseconds: (made - start) / PROCESS_COUNT,
      removeMilliseconds: (performance.now() - stopping) / PROCESS_COUNT,
    };
  } finally {
    for (const { stop } of running) await stop();
  }
}

/** qemu's server of many exports: all are given when it starts, so it has no figure for one more or less. */
async function measureStorageDaemon(images) {
  const socket = join(images, 'storage-daemon.sock');
  const start = async (count) => {
    const args = ['--nbd-server', `addr.type=unix,addr.path=${socket},max-connections=0`];
    for (let i = 0; i < count; i++) {
      args.push('--blockdev', `driver=file,node-name=n${i},filename=${join(images, `${i}.img`)}`);
      args.push('--export', `type=nbd,id=e${i},node-name=n${i},name=d${i},writable=on`);
    }
    // It listens before the last export is there: a listing of all of them waits for those.
    const server = await serve('qemu-storage-daemon', args, socket);
    await run('nbdinfo', ['--size', `nbd+unix:///d${count - 1}?socket=${socket}`], RUN_SECONDS);
    const memoryKiB = pssKiB(server.pid);
    await server.stop();
    return memoryKiB;
  };
  const one = await start(1);
  return { memoryKiB: ((await start(DEVICE_COUNT)) - one) / (DEVICE_COUNT - 1) };
}

const CONTESTANTS = [
  { name: `dmkit, ${DEVICE_COUNT} in one process`, available: dmkitMissing, measureAll: measureDmkit, hasHeap: true },
  ...SERVERS.filter(({ name }) => !name.startsWith('dmkit')).map((server) => ({
    name: `${server.name}, a process each`,
    available: server.available,
    measureAll: (images) => measureProcesses(server, images),
  })),
  {
    name: `qemu-storage-daemon, ${DEVICE_COUNT} in one process`,
    available: () =>
      which('qemu-storage-daemon') === undefined
        ? 'no qemu-storage-daemon: the Debian package qemu-system-common'
        : missing('nbdinfo'),
    measureAll: measureStorageDaemon,
    hasMemoryAlone: true,
  },
];

const WHAT = {
  memory: { key: 'memoryKiB', unit: 'KiB', what: 'memory (PSS) of one served device that nobody uses' },
  heap: { key: 'heapKiB', unit: 'KiB', what: 'the part of it that is in use on the heap after a collection' },
  make: { key: 'makeMilliseconds', unit: 'ms', what: 'from an image to a device that takes clients' },
  remove: { key: 'removeMilliseconds', unit: 'ms', what: 'until a served device is gone' },
};

function hasFigure({ hasHeap = false, hasMemoryAlone = false }, key) {
  if (key === 'heapKiB') return hasHeap;
  return key === 'memoryKiB' || !hasMemoryAlone;
}

export function deviceRows(folders) {
  const folder = folders.memory ?? folders.disk;
  if (folder === undefined) return [];
  // One measurement of a round gives all three figures.
  const measured = new Map();
  const measureOnce = (one, round) => {
    const key = `${one.name} ${round}`;
    if (!measured.has(key)) measured.set(key, one.measureAll(imagesIn(folder)));
    return measured.get(key);
  };
  return Object.entries(WHAT).map(([name, { key, unit, what }]) => ({
    name: `devices ${name}`,
    what: `${what}; dmkit with ${DEVICE_COUNT} at once, others with ${PROCESS_COUNT} processes`,
    section: 'Many idle devices',
    label: name,
    unit,
    lessIsBetter: true,
    fileSystem: fileSystemOf(folder),
    contestants: CONTESTANTS.filter((one) => hasFigure(one, key)).map((one) => ({
      name: one.name,
      available: one.available,
      start() {},
      measure: async (round) => (await measureOnce(one, round))[key],
      stop() {},
    })),
  }));
}
