// The folder where relative paths start.
import { readlinkSync } from 'node:fs';

/**
 * The working folder's path. Where the folder was deleted it is the path that the kernel gives, which ends in
 * ` (deleted)`: absolute paths go on to work, and relative ones lead to nothing and are refused by that name.
 */
export function workingFolder(): string {
  try {
    return process.cwd();
  } catch {
    try {
      return readlinkSync('/proc/self/cwd');
    } catch {
      return '/the working folder (deleted)';
    }
  }
}
