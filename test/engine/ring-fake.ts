// A ring of the kernel's that a test plays: the two queues are memory of this process, and every operation is made by
// an ordinary call when it is submitted, unless the test gives another result or holds it.
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Libc } from '../../src/engine/index.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import {
  IORING_OP_ASYNC_CANCEL,
  IORING_OP_FALLOCATE,
  IORING_OP_FSYNC,
  IORING_OP_NOP,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IORING_OP_WRITEV,
  type UringCalls,
  type UringMapping,
} from '../../src/engine/uring.ts';

/** One submission, as the kernel reads it. */
export interface Submission {
  readonly opcode: number;
  readonly fd: number;
  readonly offset: number;
  readonly address: number;
  readonly length: number;
  readonly flags: number;
  readonly slot: number;
}

export interface FakeOptions {
  /** Gives the result of an operation, `make()` makes the real call; null holds it until `release`. */
  perform?: (submission: Submission, make: () => number) => number | null;
  /** The result of an enter with `count` submissions, where it is not to be the usual one. */
  enter?: (count: number) => number | undefined;
}

const IORING_OFF_SQES = 0x10000000;

export class FakeUring implements UringCalls {
  readonly submissions: Submission[] = [];
  enterCount = 0;
  closedCount = 0;
  referenced = true;
  readonly #options: FakeOptions;
  readonly #libc: Libc;
  readonly #real: UringCalls;
  readonly #held: Submission[] = [];
  readonly #unmap = new Map<number, UringMapping>();
  #queues!: Int32Array;
  #entries!: Int32Array;
  // Places of the queues in words: tail, mask; head, tail, mask, first completion.
  #places!: readonly number[];
  #onReadable: () => void = () => {};

  constructor(options: FakeOptions = {}) {
    this.#options = options;
    const { libc } = loadLibc();
    this.#libc = libc!;
    this.#real = libc!.uring()!;
  }

  get heldCount(): number {
    return this.#held.length;
  }

  /** A real ring says where everything is; its memory is copied. */
  setup(entryCount: number, parameters: number): number {
    const fd = this.#real.setup(entryCount, parameters);
    if (fd < 0) return fd;
    const words = this.#copyOf(parameters);
    const place = (word: number): number => words[word]! >> 2;
    this.#places = [place(11), place(12), place(20), place(21), place(22), place(25)];
    return fd;
  }

  /** The structure of 30 words at an address: a file takes it there and back. */
  #copyOf(address: number): Uint32Array {
    const path = join(tmpdir(), `dmkit-fake-ring-${process.pid}`);
    const fd = fs.openSync(path, 'w+');
    fs.unlinkSync(path);
    this.#libc.pwrite(fd, address, 120, 0);
    const words = new Uint32Array(30);
    fs.readSync(fd, words, 0, 120, 0);
    fs.closeSync(fd);
    return words;
  }

  map(fd: number, offset: number, byteLength: number): UringMapping | null {
    const mapping = this.#real.map(fd, offset, byteLength)!;
    const memory = mapping.memory.slice(0);
    const words = new Int32Array(memory, 0, byteLength >> 2);
    if (offset === IORING_OFF_SQES) this.#entries = words;
    else this.#queues = words;
    this.#unmap.set(mapping.address, mapping);
    return { address: mapping.address, memory };
  }

  unmap({ address }: UringMapping): void {
    this.#real.unmap(this.#unmap.get(address)!);
  }

  close(fd: number): void {
    this.closedCount++;
    this.#real.close(fd);
  }

  addressOf(buffer: ArrayBufferLike): number {
    return this.#real.addressOf(buffer);
  }

  watch(_fd: number, callback: () => void): { ref(): void; unref(): void; close(): void } {
    this.#onReadable = callback;
    return {
      ref: () => {
        this.referenced = true;
      },
      unref: () => {
        this.referenced = false;
      },
      close: () => {
        this.#onReadable = () => {};
      },
    };
  }

  enter(_fd: number, submitCount: number, minComplete: number): number {
    this.enterCount++;
    const forced = this.#options.enter?.(submitCount);
    if (forced !== undefined && forced <= 0) return forced;
    const count = forced ?? submitCount;
    const [tailPlace, maskPlace] = this.#places as [number, number];
    const first = this.#queues[tailPlace]! - submitCount;
    for (let i = 0; i < count; i++) this.#take((first + i) & this.#queues[maskPlace]!);
    if (minComplete > 0 && !this.#hasCompletions) this.release();
    return count;
  }

  get #hasCompletions(): boolean {
    const [, , headPlace, tailPlace] = this.#places as [number, number, number, number];
    return this.#queues[headPlace] !== this.#queues[tailPlace];
  }

  /** Makes what was held, oldest first, and tells the watch. */
  release(count = this.#held.length): void {
    for (const submission of this.#held.splice(0, count)) this.#complete(submission, this.#make(submission));
    setImmediate(() => {
      if (this.#hasCompletions) this.#onReadable();
    });
  }

  #take(entry: number): void {
    const words = this.#entries.subarray(entry * 16, entry * 16 + 16);
    const wide = (low: number, high: number) => (low >>> 0) + high * 2 ** 32;
    const submission: Submission = {
      opcode: words[0]! & 0xff,
      fd: words[1]!,
      offset: wide(words[2]!, words[3]!),
      address: wide(words[4]!, words[5]!),
      length: words[6]!,
      flags: words[7]!,
      slot: words[8]!,
    };
    this.submissions.push(submission);
    const make = () => this.#make(submission);
    const result = this.#options.perform === undefined ? make() : this.#options.perform(submission, make);
    if (result === null) this.#held.push(submission);
    else this.#complete(submission, result);
  }

  #make({ opcode, fd, offset, address, length }: Submission): number {
    const libc = this.#libc;
    const orErrno = (result: number): number => (result < 0 ? -libc.errno() : result);
    switch (opcode) {
      case IORING_OP_NOP:
      case IORING_OP_ASYNC_CANCEL:
        return 0;
      case IORING_OP_READ:
        return orErrno(libc.pread(fd, address, length, offset));
      case IORING_OP_WRITE:
        return orErrno(libc.pwrite(fd, address, length, offset));
      case IORING_OP_READV:
        return orErrno(libc.preadv(fd, address, length, offset));
      case IORING_OP_WRITEV:
        return orErrno(libc.pwritev(fd, address, length, offset));
      case IORING_OP_FALLOCATE:
        return orErrno(libc.fallocate(fd, length, offset, address));
      case IORING_OP_FSYNC:
        fs.fdatasyncSync(fd);
        return 0;
      default:
        throw new Error(`the fake ring has no operation ${opcode}`);
    }
  }

  #complete({ slot }: Submission, result: number): void {
    const [, , , tailPlace, maskPlace, firstPlace] = this.#places as [number, number, number, number, number, number];
    const tail = this.#queues[tailPlace]!;
    const at = firstPlace + (tail & this.#queues[maskPlace]!) * 4;
    this.#queues[at] = slot;
    this.#queues[at + 2] = result;
    this.#queues[tailPlace] = tail + 1;
  }
}

/** The C library with a ring that a test plays. */
export function libcWithFakeRing(options: FakeOptions = {}): { libc: Libc; uring: FakeUring } {
  const uring = new FakeUring(options);
  return { uring, libc: { ...loadLibc().libc!, uring: () => uring } };
}
