// The engines of one reactor, and the choice among them for each file that is opened.
import { isMainThread } from 'node:worker_threads';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor } from '../block/reactor.ts';
import type { DirectIo } from './bounce.ts';
import { DirectEngine } from './direct.ts';
import type { Engine, EngineFile, FileKind } from './engine.ts';
import { type Libc, loadLibc } from './libc.ts';
import { startQueuedBios } from './nesting.ts';
import { PortableEngine } from './portable.ts';
import { type EngineChoice, isRingBest } from './probe.ts';
import type { RingCounters } from './ring.ts';
import { RingCarrier } from './ring-carrier.ts';
import { RingEngine } from './ring-engine.ts';
import type { ThreadedEngine, ThreadedEngineOptions } from './threads.ts';

export { checkMemory, trustMemory } from './address.ts';
export { type Engine, EngineFile, type EngineKind, type FileKind } from './engine.ts';
export type { Libc } from './libc.ts';
export { directIoOf, type EngineChoice } from './probe.ts';
export { abandonRings, type RingCounters } from './ring.ts';

let isRingAllowed = isMainThread;

/**
 * Lets this worker have a ring. It must never be stopped while requests are under way, also not by the process's end, unless
 * {@link abandonRings} was called in it: nothing waits for a ring then. The kernel would write to memory that the worker's
 * end has freed, and koffi's watch would call a thread that can run no code any more, which aborts the process. For calls
 * on threads the end of a worker waits.
 */
export function allowRing(): void {
  isRingAllowed = true;
}

/** Why a ring can not be had in a worker of the program's own. */
const REFUSED_IN_WORKER =
  'this is a worker, and nothing would wait for its requests when it is terminated; take DMKIT_ENGINE=auto, or the main thread';

/** Ends the process without stopping its threads; does nothing where there is no C library. */
export function exitAtOnce(code: number): void {
  loadLibc().libc?.exitAtOnce(code);
}

const ENGINE_CHOICES: readonly string[] = ['auto', 'direct', 'ring', 'portable'];

/**
 * Reads a choice, such as DMKIT_ENGINE's value.
 *
 * @throws DmError EINVAL for a word that is none
 */
export function parseEngineChoice(text: string | undefined): EngineChoice {
  if (text === undefined || text === '') return 'auto';
  if (ENGINE_CHOICES.includes(text)) return text as EngineChoice;
  throw new DmError(
    Errno.EINVAL,
    `no engine is called ${JSON.stringify(text)}; DMKIT_ENGINE takes ${ENGINE_CHOICES.join(', ')}`,
  );
}

export interface EngineSetOptions {
  reactor: Reactor;
  /** DMKIT_ENGINE, and 'auto' without that, unless given. */
  engine?: EngineChoice;
  /** For tests: another C library; null for none. */
  libc?: Libc | null;
  /** For tests: smaller bounds, calls that fail. */
  threads?: ThreadedEngineOptions;
  /** For tests: a smaller ring. */
  ringEntryCount?: number;
}

/** What an engine set has done beside moving bytes. */
export interface EngineCounters {
  /** Requests whose memory O_DIRECT could not take, or that could not be kept, and the bytes that were copied for them. */
  readonly bouncedRequestCount: number;
  readonly bouncedByteLength: number;
  /** Null where no request has used the ring. */
  readonly ring: RingCounters | null;
}

/** The engines of one reactor. Nothing is loaded before the first file is opened. */
export class EngineSet {
  readonly choice: EngineChoice;
  readonly #options: EngineSetOptions;
  #direct: DirectEngine | null = null;
  #ring: RingEngine | null = null;
  #portable: PortableEngine | null = null;
  #carrier: RingCarrier | null = null;
  #blocking = false;

  /** @throws DmError EINVAL for a DMKIT_ENGINE that names no engine */
  constructor(options: EngineSetOptions) {
    this.#options = options;
    this.choice = options.engine ?? parseEngineChoice(process.env.DMKIT_ENGINE);
  }

  /** While true, every request of every engine here ends inside submit(): for synchronous calls. */
  get blocking(): boolean {
    return this.#blocking;
  }

  set blocking(value: boolean) {
    // Twice in each synchronous call: without an iterator, which costs a tenth of a cached read.
    this.#blocking = value;
    if (this.#direct !== null) this.#direct.blocking = value;
    if (this.#ring !== null) this.#ring.blocking = value;
    if (this.#portable !== null) this.#portable.blocking = value;
  }

  /**
   * The C library, for what engines have no call for (sizes of block devices, locks); null where the choice is portable
   * or there is none.
   *
   * @throws DmError EOPNOTSUPP when the direct engine is asked for by name and can't be had
   */
  get libc(): Libc | null {
    if (this.choice === 'portable') return null;
    const { libc, reason } = this.#loadLibc();
    if (libc === null && this.choice !== 'auto') {
      throw new DmError(Errno.EOPNOTSUPP, `the ${this.choice} engine can't be used here: ${reason}`);
    }
    return libc;
  }

  /** Why the choice fell on the portable engine; null where it did not. */
  get portableReason(): string | null {
    if (this.choice === 'portable') return 'it was asked for';
    return this.choice === 'auto' ? this.#loadLibc().reason : null;
  }

  /**
   * Why no request can go through a ring; null where one can. Makes the ring to find out.
   *
   * @throws DmError as {@link libc}
   */
  get ringReason(): string | null {
    if (this.choice === 'direct' || this.choice === 'portable') return `the ${this.choice} engine was asked for`;
    const { libc } = this;
    if (libc === null) return this.#loadLibc().reason;
    if (!isRingAllowed) return REFUSED_IN_WORKER;
    const reason = this.#carrierFor(libc).prepare();
    if (this.#ring === null && this.#direct === null) this.#carrierFor(libc).close();
    return reason;
  }

  get counters(): EngineCounters {
    let bouncedRequestCount = 0;
    let bouncedByteLength = 0;
    for (const { bounced } of this.#engines()) {
      bouncedRequestCount += bounced.requestCount;
      bouncedByteLength += bounced.byteLength;
    }
    return { bouncedRequestCount, bouncedByteLength, ring: this.#carrier?.counters ?? null };
  }

  /**
   * Chooses the engine of an open file, which takes over the descriptor.
   *
   * @param directIo what O_DIRECT asks of requests, where the descriptor has it
   * @throws DmError EOPNOTSUPP when an engine that was asked for by name can't be had; the descriptor stays open
   */
  open(fd: number, kind: FileKind, path: string, directIo: DirectIo | null = null): EngineFile {
    const engine = this.#choose(kind, directIo);
    engine.blocking = this.#blocking;
    const file = engine.open(fd, kind, path);
    file.directIo = directIo;
    return file;
  }

  /**
   * Moves on what is under way in the ring, and starts requests that wait for the outermost submit() to return. A
   * synchronous call does so while it waits.
   *
   * @returns false when nothing ends this way
   */
  poll(): boolean {
    return startQueuedBios() || (this.#carrier?.wait() ?? false);
  }

  #choose(kind: FileKind, directIo: DirectIo | null): Engine {
    const libc = this.libc;
    if (libc === null) {
      this.#portable ??= new PortableEngine(this.#options.threads ?? {});
      return this.#portable;
    }
    const options = { ...this.#options.threads, libc, reactor: this.#options.reactor };
    if (this.choice === 'direct') {
      this.#direct ??= new DirectEngine(options);
      return this.#direct;
    }
    const carrier = isRingAllowed ? this.#carrierFor(libc) : null;
    if (this.choice === 'ring' || (carrier !== null && isRingBest(kind, directIo))) {
      const reason = carrier === null ? REFUSED_IN_WORKER : carrier.prepare();
      if (reason === null) {
        this.#ring ??= new RingEngine({ ...options, carrier: carrier! });
        return this.#ring;
      }
      if (this.choice === 'ring') {
        throw new DmError(Errno.EOPNOTSUPP, `the ring engine can't be used here: ${reason}`);
      }
    }
    this.#direct ??= new DirectEngine({ ...options, carrier });
    return this.#direct;
  }

  #carrierFor(libc: Libc): RingCarrier {
    this.#carrier ??= new RingCarrier(libc, this.#options.reactor, this.#options.ringEntryCount);
    return this.#carrier;
  }

  #loadLibc(): { libc: Libc | null; reason: string | null } {
    const { libc } = this.#options;
    if (libc === undefined) return loadLibc();
    return { libc, reason: libc === null ? 'there is no C library' : null };
  }

  *#engines(): Iterable<ThreadedEngine> {
    if (this.#direct !== null) yield this.#direct;
    if (this.#ring !== null) yield this.#ring;
    if (this.#portable !== null) yield this.#portable;
  }
}
