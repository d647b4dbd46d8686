// Lines for a descriptor that may refuse them: a full disk, a closed pipe. What can't be written is dropped and counted,
// and the count is written once lines can be again; nothing is ever thrown, for a log is no reason to stop serving disks.
import { closeSync, fstatSync, ftruncateSync, openSync, renameSync, writeSync } from 'node:fs';

/** Makes the line that says how many are missing. */
export type MissingLine = (count: number) => string;

/** Lines to an open descriptor, at once. */
export class LineWriter {
  protected fd: number;
  readonly #missingLine: MissingLine;
  #missingCount = 0;
  /** A part of a line stands there without its end. */
  #isTorn = false;

  constructor(fd: number, missingLine: MissingLine) {
    this.fd = fd;
    this.#missingLine = missingLine;
  }

  /** `line` ends with a line feed. */
  write(line: string): void {
    const notice = this.#missingCount > 0 ? this.#missingLine(this.#missingCount) : '';
    if (this.#put(`${this.#isTorn ? '\n' : ''}${notice}${line}`)) {
      this.#missingCount = 0;
      this.#isTorn = false;
    } else {
      this.#missingCount++;
    }
  }

  #put(text: string): boolean {
    const bytes = Buffer.from(text);
    let offset = 0;
    try {
      while (offset < bytes.byteLength) offset += writeSync(this.fd, bytes, offset);
      this.onWritten(bytes.byteLength);
      return true;
    } catch {
      if (offset > 0 && !this.takeBack(offset)) this.#isTorn = true;
      return false;
    }
  }

  protected onWritten(_byteLength: number): void {}

  /** Takes `byteLength` bytes of a line that did not fit back. @returns whether they are gone */
  protected takeBack(_byteLength: number): boolean {
    return false;
  }
}

/** Lines to a file that grows up to a bound; the one before it is kept beside it as `PATH.1`. */
export class LineFile extends LineWriter {
  readonly #path: string;
  readonly #maxByteLength: number;
  #byteLength: number;

  /** @throws Error of node:fs where the file can't be opened */
  constructor(path: string, maxByteLength: number, missingLine: MissingLine) {
    super(openSync(path, 'a', 0o600), missingLine);
    this.#path = path;
    this.#maxByteLength = maxByteLength;
    this.#byteLength = fstatSync(this.fd).size;
    if (this.#byteLength > maxByteLength) this.#beginAnew();
  }

  protected override onWritten(byteLength: number): void {
    this.#byteLength += byteLength;
    if (this.#byteLength > this.#maxByteLength) this.#beginAnew();
  }

  /** Where another file can't be made, this one goes on, and it is tried again after as many bytes. */
  #beginAnew(): void {
    this.#byteLength = 0;
    try {
      renameSync(this.#path, `${this.#path}.1`);
      const fd = openSync(this.#path, 'a', 0o600);
      closeSync(this.fd);
      this.fd = fd;
    } catch {
      // A full disk takes no new file; the old one has another name, or not even that.
    }
  }

  protected override takeBack(byteLength: number): boolean {
    try {
      const { size } = fstatSync(this.fd);
      ftruncateSync(this.fd, size - byteLength);
      return true;
    } catch {
      return false;
    }
  }
}
