// dmkit serve as a user sees it: refusals, exit codes, what is left behind.
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { connectNbd } from '../../src/nbd/index.ts';
import { dmkit, serve } from '../support/cli.ts';
import { run, start } from '../support/process.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

function imageFolder(): { folder: string; image: string; table: string } {
  const folder = tempDir('cli');
  const image = join(folder, 'a.img');
  makeImage(image, 64);
  return { folder, image, table: `0 64 linear ${image} 0` };
}

describe('a table that is refused', () => {
  test('is told in dmsetup’s words and the kernel’s, and nothing is left', async () => {
    const { folder, image } = imageFolder();
    const table = `0 8 linear ${image} 0\n8 8 linear ${image}`;
    const result = await dmkit(['serve', 'x', '--table', table, '--nbd', `unix:${folder}/s`]);
    expect(result.code).toBe(1);
    expect(result.stdout).toBe('');
    expect(result.stderr).toMatch(/^device-mapper: reload ioctl on x \(\d+:0\) failed: Invalid argument$/m);
    expect(result.stderr).toMatch(/^device-mapper: table: \d+:0: linear: Invalid argument count \(-EINVAL\)$/m);
    expect(result.stderr).toMatch(/^Command failed\.$/m);
    expect(readdirSync(folder)).toEqual(['a.img']);
  });

  test('an image that is missing is named', async () => {
    const { folder } = imageFolder();
    const result = await dmkit(['serve', 'x', '--table', `0 8 linear ${folder}/nosuch.img 0`]);
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(/failed: No such device$/m);
    expect(result.stderr).toMatch(/linear: Device lookup failed \(-ENODEV\)$/m);
    expect(result.stderr).toContain(`${folder}/nosuch.img`);
  });

  test('text that is no table is refused with its line', async () => {
    const { folder } = imageFolder();
    writeFileSync(join(folder, 't'), '# two lines\n0 zero 8\n');
    const result = await dmkit(['serve', 'x', '--table-file', join(folder, 't')]);
    expect(result.code).toBe(1);
    expect(result.stderr).toContain(`Invalid format on line 2 of table ${folder}/t`);
  });

  test('the second device is refused: the first is gone too', async () => {
    const { folder, table } = imageFolder();
    const args = ['serve', 'a', '--table', table, 'b', '--table', '0 8 nosuch', '--nbd', `unix:${folder}/s`];
    const result = await dmkit(args);
    expect(result.stderr).toMatch(/reload ioctl on b \(\d+:1\) failed: Invalid argument/);
    expect([result.code, existsSync(join(folder, 's'))]).toEqual([1, false]);
  });
});

describe('arguments', () => {
  test.each([
    [['serve'], /missing required argument 'name'/],
    [['serve', 'x'], /1 name \(x\) but 0 of --table/],
    [['serve', 'x', 'y', '--table', '0 8 zero'], /2 names \(x, y\) but 1 of --table/],
    [['serve', 'x', '--table', '0 8 zero', '--nbd', 'bogus'], /cannot listen at "bogus": an address is unix:PATH or/],
    [
      ['serve', 'x', '--table', '0 8 zero', '--nbd', 'tcp:127.0.0.1:99999'],
      /"tcp:127.0.0.1:99999": ports go from 1 to 65535/,
    ],
    [
      ['serve', 'x', '--table', '0 8 zero', '--nbd', 'unix:/nodir/s'],
      /^dmkit: cannot listen at \/nodir\/s: the folder \/nodir does not exist\n$/,
    ],
    [['serve', 'x', '--table', '0 8 zero', '--nbd', 'unix:a', '--nbd', 'unix:./a'], /cannot listen at .\/a twice/],
    [
      ['serve', 'x', '--table', '0 8 zero', '--description', 'a', '--description', 'b'],
      /1 name \(x\) but 2 of --description/,
    ],
    [
      ['serve', 'x', '--table', '0 8 zero', '--description', 'ü'.repeat(2049)],
      /the description of x has 4098 bytes, and NBD carries 4096 at the most/,
    ],
    [['serve', 'x', '--table', '0 8 zero', '--nbd', 'tcp:8.8.8.8:1'], /loopback/],
    [['serve', 'x', '--table', '0 8 zero', '--bogus'], /unknown option '--bogus'/],
    [['serve', 'a/b', '--table', '0 8 zero'], /Name "a\/b" invalid. It contains "\/"/],
    [['serve', 'x', '--table', ''], /no targets specified/],
    [['serve', 'x', '--table-file', 'nosuch-file'], /cannot read the table file nosuch-file: No such file/],
    [['bogus'], /unknown command 'bogus'/],
  ])('%j', async (args, message) => {
    const result = await dmkit(args);
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(message);
    expect(result.stderr).not.toMatch(/\n {4}at /);
  });

  test('an unknown DMKIT_ENGINE is named with the ones there are', async () => {
    const { table } = imageFolder();
    const result = await dmkit(['serve', 'x', '--table', table], { env: { DMKIT_ENGINE: 'warp' } });
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(/warp.*direct.*portable/s);
  });

  test('a table from standard input', async () => {
    const { table } = imageFolder();
    const result = await dmkit(['serve', 'x', '--table-file', '-', '--run', 'echo "$uri"'], { input: table });
    expect([result.code, result.stderr]).toEqual([0, '']);
    expect(result.stdout).toMatch(/^nbd\+unix:\/\/\/x\?socket=.+\n$/);
  });
});

describe('running', () => {
  test('--run sets $uri and the others, exits with the code of the command, and leaves nothing', async () => {
    const { folder, table } = imageFolder();
    const command = 'echo $uri $uri_a_b $unixsocket; ls -ld $(dirname $unixsocket) | cut -c1-10; exit 7';
    const args = ['serve', 'd', '--table', table, 'a-b', '--table', '0 8 zero', '--run', command];
    const result = await dmkit(args, { env: { XDG_RUNTIME_DIR: folder } });
    expect(result.code).toBe(7);
    const [first, second, socket, mode] = result.stdout.trim().split(/\s+/);
    expect(first).toBe(`nbd+unix:///d?socket=${socket}`);
    expect(second).toBe(`nbd+unix:///a-b?socket=${socket}`);
    expect(mode).toBe('drwx------');
    expect(readdirSync(folder)).toEqual(['a.img']);
  });

  test('several addresses: a URI a line for each device and address, and a description for each device', async () => {
    const { folder, table } = imageFolder();
    const devices = ['d', '--table', table, 'e', '--table', '0 8 zero'];
    const texts = ['--description', 'a \u001b[31m line\nof two', '--description', ''];
    const command = 'echo "$uri $uri_e $unixsocket"; nbdinfo --list "$uri" 2>&1 | grep description:';
    const args = [...devices, ...texts, '--nbd', 'tcp:[::1]:0', '--nbd', 'unix:s', '--run', command];
    const result = await dmkit(['serve', ...args], { cwd: folder });
    const [first, description] = result.stdout.split('\n');
    expect(first).toMatch(new RegExp(`^nbd://\\[::1\\]:\\d+/d nbd://\\[::1\\]:\\d+/e ${folder}/s$`));
    // Where nbdinfo is missing the shell says so.
    if (result.code === 0) expect(description).toBe('\tdescription: a \\u001b[31m line\\u000aof two');
    expect(readdirSync(folder)).toEqual(['a.img']);
    const { uris } = await serve([...devices, '--nbd', 'tcp:127.0.0.1:0', '--nbd', 'unix:s'], {
      cwd: folder,
      exports: 4,
    });
    expect(uris[1]).toBe(`nbd+unix:///d?socket=${folder}/s`);
    for (const uri of uris) await (await connectNbd(uri)).close();
  });

  test('the URI of a relative socket can be used from every folder', async () => {
    const { folder, table } = imageFolder();
    const { uris } = await serve(['d', '--table', table, '--nbd', 'unix:s'], { cwd: folder });
    expect(uris).toEqual([`nbd+unix:///d?socket=${folder}/s`]);
  });

  test('without a folder for temporary files it says which are missing, or takes another', async () => {
    const { folder, table } = imageFolder();
    const missing = join(folder, 'missing');
    const args = ['serve', 'd', '--table', table, '--run', 'true'];
    const refused = await dmkit(args, { env: { XDG_RUNTIME_DIR: missing, TMPDIR: missing } });
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringMatching(/^dmkit: there is no folder.*TMPDIR.*\n$/),
    ]);
    expect(refused.stderr).toContain(`${missing}: No such file or directory`);
    const served = await dmkit(args, { env: { XDG_RUNTIME_DIR: missing, TMPDIR: folder } });
    expect([served.code, served.stderr]).toEqual([0, '']);
  });

  test('in a folder that was deleted, absolute paths work and relative ones get a sentence', async () => {
    const { folder, image } = imageFolder();
    const script = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"';
    const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
    const serveOf = (path: string) =>
      run(
        'sh',
        ['-c', script, 'sh', process.execPath, main, 'serve', 'd', '--table', `0 8 linear ${path} 0`, '--run', 'true'],
        { cwd: folder },
      );
    // The shell of --run may say for itself that its folder is gone.
    expect((await serveOf(image)).code).toBe(0);
    const refused = await serveOf('a.img');
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('the working folder was deleted')]);
    expect(refused.stderr).not.toMatch(/\n {4}at /);
  });

  test('a hang-up that was ignored at the start is ignored', async () => {
    const { folder, table } = imageFolder();
    const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
    const args = ['-c', 'trap "" HUP; "$@" & wait', 'sh', process.execPath, main, 'serve', 'd', '--table', table];
    const server = await start('sh', [...args, '--nbd', `unix:${folder}/s`], { ready: /^nbd/m });
    const child = Number(readFileSync(`/proc/${server.pid}/task/${server.pid}/children`, 'utf8').trim());
    process.kill(child, 'SIGHUP');
    await new Promise((resolve) => setTimeout(resolve, 200));
    const client = await connectNbd(`nbd+unix:///d?socket=${folder}/s`);
    await client.close();
    process.kill(child, 'SIGTERM');
    expect(await server.exited).toBe(0);
  });

  test('a command that a signal ends gives 128 and the signal’s number', async () => {
    const result = await dmkit(['serve', 'd', '--table', '0 8 zero', '--run', 'kill -9 $$']);
    expect(result.code).toBe(137);
  });

  test.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)('%s stops it with 0 and removes the socket', async (signal) => {
    const { folder, table } = imageFolder();
    const server = await serve(['d', '--table', table, '--nbd', `unix:${folder}/s`]);
    expect(statSync(join(folder, 's')).mode & 0o777).toBe(0o600);
    process.kill(server.pid, signal);
    expect(await server.exited).toBe(0);
    expect(readdirSync(folder)).toEqual(['a.img']);
  });

  test('a client that is connected does not keep it from stopping', async () => {
    const { folder, table } = imageFolder();
    const server = await serve(['d', '--table', table, '--nbd', `unix:${folder}/s`]);
    const client = await connectNbd(server.uris[0]!);
    await client.write(0, Buffer.alloc(512, 9));
    process.kill(server.pid, 'SIGTERM');
    expect(await server.exited).toBe(0);
    expect(readFileSync(join(folder, 'a.img'))[511]).toBe(9);
    await client.close();
  });

  test('stacked devices, each an export', async () => {
    const { folder, table } = imageFolder();
    const top = '0 8 linear /dev/mapper/low 8\n8 8 zero';
    const args = ['low', '--table', table, 'top', '--table', top, '--nbd', `unix:${folder}/s`];
    const { uris } = await serve(args, { exports: 2 });
    const client = await connectNbd(uris[1]!);
    const data = Buffer.from(await client.read(0, 8192));
    expect(data.subarray(0, 4096).equals(readFileSync(join(folder, 'a.img')).subarray(4096, 8192))).toBe(true);
    expect(data.subarray(4096).equals(Buffer.alloc(4096))).toBe(true);
    await client.close();
  });

  test('read-only: nothing is opened for writing, so a file without that right will do', async () => {
    const { folder, image, table } = imageFolder();
    chmodSync(image, 0o400);
    const { uris } = await serve(['d', '--table', table, '--read-only', '--nbd', `unix:${folder}/s`]);
    const client = await connectNbd(uris[0]!);
    await expect(client.write(0, Buffer.alloc(512))).rejects.toThrow(/EPERM/);
    await client.close();
  });

  test('a second server on the same image is told who has it', async () => {
    const { folder, table } = imageFolder();
    const server = await serve(['d', '--table', table, '--nbd', `unix:${folder}/s`]);
    const result = await dmkit(['serve', 'd', '--table', table]);
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(/failed: Device or resource busy$/m);
    expect(result.stderr).toContain(String(server.pid));
  });

  test('a socket that a killed server left is taken over, one that answers is not', async () => {
    const { folder, table } = imageFolder();
    const first = await serve(['d', '--table', table, '--nbd', `unix:${folder}/s`]);
    const refused = await dmkit(['serve', 'z', '--table', '0 8 zero', '--nbd', `unix:${folder}/s`]);
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringMatching(/^dmkit: cannot listen at \S+: [^\n]+\n$/),
    ]);
    process.kill(first.pid, 'SIGKILL');
    await first.exited;
    expect(existsSync(join(folder, 's'))).toBe(true);
    const again = await serve(['d', '--table', table, '--nbd', `unix:${folder}/s`]);
    await (await connectNbd(again.uris[0]!)).close();
  });
});

test('dmkit targets prints what dmsetup targets would', async () => {
  const result = await dmkit(['targets']);
  expect(result.stdout).toBe(
    [
      'snapshot-merge   v1.5.0',
      'snapshot-origin  v1.9.0',
      'snapshot         v1.16.0',
      'zero             v1.1.0',
      'striped          v1.6.0',
      'linear           v1.4.0',
      'error            v1.5.0',
      '',
    ].join('\n'),
  );
});

test('dmkit version names the engine', async () => {
  expect((await dmkit(['version'])).stdout).toMatch(/engine.*(direct|portable)/i);
  const forced = await dmkit(['version'], { env: { DMKIT_ENGINE: 'portable' } });
  expect(forced.stdout).toMatch(/engine.*portable/i);
});
