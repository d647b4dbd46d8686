// The engines of one reactor, and the choice among them for each file that is opened.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor } from '../block/reactor.ts';
import { DirectEngine } from './direct.ts';
import type { Engine, EngineFile, EngineKind, FileKind } from './engine.ts';
import { type Libc, loadLibc } from './libc.ts';
import { startQueuedBios } from './nesting.ts';
import { PortableEngine } from './portable.ts';
import type { ThreadedEngineOptions } from './threads.ts';

export { checkMemory, trustMemory } from './address.ts';
export type { Engine, EngineFile, EngineKind, FileKind } from './engine.ts';
export type { Libc } from './libc.ts';

/** An engine, or the best that each file can have. */
export type EngineChoice = EngineKind | 'auto';

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
}

/** The engines of one reactor. Nothing is loaded before the first file is opened. */
export class EngineSet {
  readonly choice: EngineChoice;
  readonly #options: EngineSetOptions;
  #direct: DirectEngine | null = null;
  #portable: PortableEngine | null = null;
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
    this.#blocking = value;
    for (const engine of this.#engines()) engine.blocking = value;
  }

  /**
   * The C library, for what engines have no call for (sizes of block devices, locks); null where the choice is portable
   * or there is none.
   *
   * @throws DmError EOPNOTSUPP when the direct engine is asked for by name and can't be had
   */
  get libc(): Libc | null {
    if (this.choice === 'portable') return null;
    if (this.choice === 'ring') throw new DmError(Errno.EOPNOTSUPP, 'the ring engine is not part of this version');
    const { libc, reason } = this.#loadLibc();
    if (libc === null && this.choice === 'direct') {
      throw new DmError(Errno.EOPNOTSUPP, `the direct engine can't be used here: ${reason}`);
    }
    return libc;
  }

  /** Why the choice fell on the portable engine; null where it did not. */
  get portableReason(): string | null {
    if (this.choice === 'portable') return 'it was asked for';
    return this.choice === 'auto' ? this.#loadLibc().reason : null;
  }

  /**
   * Chooses the engine of an open file, which takes over the descriptor.
   *
   * @throws DmError EOPNOTSUPP when an engine that was asked for by name can't be had; the descriptor stays open
   */
  open(fd: number, kind: FileKind, path: string): EngineFile {
    return this.#choose().open(fd, kind, path);
  }

  /** Starts requests that wait for the outermost submit() to return. A synchronous call does so while it waits. */
  poll(): boolean {
    return startQueuedBios();
  }

  #choose(): Engine {
    const libc = this.libc;
    if (libc === null) {
      this.#portable ??= new PortableEngine(this.#options.threads ?? {});
      this.#portable.blocking = this.#blocking;
      return this.#portable;
    }
    this.#direct ??= new DirectEngine({ ...this.#options.threads, libc, reactor: this.#options.reactor });
    this.#direct.blocking = this.#blocking;
    return this.#direct;
  }

  #loadLibc(): { libc: Libc | null; reason: string | null } {
    const { libc } = this.#options;
    if (libc === undefined) return loadLibc();
    return { libc, reason: libc === null ? 'there is no C library' : null };
  }

  *#engines(): Iterable<Engine> {
    if (this.#direct !== null) yield this.#direct;
    if (this.#portable !== null) yield this.#portable;
  }
}
