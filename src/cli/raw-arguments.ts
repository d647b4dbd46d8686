// Arguments that are not UTF-8, such as names of files from an old archive. Node.js replaces their bytes before a program
// sees them, so that a path would lead to nothing, or a copy would make a file of another name.
import { isUtf8 } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

const REPLACEMENT = '\uFFFD';

/** As the kernel has them; the first are Node.js's own. */
function rawArguments(): Buffer[] {
  const all: Buffer[] = [];
  const bytes = readFileSync('/proc/self/cmdline');
  for (let at = 0; at < bytes.byteLength; ) {
    const end = bytes.indexOf(0, at);
    all.push(bytes.subarray(at, end < 0 ? bytes.byteLength : end));
    at = end < 0 ? bytes.byteLength : end + 1;
  }
  return all;
}

/** Bytes beyond ASCII as \xNN, as printf of a shell takes them. */
function escaped(bytes: Buffer): string {
  return bytes
    .toString('latin1')
    .replace(/[^ -~]/g, (byte) => `\\x${byte.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

/** @throws DmError EINVAL for an argument whose bytes were lost */
export function refuseLostBytes(argv: readonly string[]): void {
  if (!argv.some((word) => word.includes(REPLACEMENT))) return;
  const lost = rawArguments().find((bytes) => !isUtf8(bytes));
  if (lost === undefined) return;
  throw new DmError(
    Errno.EINVAL,
    `the argument ${escaped(lost)} is not UTF-8, and Node.js loses such bytes; make a link to the file that has a name in UTF-8 (ln -s FILE LINK), and give that`,
  );
}
