// Builds dist/ before the tests where it is not that of src/ as it is: the tests that start the command would pass or fail
// for old code without a word.
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { TestProject } from 'vitest/node';
// @ts-expect-error a script without types
import { isFresh } from '../../scripts/sources.mjs';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** @throws Error where the build fails: no test runs then */
function bringUpToDate(): void {
  if (isFresh(root)) return;
  process.stderr.write('dist/ is not that of src/ as it is: building\n');
  const build = join(root, 'scripts', 'build.mjs');
  // Another run that builds at this moment does it for both.
  const { status } = spawnSync(process.execPath, [build, '--if-stale'], { stdio: 'inherit' });
  if (status !== 0) {
    throw new Error(
      'dist/ is older than src/, which does not compile: the tests would run old code. Mend it: npm run build',
    );
  }
}

export default function setup(project: TestProject): void {
  bringUpToDate();
  project.onTestsRerun(async () => bringUpToDate());
}
