// Standard output and error of a copy: a reader that goes away, or a terminal that hangs up, does not end the copy.
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { rawName } from '../block/file-name.ts';

/** Errors of a reader that has gone. */
const GONE: readonly number[] = [Errno.EPIPE, Errno.EIO, Errno.EBADF];

class Output {
  readonly #stream: NodeJS.WriteStream;
  /** Why nothing is printed any more. */
  errno = 0;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
    // The command as a whole ends when its reader goes; a copy has other work than printing.
    stream.removeAllListeners('error');
    stream.on('error', (error) => this.#note(error));
  }

  write(text: string): void {
    if (this.errno !== 0) return;
    try {
      this.#stream.write(rawName(text));
    } catch (error) {
      // Files are written at once, and so fail at once.
      this.#note(error);
    }
  }

  #note(error: unknown): void {
    if (this.errno === 0) this.errno = errnoFromException(error);
  }
}

export class CopyOutput {
  readonly #out = new Output(process.stdout);
  readonly #err = new Output(process.stderr);

  out(text: string): void {
    this.#out.write(text);
  }

  err(text: string): void {
    this.#err.write(text);
  }

  event(event: Record<string, unknown>): void {
    this.out(`${JSON.stringify(event)}\n`);
  }

  /** Something could not be printed though its reader is there: the disk is full. Says so. */
  async hasFailed(): Promise<boolean> {
    // Streams tell it a moment later.
    await new Promise((resolve) => setImmediate(resolve));
    const { errno } = this.#out;
    if (errno === 0 || GONE.includes(errno)) return false;
    this.err(`dmkit: standard output: ${errnoMessage(errno)}\n`);
    return true;
  }
}
