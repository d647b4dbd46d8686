// Several threads for the connections of one NBD server. Each has its own reactor and engine, its own devices on the same
// files, and serves whole connections; this one accepts them and deals them out. What the threads share is one word and
// a count for each export, so that a write of part of a block has that block for itself (SharedGate).
//
// A thread sleeps where every Node.js thread does, in its event loop: so it ends whenever it is told to. One that blocks
// in the kernel by itself was measured and gains nothing (docs/performance.md).
import { writeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import type { DeviceMapper } from '../api/device-mapper.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { Transport } from '../block/reactor.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { MalformedError } from './protocol/info.ts';
import { MAX_CONNECTION_COUNT, MAX_SERVER_BYTE_LENGTH, SHUTDOWN_TIMEOUT_MILLISECONDS } from './server/bounds.ts';
import { canShareRangeLock, shareRangeLock, unshareRangeLock } from './server/range-lock.ts';
import { SharedGate } from './server/shared-gate.ts';
import { type HeldAtExit, holdAtExit, letGo } from './thread-hold.ts';
import {
  type FromThread,
  type Graph,
  graphOf,
  planDevice,
  type ThreadEnd,
  type ThreadPlan,
  type ToThread,
} from './thread-plan.ts';
import type { NbdTlsOptions } from './tls.ts';

/** A thread that does not say that it has stopped is given up this long after it should have. */
const STOP_MARGIN_MILLISECONDS = 2000;
/** What a thread that has nothing open gets to be gone. */
const TERMINATE_TIMEOUT_MILLISECONDS = 2000;

export interface NbdThreadsOptions {
  /** This one included. */
  threadCount: number;
  names: readonly string[];
  /** Of exports, by their names. */
  descriptions: Readonly<Record<string, string>>;
  readOnly: boolean;
  tls: NbdTlsOptions | null;
  onError: (error: Error, peer: string) => void;
}

/** One of the other threads, as this one sees it. */
class ServerThread implements HeldAtExit {
  /** Connections that it was given and that are not gone. */
  connectionCount = 0;
  /** Those of them that have completed their handshake. */
  establishedCount = 0;
  isReady = false;
  readonly held = new Int32Array(new SharedArrayBuffer(4));
  readonly #worker: Worker;
  readonly #onError: NbdThreadsOptions['onError'];
  #hasBeenReady = false;
  /** It is ready, or will never be. */
  readonly settled: Promise<void>;
  #settle!: () => void;
  #onStopped: ((end: ThreadEnd) => void) | null = null;

  /** @throws Error where the system gives no thread */
  constructor(plan: Omit<ThreadPlan, 'held'>, onError: NbdThreadsOptions['onError']) {
    this.#onError = onError;
    this.settled = new Promise((resolve) => {
      this.#settle = resolve;
    });
    this.#worker = new Worker(new URL('./thread.js', import.meta.url), {
      workerData: { ...plan, held: this.held } satisfies ThreadPlan,
      name: `nbd-${plan.threadIndex}`,
      // Without this Node.js opens this process's own standard output for it, and makes that not wait, also for whoever
      // else has it: nbdcopy, which started this process, would lose what it writes there.
      stdout: true,
      stderr: true,
    });
    this.#worker.stderr.on('data', (text: Buffer) => {
      try {
        writeSync(2, text);
      } catch {
        // A full disk or a closed pipe: a warning of Node.js that has no place is no reason to end.
      }
    });
    this.#worker.on('message', (message: FromThread) => this.#onMessage(message));
    this.#worker.on('error', (error) => {
      // Until it is ready it has nobody's connection: too few descriptors or too little memory to start with are no reason
      // to end those that others serve. From then on it is not ours to mend, and goes on as any exception nobody caught.
      if (this.#hasBeenReady) throw error;
      this.#settle();
    });
    this.#worker.once('exit', () => {
      letGo(this);
      this.#settle();
    });
    holdAtExit(this);
    this.#worker.unref();
  }

  #onMessage(message: FromThread): void {
    switch (message.kind) {
      case 'ready':
        this.isReady = true;
        this.#hasBeenReady = true;
        this.#settle();
        break;
      case 'unable':
        // The others serve on. It is no error: the clients are answered as well, by fewer threads.
        void this.#terminate();
        this.#settle();
        break;
      case 'established':
        this.establishedCount++;
        break;
      case 'gone':
        this.connectionCount--;
        if (message.wasEstablished) this.establishedCount--;
        break;
      case 'error':
        this.#onError(message.isMalformed ? new MalformedError(message.error.message) : message.error, message.peer);
        break;
      default:
        this.isReady = false;
        this.#onStopped?.(message);
    }
  }

  give(fd: number, peer: string): void {
    this.connectionCount++;
    this.#post({ kind: 'connection', fd, peer });
  }

  tellToHold(): void {
    this.#post({ kind: 'hold' });
  }

  #post(message: ToThread): void {
    this.#worker.postMessage(message);
  }

  async stop(): Promise<ThreadEnd> {
    // One that is ended while it loads its native modules takes the whole process with it (koffi aborts).
    if (!this.isReady) await this.#settledInTime();
    if (!this.isReady) {
      // It has no connection.
      await this.#terminate();
      return { reason: null, hasEnded: true };
    }
    let timer: NodeJS.Timeout | undefined;
    const end = await new Promise<ThreadEnd>((resolve) => {
      const limit = SHUTDOWN_TIMEOUT_MILLISECONDS + STOP_MARGIN_MILLISECONDS;
      timer = setTimeout(() => resolve({ reason: 'a thread did not stop', hasEnded: false }), limit);
      this.#onStopped = resolve;
      this.#worker.ref();
      this.#post({ kind: 'stop' });
    });
    clearTimeout(timer);
    // One that has something under way is left to end that; it does not keep the process.
    if (end.hasEnded) await this.#terminate();
    else this.#worker.unref();
    return end;
  }

  async #settledInTime(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, SHUTDOWN_TIMEOUT_MILLISECONDS);
    });
    await Promise.race([this.settled, limit]);
    clearTimeout(timer);
  }

  /** For a thread that has nothing open that matters. */
  async #terminate(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, TERMINATE_TIMEOUT_MILLISECONDS);
    });
    await Promise.race([this.#worker.terminate(), limit]);
    clearTimeout(timer);
    this.#worker.unref();
  }
}

/** Why these devices can't be served by several threads now; or what is below them. */
function graphToShare(dm: DeviceMapper, names: readonly string[]): Graph | string {
  if (new Set(names).size < names.length) return 'a name is there twice';
  const graph = graphOf(dm, names);
  if (typeof graph === 'string') return graph;
  const taken = names.find((name) => !canShareRangeLock(dm.mapper.get(name)));
  return taken === undefined ? graph : `${taken} is written to by another server's clients`;
}

/** The threads beside this one. */
export class NbdThreads {
  /** What this thread's server may hold: its part. */
  readonly maxServerByteLength: number;
  readonly #plan: Omit<ThreadPlan, 'threadIndex' | 'held'>;
  readonly #onError: NbdThreadsOptions['onError'];
  readonly #threads: ServerThread[] = [];
  readonly #pinned: readonly MappedDevice[];
  readonly #shared: readonly BlockDevice[];

  /**
   * Sees to it that these devices can be served by several threads; {@link start} starts those. Devices that other threads
   * serve already are served by this one as well, which heeds those others.
   *
   * @returns why there can be none
   */
  static plan(dm: DeviceMapper, options: NbdThreadsOptions): NbdThreads | string {
    const graph = graphToShare(dm, options.names);
    return typeof graph === 'string' ? graph : new NbdThreads(dm, options, graph);
  }

  private constructor(dm: DeviceMapper, options: NbdThreadsOptions, graph: Graph) {
    const { threadCount, names, descriptions, readOnly, tls, onError } = options;
    const gates = names.map(() => new SharedArrayBuffer(SharedGate.byteLength(threadCount)));
    this.#shared = names.map((name) => dm.mapper.get(name));
    for (const [index, memory] of gates.entries()) {
      shareRangeLock(this.#shared[index]!, new SharedGate(memory, 0, threadCount, dm.loop));
    }
    // Where none of them comes to be ready the devices stay pinned all the same: whether a table can be replaced should
    // not hang on which moment somebody asks at.
    this.#pinned = graph.devices;
    for (const device of this.#pinned) device.pinned = 'it is served by several threads, whose tables are the same';
    this.maxServerByteLength = Math.floor(MAX_SERVER_BYTE_LENGTH / threadCount);
    this.#onError = onError;
    this.#plan = {
      devices: graph.devices.map(planDevice),
      files: graph.files,
      names,
      descriptions,
      readOnly,
      tls,
      maxServerByteLength: this.maxServerByteLength,
      threadCount,
      gates,
    };
  }

  /** Starts the threads; they take connections as soon as they can. */
  start(): void {
    try {
      for (let threadIndex = 1; threadIndex < this.#plan.threadCount; threadIndex++) {
        this.#threads.push(new ServerThread({ ...this.#plan, threadIndex }, this.#onError));
      }
    } catch {
      // The system gives no more: those there are serve.
    }
  }

  /** Resolves when all are ready, as far as they ever will be; and when that takes longer. */
  async settled(milliseconds: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const limit = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, milliseconds);
    });
    await Promise.race([Promise.all(this.#threads.map((thread) => thread.settled)), limit]);
    clearTimeout(timer);
  }

  /**
   * Gives a connection to the thread that has the fewest.
   *
   * @param ownCount connections of this thread
   * @param ownEstablishedCount those of them that have completed their handshake
   * @returns false where this thread should serve it
   */
  take(transport: Transport, ownCount: number, ownEstablishedCount: number): boolean {
    let totalCount = ownEstablishedCount;
    let best: ServerThread | null = null;
    for (const thread of this.#threads) {
      totalCount += thread.establishedCount;
      if (thread.isReady && thread.connectionCount < (best?.connectionCount ?? ownCount)) best = thread;
    }
    if (totalCount >= MAX_CONNECTION_COUNT) {
      transport.destroy();
      return true;
    }
    if (best === null) return false;
    const { peer } = transport;
    const fd = transport.giveAway?.() ?? null;
    if (fd === null) return false;
    best.give(fd, peer);
    return true;
  }

  /** As the shutdown of a server: all is answered and flushed. {@link release} is to follow where they have ended. */
  async close(): Promise<ThreadEnd> {
    const ends = await Promise.all(this.#threads.map((thread) => thread.stop()));
    return {
      reason: ends.find(({ reason }) => reason !== null)?.reason ?? null,
      hasEnded: ends.every(({ hasEnded }) => hasEnded),
    };
  }

  /** The devices are this thread's alone again. */
  release(): void {
    for (const device of this.#pinned) device.pinned = null;
    for (const device of this.#shared) unshareRangeLock(device);
  }
}
