// What image files and block devices have in common: an open file, and the engine that was chosen for it.
import type { Bio } from '../block/bio.ts';
import type { BlockDevice, ExtentCallback } from '../block/block-device.ts';
import type { DmError } from '../block/errors.ts';
import type { QueueLimits } from '../block/limits.ts';
import { EngineFile, type EngineKind } from '../engine/index.ts';

/** A device whose bytes an engine moves. */
export abstract class EngineDevice implements BlockDevice {
  readonly name: string;
  /** The absolute path it was opened by. */
  readonly path: string;
  readonly limits: QueueLimits;
  sectorCount: number;
  readOnly: boolean;
  #file: EngineFile;

  protected constructor(name: string, file: EngineFile, readOnly: boolean, sectorCount: number, limits: QueueLimits) {
    this.name = name;
    this.path = file.path;
    this.#file = file;
    this.readOnly = readOnly;
    this.sectorCount = sectorCount;
    this.limits = limits;
    this.#listen(file);
  }

  /** Why every request fails with EIO, after an fdatasync that failed; null while the device works. */
  get failure(): DmError | null {
    return this.#file.failure;
  }

  /** Requests go around the page cache (O_DIRECT). */
  get direct(): boolean {
    return this.#file.directIo !== null;
  }

  get engineKind(): EngineKind {
    return this.#file.engine.kind;
  }

  /** Requests that an engine took and has not ended. */
  get pendingCount(): number {
    return this.#file.pendingCount;
  }

  /** The open descriptor, for questions that are no requests. */
  get descriptor(): number {
    return this.#file.fd;
  }

  submit(bio: Bio): void {
    this.#file.engine.submit(this.#file, bio);
  }

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    this.#file.engine.queryExtent(this.#file, sector, sectorCount, done);
  }

  /** As BlockDevice.allocate, for kinds of devices that have it. */
  protected allocateInFile(sector: number, sectorCount: number, done: (errno: number) => void): void {
    this.#file.engine.allocate(this.#file, sector, sectorCount, done);
  }

  /** A file whose engine waits for the event loop cannot end a request while this thread is inside a synchronous call. */
  syncObstacle(): string | null {
    if (this.#file.engine.blocking) return null;
    return `${this.name}: the dm-io client was not given the engines of its device (deviceMapper.devices.engines)`;
  }

  /**
   * Goes on with another descriptor of the same file. Requests in flight end on the old one, which is closed then.
   *
   * @returns the old one
   */
  replaceFile(file: EngineFile, readOnly: boolean): EngineFile {
    const old = this.#file;
    file.failure = old.failure;
    this.#file = file;
    this.readOnly = readOnly;
    this.#listen(file);
    old.engine.close(old);
    return old;
  }

  /** For the registry, once nobody uses the device. @returns the file, which is closed once nothing is in flight */
  close(): EngineFile {
    const file = this.#file;
    file.engine.close(file);
    // Whoever has the device all the same gets EIO, also where the file passes to another device.
    this.#file = new EngineFile(file.engine, -1, file.kind, file.path);
    this.#file.closing = true;
    return file;
  }

  #listen(file: EngineFile): void {
    file.onUnsupported = (operation) => {
      if (operation === 'discard') this.limits.maxDiscardSectorCount = 0;
      else this.limits.maxWriteZeroesSectorCount = 0;
    };
    file.onFailure = (failure) => {
      this.#file.failure ??= failure;
    };
  }
}
