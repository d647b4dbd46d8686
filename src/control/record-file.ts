// A small key-value file that survives kills, power failures, full disks and damage. Its bytes: record-format.ts.
//
// Commits are appended by one worker at a time, which takes all that wait and syncs them once. What fails is truncated
// away. Where that can't be done, or the file below is another one or gone, the file is stale: the next commit first
// replaces it by one that says what memory says. A replacement never holds anything new, so it may fail at any step.
import { closeSync, constants, copyFileSync, fstatSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { fileCalls } from '../files/calls.ts';
import { isInMemory } from '../files/in-memory.ts';
import {
  fileError,
  freshName,
  isWithoutFolderSync,
  openFresh,
  placeOf,
  readIfThere,
  removeLeftovers,
  replaceFile,
  writeAll,
} from '../files/replace-file.ts';
import { type EncodedRecord, encodeNow, encodeRecord } from './record-encoder.ts';
import { type Damage, HEAD_BYTES, type Json, makeHeader, type Parsed, parseRecords } from './record-format.ts';

export type { Damage, Json } from './record-format.ts';

export interface RecordState {
  values: Map<string, Json>;
  damage: Damage[];
}

/** A batch of so many records, none of them longer, is written without a thread. */
const SHORT_BYTES = 4096;
const SHORT_COUNT = 8;
const MODE = 0o600;
/** Work of encoding, in bytes, between two turns of the event loop. */
const TURN_BYTES = 131_072;
/** Bytes of one write call. */
const WRITE_BYTES = 1 << 20;
/** A file is written anew when it is longer than twice what it holds and this. */
const SPARE_BYTES = 65_536;
const HEADER_BYTES = makeHeader(0).byteLength;

/** The file that is open, as it should be below. */
interface OpenFile {
  readonly fd: number;
  readonly dev: bigint;
  readonly ino: bigint;
  byteLength: number;
  /** What is in it is not known to be what memory says: to be replaced before the next commit. */
  isStale: boolean;
  /** It was found damaged or torn: kept under another name when it is replaced. */
  readonly isDamaged: boolean;
  /** Its file system has no disk: a sync costs less than the way to another thread. */
  readonly isInMemory: boolean;
}

interface Commit {
  readonly changes: ReadonlyMap<string, Json>;
  readonly durable: boolean;
  settle: ((error: DmError | null) => void) | null;
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A call of `fileCalls` that takes a callback, as a promise. */
function later(start: (told: (error: Error | null, count?: number) => void) => void): Promise<number> {
  return new Promise((resolve, reject) => {
    start((error, count = 0) => (error === null || error === undefined ? resolve(count) : reject(error)));
  });
}

async function writeLater(fd: number, pieces: readonly Buffer[], from: number): Promise<void> {
  let position = from;
  for (let index = 0; index < pieces.length; ) {
    const group: Buffer[] = [];
    for (let length = 0; index < pieces.length && length < WRITE_BYTES; index++) {
      group.push(pieces[index]!);
      length += pieces[index]!.byteLength;
    }
    const bytes = group.length === 1 ? group[0]! : Buffer.concat(group);
    for (let done = 0; done < bytes.byteLength; ) {
      const length = bytes.byteLength - done;
      const count = await later((told) => fileCalls.writeLater(fd, bytes, done, length, position + done, told));
      if (count === 0) throw Object.assign(new Error('write returned 0'), { code: 'EIO' });
      done += count;
    }
    position += bytes.byteLength;
  }
}

async function syncData({ fd, isInMemory }: OpenFile): Promise<void> {
  if (isInMemory) fileCalls.fdatasync(fd);
  else await later((told) => fileCalls.fdatasyncLater(fd, told));
}

async function syncFolderLater(path: string): Promise<void> {
  const fd = fileCalls.open(path, constants.O_RDONLY | constants.O_DIRECTORY, 0);
  try {
    await later((told) => fileCalls.fsyncLater(fd, told));
  } catch (error) {
    if (!isWithoutFolderSync(error)) throw error;
  } finally {
    closeSync(fd);
  }
}

function load(path: string): Parsed | null {
  const bytes = readIfThere(path);
  return bytes === null ? null : parseRecords(bytes, path);
}

/**
 * Reads a record file without changing anything; null where there is no file. May be called while another process
 * writes.
 *
 * @throws DmError EOPNOTSUPP for a newer format, EINVAL for a file that is no record file
 */
export function readRecords(path: string): RecordState | null {
  const parsed = load(path);
  return parsed && { values: parsed.values, damage: parsed.damage };
}

/** The record file of the one process that writes it. Values belong to it from a commit on: don't change them. */
export class RecordFile {
  readonly #path: string;
  readonly #place: string;
  readonly #values: Map<string, Json>;
  /** Bytes of each key's line, and their sum with heads: how long a compact file would be. */
  readonly #sizes: Map<string, number>;
  #compactBytes: number;
  #sequence: number;
  #file: OpenFile | null = null;
  /** Descriptors of replaced files: closed when the worker doesn't use them any more. */
  readonly #retired: number[] = [];
  #waiting: Commit[] = [];
  #flying: Commit[] = [];
  #isBusy = false;
  #isClosed = false;
  #isRemoved = false;

  private constructor(path: string, parsed: Parsed) {
    this.#path = path;
    this.#place = placeOf(path);
    this.#values = parsed.values;
    this.#sizes = parsed.sizes;
    this.#sequence = parsed.sequence;
    this.#compactBytes = HEADER_BYTES;
    for (const size of parsed.sizes.values()) this.#compactBytes += HEAD_BYTES + size;
  }

  /**
   * Opens the file, or makes it with mode 0600. A damaged file is kept as PATH.damaged-N; a damaged or torn one is written anew
   * with every whole record; where there is no room for that now, it stays in place until the first commit.
   *
   * @throws DmError as `readRecords` does, and what the file system says
   */
  static open(path: string): { file: RecordFile; state: RecordState } {
    const parsed = load(path);
    const empty: Parsed = { values: new Map(), damage: [], isTorn: false, sequence: 0, sizes: new Map() };
    const file = new RecordFile(path, parsed ?? empty);
    const isWhole = parsed !== null && parsed.damage.length === 0 && !parsed.isTorn;
    try {
      removeLeftovers(file.#place);
      // A torn end was never acknowledged: it costs nothing, and each kill in a write would leave another copy.
      if (parsed !== null) file.#openPlace(isWhole, parsed.damage.length > 0);
      if (!isWhole) file.#replaceNow();
    } catch (error) {
      const { errno } = fileError(path, error);
      const isFull = errno === Errno.ENOSPC || errno === Errno.EDQUOT;
      if (!isFull || file.#file === null) {
        if (file.#file !== null) closeSync(file.#file.fd);
        throw fileError(path, error);
      }
    }
    return { file, state: { values: new Map(file.#values), damage: parsed?.damage ?? [] } };
  }

  /** Length of the file as this object wrote it. */
  get byteLength(): number {
    return this.#file?.byteLength ?? 0;
  }

  /** Everything that is committed, in memory. */
  get values(): ReadonlyMap<string, Json> {
    return this.#values;
  }

  /**
   * One atomic change: each key to its value; null deletes a key. Resolves when the record is in the file, with `durable`
   * when it is synced. Commits are in the order of the calls; those that wait together share one sync. When the last key
   * is gone the file keeps its header alone.
   *
   * @throws DmError (as a rejection) with the errno; then nothing has changed
   */
  commit(changes: ReadonlyMap<string, Json>, options: { durable?: boolean } = {}): Promise<void> {
    if (this.#isClosed) return Promise.reject(this.#closedError());
    return new Promise((resolve, reject) => {
      const settle = (error: DmError | null): void => (error === null ? resolve() : reject(error));
      this.#waiting.push({ changes: new Map(changes), durable: options.durable ?? false, settle });
      if (!this.#isBusy) {
        this.#isBusy = true;
        void this.#work();
      }
    });
  }

  /**
   * The same at once and without a sync, for a stop. Commits that are under way are finished with it, into a new file
   * (theirs are synced where they asked for it).
   *
   * @throws DmError with the errno; then nothing has changed, and commits under way go on
   */
  commitNow(changes: ReadonlyMap<string, Json>): void {
    if (this.#isClosed) throw this.#closedError();
    const others = [...this.#flying, ...this.#waiting].filter(({ settle }) => settle !== null);
    const commits: Commit[] = [...others, { changes: new Map(changes), durable: false, settle: () => {} }];
    try {
      // The worker may be in the middle of a write to the file that is open.
      if (this.#isBusy || this.#mustReplace()) this.#replaceNow();
      const file = this.#file!;
      // After the replacement: a record's number must be above that of the file's header.
      const records = commits.map((commit) => encodeNow(this.#nextSequence(), commit.changes));
      try {
        let position = file.byteLength;
        for (const { pieces, byteLength } of records) {
          writeAll(file.fd, Buffer.concat(pieces), position);
          position += byteLength;
        }
        if (others.some(({ durable }) => durable)) fileCalls.fdatasync(file.fd);
      } catch (error) {
        this.#takeBackNow(file);
        throw error;
      }
      for (const [index, commit] of commits.entries()) this.#apply(file, commit, records[index]!);
    } catch (error) {
      throw this.#failure(error);
    }
    this.#waiting = [];
  }

  /** Commits that wait are still written (wait for them before the path is opened again); new ones are refused. */
  close(): void {
    this.#isClosed = true;
    if (!this.#isBusy) this.#closeAll();
  }

  /** Closes and deletes the file. Commits that wait are rejected. A file that took its place stays. */
  remove(): void {
    const file = this.#file;
    const isOurs = file !== null && this.#lookBelow() !== 'gone' && this.#isSameFile(file);
    try {
      if (isOurs) fileCalls.unlink(this.#place);
    } catch (error) {
      throw fileError(this.#path, error);
    }
    this.#isRemoved = true;
    this.close();
  }

  #closedError(): DmError {
    return new DmError(Errno.ESHUTDOWN, `${this.#path} is closed; nothing has changed`);
  }

  #failure(error: unknown): DmError {
    // From a replacement: its own remark is about the file, and here the records count.
    if (error instanceof DmError) return fileError(this.#path, error.cause ?? error, '; nothing has changed');
    if ((error as { code?: unknown }).code === undefined) {
      return new DmError(Errno.EINVAL, `${this.#path}: ${(error as Error).message}; nothing has changed`);
    }
    return fileError(this.#path, error, '; nothing has changed');
  }

  #nextSequence(): number {
    return ++this.#sequence;
  }

  #closeAll(): void {
    this.#closeRetired();
    if (this.#file !== null) closeSync(this.#file.fd);
    this.#file = null;
  }

  #closeRetired(): void {
    for (const fd of this.#retired.splice(0)) closeSync(fd);
  }

  #openPlace(isWhole: boolean, isDamaged = !isWhole): void {
    const fd = fileCalls.open(this.#place, constants.O_RDWR, 0);
    const { dev, ino, size } = fstatSync(fd, { bigint: true });
    if (this.#file !== null) this.#retired.push(this.#file.fd);
    this.#file = { fd, dev, ino, byteLength: Number(size), isStale: !isWhole, isDamaged, isInMemory: isInMemory(fd) };
    if (!this.#isBusy) this.#closeRetired();
  }

  #isSameFile({ dev, ino }: OpenFile): boolean {
    const stat = statSync(this.#place, { bigint: true, throwIfNoEntry: false });
    return stat !== undefined && stat.dev === dev && stat.ino === ino;
  }

  /** Whether the file at the path is still the one that was written. */
  #lookBelow(): 'same' | 'changed' | 'gone' {
    const stat = statSync(this.#place, { bigint: true, throwIfNoEntry: false });
    if (stat === undefined) return 'gone';
    const file = this.#file;
    const isSame = file !== null && stat.dev === file.dev && stat.ino === file.ino;
    return isSame && Number(stat.size) === file.byteLength ? 'same' : 'changed';
  }

  #mustReplace(): boolean {
    return this.#file === null || this.#file.isStale || this.#lookBelow() !== 'same';
  }

  /** Keeps what stands at the path and can't be trusted, or isn't this object's, under a name of its own. */
  #setAside(isLengthKnown: boolean): void {
    const below = this.#lookBelow();
    if (below === 'gone') return;
    const file = this.#file;
    const isOther =
      below === 'changed' && file !== null && !((file.isStale || !isLengthKnown) && this.#isSameFile(file));
    if (!isOther && !file?.isDamaged) return;
    for (let number = 1; ; number++) {
      const aside = `${this.#place}.damaged-${number}`;
      try {
        fileCalls.link(this.#place, aside);
        return;
      } catch (error) {
        const errno = errnoFromException(error);
        if (errno === Errno.EEXIST) continue;
        // A file system without hard links.
        if (errno !== Errno.EPERM && errno !== Errno.EOPNOTSUPP && errno !== Errno.ENOSYS) throw error;
        if (statSync(aside, { throwIfNoEntry: false }) !== undefined) continue;
        copyFileSync(this.#place, aside, constants.COPYFILE_EXCL);
        return;
      }
    }
  }

  #recordsOfAll(): Generator<number, EncodedRecord, void>[] {
    return [...this.#values].map(([key, value]) => encodeRecord(this.#nextSequence(), new Map([[key, value]])));
  }

  #replaceNow(): void {
    const pieces: Buffer[] = [makeHeader(this.#nextSequence())];
    for (const [key, value] of this.#values) {
      pieces.push(...encodeNow(this.#nextSequence(), new Map([[key, value]])).pieces);
    }
    // A write of the worker may have made the file longer.
    this.#setAside(!this.#isBusy);
    replaceFile(this.#place, pieces, { mode: MODE });
    this.#openPlace(true);
  }

  /** The same without holding the event loop. False where `commitNow` has done it meanwhile, or the file is removed. */
  async #replace(isCancelled = () => false): Promise<boolean> {
    const before = this.#file;
    const fresh = freshName(this.#place);
    const fd = openFresh(this.#place, fresh, MODE);
    let isPlaced = false;
    try {
      const header = makeHeader(this.#nextSequence());
      await writeLater(fd, [header], 0);
      let byteLength = header.byteLength;
      for (const steps of this.#recordsOfAll()) {
        const record = await this.#inTurns(steps);
        await writeLater(fd, record.pieces, byteLength);
        byteLength += record.byteLength;
      }
      await later((told) => fileCalls.fsyncLater(fd, told));
      if (this.#file !== before || this.#isRemoved || isCancelled()) return false;
      this.#setAside(true);
      fileCalls.rename(fresh, this.#place);
      isPlaced = true;
      const { dev, ino } = fstatSync(fd, { bigint: true });
      if (before !== null) this.#retired.push(before.fd);
      // Stale until its name is durable.
      const file: OpenFile = { fd, dev, ino, byteLength, isStale: true, isDamaged: false, isInMemory: isInMemory(fd) };
      this.#file = file;
      await syncFolderLater(dirname(this.#place));
      file.isStale = false;
      return this.#file === file;
    } finally {
      if (!isPlaced) {
        closeSync(fd);
        try {
          fileCalls.unlink(fresh);
        } catch {
          // The next opening removes it.
        }
      }
    }
  }

  /** Bytes encoded since the last turn of the event loop. */
  #spent = 0;
  #turnCount = 0;
  /** A compaction has failed: not tried again below this length. */
  #shortenFrom = 0;

  async #inTurns(steps: Generator<number, EncodedRecord, void>): Promise<EncodedRecord> {
    for (;;) {
      const step = steps.next();
      if (step.done === true) return step.value;
      this.#spent += step.value;
      if (this.#spent < TURN_BYTES) continue;
      this.#spent = 0;
      this.#turnCount++;
      await turn();
    }
  }

  /** The worker: takes all commits that wait, until none does. */
  async #work(): Promise<void> {
    // Commits of the same turn go together, where that saves a sync.
    if (this.#file?.isInMemory !== true && this.#waiting.some(({ durable }) => durable)) await turn();
    while (this.#waiting.length > 0) {
      this.#flying = this.#waiting;
      this.#waiting = [];
      const isDone = await this.#write(this.#flying);
      // One that has no room must not take the others with it: each by itself.
      if (!isDone) for (const commit of this.#flying) await this.#write([commit]);
      this.#flying = [];
      this.#closeRetired();
    }
    this.#isBusy = false;
    if (this.#isClosed) this.#closeAll();
  }

  /** False where several commits failed together and none is settled. */
  async #write(batch: readonly Commit[]): Promise<boolean> {
    for (;;) {
      const commits = batch.filter(({ settle }) => settle !== null);
      if (commits.length === 0) return true;
      if (this.#isRemoved) {
        for (const commit of commits) this.#reject(commit, this.#closedError());
        return true;
      }
      try {
        if (await this.#append(commits)) return true;
      } catch (error) {
        const open = commits.filter(({ settle }) => settle !== null);
        if (open.length > 1) return false;
        for (const commit of open) this.#reject(commit, this.#failure(error));
        return true;
      }
    }
  }

  #reject(commit: Commit, error: DmError): void {
    commit.settle?.(error);
    commit.settle = null;
  }

  /** False where `commitNow` took the file over, or the file was removed: to be looked at again. */
  async #append(commits: readonly Commit[]): Promise<boolean> {
    if (this.#mustReplace() && !(await this.#replace())) return false;
    const file = this.#file!;
    const turnCount = this.#turnCount;
    const records: EncodedRecord[] = [];
    for (const { changes } of commits) records.push(await this.#inTurns(encodeRecord(this.#nextSequence(), changes)));
    // Looked at again: encoding large values takes turns of the event loop.
    const isSame = this.#file === file && !this.#isRemoved;
    if (!isSame || (this.#turnCount !== turnCount && this.#mustReplace())) return false;
    try {
      const pieces = records.flatMap((record) => record.pieces);
      // A short record costs less than the way to another thread.
      const isShort = records.every(({ byteLength }) => byteLength <= SHORT_BYTES) && records.length <= SHORT_COUNT;
      if (isShort) writeAll(file.fd, Buffer.concat(pieces), file.byteLength);
      else await writeLater(file.fd, pieces, file.byteLength);
      if (commits.some(({ durable }) => durable)) await syncData(file);
    } catch (error) {
      if (this.#file !== file) return false;
      await this.#takeBack(file, error);
      throw error;
    }
    if (this.#file !== file || this.#isRemoved) return false;
    for (const [index, commit] of commits.entries()) this.#apply(file, commit, records[index]!);
    await this.#shorten(file);
    return true;
  }

  #apply(file: OpenFile, commit: Commit, record: EncodedRecord): void {
    file.byteLength += record.byteLength;
    for (const [key, value] of commit.changes) {
      const old = this.#sizes.get(key);
      if (old !== undefined) this.#compactBytes -= HEAD_BYTES + old;
      if (value === null) {
        this.#values.delete(key);
        this.#sizes.delete(key);
        continue;
      }
      const size = record.sizes.get(key)!;
      this.#values.set(key, value);
      this.#sizes.set(key, size);
      this.#compactBytes += HEAD_BYTES + size;
    }
    commit.settle?.(null);
    commit.settle = null;
  }

  /**
   * Makes a file that is much longer than what it holds short. A failure costs nothing but room. Its commits are settled
   * already, so after `close` the file may be another object's: nothing is done to it then.
   */
  async #shorten(file: OpenFile): Promise<void> {
    if (this.#isClosed) return;
    try {
      if (this.#values.size === 0 && file.byteLength > HEADER_BYTES) {
        fileCalls.ftruncate(file.fd, HEADER_BYTES);
        file.byteLength = HEADER_BYTES;
      } else if (file.byteLength > Math.max(this.#shortenFrom, 2 * this.#compactBytes + SPARE_BYTES)) {
        await this.#replace(() => this.#isClosed);
        this.#shortenFrom = 0;
      }
    } catch {
      // Not at each commit again: a try writes everything.
      this.#shortenFrom = 2 * file.byteLength;
    }
  }

  /** Truncates what a failed commit has written, durably: it must not come back. */
  async #takeBack(file: OpenFile, cause: unknown): Promise<void> {
    const errno = errnoFromException(cause);
    try {
      await later((told) => fileCalls.ftruncateLater(file.fd, file.byteLength, told));
      await later((told) => fileCalls.fsyncLater(file.fd, told));
      // After a write error the kernel may have dropped pages of earlier records too.
      if (errno !== Errno.ENOSPC && errno !== Errno.EDQUOT) file.isStale = true;
    } catch {
      file.isStale = true;
    }
  }

  #takeBackNow(file: OpenFile): void {
    try {
      fileCalls.ftruncate(file.fd, file.byteLength);
    } catch {
      file.isStale = true;
    }
  }
}
