// The exceptions of the public API. Inside, a request carries an errno; an exception is made where a person reads it.
import { errnoMessage, errnoName } from './errno.ts';

/** Anything that dmkit refuses or that failed: `code` is an errno's name (`EINVAL`) or one of dmkit's own (`DM_…`). */
export class DmError extends Error {
  readonly code: string;
  /** The Linux error number; 0 where `code` is dmkit's own. */
  readonly errno: number;
  /** Of an operation that takes several requests: the one that failed, and the number of its device. */
  step?: { request: string; major: number; minor: number };
  /** Of a batch: the step that failed, from 0. */
  stepIndex?: number;

  constructor(errno: number, message: string, code = errnoName(errno), options?: ErrorOptions) {
    super(message, options);
    this.name = 'DmError';
    this.code = code;
    this.errno = errno;
  }
}

/** A request that failed: which, where, and why. */
export class IoError extends DmError {
  /** `read`, `write`, `flush`, `discard` or `write-zeroes`. */
  readonly operation: string;
  /** The device the request was given to, by name. */
  readonly device: string;
  /** The first sector of that device that failed, as far as it is known. */
  readonly sector: number;
  /** The bottom-most device that gave the error, by name (the same as `device` where nothing is below). */
  readonly lowerDevice: string;
  /** The sector of `lowerDevice`. */
  readonly lowerSector: number;

  constructor(
    errno: number,
    operation: string,
    device: string,
    sector: number,
    lowerDevice: string = device,
    lowerSector: number = sector,
  ) {
    const below = lowerDevice === device ? '' : ` (from ${lowerDevice}, sector ${lowerSector})`;
    const where = operation === 'flush' ? '' : ` at sector ${sector}`;
    super(errno, `${operation} on ${device} failed${where}: ${errnoMessage(errno)}${below}`);
    this.name = 'IoError';
    this.operation = operation;
    this.device = device;
    this.sector = sector;
    this.lowerDevice = lowerDevice;
    this.lowerSector = lowerSector;
  }
}

/** A table line that was refused. `reason` is the text the kernel would have logged after the device's number. */
export class TableError extends DmError {
  /** Which line, from 0, of the table's entries; the number of lines where the table's end is at fault; -1 for none. */
  readonly lineIndex: number;
  /** For example `linear: Invalid argument count (-EINVAL)`. */
  readonly reason: string;

  constructor(errno: number, reason: string, lineIndex: number) {
    super(errno, lineIndex < 0 ? reason : `table line ${lineIndex + 1}: ${reason}`);
    this.name = 'TableError';
    this.lineIndex = lineIndex;
    this.reason = reason;
  }
}
