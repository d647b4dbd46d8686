// The built dmkit command inside this process: a hundred commands take less processor time than the start of three
// Node.js processes. For tests of what commands do and print; what a process is (its signals, its exit, the descriptors
// that it inherits, a pipe that breaks) needs `dmkit` of cli.ts.
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { dirname } from 'node:path';
import { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { dmkit } from './cli.ts';
import type { RunOptions, RunResult } from './process.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

/** These end the process, or live on until a signal comes. */
const NEED_A_PROCESS = ['serve', 'daemon', 'copy', 'exec'];
/** These read standard input as a stream; the others read descriptor 0, which is not ours to change. */
const READ_A_STREAM = ['write'];

class Sink extends Writable {
  readonly chunks: Buffer[] = [];

  override _write(chunk: Buffer | string, encoding: BufferEncoding, done: () => void): void {
    this.chunks.push(typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk);
    done();
  }

  get bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

/** Gives `object` other properties. @returns what puts the old ones back */
function replaceProperties(object: object, values: Record<string, unknown>): () => void {
  const old = Object.keys(values).map((name) => [name, Object.getOwnPropertyDescriptor(object, name)!] as const);
  for (const [name, value] of Object.entries(values)) {
    Object.defineProperty(object, name, { value, configurable: true, writable: true });
  }
  return () => {
    for (const [name, descriptor] of old) Object.defineProperty(object, name, descriptor);
  };
}

function replaceEnvironment(env: NonNullable<RunOptions['env']>): () => void {
  const old = Object.keys(env).map((name) => [name, process.env[name]] as const);
  const set = ([name, value]: readonly [string, string | undefined]): void => {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  };
  Object.entries(env).forEach(set);
  return () => old.forEach(set);
}

/** Text that is written to descriptor 2 goes into `sink`. */
function replaceStandardError(sink: Sink): () => void {
  const { writeSync } = fs;
  fs.writeSync = ((fd: number, data: Uint8Array | string, ...rest: number[]) => {
    if (fd !== 2) return (writeSync as (...all: unknown[]) => number)(fd, data, ...rest);
    const bytes = Buffer.from(data as Uint8Array).subarray(rest[0] ?? 0);
    sink.write(bytes);
    return bytes.byteLength;
  }) as typeof writeSync;
  syncBuiltinESMExports();
  return () => {
    fs.writeSync = writeSync;
    syncBuiltinESMExports();
  };
}

async function runHere(args: readonly string[], options: RunOptions): Promise<RunResult> {
  const [stdout, stderr] = [new Sink(), new Sink()];
  const folder = process.cwd();
  const input = options.input === undefined ? [] : [Buffer.from(options.input as Uint8Array)];
  const back = [
    replaceProperties(process, {
      argv: [process.execPath, main, ...args],
      stdin: Readable.from(input),
      stdout,
      stderr,
    }),
    replaceEnvironment(options.env ?? {}),
    replaceStandardError(stderr),
    () => process.chdir(folder),
  ];
  let code: number;
  try {
    process.chdir(options.cwd ?? folder);
    const { runWord } = await import(`${dirname(main)}/words.js`);
    code = (await runWord(args)) ?? (await (await import(`${dirname(main)}/program.js`)).runProgram());
  } finally {
    for (const restore of back) restore();
  }
  return { code, stdout: `${stdout.bytes}`, stderr: `${stderr.bytes}`, stdoutBytes: stdout.bytes, timedOut: false };
}

let last: Promise<unknown> = Promise.resolve();

/**
 * Runs `dmkit ARGS`, in this process where that is the same to an onlooker, after the commands before it.
 *
 * It changes this process's folder, environment and standard streams while it runs.
 */
export function dmkitHere(args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const [word = ''] = args;
  const needsProcess = NEED_A_PROCESS.includes(word) || (options.input !== undefined && !READ_A_STREAM.includes(word));
  const result = needsProcess ? last.then(() => dmkit(args, options)) : last.then(() => runHere(args, options));
  last = result.catch(() => {});
  return result;
}
