// Folders among the temporary files that killed commands leave: the next command removes them, and never one that is in use.
import { chmodSync, existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { makeTemporaryFolder } from '../../src/cli/temporary-folder.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import { dmkit, serve } from '../support/cli.ts';
import { main } from '../support/home.ts';
import { start } from '../support/process.ts';
import { tempDir } from '../support/tmp.ts';

const hasLocks = loadLibc().libc !== null;

/** Names that look like leftovers and are none: in the making, another user's mode, a link, another name. */
function makeOthers(parent: string, prefix: string): string[] {
  const names = [`${prefix}making`, `${prefix}opened`, `${prefix}linked`, `${prefix}toolong`, 'other-abcdef', 'real'];
  for (const name of names.filter((one) => !one.endsWith('linked'))) mkdirSync(join(parent, name), { mode: 0o700 });
  chmodSync(join(parent, `${prefix}opened`), 0o755);
  for (const name of [`${prefix}opened`, `${prefix}toolong`, 'other-abcdef', 'real']) {
    writeFileSync(join(parent, name, 'lock'), '');
  }
  symlinkSync(join(parent, 'real'), join(parent, `${prefix}linked`));
  return names;
}

test('only a folder whose lock is free is removed', () => {
  const parent = tempDir('left');
  const others = makeOthers(parent, 'p-');
  mkdirSync(join(parent, 'p-killed'), { mode: 0o700 });
  writeFileSync(join(parent, 'p-killed', 'lock'), '');
  mkdirSync(join(parent, 'p-killed', 'deep'));
  const one = makeTemporaryFolder(parent, 'p-');
  const two = makeTemporaryFolder(parent, 'p-');
  onTestFinished(() => {
    one.remove();
    two.remove();
  });
  expect(existsSync(one.path)).toBe(true);
  expect(existsSync(join(parent, 'p-killed'))).toBe(!hasLocks);
  expect(readdirSync(parent)).toEqual(expect.arrayContaining(others));
});

test('the socket of a killed serve goes with the next one, which leaves a living one alone', async () => {
  const parent = tempDir('left');
  const env = { TMPDIR: parent, XDG_RUNTIME_DIR: '' };
  const living = await serve(['d', '--table', '0 8 zero'], { env });
  const killed = await serve(['d', '--table', '0 8 zero'], { env });
  expect(readdirSync(parent)).toHaveLength(2);
  process.kill(killed.pid, 'SIGKILL');
  await killed.exited;
  expect(readdirSync(parent)).toHaveLength(2);
  expect((await dmkit(['serve', 'd', '--table', '0 8 zero', '--run', 'true'], { env })).code).toBe(0);
  const [left, ...more] = readdirSync(parent);
  expect(more).toEqual([]);
  expect(living.uris[0]).toContain(`/${left}/`);
});

test('the programs of a killed exec stay while its command runs, and go after it', async () => {
  const parent = tempDir('left');
  const env = { TMPDIR: parent, XDG_RUNTIME_DIR: '', DMKIT_DIR: join(tempDir('left'), 'd') };
  const script = 'echo $$ ready; command -v dmsetup; while [ -e "$0" ]; do sleep 0.05; done';
  const flag = join(tempDir('left'), 'flag');
  writeFileSync(flag, '');
  const command = await start(process.execPath, [main, 'exec', '--', 'sh', '-c', script, flag], {
    env,
    ready: /^(\d+) ready\n(\/\S+)\/dmsetup\n/m,
  });
  const [, pid, folder] = command.match!;
  process.kill(command.pid, 'SIGKILL');
  const other = () => dmkit(['exec', '--', 'true'], { env });
  expect((await other()).code).toBe(0);
  expect(existsSync(join(folder!, 'dmsetup'))).toBe(true);
  process.kill(Number(pid), 'SIGKILL');
  await command.stop();
  expect((await other()).code).toBe(0);
  expect(readdirSync(parent)).toEqual([]);
});
