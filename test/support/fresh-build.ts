// Builds dist/ before the tests where it is missing or older than src/: the tests that start the command would pass or
// fail for old code without a word.
import { spawnSync } from 'node:child_process';
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** When the newest file or folder of a tree changed; a folder tells of files that were removed. */
function newestChange(path: string): number {
  const entry = statSync(path, { throwIfNoEntry: false });
  if (entry === undefined) return 0;
  if (!entry.isDirectory()) return entry.mtimeMs;
  return Math.max(entry.mtimeMs, ...readdirSync(path).map((name) => newestChange(join(path, name))));
}

/**
 * Whether `built`, a file that every build makes anew, is missing or older than a source.
 *
 * @param sources files and folders
 */
export function isStale(built: string, sources: readonly string[]): boolean {
  return sources.some((source) => newestChange(source) >= newestChange(built));
}

export default function setup(): void {
  // A build writes every file, so one stands for all.
  const main = join(root, 'dist', 'cli', 'main.js');
  const sources = ['src', 'package.json', 'tsconfig.json', 'tsconfig.build.json'].map((name) => join(root, name));
  if (!isStale(main, sources)) return;
  const { status } = spawnSync(process.execPath, [join(root, 'scripts', 'build.mjs')], { stdio: 'inherit' });
  if (status !== 0) throw new Error('dist/ is older than src/ and could not be built: npm run build');
}
