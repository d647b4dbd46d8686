// Several threads for the connections of one NBD server. Each has its own reactor and engine, its own devices on the same
// files, and serves whole connections; this one accepts them and deals them out. What the threads share is one word and
// a count for each export, so that a write of part of a block has that block for itself (SharedGate).
//
// A thread sleeps where every Node.js thread does, in its event loop: so it ends whenever it is told to. One that blocks
// in the kernel by itself was measured and gains nothing (docs/performance.md).
import { Worker } from 'node:worker_threads';
import type { Transport } from '../block/reactor.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import type { DeviceMapper } from '../reactor/device-mapper.ts';
import { MalformedError } from './protocol/info.ts';
import { MAX_CONNECTION_COUNT, MAX_SERVER_BYTE_LENGTH, SHUTDOWN_TIMEOUT_MILLISECONDS } from './server/bounds.ts';
import { SharedGate } from './server/shared-gate.ts';
import { type FromThread, type Graph, graphOf, planDevice, type ThreadPlan, type ToThread } from './thread-plan.ts';
import type { NbdTlsOptions } from './tls.ts';

/** A thread that does not say that it has stopped is given up this long after it should have. */
const STOP_MARGIN_MILLISECONDS = 2000;

export interface NbdThreadsOptions {
  /** This one included. */
  threadCount: number;
  names: readonly string[];
  readOnly: boolean;
  tls: NbdTlsOptions | null;
  onError: (error: Error, peer: string) => void;
}

/** One of the other threads, as this one sees it. */
class ServerThread {
  /** Connections that it was given and that are not gone. */
  connectionCount = 0;
  isReady = false;
  readonly #worker: Worker;
  readonly #onError: NbdThreadsOptions['onError'];
  #onStopped: ((reason: string | null) => void) | null = null;

  constructor(plan: ThreadPlan, onError: NbdThreadsOptions['onError']) {
    this.#onError = onError;
    this.#worker = new Worker(new URL('./thread.js', import.meta.url), {
      workerData: plan,
      name: `nbd-${plan.threadIndex}`,
      // Without this Node.js opens this process's own standard output for it, and makes that not wait, also for whoever
      // else has it: nbdcopy, which started this process, would lose what it writes there.
      stdout: true,
      stderr: true,
    });
    this.#worker.stderr.on('data', (text: Buffer) => process.stderr.write(text));
    this.#worker.on('message', (message: FromThread) => this.#onMessage(message));
    // Not ours to mend: it goes on as any exception that nobody has caught.
    this.#worker.on('error', (error) => {
      throw error;
    });
    this.#worker.unref();
  }

  #onMessage(message: FromThread): void {
    switch (message.kind) {
      case 'ready':
        this.isReady = true;
        break;
      case 'unable':
        // The others serve on. It is no error: the clients are answered as well, by fewer threads.
        void this.#worker.terminate();
        break;
      case 'gone':
        this.connectionCount--;
        break;
      case 'error':
        this.#onError(message.isMalformed ? new MalformedError(message.error.message) : message.error, message.peer);
        break;
      default:
        this.isReady = false;
        this.#onStopped?.(message.reason);
    }
  }

  give(fd: number, peer: string): void {
    this.connectionCount++;
    this.#post({ kind: 'connection', fd, peer });
  }

  #post(message: ToThread): void {
    this.#worker.postMessage(message);
  }

  /** @returns why it did not end as it should; null where it did */
  async stop(): Promise<string | null> {
    if (!this.isReady) {
      // It has no connection.
      await this.#worker.terminate();
      return null;
    }
    let timer: NodeJS.Timeout | undefined;
    const reason = await new Promise<string | null>((resolve) => {
      const limit = SHUTDOWN_TIMEOUT_MILLISECONDS + STOP_MARGIN_MILLISECONDS;
      timer = setTimeout(() => resolve('a thread did not stop'), limit);
      this.#onStopped = resolve;
      this.#worker.ref();
      this.#post({ kind: 'stop' });
    });
    clearTimeout(timer);
    // A thread that hangs in the kernel can't be waited for; this process is about to end.
    const end = this.#worker.terminate();
    if (reason === null) await end;
    return reason;
  }
}

/** The threads beside this one. */
export class NbdThreads {
  /** For each name the gate of this thread. */
  readonly gates: readonly SharedGate[];
  /** What this thread's server may hold: its part. */
  readonly maxServerByteLength: number;
  readonly #threads: readonly ServerThread[];
  readonly #pinned: readonly MappedDevice[];

  /** @returns why there are none */
  static start(dm: DeviceMapper, options: NbdThreadsOptions): NbdThreads | string {
    const graph = graphOf(dm, options.names);
    return typeof graph === 'string' ? graph : new NbdThreads(dm, options, graph);
  }

  private constructor(dm: DeviceMapper, options: NbdThreadsOptions, graph: Graph) {
    const { threadCount, names, readOnly, tls, onError } = options;
    const gates = names.map(() => new SharedArrayBuffer(SharedGate.byteLength(threadCount)));
    this.gates = gates.map((memory) => new SharedGate(memory, 0, threadCount, dm.loop));
    this.#pinned = graph.devices;
    for (const device of this.#pinned) device.pinned = 'it is served by several threads, whose tables are the same';
    this.maxServerByteLength = Math.floor(MAX_SERVER_BYTE_LENGTH / threadCount);
    const plan: Omit<ThreadPlan, 'threadIndex'> = {
      devices: graph.devices.map(planDevice),
      files: graph.files,
      names,
      readOnly,
      tls,
      maxServerByteLength: this.maxServerByteLength,
      threadCount,
      gates,
    };
    const threads: ServerThread[] = [];
    for (let threadIndex = 1; threadIndex < threadCount; threadIndex++) {
      threads.push(new ServerThread({ ...plan, threadIndex }, onError));
    }
    this.#threads = threads;
  }

  /**
   * Gives a connection to the thread that has the fewest.
   *
   * @param ownCount connections of this thread
   * @returns false where this thread should serve it
   */
  take(transport: Transport, ownCount: number): boolean {
    let totalCount = ownCount;
    let best: ServerThread | null = null;
    for (const thread of this.#threads) {
      totalCount += thread.connectionCount;
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

  /** As the shutdown of a server: all is answered and flushed. @returns why not */
  async close(): Promise<string | null> {
    const reasons = await Promise.all(this.#threads.map((thread) => thread.stop()));
    for (const device of this.#pinned) device.pinned = null;
    return reasons.find((reason) => reason !== null) ?? null;
  }
}
