// What a reactor gives to the code that runs in it. A reactor is one thread with its engine, devices, tables, sockets
// and timers; below the public API nothing knows another way to wait.

export interface Timer {
  cancel(): void;
}

export interface Reactor {
  /** Milliseconds of a clock that only goes forward. */
  now(): number;
  /** Runs `callback` once, in this reactor, not before `milliseconds` have passed. */
  after(milliseconds: number, callback: () => void): Timer;
  /** Runs `callback` soon, in this reactor, after the caller has returned; in the order of the calls. */
  wake(callback: () => void): void;
  /**
   * Runs `callback` after sockets and timers that are due have had a turn; in the order of the calls. For long work done a
   * piece at a time: `wake` may run before the reactor looks at its sockets.
   */
  afterSockets(callback: () => void): void;
}

/** What the owner of a connection is told. Calls come one at a time, none after `onClose`. */
export interface TransportHandler {
  /** Bytes arrived. The memory is the handler's from now on: nobody writes to it again. */
  onData(chunk: Uint8Array): void;
  /** The peer sends no more. */
  onEnd(): void;
  /** Everything given to `send` has left this process. */
  onDrain(): void;
  /**
   * Something can be fetched with `fetch`. Comes only after `startPull`.
   *
   * @returns whether everything was answered, so that it pays to wait a moment for the next
   */
  onReadable?(): boolean;
  /** The connection is gone, whoever ended it; `error` says why where something failed. Comes exactly once. */
  onClose(error: Error | null): void;
}

/**
 * One side's credentials for TLS, and whom it believes. Whoever makes the transports makes these too; everybody between
 * only hands them on.
 */
export interface TransportSecurity {
  readonly side: 'server' | 'client';
}

/** One byte stream to one peer: a Unix socket, TCP, TLS. */
export interface Transport {
  /** For messages: `unix:/run/x.sock`, `tcp:127.0.0.1:5000`. */
  readonly peer: string;
  /** Bytes given to `send` that have not left yet. */
  readonly pendingByteLength: number;
  setHandler(handler: TransportHandler): void;
  /**
   * Sends `chunks` in order, as one batch where the system can. The memory must not change until `onSent` is called;
   * it is called once, also when the connection fails.
   */
  send(chunks: readonly Uint8Array[], onSent: () => void): void;
  /**
   * Sends what can leave at once, and none of it while something waits before it; the memory is the caller's again.
   * Absent where nothing can.
   *
   * @returns how many bytes left
   */
  sendNow?(page: Uint8Array, offset: number, byteLength: number): number;
  /**
   * From some moment on the handler fetches what arrives: `onReadable` says that there is something, and `onData` comes no
   * more. Until then, and for ever where the transport can't, it goes on with `onData`. Absent where it never can.
   */
  startPull?(): void;
  /**
   * Fetches what has arrived, as much as there is room for: first into `page`, the rest into `nextPage`.
   *
   * @returns how many bytes; 0 where there is nothing now. The end and failures come as `onEnd` and `onClose`, in this
   *   call or later
   */
  fetch?(page: Uint8Array, offset: number, byteLength: number): number;
  fetchTwo?(
    page: Uint8Array,
    offset: number,
    byteLength: number,
    nextPage: Uint8Array,
    nextOffset: number,
    nextByteLength: number,
  ): number;
  /**
   * Gives the connection away, before it has a handler: the transport is closed then. Absent where it never can.
   *
   * @returns another descriptor of the connection, for a reactor of any thread; null where nothing could be done, and all
   *   is as it was
   */
  giveAway?(): number | null;
  /** Stops reading from the peer, so that its own buffers fill and it waits. */
  pause(): void;
  resume(): void;
  /**
   * Goes over to TLS, once; absent where the transport can't. `lastWords` are the last to leave in the clear, and nothing
   * that arrives after this call reaches the handler unless it came through TLS. Nothing may be sent until `done`.
   *
   * @param done called once: null when the peer has proved itself as far as `security` asks for it; else what went wrong,
   *   and the connection closes
   */
  startTls?(security: TransportSecurity, lastWords: Uint8Array, done: (error: Error | null) => void): void;
  /** Sends what is queued, then closes. */
  end(): void;
  /** Closes now. */
  destroy(): void;
}
