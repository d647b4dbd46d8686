// fio, as the client of an NBD server and as a contestant that reads a file by itself.
import { run } from '../process.mjs';

const common = ({ rw, depth, round, seconds }) => [
  '--name=bench',
  `--rw=${rw}`,
  '--bs=4k',
  `--iodepth=${depth}`,
  '--numjobs=1',
  '--time_based',
  `--runtime=${seconds}`,
  `--ramp_time=${Math.max(0.2, seconds / 5)}`,
  // Every contestant of a round meets the same offsets, every round others.
  '--randrepeat=1',
  `--randseed=${round + 1}`,
  '--norandommap',
  '--output-format=json',
];

async function opsPerSecond(args, { seconds, rw }) {
  const text = await run('fio', args, seconds * 1.5 + 15);
  const [job] = JSON.parse(text.slice(text.indexOf('{'))).jobs;
  if (job.error !== 0) throw new Error(`fio reports error ${job.error}`);
  return job[rw.endsWith('write') ? 'write' : 'read'].iops;
}

export function fioNbd(options) {
  const args = [...common(options), '--ioengine=nbd', `--uri=${options.uri}`, `--size=${options.imageBytes}`];
  return opsPerSecond(args, options);
}

export function fioFile(options) {
  const { ioengine, path } = options;
  // Without invalidate=0 fio would drop the file from the page cache first.
  const args = [...common(options), `--ioengine=${ioengine}`, `--filename=${path}`, '--invalidate=0', '--thread'];
  if (options.direct) args.push('--direct=1');
  return opsPerSecond(args, options);
}
