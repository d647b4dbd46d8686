// dmkit's own command, in a process and on a daemon of the demo's own: nobody's devices are touched.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { say } from './stage.ts';

const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));

/** Runs one command in a process of its own, and says which. @returns its standard output */
export type RunDmkit = (args: readonly string[]) => Buffer;

/** Gives `work` a daemon's folder and a way to run commands on it; both are gone afterwards. */
export async function withDaemon(work: (dmkit: RunDmkit, folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-demo-'));
  const env = { ...process.env, DMKIT_DIR: folder };
  const dmkit: RunDmkit = (args) => {
    say(`$ dmkit ${args.map((word) => (word.includes(' ') ? `'${word}'` : word)).join(' ')}`);
    const result = spawnSync(process.execPath, [main, ...args], { env, stdio: ['ignore', 'pipe', 'inherit'] });
    if (result.status !== 0) throw new Error(`dmkit ${args[0]} failed with ${result.status}`);
    return result.stdout;
  };
  try {
    await work(dmkit, folder);
  } finally {
    spawnSync(process.execPath, [main, 'shutdown', '--force'], { env });
    rmSync(folder, { recursive: true, force: true });
  }
}
