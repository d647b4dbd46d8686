// A new store's file: made under another name, whole, and then linked to its own, so that no moment shows half of it.
import fs from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { JournalSink } from '../control/core/host.ts';
import { asJson } from '../control/core/plane.ts';
import { INTENT_PREFIX, newId } from '../control/core/records.ts';
import type { Transaction } from '../control/core/transaction.ts';
import { writeAll } from '../files/replace-file.ts';
import { makeStoreHeader, type StoreMark } from '../targets/snapshot/mark.ts';
import type { OverlayPlan } from './options.ts';

const FILE_MODE = 0o600;

type NewFile = { temporary: string; path: string };

export function fileFailure(path: string, error: unknown): DmError {
  const errno = errnoFromException(error);
  return new DmError(errno, `${path}: ${errnoMessage(errno)}`);
}

/** One or more files on their way; the intent in the journal lets the next start clear away the rest of a crash. */
export class NewFiles {
  readonly #transaction: Transaction;
  readonly #journal: JournalSink | null;
  readonly #key = INTENT_PREFIX + newId();
  readonly #files: NewFile[] = [];
  /** Ends the registry's notes of new files. */
  readonly #new: (() => void)[] = [];
  readonly #grown: GrownFile[] = [];

  constructor(transaction: Transaction, journal: JournalSink | null) {
    this.#transaction = transaction;
    this.#journal = journal;
  }

  /** Makes the files of all plans that need one, and lengthens those that grow. @throws DmError EEXIST, ENOSPC … */
  async make(plans: readonly { plan: OverlayPlan; mark: StoreMark | null }[]): Promise<void> {
    const wanted = plans.filter(({ plan }) => plan.makesCow);
    const growing = plans.filter(({ plan }) => plan.growsCow);
    for (const { plan } of wanted) {
      const temporary = join(dirname(plan.cow), `.${basename(plan.cow).slice(0, 200)}.dmkit-${newId()}`);
      this.#files.push({ temporary, path: plan.cow });
    }
    for (const { plan } of growing) this.#grown.push(asItIs(plan.cow));
    if (wanted.length === 0 && growing.length === 0) return;
    await this.#journal?.commit(new Map([[this.#key, { files: this.#files, grown: asJson(this.#grown) }]]), {
      durable: false,
    });
    // With the change the paths are for good; their first names are not gone yet.
    const done = wanted.length === 0 ? null : { files: this.#files, isDone: true };
    if (this.#journal !== null) this.#transaction.keys.set(this.#key, done);
    this.#transaction.onUndo(() => this.#clear());
    this.#transaction.onFinish(async () => {
      clearFirstNames(this.#files);
      this.#forgetNew();
      if (done !== null) this.#journal?.forget(this.#key);
    });
    for (const [index, { plan, mark }] of wanted.entries()) this.#makeStoreFile(this.#files[index]!, plan, mark);
    for (const { plan } of growing) grow(plan);
  }

  #forgetNew(): void {
    for (const forget of this.#new.splice(0)) forget();
  }

  async #clear(): Promise<void> {
    this.#forgetNew();
    clearFiles(this.#files);
    for (const file of this.#grown) shorten(file);
    // At once: a store that grows later must not be found too long by the next start. Where it fails, that looks once more.
    await this.#journal?.commit(new Map([[this.#key, null]]), { durable: false }).catch(() => {});
  }

  #makeStoreFile({ temporary, path }: NewFile, plan: OverlayPlan, mark: StoreMark | null): void {
    try {
      this.#writeStore(temporary, plan, mark);
      try {
        fs.linkSync(rawName(temporary), rawName(path));
      } catch (error) {
        const errno = errnoFromException(error);
        const lacksLinks = errno === Errno.EPERM || errno === Errno.EOPNOTSUPP;
        if (!lacksLinks) throw error;
        this.#writeStore(path, plan, mark);
      }
    } catch (error) {
      const errno = errnoFromException(error);
      throw errno === Errno.EEXIST ? new DmError(errno, `${path} is there already`) : fileFailure(path, error);
    }
  }

  #writeStore(path: string, { cowByteLength, chunkSectorCount }: OverlayPlan, mark: StoreMark | null): void {
    const fd = fs.openSync(rawName(path), 'wx', FILE_MODE);
    try {
      fs.ftruncateSync(fd, cowByteLength);
      // A transient store has no header.
      if (mark !== null) writeAll(fd, makeStoreHeader(mark, chunkSectorCount, SECTOR_SIZE), 0);
      const { devices } = this.#transaction.host;
      if (devices !== undefined) this.#new.push(devices.noteNewFile(fd));
    } catch (error) {
      fs.unlinkSync(rawName(path));
      throw error;
    } finally {
      fs.closeSync(fd);
    }
  }
}

/** A store as it was before it grew. */
export interface GrownFile {
  path: string;
  dev: string;
  inode: string;
  byteLength: number;
}

function asItIs(path: string): GrownFile {
  try {
    const { dev, ino, size } = fs.statSync(rawName(path), { bigint: true });
    return { path, dev: String(dev), inode: String(ino), byteLength: Number(size) };
  } catch (error) {
    throw fileFailure(path, error);
  }
}

function grow({ cow, cowByteLength }: OverlayPlan): void {
  try {
    fs.truncateSync(rawName(cow), cowByteLength);
  } catch (error) {
    throw fileFailure(cow, error);
  }
}

/** Takes back what a store grew by, unless its path leads to another file by now. */
export function shorten({ path, dev, inode, byteLength }: GrownFile): void {
  const stat = fs.statSync(rawName(path), { bigint: true, throwIfNoEntry: false });
  const isSame = stat !== undefined && String(stat.dev) === dev && String(stat.ino) === inode;
  if (isSame && Number(stat.size) > byteLength) fs.truncateSync(rawName(path), byteLength);
}

/** Takes the names away under which files were made that have their own names now. */
export function clearFirstNames(files: readonly { temporary: string }[]): void {
  for (const { temporary } of files) {
    try {
      fs.unlinkSync(rawName(temporary));
    } catch (error) {
      if (errnoFromException(error) !== Errno.ENOENT) throw error;
    }
  }
}

/** Takes away files of an operation that did not come to its end, and no other files that have their names. */
export function clearFiles(files: readonly { temporary: string; path: string }[]): void {
  for (const { temporary, path } of files) {
    try {
      const made = fs.statSync(rawName(temporary), { bigint: true });
      const there = fs.statSync(rawName(path), { bigint: true, throwIfNoEntry: false });
      if (there !== undefined && there.dev === made.dev && there.ino === made.ino) fs.unlinkSync(rawName(path));
      fs.unlinkSync(rawName(temporary));
    } catch (error) {
      if (errnoFromException(error) !== Errno.ENOENT) throw error;
    }
  }
}
