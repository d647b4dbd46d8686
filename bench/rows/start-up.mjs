// What it costs to start the command: a listing without a daemon, against Node.js that does nothing.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { run } from '../process.mjs';
import { dmkitMissing } from './in-process.mjs';

const cli = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const RUN_SECONDS = 20;

function starting(name, args, available, { seconds }) {
  let folder;
  return {
    name,
    available,
    start() {
      folder = mkdtempSync(join(tmpdir(), 'dmkit-bench-'));
      process.env.DMKIT_DIR = join(folder, 'none');
    },
    async measure() {
      let count = 0;
      const start = performance.now();
      do {
        await run(process.execPath, args, RUN_SECONDS);
        count += 1;
      } while (performance.now() - start < seconds * 1000);
      return count / ((performance.now() - start) / 1000);
    },
    stop() {
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

export function startUpRows(_folders, options) {
  return [
    {
      name: 'start-up',
      what: 'whole processes a second',
      fileSystem: 'none',
      contestants: [
        starting('dmkit ls', [cli, 'ls'], dmkitMissing, options),
        starting('node -e 0', ['-e', '0'], () => undefined, options),
      ],
    },
  ];
}
