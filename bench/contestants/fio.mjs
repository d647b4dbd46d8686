// fio, as the client of an NBD server and as a contestant that reads a file by itself.
import { run } from '../process.mjs';

/** fio takes a broken number of seconds for none. */
const milliseconds = (seconds) => `${Math.round(seconds * 1000)}ms`;

const common = ({ rw, depth, round, seconds, jobs = 1, blockSize = '4k', fsync }) => [
  '--name=bench',
  `--rw=${rw}`,
  `--bs=${blockSize}`,
  `--iodepth=${depth}`,
  `--numjobs=${jobs}`,
  '--group_reporting',
  '--time_based',
  `--runtime=${milliseconds(seconds)}`,
  // Every contestant of a round meets the same offsets, every round others.
  '--randrepeat=1',
  `--randseed=${round + 1}`,
  '--norandommap',
  ...(fsync === undefined ? [] : [`--fsync=${fsync}`]),
  '--output-format=json',
];

/** Above the time that is measured: a loaded machine starts hundreds of clients slowly. */
const SPARE_SECONDS = 30;
const SPARE_SECONDS_PER_JOB = 0.5;

async function report(args, { seconds, rw, jobs = 1 }) {
  const text = await run('fio', args, seconds * 1.5 + SPARE_SECONDS + jobs * SPARE_SECONDS_PER_JOB);
  const [job] = JSON.parse(text.slice(text.indexOf('{'))).jobs;
  if (job.error !== 0) throw new Error(`fio reports error ${job.error}`);
  return job[rw.endsWith('write') ? 'write' : 'read'];
}

const MICROSECONDS = 1e-3;
const FILL_SECONDS = 300;

function latencyOf({ percentile }) {
  const at = (percent) => percentile[percent] * MICROSECONDS;
  return { p50: at('50.000000'), p99: at('99.000000'), p999: at('99.900000') };
}

/**
 * What `jobs` clients get out of an NBD server, each with a connection of its own and `depth` requests in flight:
 * `{ value, bytesPerSecond, requests, latency }`, `value` in operations per second. It does not warm up, so that `requests`
 * are all that the server saw.
 */
export async function fioNbd(options) {
  const { jobs = 1, rw, imageBytes } = options;
  const args = [...common(options), '--ioengine=nbd', `--uri=${options.uri}`];
  // Several sequential clients read or write a part each.
  const share = rw.startsWith('rand') ? imageBytes : imageBytes / jobs;
  args.push(`--size=${share}`);
  if (share !== imageBytes) args.push(`--offset_increment=${share}`);
  const { iops: value, bw_bytes: bytesPerSecond, total_ios: requests, clat_ns: times } = await report(args, options);
  return { value, bytesPerSecond, requests, latency: latencyOf(times) };
}

/** Writes what a log of fio's says, once or for `seconds` at the most: `{ value, requests }`, `value` in writes per second. */
export async function fioReplay({ uri, log, depth, seconds }) {
  const args = ['--name=bench', '--rw=write', `--read_iolog=${log}`, '--replay_no_stall=1', '--ioengine=nbd'];
  args.push(`--uri=${uri}`, `--iodepth=${depth}`, `--runtime=${milliseconds(seconds)}`, '--output-format=json');
  const { iops: value, total_ios: requests } = await report(args, { seconds, rw: 'write' });
  return { value, requests };
}

export async function fioFile(options) {
  const { ioengine, path } = options;
  // Without invalidate=0 fio would drop the file from the page cache first.
  const args = [...common(options), `--ioengine=${ioengine}`, `--filename=${path}`, '--invalidate=0', '--thread'];
  args.push(`--ramp_time=${milliseconds(Math.max(0.2, options.seconds / 5))}`);
  if (options.direct) args.push('--direct=1');
  return (await report(args, options)).iops;
}

/** Writes the first `byteLength` bytes once, leaving out `skipBytes` after each block. */
export async function fioFill({ uri, byteLength, blockBytes, skipBytes }) {
  const args = ['--name=fill', '--ioengine=nbd', `--uri=${uri}`, '--iodepth=16', `--bs=${blockBytes}`];
  args.push(`--rw=write${skipBytes > 0 ? `:${skipBytes}` : ''}`, `--size=${byteLength}`);
  args.push(`--io_size=${(byteLength * blockBytes) / (blockBytes + skipBytes)}`, '--output-format=json');
  await report(args, { seconds: FILL_SECONDS, rw: 'write' });
}
