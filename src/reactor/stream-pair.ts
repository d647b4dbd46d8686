// Two sockets or pipes, one for each way, as one stream: a connection that was handed over as standard input and output.
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';

type Done = (error?: Error | null) => void;

/** What comes from `input` can be read, what is written goes to `output`. A failure of one ends both. */
export class StreamPair extends Duplex {
  readonly #input: Socket;
  readonly #output: Socket;

  constructor(input: Socket, output: Socket) {
    super({ allowHalfOpen: true });
    this.#input = input;
    this.#output = output;
    input.pause();
    input.on('data', (chunk: Buffer) => {
      if (!this.push(chunk)) input.pause();
    });
    input.on('end', () => this.push(null));
    for (const stream of [input, output]) stream.on('error', (error) => this.destroy(error));
    output.on('close', () => {
      if (!this.writableFinished) this.destroy();
    });
  }

  override _read(): void {
    this.#input.resume();
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: Done): void {
    this.#output.write(chunk, done);
  }

  override _writev(chunks: { chunk: Buffer }[], done: Done): void {
    const output = this.#output;
    const last = chunks.length - 1;
    output.cork();
    for (let i = 0; i < last; i++) output.write(chunks[i]!.chunk);
    output.write(chunks[last]!.chunk, done);
    output.uncork();
  }

  override _final(done: Done): void {
    this.#output.end(done);
  }

  override _destroy(error: Error | null, done: Done): void {
    this.#input.destroy();
    this.#output.destroy();
    done(error);
  }

  /** As a socket has it: sends what is queued, then closes. */
  destroySoon(): void {
    if (this.writable) this.end();
    if (this.writableFinished) this.destroy();
    else this.once('finish', () => this.destroy());
  }
}
