// A golden image and a writable layer over it, as a virtual machine sees them: over NBD, with fio as the client.
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fioFill, fioNbd, fioReplay } from '../contestants/fio.mjs';
import { OVERLAYS } from '../contestants/overlays.mjs';
import { imageFor, scratchIn, warm } from '../images.mjs';
import { fileSystemOf } from '../machine.mjs';
import { cpuMicroseconds } from '../proc.mjs';
import { which } from '../process.mjs';

const BLOCK_BYTES = 4096;
const SECTOR_BYTES = 512;
/** Writes between two flushes, the same for every contestant. */
const FLUSH_INTERVAL = 256;
/** This part of the chunks is written before first writes are measured. */
const WARM_UP_PART = 4;

/** A random order of 0 to `count` - 1 that `round` alone decides. */
function shuffled(count, round) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  let state = (round + 1) * 2654435761;
  for (let i = count - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const other = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[other]] = [order[other], order[i]];
  }
  return order;
}

/** fio's log of one 4 KiB write to each chunk behind the warm-up's, at a random block of it, in random order. */
function writeLog(path, { imageBytes, chunkSectors, round }) {
  const chunkBytes = chunkSectors * SECTOR_BYTES;
  const perChunk = chunkBytes / BLOCK_BYTES;
  const lines = ['fio version 2 iolog', 'disk add', 'disk open'];
  let count = 0;
  const chunkCount = imageBytes / chunkBytes;
  for (const chunk of shuffled(chunkCount, round)) {
    if (chunk < chunkCount / WARM_UP_PART) continue;
    lines.push(`disk write ${chunk * chunkBytes + ((chunk * 7 + round) % perChunk) * BLOCK_BYTES} ${BLOCK_BYTES}`);
    if (++count % FLUSH_INTERVAL === 0) lines.push('disk sync 0 0');
  }
  writeFileSync(path, `${[...lines, 'disk close'].join('\n')}\n`);
}

function contestant(overlay, { folder, what, depth, chunkSectors, options }) {
  const scratch = scratchIn(folder);
  const own = join(scratch, overlay.name.replace(/\W+/g, '-'));
  const [layer, socket, log] = [`${own}.layer`, `${own}.sock`, `${own}.log`];
  const { imageBytes, seconds } = options;
  const chunkBytes = chunkSectors * SECTOR_BYTES;
  let running;
  let uri;

  async function start() {
    const base = imageFor(folder, 'golden', imageBytes);
    warm(base);
    rmSync(socket, { force: true });
    running = await overlay.serve({ base, layer, socket, folder: scratch, chunkSectors });
    uri = running.uri ?? `nbd+unix:///?socket=${socket}`;
  }

  async function stop() {
    await running?.stop();
    running = undefined;
    for (const path of [layer, log]) rmSync(path, { force: true });
  }

  /** Puts every chunk into the layer before anything is measured, or every other one. */
  function fill(skips) {
    return fioFill({ uri, byteLength: imageBytes, blockBytes: chunkBytes, skipBytes: skips ? chunkBytes : 0 });
  }

  /** The same writes to the first chunks, as a new process is slow at first. */
  function warmUp() {
    const byteLength = imageBytes / WARM_UP_PART;
    return fioFill({ uri, byteLength, blockBytes: BLOCK_BYTES, skipBytes: chunkBytes - BLOCK_BYTES });
  }

  const common = { depth, ...options };

  async function measureFirst(round) {
    await stop();
    await start();
    await warmUp();
    writeLog(log, { imageBytes, chunkSectors, round });
    return withCpuTime(() => fioReplay({ uri, log, depth, seconds }));
  }

  function measureAgain(round) {
    if (what === 'read') return fioNbd({ ...common, uri, round, rw: 'randread' });
    return fioNbd({ ...common, uri, round, rw: 'randwrite', fsync: FLUSH_INTERVAL });
  }

  async function withCpuTime(work) {
    const before = cpuMicroseconds(running.pid);
    const { value, requests, latency } = await work();
    return { value, cpuMicroseconds: (cpuMicroseconds(running.pid) - before) / requests, latency };
  }
  return {
    name: overlay.name,
    available: () => (which('fio') === undefined ? 'no fio: scripts/install-peers' : overlay.available()),
    async start() {
      await start();
      // A replay would not do: fio ends it with requests on their way, which nbdkit 1.32 does not live through.
      if (what === 'rewrite') await fill(false);
      if (what === 'read') await fill(true);
    },
    measure: (round) => (what === 'first' ? measureFirst(round) : withCpuTime(() => measureAgain(round))),
    stop,
  };
}

const WORDS = {
  first: `4 KiB random writes, each to a chunk for the first time, a flush every ${FLUSH_INTERVAL}`,
  rewrite: `4 KiB random writes to chunks that are in the layer, a flush every ${FLUSH_INTERVAL}`,
  read: '4 KiB random reads, every other chunk in the layer',
};

export function snapshotNbdRows(folders, options) {
  const rows = [];
  for (const [place, folder] of Object.entries(folders)) {
    if (folder === undefined) continue;
    for (const what of Object.keys(WORDS)) {
      for (const chunkSectors of [8, 128]) {
        for (const depth of [1, 32]) {
          rows.push({
            name: `snapshot-nbd ${what} ${place} ${depth} chunk ${chunkSectors}`,
            what: `${WORDS[what]}, ${depth} in flight, chunks of ${chunkSectors / 2} KiB`,
            fileSystem: fileSystemOf(folder),
            contestants: OVERLAYS.map((overlay) => contestant(overlay, { folder, what, depth, chunkSectors, options })),
          });
        }
      }
    }
  }
  return rows;
}
