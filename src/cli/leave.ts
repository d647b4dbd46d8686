// The end of a command that makes native calls.
import { fstatSync } from 'node:fs';
import { loadedLibc } from '../engine/libc.ts';

function isFile(fd: number): boolean {
  try {
    const stat = fstatSync(fd);
    return stat.isFile() || stat.isBlockDevice();
  } catch {
    return false;
  }
}

/** Node writes these when native code has its say at the end. */
function isProfiled(): boolean {
  return process.env.NODE_V8_COVERAGE !== undefined || process.execArgv.some((word) => /prof|coverage/.test(word));
}

/**
 * At its end koffi syncs standard output and standard error. Where both are on a disk that has failed or is full, it waits
 * for ever to say so. Everything is written by then: such a process ends without asking koffi.
 */
export function guardEnd(): void {
  process.on('exit', (code) => {
    if ((isFile(1) || isFile(2)) && !isProfiled()) loadedLibc()?.exitNow(code);
  });
}
