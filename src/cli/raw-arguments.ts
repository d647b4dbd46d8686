// Arguments that are not UTF-8, such as names of files from an old archive. Node.js replaces their bytes before a program
// sees them; the kernel has them still.
import { readFileSync } from 'node:fs';
import { decodeName, REPLACEMENT } from '../block/file-name.ts';

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

/** Puts into `argv`, which is process.argv, what Node.js has lost: each argument keeps its bytes (block/file-name.ts). */
export function restoreLostBytes(argv: string[]): void {
  if (!argv.some((word) => word.includes(REPLACEMENT))) return;
  let raw: Buffer[];
  try {
    raw = rawArguments();
  } catch {
    // No /proc: what the name leads to is told as missing.
    return;
  }
  // Node.js's own options stand before the program, and only there.
  for (let fromEnd = 1; fromEnd <= Math.min(argv.length, raw.length); fromEnd++) {
    const bytes = raw[raw.length - fromEnd]!;
    const index = argv.length - fromEnd;
    if (argv[index]!.includes(REPLACEMENT) && bytes.toString() === argv[index]) argv[index] = decodeName(bytes);
  }
}
