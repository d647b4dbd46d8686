// dmkit copy with - for standard input or output.
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { CopyHost } from '../copy/copy.ts';
import { copyFromStream, type StreamCopyOptions, type StreamDestination, streamOf } from '../copy/stream.ts';
import { bytesText } from '../copy/units.ts';
import type { CopyCommandOptions } from './copy.ts';
import type { CopyOutput } from './copy-output.ts';

const STREAM = '-';
const LINE_MILLISECONDS = 5000;

/** @throws DmError EINVAL for options that a stream has no use for */
export function isStreamCopy(names: readonly string[], options: CopyCommandOptions): boolean {
  if (!names.includes(STREAM)) return false;
  const refuse = (text: string): never => {
    throw new DmError(Errno.EINVAL, text);
  };
  if (options.zero) refuse('--zero has no source, and - can not be zeroed');
  const used = {
    mapfile: '--mapfile',
    retry: '--retry',
    keepGoing: '--keep-going',
    skipHoles: '--skip-holes',
    rate: '--rate',
  };
  for (const [key, name] of Object.entries(used)) {
    if (options[key as keyof typeof used] !== undefined) refuse(`${name} needs a source and destinations other than -`);
  }
  const [source, ...destinations] = names;
  if (destinations.includes(STREAM)) {
    if (source === STREAM) refuse('- can be the source or the destination, not both');
    if (destinations.length > 1) refuse('- as a destination must be the only one');
    if (options.verify || options.json) refuse('standard output can not be read back, and is not for JSON then');
  }
  return true;
}

/** @returns the exit code, but for signals */
export async function runStreamCopy(
  host: CopyHost,
  names: readonly string[],
  { json = false }: CopyCommandOptions,
  options: StreamCopyOptions,
  output: CopyOutput,
): Promise<number> {
  const [source, ...destinations] = names;
  if (source !== STREAM) return toStandardOutput(host, source!, options, output);
  const stop = (): void => void process.stdin.destroy();
  options.signal?.addEventListener('abort', stop);
  let failure: unknown = null;
  // A stream that breaks ends the copy as one that is over too early, and is told.
  async function* input(): AsyncGenerator<Uint8Array> {
    try {
      for await (const chunk of process.stdin) yield chunk as Uint8Array;
    } catch (error) {
      failure = error;
    }
  }
  const startedAt = performance.now();
  let byteLength = 0;
  const onProgress = (count: number): void => {
    byteLength = count;
  };
  const timer = setInterval(() => {
    const rate = (byteLength * 1000) / (performance.now() - startedAt);
    output.err(`${bytesText(byteLength)} of the stream, ${bytesText(rate)}/s\n`);
  }, LINE_MILLISECONDS);
  const results = await copyFromStream(host, input(), destinations, { ...options, onProgress }).finally(() => {
    clearInterval(timer);
    options.signal?.removeEventListener('abort', stop);
  });
  process.stdin.destroy();
  const isStopped = options.signal?.aborted ?? false;
  if (failure !== null && !isStopped) {
    const errno = errnoFromException(failure);
    output.err(`dmkit: standard input: ${errnoMessage(errno)}\n`);
  }
  // A program before the pipe that failed at once leaves an empty stream.
  const isEmpty = results.every(({ error, doneByteLength }) => error === null && doneByteLength === 0);
  if (isEmpty && failure === null && !isStopped) output.err('dmkit: standard input is empty: nothing was copied\n');
  const isWhole = failure === null && !isStopped && !isEmpty;
  for (const result of results) {
    if (json) output.event(eventOf(result, isWhole));
    else output.out(lineOf(result, isWhole));
  }
  const completeCount = isWhole ? results.filter(({ error }) => error === null).length : 0;
  const end = { event: 'end', completeCount, destinationCount: results.length, interrupted: isStopped };
  if (json) output.event(end);
  else if (results.length > 1) output.out(`${completeCount} of ${results.length} destinations are complete\n`);
  return completeCount === results.length ? 0 : 1;
}

function lineOf({ label, error, doneByteLength, verified }: StreamDestination, isWhole: boolean): string {
  const done = `${bytesText(doneByteLength)} done`;
  if (error !== null) return `${label}: INCOMPLETE, ${done}; given up: ${error.message}\n`;
  if (!isWhole) return `${label}: INCOMPLETE, ${done}; the stream was not read to its end\n`;
  return `${label}: ${done}${verified ? ', verified by its checksum' : ''}\n`;
}

function eventOf(
  { label, error, doneByteLength, verified }: StreamDestination,
  isWhole: boolean,
): Record<string, unknown> {
  return {
    event: 'result',
    device: label,
    complete: error === null && isWhole,
    doneByteLength,
    givenUp: error?.message ?? null,
    verified: verified ? 'by its checksum' : null,
  };
}

async function toStandardOutput(
  host: CopyHost,
  source: string,
  options: StreamCopyOptions,
  output: CopyOutput,
): Promise<number> {
  let byteLength = 0;
  for await (const bytes of streamOf(host, source, options)) {
    if (options.signal?.aborted) break;
    const error = await new Promise<Error | null | undefined>((resolve) => process.stdout.write(bytes, resolve));
    if (error) {
      const errno = errnoFromException(error);
      output.err(`dmkit: standard output: ${errnoMessage(errno)}, after ${byteLength} bytes\n`);
      return 1;
    }
    byteLength += bytes.byteLength;
  }
  output.err(`${source}: ${bytesText(byteLength)} written to standard output\n`);
  return options.signal?.aborted ? 1 : 0;
}
