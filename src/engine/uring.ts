// One io_uring as memory: its two queues, mapped, and the words of their entries. Nothing here knows what requests are.
import { Errno } from '../block/errno.ts';

/** The calls that a ring needs of the system. Negative results are errnos. */
export interface UringCalls {
  setup(entryCount: number, parameters: number): number;
  enter(
    fd: number,
    submitCount: number,
    minComplete: number,
    flags: number,
    argument: number,
    argumentByteLength: number,
  ): number;
  /** Maps a part of the ring; null when that fails. */
  map(fd: number, offset: number, byteLength: number): UringMapping | null;
  unmap(mapping: UringMapping): void;
  /** Calls back from the event loop while completions are there to be reaped. It keeps the loop alive unless unref'd. */
  watch(fd: number, callback: () => void): UringWatch;
  close(fd: number): void;
  addressOf(buffer: ArrayBufferLike): number;
}

export interface UringMapping {
  readonly memory: ArrayBuffer;
  readonly address: number;
}

export interface UringWatch {
  ref(): void;
  unref(): void;
  close(): void;
}

export const IORING_OP_NOP = 0;
export const IORING_OP_READV = 1;
export const IORING_OP_WRITEV = 2;
export const IORING_OP_FSYNC = 3;
export const IORING_OP_ASYNC_CANCEL = 14;
export const IORING_OP_FALLOCATE = 17;
export const IORING_OP_READ = 22;
export const IORING_OP_WRITE = 23;
export const IORING_FSYNC_DATASYNC = 1;
const IORING_ASYNC_CANCEL_ALL_ANY = 5;

const IORING_ENTER_GETEVENTS = 1;
const IORING_ENTER_EXT_ARG = 8;
const IORING_FEAT_SINGLE_MMAP = 1;
const IORING_FEAT_NODROP = 2;
const IORING_FEAT_SUBMIT_STABLE = 4;
const IORING_FEAT_EXT_ARG = 256;
const NEEDED_FEATURES = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG;

const IORING_OFF_SQES = 0x10000000;
const PARAMETERS_WORD_COUNT = 30;
const SQE_WORD_COUNT = 16;
const SQE_BYTE_LENGTH = 64;
const CQE_WORD_COUNT = 4;
const CQE_BYTE_LENGTH = 16;
const WORD = 4294967296;

/** struct io_uring_getevents_arg, then the struct __kernel_timespec that it points to. */
const WAIT_ARGUMENT_BYTE_LENGTH = 24;

/** Why there is no ring: an errno of io_uring_setup, or a text where the system has one that is too old. */
export interface UringRefusal {
  readonly errno: number;
  readonly reason: string;
}

export function isRefusal(made: Uring | UringRefusal): made is UringRefusal {
  return !(made instanceof Uring);
}

function refusalOf(errno: number): UringRefusal {
  switch (errno) {
    case Errno.ENOSYS:
      return { errno, reason: 'this kernel has no io_uring' };
    case Errno.EPERM:
    case Errno.EACCES:
      return {
        errno,
        reason:
          'io_uring is not permitted here (a seccomp filter such as a container has, or kernel.io_uring_disabled)',
      };
    default:
      return { errno, reason: `io_uring_setup failed with errno ${errno}` };
  }
}

/** A ring of the kernel's. Submissions and completions by index, requests known by a slot number. */
export class Uring {
  readonly fd: number;
  /** Places for submissions, and for completions: as many requests may be in flight. */
  readonly submissionCount: number;
  readonly completionCount: number;
  /** Submissions that were written and not taken yet. */
  pendingCount = 0;
  /** The result of the completion that {@link takeCompletion} took last. */
  result = 0;
  readonly #calls: UringCalls;
  readonly #mappings: UringMapping[];
  readonly #words: Int32Array;
  readonly #entries: Int32Array;
  readonly #submissionTail: number;
  readonly #submissionMask: number;
  readonly #completionHead: number;
  readonly #completionTail: number;
  readonly #completionMask: number;
  readonly #completions: number;
  readonly #wait = new BigInt64Array(5);
  readonly #waitAddress: number;

  /** Makes a ring, or says why not. */
  static make(calls: UringCalls, entryCount: number): Uring | UringRefusal {
    const parameters = new Uint32Array(PARAMETERS_WORD_COUNT);
    const fd = calls.setup(entryCount, calls.addressOf(parameters.buffer));
    if (fd < 0) return refusalOf(-fd);
    // Read here as well, so that the memory is alive during the call.
    const features = parameters[5]!;
    const made =
      (features & NEEDED_FEATURES) === NEEDED_FEATURES
        ? Uring.#mapped(calls, fd, parameters)
        : { errno: Errno.ENOSYS, reason: 'the io_uring of this kernel is too old (Linux 5.11 has what is needed)' };
    if (isRefusal(made)) calls.close(fd);
    return made;
  }

  static #mapped(calls: UringCalls, fd: number, parameters: Uint32Array): Uring | UringRefusal {
    const submissionCount = parameters[0]!;
    const completionCount = parameters[1]!;
    const queues = calls.map(
      fd,
      0,
      Math.max(parameters[16]! + submissionCount * 4, parameters[25]! + completionCount * CQE_BYTE_LENGTH),
    );
    const entries = queues === null ? null : calls.map(fd, IORING_OFF_SQES, submissionCount * SQE_BYTE_LENGTH);
    if (queues !== null && entries !== null) return new Uring(calls, fd, parameters, [queues, entries]);
    if (queues !== null) calls.unmap(queues);
    return { errno: Errno.ENOMEM, reason: 'there is no memory for an io_uring' };
  }

  private constructor(calls: UringCalls, fd: number, parameters: Uint32Array, mappings: UringMapping[]) {
    this.#calls = calls;
    this.fd = fd;
    this.submissionCount = parameters[0]!;
    this.completionCount = parameters[1]!;
    this.#mappings = mappings;
    this.#words = new Int32Array(mappings[0]!.memory, 0, mappings[0]!.memory.byteLength >> 2);
    this.#entries = new Int32Array(mappings[1]!.memory);
    // struct io_sqring_offsets is at word 10 of the parameters, struct io_cqring_offsets at word 20.
    this.#submissionTail = parameters[11]! >> 2;
    this.#submissionMask = this.#words[parameters[12]! >> 2]!;
    this.#completionHead = parameters[20]! >> 2;
    this.#completionTail = parameters[21]! >> 2;
    this.#completionMask = this.#words[parameters[22]! >> 2]!;
    this.#completions = parameters[25]! >> 2;
    // The indirection between the queue and its entries is not used: place i is entry i.
    const array = parameters[16]! >> 2;
    for (let i = 0; i < this.submissionCount; i++) this.#words[array + i] = i;
    const address = calls.addressOf(this.#wait.buffer);
    this.#waitAddress = address;
    this.#wait[2] = BigInt(address + WAIT_ARGUMENT_BYTE_LENGTH);
  }

  get freeSubmissionCount(): number {
    return this.submissionCount - this.pendingCount;
  }

  /**
   * Writes a submission; there must be a free place. `address` is below 2^53, `offset` comes in two words.
   */
  prepare(
    slot: number,
    opcode: number,
    fd: number,
    offsetLow: number,
    offsetHigh: number,
    address: number,
    length: number,
    flags: number,
  ): void {
    const words = this.#words;
    const entries = this.#entries;
    const tail = words[this.#submissionTail]!;
    const at = (tail & this.#submissionMask) * SQE_WORD_COUNT;
    // Words 9 to 15 are never written, and the kernel does not change what it was given: they stay 0.
    entries[at] = opcode;
    entries[at + 1] = fd;
    entries[at + 2] = offsetLow;
    entries[at + 3] = offsetHigh;
    entries[at + 4] = address;
    entries[at + 5] = address / WORD;
    entries[at + 6] = length;
    entries[at + 7] = flags;
    entries[at + 8] = slot;
    // After the entry, for the thread of the kernel that might read it.
    Atomics.store(words, this.#submissionTail, (tail + 1) | 0);
    this.pendingCount++;
  }

  /** Writes a submission that cancels everything in flight. */
  prepareCancel(slot: number): void {
    this.prepare(slot, IORING_OP_ASYNC_CANCEL, -1, 0, 0, 0, 0, IORING_ASYNC_CANCEL_ALL_ANY);
  }

  /** Takes back what was written and not submitted. @returns its slots */
  takeBackPending(): number[] {
    const words = this.#words;
    const first = (words[this.#submissionTail]! - this.pendingCount) | 0;
    const slots: number[] = [];
    for (let i = 0; i < this.pendingCount; i++) {
      slots.push(this.#entries[((first + i) & this.#submissionMask) * SQE_WORD_COUNT + 8]!);
    }
    Atomics.store(words, this.#submissionTail, first);
    this.pendingCount = 0;
    return slots;
  }

  /** Submits what was written. @returns 0 when all was taken, an errno otherwise */
  submit(): number {
    return this.#enter(0, 0, 0, 0);
  }

  /** Submits what was written and waits for one completion. @returns 0, or an errno */
  submitAndWait(): number {
    return this.#enter(1, IORING_ENTER_GETEVENTS, 0, 0);
  }

  /** Submits what was written and waits, at most `milliseconds`, until `count` completions are there at one time. */
  waitFor(count: number, milliseconds: number): void {
    this.#wait[3] = 0n;
    this.#wait[4] = BigInt(milliseconds) * 1_000_000n;
    const flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    this.#enter(count, flags, this.#waitAddress, WAIT_ARGUMENT_BYTE_LENGTH);
  }

  #enter(minComplete: number, flags: number, argument: number, argumentByteLength: number): number {
    do {
      const taken = this.#calls.enter(this.fd, this.pendingCount, minComplete, flags, argument, argumentByteLength);
      if (taken === -Errno.EINTR) continue;
      if (taken < 0) return -taken;
      // An entry that is refused ends a batch; the rest is submitted by another call.
      this.pendingCount -= taken;
      if (taken === 0 && this.pendingCount > 0) return Errno.EAGAIN;
    } while (this.pendingCount > 0);
    return 0;
  }

  /** Takes one completion; its outcome is in `result`. @returns its slot; -1 when there is none */
  takeCompletion(): number {
    const words = this.#words;
    const head = words[this.#completionHead]!;
    if (head === Atomics.load(words, this.#completionTail)) return -1;
    const at = this.#completions + (head & this.#completionMask) * CQE_WORD_COUNT;
    const slot = words[at]!;
    this.result = words[at + 2]!;
    // The kernel may use the place again.
    Atomics.store(words, this.#completionHead, (head + 1) | 0);
    return slot;
  }

  /** Ends the ring. Requests in flight go on without it. */
  close(): void {
    for (const mapping of this.#mappings) this.#calls.unmap(mapping);
    this.#calls.close(this.fd);
  }
}
