// Lines on standard error, written at once, whatever standard error is: a terminal, a full disk, a pipe without a reader.
//
// process.stderr is not used: its write errors (a full disk, a pipe whose reader has ended) end the process, and its
// first use makes a pipe non-blocking for every process that shares it.
import { writeSync } from 'node:fs';
import { printableLines } from '../block/printable.ts';
import { ComplaintLimit } from '../daemon/complaint-limit.ts';
import { LineWriter } from '../daemon/line-file.ts';

const STANDARD_ERROR = 2;
const EAGAIN_ATTEMPT_COUNT = 50;
const EAGAIN_MILLISECONDS = 10;

/** Writes lines to standard error, with what a terminal must not get escaped. What can't be written is dropped. */
export function say(text: string): void {
  const bytes = Buffer.from(printableLines(text));
  let offset = 0;
  for (let attempt = 0; offset < bytes.byteLength && attempt < EAGAIN_ATTEMPT_COUNT; ) {
    try {
      offset += writeSync(STANDARD_ERROR, bytes, offset);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') return;
      // Another process has made it non-blocking, and its reader is slow.
      attempt++;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, EAGAIN_MILLISECONDS);
    }
  }
}

/** A server's complaints about its clients and the servers it uses: lines on standard error, so many of one kind a minute. */
export class Complaints {
  readonly #writer = new LineWriter(STANDARD_ERROR, (count) => `dmkit: ${count} lines could not be written here\n`);
  readonly #limit = new ComplaintLimit((count, like) => this.#write(`${count} more like: ${like}`));

  /** Writes one line. Lines with the same `kind` share one limit; the default is the line itself. */
  tell(text: string, kind: string = text): void {
    if (this.#limit.allows(kind)) this.#write(text);
  }

  #write(text: string): void {
    this.#writer.write(`dmkit: ${printableLines(text)}\n`);
  }

  /** Tells how many more there were. */
  close(): void {
    this.#limit.close();
  }
}
