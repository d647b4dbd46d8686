// File to file by copy_file_range, off this thread. It places no errors and needs no memory: a piece that it does not
// copy whole is read and written instead.
import { closeSync, openSync } from 'node:fs';
import { rawName } from '../block/file-name.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { copyRangeOnThread, hasCopyRange } from '../engine/copy-range.ts';
import type { OpenedRegion } from './open.ts';

/** Pieces in a row that were not copied, after which it is not tried any more. */
const MAX_REFUSAL_COUNT = 3;

export class FileCopier {
  readonly #from: { fd: number; sector: number };
  readonly #to: { fd: number; sector: number };
  #refusalCount = 0;

  /** Null where not both are files whose descriptors can be had, or there is no such call. */
  static open(source: OpenedRegion, destination: OpenedRegion): FileCopier | null {
    if (!source.isFile || !destination.isFile || !hasCopyRange()) return null;
    const fds: number[] = [];
    try {
      fds.push(openSync(rawName(source.path!), 'r'), openSync(rawName(destination.path!), 'r+'));
      return new FileCopier({ fd: fds[0]!, sector: source.sector }, { fd: fds[1]!, sector: destination.sector });
    } catch {
      for (const fd of fds) closeSync(fd);
      return null;
    }
  }

  private constructor(from: { fd: number; sector: number }, to: { fd: number; sector: number }) {
    this.#from = from;
    this.#to = to;
  }

  /** Copies the sectors from `start` to `end`. @returns false where not all of them are copied */
  async copy(start: number, end: number): Promise<boolean> {
    if (this.#refusalCount >= MAX_REFUSAL_COUNT) return false;
    let at = start * SECTOR_SIZE;
    const stop = end * SECTOR_SIZE;
    while (at < stop) {
      const count = await this.#step(at, stop - at);
      if (count <= 0) {
        this.#refusalCount++;
        return false;
      }
      at += count;
    }
    this.#refusalCount = 0;
    return true;
  }

  #step(at: number, byteLength: number): Promise<number> {
    const from = BigInt(this.#from.sector * SECTOR_SIZE + at);
    const to = BigInt(this.#to.sector * SECTOR_SIZE + at);
    return new Promise((resolve) => {
      copyRangeOnThread(this.#from.fd, from, this.#to.fd, to, byteLength, resolve);
    });
  }

  close(): void {
    closeSync(this.#from.fd);
    closeSync(this.#to.fd);
  }
}
