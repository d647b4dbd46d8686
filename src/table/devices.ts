// The devices of one table: each opened once, however many lines name it, and closed with the table.
import type { BlockDevice } from '../block/block-device.ts';
import type { DeviceResolver } from '../block/device-resolver.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

/** Why a device that can be read can't be written. */
const NOT_ALLOWED: readonly number[] = [Errno.EACCES, Errno.EPERM, Errno.EROFS];

/** Of a table's options what its devices need. */
export interface TableDevicesOptions {
  resolver: DeviceResolver;
  /** Throws where a device must not be used by this table (it would close a cycle). */
  checkDevice?: (device: BlockDevice) => void;
}

/** A device and how it is open. */
interface OpenDevice {
  readonly device: BlockDevice;
  readOnly: boolean;
}

/** The devices of a table under construction: each opened once, all closed again when a line is refused. */
export class TableDevices {
  /** In the order of first use. */
  readonly #opened = new Map<BlockDevice, OpenDevice>();
  readonly #byArgument = new Map<string, OpenDevice>();
  #holdCount = 0;
  /** Called when they are closed; null as long as the table uses them. */
  #whenClosed: (() => void) | null = null;
  readonly #options: TableDevicesOptions;

  constructor(options: TableDevicesOptions) {
    this.#options = options;
  }

  /** In the order of first use, each once. */
  list(): BlockDevice[] {
    return [...this.#opened.keys()];
  }

  get(argument: string, readOnly: boolean): BlockDevice {
    // A table of a million lines names the same few devices over and over.
    const known = this.#byArgument.get(argument);
    if (known !== undefined && (readOnly || !known.readOnly)) return known.device;
    const opened = this.#open(argument, readOnly);
    this.#byArgument.set(argument, opened);
    return opened.device;
  }

  /** For writing; where that is not allowed and `orReadOnly` says so, for reading. */
  getOwn(argument: string, orReadOnly: boolean): BlockDevice {
    try {
      return this.get(argument, false);
    } catch (error) {
      const errno = error instanceof DmError ? error.errno : 0;
      if (!orReadOnly || !NOT_ALLOWED.includes(errno)) throw error;
      return this.get(argument, true);
    }
  }

  #open(argument: string, readOnly: boolean): OpenDevice {
    const { resolver, checkDevice } = this.#options;
    const device = resolver.open(argument, readOnly);
    const known = this.#opened.get(device);
    if (known !== undefined) {
      // One user for the table: of the two ways it is open the one that allows more stays.
      resolver.close(device, known.readOnly || readOnly);
      known.readOnly &&= readOnly;
      return known;
    }
    try {
      checkDevice?.(device);
    } catch (error) {
      resolver.close(device, readOnly);
      throw error;
    }
    const opened = { device, readOnly };
    this.#opened.set(device, opened);
    return opened;
  }

  hold(): void {
    this.#holdCount++;
  }

  release(): void {
    if (--this.#holdCount === 0 && this.#whenClosed !== null) this.#close(this.#whenClosed);
  }

  /** Closes them when no target holds them any more; `closed` is called then. */
  closeAll(closed: () => void): void {
    this.#whenClosed = closed;
    if (this.#holdCount === 0) this.#close(closed);
  }

  #close(closed: () => void): void {
    this.#whenClosed = null;
    for (const { device, readOnly } of this.#opened.values()) this.#options.resolver.close(device, readOnly);
    closed();
  }
}
