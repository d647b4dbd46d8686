// The files that are read and written: one for each contestant and folder, equal in size and content, because a server
// may lock its own and a copy-on-write file system may treat a shared one differently after the first writer.
import { createHash } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const folders = new Map();

process.on('exit', () => {
  for (const folder of folders.values()) rmSync(folder, { recursive: true, force: true });
});

/** A folder of this run below `parent`; it goes when the run ends. */
export function scratchIn(parent) {
  if (!folders.has(parent)) folders.set(parent, mkdtempSync(join(parent, '.dmkit-bench-')));
  return folders.get(parent);
}

function pieceOfNoise(index) {
  const seed = createHash('sha512').update(String(index)).digest();
  const piece = Buffer.alloc(1 << 20);
  for (let at = 0; at < piece.length; at += seed.length) seed.copy(piece, at);
  return piece;
}

const made = new Map();

/** The image of `owner` below `parent`, written out once, so that no block of it is a hole. */
export function imageFor(parent, owner, byteLength) {
  const path = join(scratchIn(parent), `${owner.replace(/[^a-z0-9]+/gi, '-')}.img`);
  if (made.get(path) === byteLength) return path;
  const fd = openSync(path, 'w');
  for (let at = 0; at < byteLength; at += 1 << 20) writeSync(fd, pieceOfNoise(at), 0, undefined, at);
  closeSync(fd);
  made.set(path, byteLength);
  return path;
}

/** Reads a file once, so that the first contestant does not pay for a cold cache. */
export function warm(path) {
  const fd = openSync(path, 'r');
  const chunk = Buffer.allocUnsafe(1 << 20);
  while (readSync(fd, chunk) > 0);
  closeSync(fd);
}

/** Gives the room of a large image back before the run ends. */
export function forgetImage(path) {
  if (path === undefined) return;
  made.delete(path);
  rmSync(path, { force: true });
}
