// What it costs to make an overlay in the daemon through dmkit/client, its file and all, against a device without a store:
// the mean of 1,000, one after the other.
import { fileURLToPath } from 'node:url';
import { fileSystemOf } from '../machine.mjs';
import { run } from '../process.mjs';
import { dmkitMissing } from './in-process.mjs';

const maker = fileURLToPath(new URL('../contestants/snapshot-create.mjs', import.meta.url));
const LIMIT_SECONDS = 120;
const DEVICE_COUNT = 1000;

const CONTESTANTS = [
  ['dmkit snapshot', 'overlay'],
  ['dmkit linear', 'table'],
];

const WHAT = {
  'snapshot create': {
    unit: 'ms',
    what: 'from the call to an overlay that can be used; CPU time of both processes',
    measured: ({ milliseconds, cpuMicroseconds, daemonCpuMicroseconds }) => ({
      value: milliseconds,
      cpuMicroseconds: cpuMicroseconds + daemonCpuMicroseconds,
    }),
  },
  'snapshot create memory': {
    unit: 'KiB',
    what: 'memory of its own that the daemon took for one, what it had not given back yet included',
    measured: ({ daemonByteLength }) => ({ value: daemonByteLength / 1024 }),
  },
};

export function snapshotCreateRows(folders) {
  const folder = folders.memory ?? folders.disk;
  if (folder === undefined) return [];
  // One run of a round gives both figures.
  const runs = new Map();
  const runOnce = (how, round) => {
    const key = `${how} ${round}`;
    if (!runs.has(key)) runs.set(key, run(process.execPath, [maker, folder, String(DEVICE_COUNT), how], LIMIT_SECONDS));
    return runs.get(key);
  };
  return Object.entries(WHAT).map(([name, { unit, what, measured }]) => ({
    name,
    what: `${what}; the mean of ${DEVICE_COUNT}`,
    section: 'Making overlays',
    label: name.replace('snapshot create', '').trim() || 'time',
    unit,
    lessIsBetter: true,
    fileSystem: fileSystemOf(folder),
    contestants: CONTESTANTS.map(([contestant, how]) => ({
      name: contestant,
      available: dmkitMissing,
      start() {},
      measure: async (round) => measured(JSON.parse(await runOnce(how, round))),
      stop() {},
    })),
  }));
}
