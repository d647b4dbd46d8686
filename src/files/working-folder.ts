// The folder where relative paths start.
import { readlinkSync } from 'node:fs';
import { decodeName, REPLACEMENT } from '../block/file-name.ts';

/** As the kernel gives it, also where its name is not UTF-8. */
function linkedFolder(): string {
  return decodeName(readlinkSync('/proc/self/cwd', 'buffer'));
}

/**
 * The working folder's path. Where the folder was deleted it is the path that the kernel gives, which ends in
 * ` (deleted)`: absolute paths go on to work, and relative ones lead to nothing and are refused by that name.
 */
export function workingFolder(): string {
  try {
    const folder = process.cwd();
    return folder.includes(REPLACEMENT) ? linkedFolder() : folder;
  } catch {
    try {
      return linkedFolder();
    } catch {
      return '/the working folder (deleted)';
    }
  }
}
