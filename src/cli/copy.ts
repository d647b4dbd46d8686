// dmkit copy: one source to many destinations; what became of each, in the last lines and in the exit code.
import { constants } from 'node:os';
import { Errno, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { MAX_TOLD_RANGE_COUNT } from '../copy/bounds.ts';
import { Copy, type CopyOptions, type RefusedDestination } from '../copy/copy.ts';
import { Destination } from '../copy/destination.ts';
import { bytesText } from '../copy/units.ts';
import { DeviceRegistry } from '../devices/index.ts';
import { NodeLoop } from '../reactor/node-loop.ts';
import { CopyOutput } from './copy-output.ts';
import { timeText, type Watch, watchWithBars, watchWithEvents, watchWithLines } from './copy-progress.ts';
import { isStreamCopy, runStreamCopy } from './copy-stream.ts';
import { isHangUpIgnored } from './hang-up.ts';
import { guardEnd } from './leave.ts';

export interface CopyCommandOptions {
  keepGoing?: boolean;
  verify?: boolean;
  zero?: boolean;
  skipHoles?: boolean;
  rate?: string;
  mapfile?: string;
  retry?: boolean;
  force?: boolean;
  json?: boolean;
}

const EXIT_FAILURE = 1;
/** What a shell gives for a process that a signal ended, less the signal's number. */
const EXIT_SIGNAL = 128;
const RATE_UNITS = ['', 'K', 'M', 'G', 'T'];

function parseRate(text: string): number {
  const parts = /^(\d+(?:\.\d+)?)(?:([KMGT])(?:i?B)?|B)$/i.exec(text);
  const value = parts === null ? 0 : Number(parts[1]) * 1024 ** RATE_UNITS.indexOf((parts[2] ?? '').toUpperCase());
  if (value >= 1) return value;
  throw new DmError(
    Errno.EINVAL,
    `--rate ${text}: bytes a second with their unit are needed, such as 50M (K, M, G, T are powers of 1024; 500000B)`,
  );
}

function checkOptions(names: readonly string[], options: CopyCommandOptions): void {
  const refuse = (text: string): never => {
    throw new DmError(Errno.EINVAL, text);
  };
  if (options.zero && options.skipHoles) refuse('--zero has no source, and so no holes to skip');
  if (options.retry && options.mapfile === undefined) refuse('--retry needs the map of an earlier copy: --mapfile');
  if (options.force && !options.retry)
    refuse('--force has a meaning with --retry alone: it believes a map of other disks');
  if (!options.zero && names.length < 2)
    refuse('a source and one destination at least are needed; --zero has no source');
}

async function mapperUri(name: string): Promise<string> {
  // Loaded where it is needed, as is what speaks NBD: much of what a small copy takes is starting.
  const { connect } = await import('../client/index.ts');
  const client = connect();
  try {
    return await client.uri(await (await import('./device-names.ts')).keptName(client, `dm:${name}`));
  } finally {
    await client.close();
  }
}

/** Runs the command. @returns the exit code: 0 all done, 1 something failed, 130 interrupted */
export async function runCopy(names: string[], options: CopyCommandOptions): Promise<number> {
  guardEnd();
  checkOptions(names, options);
  const { keepGoing, verify, skipHoles, mapfile, retry, force } = options;
  const aborter = new AbortController();
  const copyOptions: CopyOptions = { mapperUri, signal: aborter.signal };
  Object.assign(copyOptions, { keepGoing, verify, skipHoles, retry, force });
  if (mapfile !== undefined) copyOptions.mapfile = mapfile;
  if (options.rate !== undefined) copyOptions.bytesPerSecond = parseRate(options.rate);
  // Not a device mapper: tables and targets have no part in it.
  const loop = new NodeLoop();
  const host = { loop, devices: new DeviceRegistry({ reactor: loop }) };
  const [source, destinations] = options.zero ? [null, names] : [names[0]!, names.slice(1)];
  const output = new CopyOutput();
  let watch: Watch | null = null;
  let signalNumber = 0;
  const stop = (signal: NodeJS.Signals): void => {
    // The second time at once: a device that does not answer can't be waited for. The maps are those of the last flush.
    if (signalNumber !== 0) process.exit(EXIT_SIGNAL + constants.signals[signal]);
    signalNumber = constants.signals[signal];
    const text = 'dmkit: stopping; ctrl-C again stops at once\n';
    if (watch === null) output.err(text);
    else watch.note(text);
    aborter.abort();
  };
  const hangUp = isHangUpIgnored() ? (): void => {} : stop;
  // Node.js hears of SIGHUP before it ends by it: a terminal that goes while devices are opened counts as well.
  process.on('SIGINT', stop).on('SIGTERM', stop).on('SIGHUP', hangUp);
  try {
    if (isStreamCopy(names, options)) {
      const code = await runStreamCopy(host, names, options, { ...copyOptions }, output);
      return signalNumber !== 0 ? EXIT_SIGNAL + signalNumber : (await output.hasFailed()) ? EXIT_FAILURE : code;
    }
    const copy = await Copy.open(host, source, destinations, copyOptions);
    try {
      watch = await startWatch(copy, options, output);
      await copy.run().finally(() => watch!.stop());
      report(copy, options, output);
    } finally {
      await copy.close();
    }
    const isComplete = !(await output.hasFailed()) && copy.complete;
    if (signalNumber !== 0) return EXIT_SIGNAL + signalNumber;
    return isComplete ? 0 : EXIT_FAILURE;
  } finally {
    process.off('SIGINT', stop).off('SIGTERM', stop).off('SIGHUP', hangUp);
  }
}

async function startWatch(copy: Copy, options: CopyCommandOptions, output: CopyOutput): Promise<Watch> {
  if (options.json) return watchWithEvents(copy, output);
  return process.stderr.isTTY ? watchWithBars(copy) : watchWithLines(copy, output);
}

function report(copy: Copy, { json = false, mapfile }: CopyCommandOptions, output: CopyOutput): void {
  for (const result of copy.results) {
    if (json) output.event(result instanceof Destination ? resultOf(copy, result) : refusalOf(result));
    else output.out(result instanceof Destination ? resultLines(copy, result) : refusalLine(result));
  }
  if (copy.failure !== null) {
    if (json) output.event({ event: 'failure', message: copy.failure.message, code: copy.failure.code });
    else output.err(`dmkit: ${copy.failure.message}\n`);
  }
  const completeCount = copy.destinations.filter((one) => isComplete(copy, one)).length;
  const count = copy.results.length;
  if (json) output.event({ event: 'end', completeCount, destinationCount: count, interrupted: copy.stopped });
  else if (count > 1) output.out(`${completeCount} of ${count} destinations are complete\n`);
  if (json || completeCount === count) return;
  output.err(
    mapfile === undefined
      ? 'dmkit: a copy with --mapfile FILE can go on where it stopped: then the same command with --retry\n'
      : `dmkit: to go on, give the same command with --mapfile ${mapfile} --retry\n`,
  );
}

function refusalLine({ label, error }: RefusedDestination): string {
  return `${label}: INCOMPLETE, nothing done; ${error.message}\n`;
}

function refusalOf({ label, error }: RefusedDestination): Record<string, unknown> {
  return {
    event: 'result',
    device: label,
    complete: false,
    doneByteLength: 0,
    givenUp: error.message,
    verified: null,
    failures: [],
  };
}

function isComplete(copy: Copy, destination: Destination): boolean {
  return (
    !destination.failed && destination.handledSectorCount === destination.totalSectorCount && copy.failure === null
  );
}

function rangeText(start: number, end: number): string {
  return end - start === 1 ? `sector ${start}` : `sectors ${start}-${end - 1}`;
}

/** Sectors of the destination, or for what could not be read, of the source. */
function failuresOf(
  copy: Copy,
  destination: Destination,
): { where: string; sector: number; sectorCount: number; reason: string; code: string | null }[] {
  const own = destination.failures.map(({ start, end, side, cause }) => {
    const { sector, label } = side === 'read' ? copy.source! : destination.region;
    const reason = `${side}: ${errnoMessage(cause.errno)}`;
    return { where: label, sector: sector + start, sectorCount: end - start, reason, code: cause.code };
  });
  const differing = destination.differing.map(({ start, end }) => ({
    where: destination.region.label,
    sector: destination.region.sector + start,
    sectorCount: end - start,
    reason: 'verify: does not hold what was written',
    code: null,
  }));
  return [...own, ...differing].sort((a, b) => a.sector - b.sector);
}

/** ` in 0:12 (5.3 MiB/s)`: of this run alone, holes included. Nothing for less than a second, whose rate says little. */
function paceText({ elapsedMilliseconds, handledByteLength }: Destination): string {
  if (elapsedMilliseconds < 1000) return '';
  const rate = `${bytesText((handledByteLength * 1000) / elapsedMilliseconds)}/s`;
  return ` in ${timeText(elapsedMilliseconds / 1000)}${handledByteLength === 0 ? '' : ` (${rate})`}`;
}

function resultLines(copy: Copy, destination: Destination): string {
  const { region, dead, verified } = destination;
  const done = bytesText(destination.doneByteLength);
  const lines: string[] = [];
  if (isComplete(copy, destination)) {
    lines.push(
      `${region.label}: ${done} done${paceText(destination)}${verified === null ? '' : `, verified ${verified}`}`,
    );
  } else {
    const why = dead === null ? (destination.failed ? 'some sectors failed' : 'stopped') : `given up: ${dead.message}`;
    const missing = bytesText(Math.max(0, destination.byteLength - destination.doneByteLength));
    lines.push(`${region.label}: INCOMPLETE, ${done} done${paceText(destination)}, ${missing} missing; ${why}`);
  }
  const failures = failuresOf(copy, destination);
  for (const { where, sector, sectorCount, reason } of failures.slice(0, MAX_TOLD_RANGE_COUNT)) {
    lines.push(`  ${where}, ${rangeText(sector, sector + sectorCount)}: ${reason}`);
  }
  if (failures.length > MAX_TOLD_RANGE_COUNT) lines.push(`  and ${failures.length - MAX_TOLD_RANGE_COUNT} more ranges`);
  return `${lines.join('\n')}\n`;
}

function resultOf(copy: Copy, destination: Destination): Record<string, unknown> {
  return {
    event: 'result',
    device: destination.region.label,
    complete: isComplete(copy, destination),
    doneByteLength: destination.doneByteLength,
    missingByteLength: destination.byteLength - destination.doneByteLength,
    elapsedMilliseconds: Math.round(destination.elapsedMilliseconds),
    givenUp: destination.dead?.message ?? null,
    verified: destination.verified,
    failures: failuresOf(copy, destination),
  };
}
