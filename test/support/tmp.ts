// Folders and images for tests: under the system's temporary folder, or DMKIT_TEST_DIR (another file system), and gone
// after the test.
import { createHash } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, onTestFinished, TestRunner } from 'vitest';

const SECTOR_BYTES = 512;
const keptForFile = new Set<string>();

function remove(path: string): void {
  rmSync(path, { recursive: true, force: true, maxRetries: 3 });
}

// vitest ends its forks by a signal: a process's own `exit` would not come. As a setup file this comes first, and so its
// hook comes last.
afterAll(() => {
  for (const path of keptForFile) remove(path);
});

/** A new folder, removed when the test ends; made outside a test (in a hook), when the test file ends. */
export function tempDir(prefix = 'test'): string {
  const path = mkdtempSync(join(process.env.DMKIT_TEST_DIR ?? tmpdir(), `dmkit-${prefix}-`));
  if (TestRunner.getCurrentTest() === undefined) keptForFile.add(path);
  else onTestFinished(() => remove(path));
  return path;
}

/** Pseudo-random bytes: the same `seed` gives the same, and equal stretches are as rare as in noise. */
export function randomBytes(byteLength: number, seed: number): Buffer {
  const words = new Uint32Array(Math.ceil(byteLength / 4));
  // xorshift must not start at 0, and neighbouring seeds should not start alike.
  let x = Math.imul(seed ^ 0x9e3779b9, 0x85ebca6b) | 0 || 1;
  for (let i = 0; i < words.length; i += 1) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return Buffer.from(words.buffer, 0, byteLength);
}

/** Writes an image of `sectorCount` sectors of pseudo-random content and returns that content. */
export function makeImage(path: string, sectorCount: number, seed = 1): Buffer {
  const content = randomBytes(sectorCount * SECTOR_BYTES, seed);
  writeFileSync(path, content);
  return content;
}

/** The SHA-256 of a file, in hex; the file may be larger than memory. */
export function sha256(path: string): string {
  const hash = createHash('sha256');
  const chunk = Buffer.allocUnsafe(1 << 20);
  const fd = openSync(path, 'r');
  try {
    for (let got = readSync(fd, chunk); got > 0; got = readSync(fd, chunk)) hash.update(chunk.subarray(0, got));
  } finally {
    closeSync(fd);
  }
  return hash.digest('hex');
}
