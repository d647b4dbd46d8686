// Calls on sockets and on epoll through koffi, for connections that are read and written without node:net between.
// Results are byte counts or negative errnos.
import { availableParallelism } from 'node:os';
import { isMainThread } from 'node:worker_threads';
import { addressOfView, type IovecArray, makeIovecArray, setIovec } from './cursor.ts';
import { type Libc, loadLibc } from './libc.ts';

/** What the C library has for sockets, as koffi binds it. Negative results are errnos. */
export interface SocketLibrary {
  duplicate(fd: number): number;
  receive(fd: number, address: number, byteLength: number): number;
  receiveVector(fd: number, iovec: number, count: number): number;
  send(fd: number, address: number, byteLength: number): number;
  setSendBufferByteLength(fd: number, byteLength: number): number;
  makePoll(): number;
  controlPoll(pollFd: number, operation: number, fd: number, event: number): number;
  waitPoll(pollFd: number, events: number, count: number, timeoutMilliseconds: number): number;
  /** Calls back from the event loop while `fd` can be read. */
  watch(fd: number, callback: () => void): { ref(): void; unref(): void; close(): void };
  close(fd: number): void;
}

export const EPOLLIN = 1;
export const EPOLLOUT = 4;
export const EPOLLERR = 8;
export const EPOLLHUP = 16;

const EPOLL_CTL_ADD = 1;
const EPOLL_CTL_DEL = 2;
const EPOLL_CTL_MOD = 3;
const MAX_EVENT_COUNT = 64;

/** A look for more takes about half a microsecond. On one processor alone nothing can come while this thread looks. */
const MAX_SPIN_COUNT = availableParallelism() > 1 ? 100 : 0;
const MIN_SPIN_COUNT = Math.min(8, MAX_SPIN_COUNT);
const MAX_VAIN_COUNT = 16;
/** What a sleep takes that a longer wait would have spared: the way to sleep and back is most of it. */
const SHORT_SLEEP_MILLISECONDS = 0.2;
/** After this the event loop's other business has its turn. */
const MAX_DISPATCH_MILLISECONDS = 1;

// struct epoll_event is packed on x86 alone.
const EVENT_WORD_COUNT = process.arch === 'x64' ? 3 : 4;
const KEY_WORD = EVENT_WORD_COUNT - 2;

/** Sockets by descriptor, into memory by view. */
export class SocketCalls {
  readonly #library: SocketLibrary;
  readonly #libc: Libc;
  readonly #iovec: IovecArray;

  constructor(library: SocketLibrary, libc: Libc) {
    this.#library = library;
    this.#libc = libc;
    this.#iovec = makeIovecArray(libc);
  }

  /** Another descriptor of the same socket, closed on exec. */
  duplicate(fd: number): number {
    return this.#library.duplicate(fd);
  }

  /** How much may wait in the kernel for the peer; the system has a bound of its own for it. */
  setSendBufferByteLength(fd: number, byteLength: number): void {
    this.#library.setSendBufferByteLength(fd, byteLength);
  }

  receive(fd: number, page: Uint8Array, offset: number, byteLength: number): number {
    return this.#library.receive(fd, addressOfView(this.#libc, page) + offset, byteLength);
  }

  /** Receives into two places: the second gets what is behind the first. */
  receiveTwo(
    fd: number,
    page: Uint8Array,
    offset: number,
    byteLength: number,
    nextPage: Uint8Array,
    nextOffset: number,
    nextByteLength: number,
  ): number {
    const { words, address } = this.#iovec;
    setIovec(words, 0, addressOfView(this.#libc, page) + offset, byteLength);
    setIovec(words, 1, addressOfView(this.#libc, nextPage) + nextOffset, nextByteLength);
    return this.#library.receiveVector(fd, address, 2);
  }

  send(fd: number, page: Uint8Array, offset: number, byteLength: number): number {
    return this.#library.send(fd, addressOfView(this.#libc, page) + offset, byteLength);
  }

  close(fd: number): void {
    this.#library.close(fd);
  }

  /** @returns null when the system gives none */
  makePoll(onReady: (key: number, events: number) => boolean): SocketPoll | null {
    const fd = this.#library.makePoll();
    return fd < 0 ? null : new SocketPoll(this.#library, this.#libc, fd, onReady);
  }
}

/** Many sockets behind one descriptor, which the event loop watches. */
export class SocketPoll {
  readonly #library: SocketLibrary;
  readonly #fd: number;
  readonly #onReady: (key: number, events: number) => boolean;
  readonly #events = new Int32Array(EVENT_WORD_COUNT * MAX_EVENT_COUNT);
  readonly #eventsAddress: number;
  readonly #one = new Int32Array(EVENT_WORD_COUNT);
  readonly #oneAddress: number;
  readonly #watch: { ref(): void; unref(): void; close(): void };
  #count = 0;
  /** How often to look for more before sleeping. */
  #spinCount = 0;
  /** Times in a row that looking as often as allowed was not often enough. */
  #vainCount = 0;
  /** When it last went to sleep after it had waited in vain; 0 where it hadn't. */
  #sleptFrom = 0;

  constructor(library: SocketLibrary, libc: Libc, fd: number, onReady: (key: number, events: number) => boolean) {
    this.#library = library;
    this.#fd = fd;
    this.#onReady = onReady;
    this.#eventsAddress = libc.addressOf(this.#events.buffer);
    this.#oneAddress = libc.addressOf(this.#one.buffer);
    this.#watch = library.watch(fd, () => this.dispatch());
    this.#watch.unref();
  }

  /**
   * Tells of everything that is ready now, and of what becomes ready soon after. A client that has got its answer often
   * asks again at once; going to sleep and being woken up costs both sides more than the question, above all in a virtual
   * machine. How long to wait is learnt from what came of it, as in the kernel's halt polling.
   */
  dispatch(): void {
    const now = performance.now();
    if (this.#sleptFrom > 0) this.#learn(now - this.#sleptFrom < SHORT_SLEEP_MILLISECONDS);
    this.#sleptFrom = this.#tellAll(now + MAX_DISPATCH_MILLISECONDS) ? performance.now() : 0;
  }

  /** After it waited in vain and slept. */
  #learn(wasShort: boolean): void {
    if (!wasShort) {
      this.#spinCount >>= 1;
    } else if (this.#spinCount < MAX_SPIN_COUNT) {
      this.#spinCount = Math.min(MAX_SPIN_COUNT, Math.max(MIN_SPIN_COUNT, this.#spinCount * 2));
    } else if (++this.#vainCount > MAX_VAIN_COUNT) {
      // Never long enough: it begins anew, and has lost little by the time it has learnt that again.
      this.#vainCount = 0;
      this.#spinCount = 0;
    }
  }

  /** @returns whether it waited in vain at the end; false where others must have their turn first */
  #tellAll(until: number): boolean {
    for (let missCount = 0; missCount <= this.#spinCount; ) {
      const count = this.#library.waitPoll(this.#fd, this.#eventsAddress, MAX_EVENT_COUNT, 0);
      if (count <= 0) {
        missCount++;
        continue;
      }
      if (missCount > 0) this.#vainCount = 0;
      missCount = 0;
      if (!this.#tell(count) || this.#count === 0 || performance.now() > until) return false;
    }
    return true;
  }

  /** @returns whether all of them would wait for more */
  #tell(count: number): boolean {
    const events = this.#events;
    let canWait = true;
    for (let i = 0; i < count; i++) {
      const at = i * EVENT_WORD_COUNT;
      canWait = this.#onReady(events[at + KEY_WORD]!, events[at]!) && canWait;
    }
    return canWait;
  }

  /** Watches `fd`; `key` comes back with its events. @returns a negative errno when the system refuses */
  add(fd: number, key: number, events: number): number {
    const result = this.#control(EPOLL_CTL_ADD, fd, key, events);
    if (result >= 0 && this.#count++ === 0) this.#watch.ref();
    return result;
  }

  /** Gives the descriptor back. Nothing may be watched any more. */
  close(): void {
    this.#watch.close();
    this.#library.close(this.#fd);
  }

  change(fd: number, key: number, events: number): void {
    this.#control(EPOLL_CTL_MOD, fd, key, events);
  }

  remove(fd: number): void {
    this.#control(EPOLL_CTL_DEL, fd, 0, 0);
    if (--this.#count === 0) this.#watch.unref();
  }

  #control(operation: number, fd: number, key: number, events: number): number {
    this.#one[0] = events;
    this.#one[KEY_WORD] = key;
    return this.#library.controlPoll(this.#fd, operation, fd, this.#oneAddress);
  }
}

let calls: SocketCalls | null | undefined;
let isAllowed = isMainThread;

/** Lets this worker have socket calls. It must never be terminated while it has connections, unless the process ends too. */
export function allowSocketCalls(): void {
  isAllowed = true;
}

/**
 * The calls of this thread; null where there is no koffi, or it is not wanted (DMKIT_ENGINE=portable, DMKIT_SOCKETS=node).
 * A worker has none by itself: when it is terminated nothing would close its descriptors, and its peers would wait for ever.
 */
export function socketCalls(): SocketCalls | null {
  if (calls !== undefined) return calls;
  calls = null;
  if (!isAllowed) return null;
  const { DMKIT_ENGINE, DMKIT_SOCKETS } = process.env;
  // What else DMKIT_ENGINE may be is the engines' business: they refuse it where it can be told to somebody.
  if (DMKIT_SOCKETS === 'node' || DMKIT_ENGINE === 'portable') return null;
  const { libc } = loadLibc();
  const library = libc?.sockets() ?? null;
  if (libc !== null && library !== null) calls = new SocketCalls(library, libc);
  return calls;
}
