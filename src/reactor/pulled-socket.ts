// A socket that its reader empties by itself: what arrives goes from the kernel straight to where it is wanted, and what
// is sent leaves in the same call. Node's streams allocate 64 KiB for each piece of what arrives, copy nothing less than
// that to its place, and tell of each write in a tick of its own; that is half of what a small request costs.
//
// Node's own socket stays open beside it, idle, for the beginning and the end of the connection.
import { Errno } from '../block/errno.ts';
import {
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  type SocketCalls,
  type SocketPoll,
  socketCalls,
} from '../engine/socket-calls.ts';

/** What may wait in the kernel for a Unix socket's peer: a whole batch of replies. TCP finds its own measure. */
const SEND_BUFFER_BYTE_LENGTH = 2 * 1024 * 1024;

export interface PulledSocketOwner {
  /**
   * There is something to receive, or the end.
   *
   * @returns whether everything was answered, so that it pays to wait a moment for the next
   */
  onReadable(): boolean;
  /** Nothing that was given to send waits any more. */
  onDrain(): void;
  /** It can't go on: an errno. */
  onFailure(errno: number): void;
}

interface Waiting {
  page: Uint8Array;
  offset: number;
  byteLength: number;
  onSent: (() => void) | null;
}

/** One for this thread, made for the first socket. */
let poll: SocketPoll | null = null;
const sockets: (PulledSocket | null)[] = [];

function onReady(key: number, events: number): boolean {
  return sockets[key]?.onEvents(events) ?? false;
}

/** For a thread that ends: nothing else gives its poll back. Does nothing while there are sockets. */
export function closeSocketPoll(): void {
  if (poll === null || sockets.some((socket) => socket !== null)) return;
  poll.close();
  poll = null;
}

/** For a thread that runs no more: nothing is told of its sockets any more, which end with the process. */
export function abandonSocketPoll(): void {
  poll?.close();
}

export class PulledSocket {
  readonly #calls: SocketCalls;
  readonly #owner: PulledSocketOwner;
  readonly #fd: number;
  readonly #key: number;
  readonly #waiting: Waiting[] = [];
  #waitingByteLength = 0;
  #isPaused = false;
  /** The peer sends no more. */
  #hasEnded = false;
  #events = EPOLLIN;
  #isWatched = true;
  #closed = false;

  /** @returns null where it can't be done: no koffi, no descriptor left */
  static make(fd: number, isUnix: boolean, owner: PulledSocketOwner): PulledSocket | null {
    const calls = socketCalls();
    if (calls === null) return null;
    poll ??= calls.makePoll(onReady);
    if (poll === null) return null;
    const copy = calls.duplicate(fd);
    if (copy < 0) return null;
    const free = sockets.indexOf(null);
    const key = free === -1 ? sockets.length : free;
    if (poll.add(copy, key, EPOLLIN) < 0) {
      calls.close(copy);
      return null;
    }
    if (isUnix) calls.setSendBufferByteLength(copy, SEND_BUFFER_BYTE_LENGTH);
    const socket = new PulledSocket(calls, owner, copy, key);
    sockets[key] = socket;
    return socket;
  }

  private constructor(calls: SocketCalls, owner: PulledSocketOwner, fd: number, key: number) {
    this.#calls = calls;
    this.#owner = owner;
    this.#fd = fd;
    this.#key = key;
  }

  /** Bytes that were to be sent and have not left. */
  get waitingByteLength(): number {
    return this.#waitingByteLength;
  }

  /** @returns as {@link PulledSocketOwner.onReadable} */
  onEvents(events: number): boolean {
    if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) !== 0 && this.#waiting.length > 0) this.#sendWaiting();
    if ((events & ~EPOLLOUT) === 0 || this.#closed) return this.#waiting.length === 0;
    // A failure shows in the next call that receives.
    if (!this.#isPaused && !this.#hasEnded) return this.#owner.onReadable();
    if ((events & (EPOLLERR | EPOLLHUP)) === 0) return false;
    this.#unwatch();
    // Both ways are closed: no answer reaches this peer any more, whatever it has sent. What it asked for is given up now, and
    // not when the requests that keep the connection from reading have ended.
    this.#owner.onFailure(Errno.EPIPE);
    return false;
  }

  /** @returns bytes; 0 at the end; a negative errno (EAGAIN: nothing there now) */
  receive(page: Uint8Array, offset: number, byteLength: number): number {
    if (this.#closed || this.#hasEnded) return -Errno.EAGAIN;
    return this.#received(this.#calls.receive(this.#fd, page, offset, byteLength));
  }

  #received(count: number): number {
    if (count > 0 || count === -Errno.EAGAIN || count === -Errno.EINTR) return count;
    this.#hasEnded = true;
    this.#watch();
    return count;
  }

  /** The same into two places. */
  receiveTwo(
    page: Uint8Array,
    offset: number,
    byteLength: number,
    nextPage: Uint8Array,
    nextOffset: number,
    nextByteLength: number,
  ): number {
    if (this.#closed || this.#hasEnded) return -Errno.EAGAIN;
    return this.#received(
      this.#calls.receiveTwo(this.#fd, page, offset, byteLength, nextPage, nextOffset, nextByteLength),
    );
  }

  /** Sends what leaves at once. @returns how many bytes that is; none while others wait before them */
  sendNow(page: Uint8Array, offset: number, byteLength: number): number {
    if (this.#waiting.length > 0 || this.#closed) return 0;
    const count = this.#calls.send(this.#fd, page, offset, byteLength);
    if (count >= 0) return count;
    if (count !== -Errno.EAGAIN && count !== -Errno.EINTR) this.#owner.onFailure(-count);
    return 0;
  }

  /** Sends in its turn. The memory must not change until `onSent`, which comes in a later call, or with {@link close}. */
  send(page: Uint8Array, offset: number, byteLength: number, onSent: (() => void) | null): void {
    this.#waiting.push({ page, offset, byteLength, onSent });
    this.#waitingByteLength += byteLength;
    if (this.#waiting.length === 1) this.#watch();
  }

  #sendWaiting(): void {
    while (this.#waiting.length > 0 && !this.#closed) {
      const first = this.#waiting[0]!;
      const count = this.#calls.send(this.#fd, first.page, first.offset, first.byteLength);
      if (count === -Errno.EINTR) continue;
      if (count < 0) {
        if (count !== -Errno.EAGAIN) this.#owner.onFailure(-count);
        return;
      }
      first.offset += count;
      first.byteLength -= count;
      this.#waitingByteLength -= count;
      if (first.byteLength > 0) return;
      this.#waiting.shift();
      first.onSent?.();
    }
    if (this.#closed) return;
    this.#watch();
    this.#owner.onDrain();
  }

  pause(): void {
    this.#isPaused = true;
    this.#watch();
  }

  resume(): void {
    this.#isPaused = false;
    this.#watch();
  }

  #watch(): void {
    if (this.#closed) return;
    const events = (this.#isPaused || this.#hasEnded ? 0 : EPOLLIN) | (this.#waiting.length > 0 ? EPOLLOUT : 0);
    if (!this.#isWatched) return;
    if (events !== this.#events) poll!.change(this.#fd, this.#key, events);
    this.#events = events;
  }

  #unwatch(): void {
    if (!this.#isWatched) return;
    this.#isWatched = false;
    poll!.remove(this.#fd);
  }

  /** Lets go of the socket, which stays open. @returns what has not been sent */
  close(): readonly Waiting[] {
    if (this.#closed) return [];
    this.#closed = true;
    sockets[this.#key] = null;
    this.#unwatch();
    this.#calls.close(this.#fd);
    this.#waitingByteLength = 0;
    return this.#waiting.splice(0);
  }
}
