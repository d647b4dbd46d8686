// Clients that do nothing, and clients that ask for as much as they may: CPU time of the first, memory of the second.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fioNbd } from '../contestants/fio.mjs';
import { imageFor, scratchIn, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { cpuMicroseconds, pssKiB } from '../proc.mjs';
import { dmkitCommandMissing, missing, placeFor, SERVERS, serveDmkit } from '../servers.mjs';
import { dmkitMissing } from './in-process.mjs';

const DEVICE_COUNT = 1000;
const IDLE_CLIENTS = 10;
const IDLE_SECONDS = 5;
const SETTLE_MILLISECONDS = 1000;
const BUSY_CONNECTIONS = 256;
const BUSY_DEPTH = 16;
/** All of them have to be connected. */
const BUSY_SECONDS = 4;
const SAMPLE_MILLISECONDS = 100;

const connect = async (uri) => (await import('../../dist/nbd/index.js')).connectNbd(uri);

/** The milliseconds of CPU time that a server takes while its clients do nothing. */
async function idleCpu({ pid, uris }) {
  const clients = [];
  try {
    for (let i = 0; i < IDLE_CLIENTS; i++) {
      const client = await connect(uris[i % uris.length]);
      clients.push(client);
      await client.read(0, 512);
    }
    await sleep(SETTLE_MILLISECONDS);
    const before = cpuMicroseconds(pid);
    await sleep(IDLE_SECONDS * 1000);
    return (cpuMicroseconds(pid) - before) / 1000;
  } finally {
    for (const client of clients) await client.close();
  }
}

async function serveManyDevices(folder) {
  const images = join(scratchIn(folder), 'idle');
  mkdirSync(images, { recursive: true });
  const words = Array.from({ length: DEVICE_COUNT }, (_, i) => {
    const image = join(images, `${i}.img`);
    writeFileSync(image, Buffer.alloc(4096));
    return [`d${i}`, '--table', `0 8 linear ${image} 0`];
  });
  const server = await serveDmkit(words.flat(), await placeFor(folder, 'idle'), { lines: DEVICE_COUNT });
  return { ...server, uris: server.output.stdout.trim().split('\n') };
}

function idleContestant(name, available, start) {
  let running;
  return {
    name,
    available,
    async start() {
      running = await start();
    },
    measure: () => idleCpu(running),
    async stop() {
      await running?.stop();
      running = undefined;
    },
  };
}

function idleRow(folder, options) {
  const others = SERVERS.filter(({ name }) => !name.startsWith('dmkit')).map((server) =>
    idleContestant(
      `${server.name}, 1 device`,
      () => dmkitMissing() ?? server.available(),
      async () => {
        const image = imageFor(folder, server.name, options.imageBytes);
        const running = await server.serve(image, await placeFor(folder, `idle ${server.name}`));
        return { ...running, uris: [running.uri] };
      },
    ),
  );
  return {
    name: 'idle cpu',
    what: `CPU time of a server in ${IDLE_SECONDS} s while ${IDLE_CLIENTS} connected clients do nothing`,
    section: 'Idle',
    unit: 'ms',
    lessIsBetter: true,
    rounds: 2,
    fileSystem: fileSystemOf(folder),
    contestants: [
      idleContestant(`dmkit serve, ${DEVICE_COUNT} devices`, dmkitCommandMissing, () => serveManyDevices(folder)),
      ...others,
    ],
  };
}

/** The most memory a server had while `work` went on, in MiB. */
async function peakMiB(pid, work) {
  let peak = 0;
  const timer = setInterval(() => {
    peak = Math.max(peak, pssKiB(pid));
  }, SAMPLE_MILLISECONDS);
  try {
    await work();
  } finally {
    clearInterval(timer);
  }
  return peak / 1024;
}

function busyContestant(server, folder, blockSize, options) {
  let running;
  return {
    name: server.name,
    available: () => missing('fio') ?? server.available(),
    async start() {
      const image = imageFor(folder, server.name, options.imageBytes);
      warm(image);
      running = await server.serve(image, await placeFor(folder, server.name));
    },
    measure: (round) => {
      const seconds = Math.max(BUSY_SECONDS, options.seconds);
      const work = { ...options, seconds, uri: running.uri, rw: 'randread', blockSize, round };
      return peakMiB(running.pid, () => fioNbd({ ...work, depth: BUSY_DEPTH, jobs: BUSY_CONNECTIONS }));
    },
    async stop() {
      await running?.stop();
      running = undefined;
    },
  };
}

export function connectionRows(folders, options) {
  const folder = folders.memory ?? folders.disk;
  if (folder === undefined) return [];
  const busy = ['4k', '256k'].map((blockSize) => ({
    name: `connections memory ${blockSize}`,
    what: `most memory (PSS) of a server under ${BUSY_CONNECTIONS} connections with ${BUSY_DEPTH} reads of ${blockSize} in flight each`,
    section: 'Memory under 256 connections',
    label: `reads of ${blockSize}`,
    unit: 'MiB',
    lessIsBetter: true,
    rounds: 2,
    fileSystem: fileSystemOf(folder),
    contestants: SERVERS.map((server) => busyContestant(server, folder, blockSize, options)),
  }));
  return [idleRow(folder, options), ...busy];
}
