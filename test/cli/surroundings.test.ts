// What is around a command is not as usual: a working folder or a folder for temporary files that is gone, inputs that
// cannot be read, names that would mean something to a shell. Each gets a sentence, and no stack trace.
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { home, main } from '../support/home.ts';
import { run } from '../support/process.ts';
import { tempDir } from '../support/tmp.ts';

const STACK = /^ {4}at /m;

test('in a working folder that was deleted absolute paths work, and relative ones are refused by name', async () => {
  const { shell, folder } = home();
  const inGone = (command: string) => shell(`mkdir gone && cd gone && rmdir ../gone && ${command}`);
  const image = join(folder, 'a.img');
  for (const [command, output] of [
    ['ls', 'No devices found\n'],
    [`blockdev --getsz ${image}`, '128\n'],
    [`copy ${image} ${folder}/b.img`, expect.stringContaining(`${folder}/b.img: 64`)],
    [`serve x --table "0 128 linear ${image} 0" --run 'nbdinfo --size "$uri"'`, '65536\n'],
    [`create x --table "0 128 linear ${image} 0"`, ''],
    [`snapshot create ${image} v --dry-run`, expect.stringContaining(`${folder}/v.cow`)],
    ['table x', `0 128 linear ${image} 0\n`],
    ['exec -- sh -c "dmsetup ls"', 'x\t(252:0)\n'],
  ] as const) {
    expect([command, await inGone(`$dmkit ${command}`)]).toMatchObject([command, { code: 0, stdout: output }]);
  }
  for (const command of [
    'copy a.img b.img',
    `copy ${image} c.img`,
    'snapshot create a.img w',
    `snapshot create ${image} w --cow w.cow`,
    'create y --table "0 128 linear a.img 0"',
    'serve x --table "0 128 linear a.img 0" --run true',
    'serve x --table-file t --run true',
    'blockdev --getsz a.img',
  ]) {
    const { code, stderr } = await inGone(`$dmkit ${command}`);
    expect([command, code]).toEqual([command, 1]);
    expect(stderr).toMatch(/does not exist|No such file|is missing|the working folder was deleted/);
    expect(stderr).not.toMatch(STACK);
  }
});

test('an input that cannot be read is named', async () => {
  const { shell } = home();
  await shell('$dmkit create x --notable; mkdir dir');
  for (const command of [
    'create y < dir',
    'load x < dir',
    'create y dir',
    'serve y --table-file dir',
    'serve y --table-file - < dir',
    'batch dir',
    'batch < dir',
    'copy a.img b.img --mapfile dir',
    'serve y --table "0 8 zero" --tls-psk dir --run true',
    'serve y --table "0 8 zero" --tls-certificates nosuch --run true',
  ]) {
    const { code, stderr } = await shell(`$dmkit ${command}`);
    expect([command, code]).toEqual([command, 1]);
    expect([command, stderr]).toEqual([command, expect.stringMatching(/dir|nosuch|standard input|table file -|read/)]);
    expect(stderr).not.toMatch(/unexpected/);
    expect(stderr).not.toMatch(STACK);
  }
});

test('an error that is a bug is one line and a hint; its stack comes with DMKIT_DEBUG', async () => {
  const { env, folder } = home();
  // Breaks what no command can do without.
  const preload = join(folder, 'break.mjs');
  writeFileSync(preload, "String.prototype.startsWith = () => { throw new TypeError('on purpose'); };\n");
  const broken = (more: Record<string, string>) =>
    run(process.execPath, ['--import', preload, main, 'copy', 'a.img', 'b.img'], {
      env: { ...env, ...more },
      cwd: folder,
    });
  const short = await broken({});
  expect(short.code).toBe(1);
  expect(short.stderr).toBe(
    'dmkit: unexpected: TypeError: on purpose\n' +
      'This is a fault of dmkit. Please report it, with what the same command prints under DMKIT_DEBUG=1.\n',
  );
  const long = await broken({ DMKIT_DEBUG: '1' });
  expect(long.stderr).toMatch(STACK);
});

test('serve without a folder for its socket says which one is missing', async () => {
  const { shell } = home();
  const { code, stderr } = await shell(
    'unset XDG_RUNTIME_DIR; TMPDIR=$PWD/nosuch $dmkit serve x --table "0 8 zero" --run true',
  );
  if (code === 0) return;
  expect(stderr).toMatch(/nosuch/);
  expect(stderr).not.toMatch(STACK);
});

// The kernel's programs must not be reached by a script that meant dmkit's: they would change devices of the host.
test.each([
  ['has a colon', (folder: string) => join(folder, 'a:b'), true],
  ['is missing', (folder: string) => join(folder, 'nosuch'), false],
  ['is a relative path', () => 'tmp', true],
  ['is a file', (folder: string) => join(folder, 'a.img'), false],
])('exec finds a place for its programs where TMPDIR %s', async (_name, place, makes) => {
  const { folder, env } = home();
  const TMPDIR = place(folder);
  if (makes) mkdirSync(join(folder, TMPDIR.startsWith('/') ? 'a:b' : TMPDIR));
  const script = 'command -v dmsetup; cd /; command -v blockdev; dmsetup version | head -n 1';
  const result = await run(process.execPath, [main, 'exec', '--', 'sh', '-c', script], {
    cwd: folder,
    env: { ...env, TMPDIR },
  });
  expect(result.stderr).toBe('');
  const [dmsetup, blockdev, version] = result.stdout.split('\n');
  expect(dmsetup).toMatch(/^\/[^:]*\/dmkit-exec-\w+\/dmsetup$/);
  expect(blockdev).toBe(dmsetup!.replace(/dmsetup$/, 'blockdev'));
  expect(version).toContain('dmkit');
  expect(existsSync(dmsetup!)).toBe(false);
});

test.runIf(process.getuid?.() === 0)('exec takes no place whose file system runs no programs', async () => {
  const { folder, env } = home();
  const noexec = tempDir('noexec');
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'noexec', 'tmpfs', noexec]);
  if (mounted.code !== 0) return;
  try {
    const { stdout } = await run(process.execPath, [main, 'exec', '--', 'sh', '-c', 'command -v dmsetup'], {
      cwd: folder,
      env: { ...env, TMPDIR: noexec },
    });
    expect(stdout).toMatch(/\/dmkit-exec-\w+\/dmsetup$/m);
    expect(stdout).not.toContain(noexec);
    expect(readdirSync(noexec)).toEqual([]);
  } finally {
    await run('umount', [noexec]);
  }
});

test('exec ends as env does where the program cannot be run', async () => {
  const { call, folder } = home();
  expect(await call(['exec', 'nosuch-program'])).toMatchObject({
    code: 127,
    stderr: 'dmkit: cannot run nosuch-program: No such file or directory\n',
  });
  expect(await call(['exec', join(folder, 'a.img')])).toMatchObject({
    code: 126,
    stderr: `dmkit: cannot run ${folder}/a.img: Permission denied\n`,
  });
});

test('ls --exec gives names to the program as they are, and to no shell', async () => {
  const { call, folder } = home();
  for (const name of ['x;touch pwned', 'y$(touch pwned)', 'z`touch pwned`', 'a b']) {
    expect((await call(['create', '--manglename', 'none', name, '--table', '0 8 zero'])).code).toBe(0);
  }
  const { stdout, code } = await call(['ls', '--manglename', 'none', '--exec', " printf  <%s>\\n 'q"]);
  expect([code, stdout]).toEqual([
    0,
    ["'q", 'a b', "'q", 'x;touch pwned', "'q", 'y$(touch pwned)', "'q", 'z`touch pwned`']
      .map((word) => `<${word === "'q" ? '' : '/dev/mapper/'}${word}>\n`)
      .join(''),
  ]);
  expect(existsSync(join(folder, 'pwned'))).toBe(false);
  expect((await call(['ls', '--manglename', 'none', '--exec', 'nosuch-program'])).stderr).toMatch(
    /^dmkit: cannot run nosuch-program: No such file or directory$/m,
  );
});
