// The marks by which one file is told from another, where its file system keeps them.
import fs from 'node:fs';
import { rawName } from '../block/file-name.ts';

/** Plain JSON values. */
export interface FileMark {
  /** Empty where the file system does not keep inode numbers. */
  inode: string;
  /** When the file was made, in nanoseconds since 1970; null where that is not told, or changes. */
  birth: string | null;
}

// Types as statfs tells them.
const OVERLAYFS = 0x794c7630;
const MSDOS = 0x4d44;
const EXFAT = 0x2011bab0;

/** @param place a path that leads to the file, also below /proc/self/fd */
export function fileMarkOf(stat: fs.BigIntStats, place: string): FileMark {
  const type = fileSystemType(place);
  // FAT and exFAT number a file anew each time it is looked up.
  const inode = type === MSDOS || type === EXFAT ? '' : String(stat.ino);
  // Overlayfs keeps the inode's number when the first write copies a file up, and tells the birth of the copy from then on.
  return { inode, birth: type === OVERLAYFS ? null : birthOf(stat) };
}

function fileSystemType(path: string): number | null {
  try {
    return fs.statfsSync(rawName(path)).type;
  } catch {
    return null;
  }
}

/**
 * The time when a file was made, as text; null where it is not told.
 *
 * @param isStatxThere asked where the stat alone can't tell
 */
export function birthOf(
  stat: Pick<fs.BigIntStats, 'birthtimeNs' | 'ctimeNs'>,
  isStatxThere = tellsBirths,
): string | null {
  const { birthtimeNs, ctimeNs } = stat;
  if (birthtimeNs === 0n) return null;
  // Without statx (an old kernel, a sandbox) Node gives the ctime in its place, and that moves with every change.
  if (birthtimeNs === ctimeNs && !isStatxThere()) return null;
  return String(birthtimeNs);
}

let statxIsThere: boolean | null = null;

/** False where Node fills in another time for a birth that is not told: proc tells none. */
function tellsBirths(): boolean {
  if (statxIsThere === null) {
    try {
      statxIsThere = fs.statSync('/proc/self', { bigint: true }).birthtimeNs === 0n;
    } catch {
      statxIsThere = false;
    }
  }
  return statxIsThere;
}
