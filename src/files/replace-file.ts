// Replaces a file as a whole: a reader, or a crash at any moment, finds the old content or the new one. The new content is
// written to a file beside the old one, synced, and renamed over it.
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  readdirSync,
  readFileSync,
  realpathSync,
  statSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { decodeName, rawName } from '../block/file-name.ts';
import { fileCalls } from './calls.ts';

const CREATE_NEW = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL;
const PERMISSION_BITS = 0o7777;
/** Pieces are gathered up to this length, so that many short ones don't cost a system call each. */
const GATHER_BYTES = 65_536;

export interface ReplaceOptions {
  /** Permissions of the new file; without it those of the old file, or 0666 less the umask. */
  mode?: number;
  /** Sync the file and its folder (default true). Without it the replacement is still atomic for readers and kills. */
  durable?: boolean;
}

/** `PATH: No space left on device`, with the errno of what `fs` threw. A DmError stays as it is. */
export function fileError(path: string, error: unknown, remark = ''): DmError {
  if (error instanceof DmError) return error;
  const errno = errnoFromException(error);
  return new DmError(errno, `${path}: ${errnoMessage(errno)}${remark}`, undefined, { cause: error });
}

/** The whole file; null where there is none. @throws DmError what the file system says */
export function readIfThere(path: string): Buffer | null {
  try {
    return readFileSync(rawName(path));
  } catch (error) {
    if (errnoFromException(error) === Errno.ENOENT) return null;
    throw fileError(path, error);
  }
}

/** Writes all of `bytes` at `position`, in as many calls as it takes. @throws what the file system says */
export function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.byteLength; ) {
    const count = fileCalls.write(fd, bytes, done, bytes.byteLength - done, position + done);
    // A file system that takes nothing and gives no error would keep this loop for ever.
    if (count === 0) throw Object.assign(new Error('write returned 0'), { code: 'EIO' });
    done += count;
  }
}

/** Whether an error of a folder's sync says that the file system has no such thing. */
export function isWithoutFolderSync(error: unknown): boolean {
  const errno = errnoFromException(error);
  return errno === Errno.EINVAL || errno === Errno.EOPNOTSUPP;
}

/** Makes the names in a folder durable; a file system that can't sync folders is left to its ways. */
export function syncFolder(path: string): void {
  const fd = fileCalls.open(rawName(path), constants.O_RDONLY | constants.O_DIRECTORY, 0);
  try {
    fileCalls.fsync(fd);
  } catch (error) {
    if (!isWithoutFolderSync(error)) throw error;
  } finally {
    closeSync(fd);
  }
}

/**
 * The regular file that `path` stands for: behind symbolic links, or `path` itself where nothing is there yet.
 *
 * @throws DmError EINVAL for a device, a pipe or a socket: a rename would put a file in its place
 */
export function placeOf(path: string): string {
  let place: string;
  try {
    place = decodeName(realpathSync(rawName(path), 'buffer'));
    const stat = statSync(rawName(place));
    if (stat.isDirectory()) throw new DmError(Errno.EISDIR, `${path}: ${errnoMessage(Errno.EISDIR)}`);
    if (!stat.isFile()) throw new DmError(Errno.EINVAL, `${path}: not a regular file, so it can't be replaced by one`);
  } catch (error) {
    if (errnoFromException(error) === Errno.ENOENT) return path;
    throw fileError(path, error);
  }
  return place;
}

/** A name beside `place` that no other process uses. `removeLeftovers` knows its form. */
export function freshName(place: string): string {
  return `${place}.new-${process.pid}-${randomBytes(4).toString('hex')}`;
}

/** Removes what killed replacements of `place` have left beside it. For the one writer of that file alone. */
export function removeLeftovers(place: string): void {
  const start = `${basename(place)}.new-`;
  for (const bytes of readdirSync(rawName(dirname(place)), 'buffer')) {
    const name = decodeName(bytes);
    if (name.startsWith(start) && /^\d+-[0-9a-f]{8}$/.test(name.slice(start.length)))
      remove(join(dirname(place), name));
  }
}

function remove(path: string): void {
  try {
    fileCalls.unlink(rawName(path));
  } catch {
    // It is gone, or stays as a leftover: the failure that led here is the one to tell.
  }
}

/** Opens a new file beside `place`, with the owner and the permissions that it shall have. */
export function openFresh(place: string, fresh: string, mode?: number): number {
  const old = statSync(rawName(place), { throwIfNoEntry: false });
  // Not readable for others before its permissions are set.
  const fd = fileCalls.open(rawName(fresh), CREATE_NEW, mode ?? (old === undefined ? 0o666 : 0o600));
  try {
    if (old === undefined) return fd;
    if (old.uid !== process.geteuid?.() || old.gid !== process.getegid?.()) {
      try {
        fchownSync(fd, old.uid, old.gid);
      } catch {
        // Another user's file, or a file system without owners: the new file is ours.
      }
    }
    if (mode === undefined) fchmodSync(fd, old.mode & PERMISSION_BITS);
    return fd;
  } catch (error) {
    closeSync(fd);
    remove(fresh);
    throw error;
  }
}

function writePieces(fd: number, pieces: Iterable<string | Uint8Array>): void {
  let position = 0;
  let gathered: Uint8Array[] = [];
  let byteLength = 0;
  const write = (): void => {
    writeAll(fd, gathered.length === 1 ? gathered[0]! : Buffer.concat(gathered), position);
    position += byteLength;
    gathered = [];
    byteLength = 0;
  };
  for (const piece of pieces) {
    const bytes = typeof piece === 'string' ? Buffer.from(piece) : piece;
    // A view of memory that the caller may use again for the next piece: not kept.
    if (bytes.byteLength >= GATHER_BYTES) {
      if (byteLength > 0) write();
      writeAll(fd, bytes, position);
      position += bytes.byteLength;
      continue;
    }
    gathered.push(typeof piece === 'string' ? bytes : Buffer.from(bytes));
    byteLength += bytes.byteLength;
    if (byteLength >= GATHER_BYTES) write();
  }
  if (byteLength > 0) write();
}

/**
 * Replaces (or makes) the file at `path`. A symbolic link stays, and the file behind it is replaced.
 *
 * On a failure the old file is as it was, and nothing is left beside it. The one exception: where the folder can't be
 * synced the new content is there already, and the message says so.
 *
 * @throws DmError with the errno, `PATH: No space left on device`; and what `pieces` throws
 */
export function replaceFile(path: string, pieces: Iterable<string | Uint8Array>, options: ReplaceOptions = {}): void {
  const { mode, durable = true } = options;
  const place = placeOf(path);
  const fresh = freshName(place);
  let fd: number;
  try {
    fd = openFresh(place, fresh, mode);
  } catch (error) {
    throw fileError(path, error);
  }
  try {
    try {
      writePieces(fd, pieces);
      if (durable) fileCalls.fsync(fd);
    } finally {
      closeSync(fd);
    }
    fileCalls.rename(rawName(fresh), rawName(place));
  } catch (error) {
    remove(fresh);
    // Without an errno it is the caller's own exception, from `pieces`.
    throw (error as { code?: unknown } | null)?.code === undefined ? error : fileError(path, error);
  }
  if (!durable) return;
  try {
    syncFolder(dirname(place));
  } catch (error) {
    throw fileError(path, error, '; the new content is there, but a power failure may take it back');
  }
}
