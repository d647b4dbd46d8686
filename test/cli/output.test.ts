// Standard output that is full, or whose reader has gone: exit codes tell of the work, and nothing prints a stack trace.
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { home, main } from '../support/home.ts';
import { run, start } from '../support/process.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

const FULL = 'dmkit: standard output: No space left on device\n';
const DEVICE = '--table "0 128 linear a.img 0"';

describe('standard output is full', () => {
  test('every command that prints says so in one line and ends with 1', async () => {
    const { shell } = home();
    expect((await shell(`$dmkit create x ${DEVICE} && $dmkit snapshot create a.img v`)).code).toBe(0);
    const words = [
      ...['ls', 'ls --tree', 'ls --json', 'table', 'status', 'info', 'info -c', 'deps', 'targets', 'version'],
      ...['splitname a', 'uri x', 'read x', 'snapshot list', 'snapshot list --json', 'snapshot diff v', 'logs'],
      ...['help', '--help', '--version', 'serve --help', 'blockdev --getsz a.img', 'refresh x', 'lost', 'lost --json'],
    ];
    const said = await Promise.all(words.map((word) => shell(`$dmkit ${word} > /dev/full`)));
    expect(said.map(({ code, stderr }, index) => [words[index], code, stderr])).toEqual(
      words.map((word) => [word, 1, FULL]),
    );
  });

  test('a command that changes something has done so', async () => {
    const { shell } = home();
    expect(await shell('$dmkit snapshot create a.img v > /dev/full')).toMatchObject({ code: 1, stderr: FULL });
    expect((await shell('$dmkit snapshot list')).stdout).toMatch(/^v /m);
  });

  test('a copy goes on to its end', async () => {
    const { shell, folder } = home();
    expect(await shell('$dmkit copy a.img b.img --json > /dev/full')).toMatchObject({ code: 1, stderr: FULL });
    expect(readFileSync(join(folder, 'b.img')).equals(readFileSync(join(folder, 'a.img')))).toBe(true);
  });

  test('a server that no client can find ends; one with an address of its own serves', async () => {
    const { shell } = home();
    const lost = await shell(`$dmkit serve x ${DEVICE} > /dev/full`);
    expect([lost.code, lost.stderr.replace(FULL, '')]).toEqual([
      1,
      'dmkit: the URIs of these devices could not be printed, and no client can find them; --nbd names an address\n',
    ]);
    const found = await shell(
      `$dmkit serve x ${DEVICE} --nbd unix:$PWD/s > /dev/full & while ! [ -S s ]; do sleep 0.1; done; ` +
        'nbdinfo --size "nbd+unix:///x?socket=$PWD/s"; kill $!; wait $!',
    );
    expect(found.stdout).toBe('65536\n');
  });

  test.runIf(process.getuid?.() === 0)('a file that takes a part of the bytes is no success', async () => {
    const folder = tempDir('small');
    const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]);
    if (mounted.code !== 0) return;
    try {
      const { shell } = home();
      await shell('$dmkit create x --table "0 8192 zero"');
      // One write of 1 MiB, of which 64 KiB find room: the kernel reports the bytes, and no error before the next write.
      expect(await shell(`$dmkit read x --count 1024 > ${folder}/out`)).toMatchObject({ code: 1, stderr: FULL });
      expect(statSync(join(folder, 'out')).size).toBe(65536);
    } finally {
      await run('umount', [folder]);
    }
  });
});

describe('the reader of standard output has gone', () => {
  const codeOf = (command: string): string => `bash -c '{ ${command}; echo $? >&2; } | sleep 0'`;

  test('a listing ends quietly', async () => {
    const { shell } = home();
    await shell('$dmkit create x --table "0 204800 zero"; for i in 1 2 3; do $dmkit create y$i --notable; done');
    for (const word of ['ls', 'table --json', 'help', 'read x', 'logs']) {
      // Gone before the command starts, so that every write of it fails.
      const { stderr } = await shell(`bash -c '{ sleep 0.3; $dmkit ${word}; echo $? >&2; } | true'`);
      expect([word, stderr]).toEqual([word, '0\n']);
    }
  });

  test('a command that fails tells so by its exit code', async () => {
    const { shell, folder } = home();
    makeImage(join(folder, 'big.img'), 8192);
    await shell('truncate -s 1M tiny.img; $dmkit create bad --table "0 4096 zero\n4096 4096 error"');
    const { stderr } = await shell(
      `bash -c '{ sleep 0.3; $dmkit copy /dev/mapper/bad out.img --json 2>/dev/null; echo $? >&2; } | true'`,
    );
    expect(stderr).toBe('1\n');
    const lines = await shell(codeOf('sleep 0.3; $dmkit read nosuch 2>/dev/null'));
    expect(lines.stderr).toBe('1\n');
  });

  test('copies and merges go on, also where standard error has gone', async () => {
    const { shell, folder } = home();
    makeImage(join(folder, 'big.img'), 65536);
    const copied = await shell(
      "bash -c '{ $dmkit copy big.img out.img --json --rate 20M; echo $? >code; } 2>&1 | head -n 1'; cat code",
    );
    expect(copied.stdout.split('\n').at(-2)).toBe('0');
    expect(readFileSync(join(folder, 'out.img')).equals(readFileSync(join(folder, 'big.img')))).toBe(true);
    await shell('$dmkit snapshot create a.img v; head -c 4096 /dev/zero | $dmkit write v');
    const merged = await shell(
      "bash -c '{ sleep 0.3; $dmkit snapshot merge v --json; echo $? >code; } 2>&1 | true'; cat code",
    );
    expect(merged.stdout).toBe('0\n');
    expect(readFileSync(join(folder, 'a.img')).subarray(0, 4096).equals(Buffer.alloc(4096))).toBe(true);
  });

  test('a server with an address of its own serves, one without ends with 1', async () => {
    const { shell, folder } = home();
    const lost = await shell(`bash -c '{ sleep 0.3; $dmkit serve x ${DEVICE}; echo $? >&2; } | true'`);
    expect(lost.stderr).toMatch(/could not be printed.*\n1\n$/s);
    const piped = `{ sleep 0.3; exec ${process.execPath} ${main} serve x ${DEVICE} --nbd unix:${folder}/s; } | true`;
    const serving = await start('bash', ['-c', `${piped}; echo ended`], { cwd: folder });
    const found = await shell(
      'while ! [ -S s ]; do sleep 0.1; done; sleep 0.3; nbdinfo --size "nbd+unix:///x?socket=$PWD/s"',
    );
    await serving.stop();
    expect(found.stdout).toBe('65536\n');
    expect(serving.output()).not.toContain('could not be printed');
  });
});
