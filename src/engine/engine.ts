// What an engine is: the way bytes reach a file that devices/ has opened. There are several; which one serves a file is
// chosen when it is opened (index.ts) and stays.
import type { Bio } from '../block/bio.ts';
import type { ExtentCallback } from '../block/block-device.ts';
import type { DmError } from '../block/errors.ts';
import type { DirectIo } from './bounce.ts';

export type EngineKind = 'direct' | 'ring' | 'portable';

/** The one list of what engines differ in; a test that needs one of these is left out where it is missing. */
export interface EngineCapabilities {
  /** Discard, write-zeroes and allocation ahead. */
  readonly fallocate: boolean;
  /** Extents: SEEK_HOLE and SEEK_DATA. */
  readonly seekHole: boolean;
  /** Size, limits and discard of block devices. */
  readonly ioctl: boolean;
  /** A writable open keeps other processes from opening the same file for writing. */
  readonly locks: boolean;
  /** Cached data is moved inside submit(), on the calling thread. */
  readonly inline: boolean;
}

export type FileKind = 'file' | 'block';

/** A request that the file turned out not to take at all: the device sets the limit to 0 from then on. */
export type UnsupportedOperation = 'discard' | 'write-zeroes';

/** One open file and what its engine remembers about it. Engines derive their own. */
export class EngineFile {
  readonly engine: Engine;
  readonly fd: number;
  readonly kind: FileKind;
  /** For messages. */
  path: string;
  /** Why every request fails with EIO: an fdatasync failed. Writes that were acknowledged may be lost. */
  failure: DmError | null = null;
  /** The descriptor goes around the page cache (O_DIRECT); null where it does not. Set once, after the open. */
  directIo: DirectIo | null = null;
  /** Requests that were taken and have not ended. */
  pendingCount = 0;
  /** The descriptor is closed when the last pending request has ended. */
  closing = false;
  /** Called before the request that found out ends. */
  onUnsupported: (operation: UnsupportedOperation) => void = () => {};
  /** Called when `failure` was set, before the request that found out ends. */
  onFailure: (failure: DmError) => void = () => {};

  constructor(engine: Engine, fd: number, kind: FileKind, path: string) {
    this.engine = engine;
    this.fd = fd;
    this.kind = kind;
    this.path = path;
  }
}

export interface Engine {
  readonly kind: EngineKind;
  readonly capabilities: EngineCapabilities;
  /** While true every request ends inside submit(), and nothing goes to another thread: for synchronous calls. */
  blocking: boolean;
  /** Takes over an open descriptor; {@link close} closes it. */
  open(fd: number, kind: FileKind, path: string): EngineFile;
  /** Closes the file once its pending requests have ended; requests after this call end with EIO. */
  close(file: EngineFile): void;
  /** Takes {@link close} back. @returns false where there is nothing to take back: the descriptor is closed */
  reopen(file: EngineFile): boolean;
  /**
   * Does what a checked bio asks and ends it once, in this call or later: 0, or the errno of the call that failed, with
   * the first sector that was not transferred. EFAULT for memory that can't be used, before any I/O.
   */
  submit(file: EngineFile, bio: Bio): void;
  /** As BlockDevice.allocate; EOPNOTSUPP where the engine or the file system can't. */
  allocate(file: EngineFile, sector: number, sectorCount: number, done: (errno: number) => void): void;
  /** True where room that is taken ahead of use saves a write something. */
  gainsFromAllocation(file: EngineFile): boolean;
  /** As BlockDevice.queryExtent. */
  queryExtent(file: EngineFile, sector: number, sectorCount: number, done: ExtentCallback): void;
}
