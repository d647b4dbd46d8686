// Act: a device that outlives the command that made it.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { check, IMAGE_SECTOR_COUNT, label, readLabel, type Stage, say, title } from './stage.ts';

const main = fileURLToPath(new URL('../cli/main.js', import.meta.url));

/** Runs one dmkit command in a process of its own, and says which. */
function dmkit(folder: string, args: readonly string[]): Buffer {
  say(`$ dmkit ${args.map((word) => (word.includes(' ') ? `'${word}'` : word)).join(' ')}`);
  const result = spawnSync(process.execPath, [main, ...args], {
    env: { ...process.env, DMKIT_DIR: folder },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (result.status !== 0) throw new Error(`dmkit ${args[0]} failed with ${result.status}`);
  return result.stdout;
}

export async function keep(stage: Stage): Promise<void> {
  title('5. A device stays between two commands, as in the kernel');
  const image = stage.makeImage('kept.img');
  // A daemon of the demo's own: nobody's devices are touched.
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-demo-'));
  try {
    dmkit(folder, ['create', 'kept', '--table', `0 ${IMAGE_SECTOR_COUNT - 8} linear ${image} 8`]);
    const sector = dmkit(folder, ['read', 'kept', '--sector', '2', '--count', '1']);
    check(readLabel(sector) === label('kept.img', 10), `the second command reads "${readLabel(sector).trim()}"`);
    dmkit(folder, ['shutdown']);
  } finally {
    spawnSync(process.execPath, [main, 'shutdown', '--force'], { env: { ...process.env, DMKIT_DIR: folder } });
    rmSync(folder, { recursive: true, force: true });
  }
}
