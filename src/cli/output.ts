// Standard output and error of the command, when the reader of a pipe has ended and when the disk is full.
//
// When the reader has ended (dmkit targets | head -1), the command has not failed: it prints nothing more and goes on, so
// that its exit code tells of its work, and a copy or a merge is not cut short. A full disk is a failure, told once.
import { fstatSync, writeSync } from 'node:fs';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { rawName } from '../block/file-name.ts';

const STANDARD_OUTPUT = 1;
const EXIT_FAILURE = 1;
/** Errors of a reader that has gone. */
const GONE: readonly number[] = [Errno.EPIPE, Errno.ECONNRESET];

/** The first error of standard output; 0 while it takes everything. */
let outputErrno = 0;

function noteOutputError(error: unknown): void {
  if (outputErrno !== 0) return;
  outputErrno = errnoFromException(error);
  if (!GONE.includes(outputErrno)) process.stderr.write(`dmkit: standard output: ${errnoMessage(outputErrno)}\n`);
}

function isPlainFile(descriptor: number): boolean {
  try {
    return fstatSync(descriptor).isFile();
  } catch {
    return false;
  }
}

/** Node.js takes a write that a nearly full disk has cut short for a whole one. */
function writeFilesWhole(stream: NodeJS.WriteStream): void {
  stream._write = (chunk: Buffer, _encoding, done) => {
    try {
      for (let at = 0; at < chunk.byteLength; ) at += writeSync(STANDARD_OUTPUT, chunk, at);
    } catch (error) {
      done(error as Error);
      return;
    }
    done();
  };
}

/** Takes care of standard output and error for this process. Without it an error of theirs ends the process. */
export function guardOutput(): void {
  if (isPlainFile(STANDARD_OUTPUT)) writeFilesWhole(process.stdout);
  process.stdout.on('error', noteOutputError);
  // An error of standard error can't be told: standard error is where it would be told.
  process.stderr.on('error', () => {});
  process.on('exit', (code) => {
    if (code === 0 && outputErrno !== 0 && !GONE.includes(outputErrno)) process.exitCode = EXIT_FAILURE;
  });
}

/** Prints, and waits until it is out. @returns false where nothing can be printed any more: the rest need not be made */
export function printed(text: string | Uint8Array): Promise<boolean> {
  if (outputErrno !== 0) return Promise.resolve(false);
  return new Promise((resolve) => {
    process.stdout.write(typeof text === 'string' ? rawName(text) : text, (error) => {
      if (error != null) noteOutputError(error);
      resolve(outputErrno === 0);
    });
  });
}
