// A Unix socket file that nobody else can open at any time, and that takes the place of a dead one only.
//
// bind(2) makes the file with the umask's mode, and between bind and chmod another user could connect. So the socket is
// bound inside a folder of mode 0700 beside its place, gets its mode there, and is then linked to its place: link(2)
// fails when something is there, so nothing is ever overwritten.
import { chmodSync, linkSync, lstatSync, mkdtempSync, renameSync, rmSync, type Stats, unlinkSync } from 'node:fs';
import { connect, type Server } from 'node:net';
import { dirname, join, resolve } from 'node:path';
import { isOddName } from '../block/file-name.ts';

/** Bytes that fit into sun_path, without the NUL: 107 on Linux, 103 on the BSDs and macOS. */
const MAX_SOCKET_PATH_BYTE_LENGTH = process.platform === 'linux' ? 107 : 103;
const FOLDER_PREFIX = '.d-';
/** What the folder's name adds to the path: the prefix, six random characters, and `/s`. */
const FOLDER_OVERHEAD = FOLDER_PREFIX.length + 8 + 1;

/** The file of a listening socket. */
export interface UnixSocketFile {
  readonly path: string;
  /** Removes it, unless another file has taken its place. */
  remove(): void;
}

type Done = (error: Error | null, file: UnixSocketFile | null) => void;

function codedError(code: string, message: string): Error {
  return Object.assign(new Error(message), { code });
}

function lstatOrNull(path: string): Stats | null {
  try {
    return lstatSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}

function isSameFile(a: Stats | null, b: Stats | null): boolean {
  return a !== null && b !== null && a.ino === b.ino && a.dev === b.dev;
}

class SocketFile implements UnixSocketFile {
  readonly path: string;
  readonly #stats: Stats;

  constructor(path: string) {
    this.path = path;
    this.#stats = lstatSync(path);
  }

  remove(): void {
    try {
      if (isSameFile(lstatOrNull(this.path), this.#stats)) unlinkSync(this.path);
    } catch {
      // The folder went away: so did the socket.
    }
  }
}

/**
 * Makes `server` listen at `path` with exactly `mode`.
 *
 * Errors, in `code`: EADDRINUSE when a server answers there or something other than a socket is there, ENAMETOOLONG,
 * and what the system says about the folder (ENOENT, EACCES …).
 */
export function bindUnixSocket(server: Server, path: string, mode: number, done: Done): void {
  if (path.includes('\0')) {
    done(codedError('EINVAL', 'an abstract socket has no permissions: give a path'), null);
    return;
  }
  if (isOddName(path)) {
    done(codedError('EILSEQ', 'the path of a socket must be UTF-8: name another, or a link to its folder'), null);
    return;
  }
  const place = resolve(path);
  const longest = Math.max(Buffer.byteLength(place), Buffer.byteLength(dirname(place)) + FOLDER_OVERHEAD);
  if (longest > MAX_SOCKET_PATH_BYTE_LENGTH) {
    const text = `the path of a Unix socket has at most ${MAX_SOCKET_PATH_BYTE_LENGTH} bytes, and ${FOLDER_OVERHEAD} of them are needed after its folder: ${place}`;
    done(codedError('ENAMETOOLONG', text), null);
    return;
  }
  bindInFolder(server, place, mode, done);
}

/** Why no socket can be made in `folder`, without the temporary name that was tried there. */
function folderError(error: NodeJS.ErrnoException, folder: string): Error {
  switch (error.code) {
    case 'ENOENT':
      return codedError('ENOENT', `the folder ${folder} does not exist`);
    case 'ENOTDIR':
      return codedError('ENOTDIR', `${folder} is not a folder`);
    case 'EACCES':
    case 'EPERM':
    case 'EROFS':
      return codedError(error.code, `no file can be made in the folder ${folder} (${error.code})`);
    default:
      return error;
  }
}

function bindInFolder(server: Server, place: string, mode: number, done: Done): void {
  let folder: string;
  try {
    folder = mkdtempSync(join(dirname(place), FOLDER_PREFIX)); // mode 0700
  } catch (error) {
    done(folderError(error as NodeJS.ErrnoException, dirname(place)), null);
    return;
  }
  const finish: Done = (error, file) => {
    rmSync(folder, { recursive: true, force: true });
    if (error !== null) server.close();
    done(error, file);
  };
  const inside = join(folder, 's');
  const fail = (error: Error): void => finish(error, null);
  server.once('error', fail);
  server.listen({ path: inside }, () => {
    server.removeListener('error', fail);
    attempt(fail, () => {
      chmodSync(inside, mode);
      linkToPlace(inside, place, folder, finish);
    });
  });
}

function attempt(fail: (error: Error) => void, work: () => void): void {
  try {
    work();
  } catch (error) {
    fail(error as Error);
  }
}

function linkToPlace(inside: string, place: string, folder: string, finish: Done): void {
  const found = lstatOrNull(place);
  if (found === null) {
    linkSync(inside, place);
    finish(null, new SocketFile(place));
  } else if (!found.isSocket()) {
    finish(codedError('EADDRINUSE', 'a file is there that is not a socket'), null);
  } else {
    replaceDeadSocket(inside, place, folder, found, finish);
  }
}

/** Asks whether anybody answers at `place`; only a refused connection proves that nobody does. */
function replaceDeadSocket(inside: string, place: string, folder: string, found: Stats, finish: Done): void {
  const probe = connect({ path: place });
  const fail = (error: Error): void => finish(error, null);
  probe.once('connect', () => {
    probe.destroy();
    finish(codedError('EADDRINUSE', 'another server is listening there'), null);
  });
  probe.once('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'ECONNREFUSED' && error.code !== 'ENOENT') fail(error);
    else attempt(fail, () => takePlace(inside, place, folder, found, finish));
  });
}

/** Moves the dead socket away, looks whether it was that one (and not a new server's), and links ours. */
function takePlace(inside: string, place: string, folder: string, dead: Stats, finish: Done): void {
  const away = join(folder, 'dead');
  if (lstatOrNull(place) !== null) renameSync(place, away);
  const moved = lstatOrNull(away);
  if (moved !== null && !isSameFile(moved, dead)) {
    linkSync(away, place);
    finish(codedError('EADDRINUSE', 'another server has just begun to listen there'), null);
    return;
  }
  linkSync(inside, place);
  finish(null, new SocketFile(place));
}
