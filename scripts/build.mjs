// Builds dist/ from src/. The compiler writes into a folder beside dist/ that takes its place only when everything
// compiled, so a failed build leaves the last good one and a process that starts meanwhile never meets half a build.
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const dist = join(root, 'dist');
const fresh = join(root, `dist-new-${process.pid}`);
const old = join(root, `dist-old-${process.pid}`);

function compile() {
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
  const args = [tsc, '-p', join(root, 'tsconfig.build.json'), '--outDir', fresh];
  return spawnSync(process.execPath, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] }).status ?? 1;
}

function makeBinExecutable() {
  const bin = join(fresh, 'cli', 'main.js');
  if (existsSync(bin)) chmodSync(bin, 0o755);
}

function swap() {
  if (existsSync(dist)) renameSync(dist, old);
  renameSync(fresh, dist);
  rmSync(old, { recursive: true, force: true });
}

const status = compile();
if (status === 0) {
  makeBinExecutable();
  swap();
} else {
  rmSync(fresh, { recursive: true, force: true });
}
process.exitCode = status;
