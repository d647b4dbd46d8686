// Asking the kernel to forget what it has of a file in memory, so that the next read comes from the disk.
import { createRequire } from 'node:module';
import { loadLibc } from './libc.ts';

const POSIX_FADV_DONTNEED = 4;

type Advise = (fd: number, offset: number, length: number, advice: number) => number;
let advise: Advise | null | undefined;

function loadAdvise(): Advise | null {
  if (loadLibc().libc === null) return null;
  try {
    const koffi = createRequire(import.meta.url)('koffi') as {
      load(path: null): { func(definition: string): Advise };
    };
    return koffi.load(null).func('int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)');
  } catch {
    return null;
  }
}

/**
 * Drops the clean pages of an open file from the page cache: what was not flushed before stays.
 *
 * @returns false where the system has no call for it, or refused it
 */
export function dropFromPageCache(fd: number): boolean {
  advise ??= loadAdvise();
  return advise !== null && advise(fd, 0, 0, POSIX_FADV_DONTNEED) === 0;
}
