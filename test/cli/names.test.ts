// One name, every command: the name that `create` takes is taken by all commands, bare, as /dev/mapper/NAME and as dm:NAME.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { mangled, unmangled } from '../../src/block/mangling.ts';
import { type Home, home as homeOf } from '../support/home.ts';
import { dmkitHere } from '../support/in-process.ts';
import { run } from '../support/process.ts';
import { randomBytes } from '../support/tmp.ts';

const home = (): Home => homeOf(dmkitHere);

/** Everything at once: blanks, what URIs and shells take for themselves, letters of two and of four bytes. */
const ODD_NAME = `my 100% "disk" & it's?c=d;~ ü😀`;
const NAMES = ['plain', ODD_NAME];

test('mangling comes back to the same name', () => {
  for (const name of NAMES) expect(unmangled(mangled(name))).toBe(name);
  expect(unmangled('é\\x20😀')).toBe('é 😀');
});

test.each(NAMES)('the commands for devices take the name %j in each spelling', async (name) => {
  const { call, folder } = home();
  const ok = async (args: string[], input?: Uint8Array) => {
    const result = await call(args, input);
    expect([args, result.code, result.stderr]).toEqual([args, 0, '']);
    return result;
  };
  await ok(['create', name, '--table', '0 128 linear a.img 0']);
  const content = readFileSync(join(folder, 'a.img'));
  for (const [index, word] of [name, `/dev/mapper/${name}`, `dm:${name}`].entries()) {
    const uri = (await ok(['uri', word])).stdout.trim();
    expect((await run('nbdinfo', ['--size', uri])).stdout).toBe('65536\n');
    const data = randomBytes(512, index + 9);
    await ok(['write', word, '--sector', String(index)], data);
    data.copy(content, index * 512);
    expect((await ok(['read', word, '--count', '128'])).stdoutBytes.equals(content)).toBe(true);
    expect((await ok(['refresh', word])).stdout).toBe('every size is as it was\n');
    expect((await ok(['table', word])).stdout).toBe(`0 128 linear ${folder}/a.img 0\n`);
    if (word === name) continue;
    expect((await ok(['blockdev', '--getsz', word])).stdout).toBe('128\n');
    const escaped = word.replace(/[\s#\\]/g, '\\$&');
    await ok(['create', 'top', '--table', `0 64 linear ${escaped} 64`]);
    expect((await ok(['read', 'top'])).stdoutBytes.equals(content.subarray(64 * 512))).toBe(true);
    await ok(['remove', 'top']);
  }
  await ok(['copy', `/dev/mapper/${name}`, 'out.img']);
  expect(readFileSync(join(folder, 'out.img')).equals(content)).toBe(true);
  // As a disk of its own client, by the percent-encoded export name.
  const uri = (await ok(['uri', name])).stdout.trim();
  await ok(['create', 'again', '--table', `0 128 linear ${uri} 0`]);
  expect((await ok(['read', 'again'])).stdoutBytes.equals(content)).toBe(true);
  await ok(['remove', 'again']);
  await ok(['remove', name]);
});

test.each([ODD_NAME])('serve takes the name %j, and its URI leads there', async (name) => {
  const { call } = home();
  const { stdout } = await call(['serve', name, '--table', '0 128 linear a.img 0', '--run', 'nbdinfo --size "$uri"']);
  expect(stdout).toBe('65536\n');
});

test.each([ODD_NAME])('overlays named %j are made, listed, compared, merged and dropped', async (name) => {
  const { call, folder } = home();
  const ok = async (args: string[], input?: Uint8Array) => {
    const result = await call(args, input);
    expect([args, result.code]).toEqual([args, 0]);
    return result;
  };
  await ok(['snapshot', 'create', 'a.img', name, '--cow', 'x.cow']);
  expect((await ok(['snapshot', 'list'])).stdout).toContain(`\n${name} `);
  expect((await ok(['ls'])).stdout).toBe(`${name}\t(252:0)\n`);
  await ok(['write', `dm:${name}`], Buffer.alloc(512, 7));
  expect((await ok(['snapshot', 'diff', `/dev/mapper/${name}`])).stdout).toMatch(/^0 32$/m);
  expect((await ok(['snapshot', 'merge', `dm:${name}`])).stdout).toContain(`${name}: merged`);
  expect(readFileSync(join(folder, 'a.img')).subarray(0, 512).equals(Buffer.alloc(512, 7))).toBe(true);
  // An origin by name, and a second overlay of it.
  await ok(['create', name, '--table', '0 128 linear a.img 0']);
  for (const [index, origin] of [name, `/dev/mapper/${name}`, `dm:${name}`].entries()) {
    await ok(['snapshot', 'create', origin, `${name}${index}`, '--cow', `${index}.cow`]);
  }
  await ok(['snapshot', 'drop', `${name}0`, `/dev/mapper/${name}1`, `dm:${name}2`]);
  expect((await ok(['ls'])).stdout).toBe(`${name}\t(252:0)\n`);
});

test('lost devices are restored, adopted and forgotten by the names that create took', async () => {
  const { call, daemonPid, shell } = home();
  for (const name of ['my disk', '100%', 'third&']) await call(['create', name, '--table', '0 8 linear a.img 0']);
  const pid = await daemonPid();
  // A command in this process is quick enough to meet a daemon that still dies.
  await shell(`kill -9 ${pid}; while kill -0 ${pid}; do sleep 0.05; done`);
  expect((await call(['lost'])).stdout).toMatch(/^my disk: 0 8 linear/m);
  expect(await call(['restore', 'my disk'])).toMatchObject({ code: 0, stdout: 'my disk\n' });
  expect((await call(['adopt', '/dev/mapper/third&'])).code).toBe(0);
  expect((await call(['forget', 'dm:100%'])).code).toBe(0);
  expect((await call(['forget', 'third&'])).code).toBe(0);
  expect((await call(['lost'])).stdout).toBe('No lost devices\n');
});

test('a name as it is kept wins over the same name mangled', async () => {
  const { call } = home();
  await call(['create', 'a b', '--table', '0 8 linear a.img 0']);
  await call(['create', '--manglename', 'none', 'a b', '--table', '0 16 linear a.img 0']);
  expect((await call(['read', 'a b'])).stdoutBytes).toHaveLength(8192);
  expect((await call(['read', 'a\\x20b'])).stdoutBytes).toHaveLength(4096);
});

test('a missing device is named as it was given, and serve says how to reach a daemon’s device', async () => {
  const { call } = home();
  await call(['create', 'bad', '--table', '0 128 linear a.img 0']);
  for (const word of ['uri', 'read', 'write', 'refresh']) {
    expect((await call([word, '/dev/mapper/not there'], word === 'write' ? '' : undefined)).stderr).toBe(
      'dmkit: no mapped device is named not there\n',
    );
  }
  const { stderr, code } = await call(['serve', 'x', '--table', '0 128 linear /dev/mapper/bad 0', '--run', 'true']);
  expect(code).toBe(1);
  expect(stderr).toContain("A daemon's device has an NBD URI, which a table takes in its place: dmkit uri 'bad'\n");
});
