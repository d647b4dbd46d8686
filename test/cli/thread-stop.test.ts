// `dmkit serve` that is to stop while its other threads still start.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { dmkit } from '../support/cli.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

/** In the other threads a native module takes a second to set itself up, as on a busy processor. */
const SLOW = `
const { isMainThread } = require('node:worker_threads');
if (!isMainThread) {
  const load = process.dlopen;
  process.dlopen = (module, file, ...rest) => {
    for (const until = Date.now() + 1000; Date.now() < until; ) load.call(process, { exports: {} }, file, ...rest);
    return load.call(process, module, file, ...rest);
  };
}`;

test.each([0.2, 0.5, 0.8])('ends with the exit code of its command: after %f seconds', async (seconds) => {
  const folder = tempDir('stop');
  makeImage(join(folder, 'a.img'), 64);
  writeFileSync(join(folder, 'slow.cjs'), SLOW);
  const args = ['serve', 'x', '--threads', '3', '--table', `0 64 linear ${folder}/a.img 0`];
  const env = { NODE_OPTIONS: `--require ${folder}/slow.cjs` };
  const result = await dmkit([...args, '--run', `sleep ${seconds}; exit 3`], { env });
  expect(result).toMatchObject({ code: 3, stderr: '' });
});
