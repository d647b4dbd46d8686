// Remote disks of real servers in the tables of dmkit serve, the daemon and dmkit exec: nbdkit and qemu-nbd, with clients
// in front; servers that are killed in the middle, and started again or not.
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { dmkit, serve } from '../support/cli.ts';
import { dmkitHere } from '../support/in-process.ts';
import { describePeer, peer, run, type Started, start } from '../support/peers.ts';
import { makeImage, randomBytes, sha256, tempDir } from '../support/tmp.ts';

const MIB = 1 << 20;

/** nbdkit on a socket in `folder`, in the foreground, as a thing that can be killed and started again. */
async function nbdkit(folder: string, args: string[], name = 'k.sock'): Promise<Started> {
  const socket = join(folder, name);
  rmSync(socket, { force: true });
  const server = await start(peer('nbdkit'), ['-f', '-v', '-U', socket, ...args], {
    ready: /bound to unix socket/,
    timeoutSeconds: 240,
  });
  onTestFinished(async () => void (await server.stop()));
  return server;
}

const uriOf = (folder: string, name = 'k.sock'): string => `nbd+unix:///?socket=${join(folder, name)}`;

async function qemuNbd(folder: string, image: string, args: string[] = []): Promise<void> {
  const socket = join(folder, 'q.sock');
  const server = await start(peer('qemu-nbd'), ['-f', 'raw', '-t', ...args, '-k', socket, image], {
    timeoutSeconds: 240,
  });
  onTestFinished(async () => void (await server.stop()));
  await expect.poll(async () => (await run(peer('nbdinfo'), ['--size', uriOf(folder, 'q.sock')])).code).toBe(0);
}

function sparse(path: string, byteLength: number): string {
  writeFileSync(path, '');
  truncateSync(path, byteLength);
  return path;
}

/** What of a stripe of two legs lies on the first, in bytes. */
function firstLeg(content: Buffer, chunkByteLength: number): Buffer {
  const chunks: Buffer[] = [];
  for (let at = 0; at < content.byteLength; at += 2 * chunkByteLength) {
    chunks.push(content.subarray(at, at + chunkByteLength));
  }
  return Buffer.concat(chunks);
}

describePeer(['nbdkit', 'nbdcopy', 'nbdinfo', 'qemu-io'], 'dmkit serve with a leg at nbdkit', () => {
  test('writes and reads all of it, while nbdkit is killed and started again in the middle', async () => {
    const folder = tempDir('r');
    const source = join(folder, 'source.img');
    const content = makeImage(source, (16 * MIB) / 512, 5);
    const far = sparse(join(folder, 'far.img'), 8 * MIB);
    const near = sparse(join(folder, 'near.img'), 8 * MIB);
    const args = ['--filter=delay', 'file', far, 'wdelay=20ms'];
    const first = await nbdkit(folder, args);
    const table = `0 ${(16 * MIB) / 512} striped 2 128 ${uriOf(folder)} 0 ${near} 0`;
    const serving = await serve(['stripe', '--table', table, '--nbd', `unix:${join(folder, 's.sock')}`]);
    expect((await run(peer('nbdinfo'), ['--size', serving.uris[0]!])).stdout).toBe(`${16 * MIB}\n`);
    const copying = run(peer('nbdcopy'), ['--requests=4', source, serving.uris[0]!]);
    // In the middle: something is there, and not all.
    await expect.poll(() => readFileSync(far).some((byte) => byte !== 0)).toBe(true);
    process.kill(first.pid, 'SIGKILL');
    await first.exited;
    const before = readFileSync(far);
    expect(before.equals(firstLeg(content, 128 * 512))).toBe(false);
    await nbdkit(folder, args);
    const copied = await copying;
    expect([copied.code, copied.stderr]).toEqual([0, '']);
    expect(readFileSync(far).equals(firstLeg(content, 128 * 512))).toBe(true);
    const back = join(folder, 'back.img');
    expect((await run(peer('nbdcopy'), [serving.uris[0]!, back])).code).toBe(0);
    expect(sha256(back)).toBe(sha256(source));
    expect(serving.output()).toMatch(/k\.sock: the connection is lost; requests wait until it is back\n/);
    expect(serving.output()).toMatch(/k\.sock: the connection is back\n/);
    // nbdkit may have lost what it had not written when it was killed: the first flush says so.
    const flush = () => run(peer('qemu-io'), ['-f', 'raw', '-c', 'flush', serving.uris[0]!]);
    expect((await flush()).code).toBe(1);
    expect((await flush()).code).toBe(0);
    expect(await serving.stop()).toBe(0);
  });

  test('gives up after the time of --reconnect; what is not on that leg goes on', async () => {
    const folder = tempDir('r');
    const server = await nbdkit(folder, ['memory', '1M']);
    const near = sparse(join(folder, 'near.img'), MIB);
    const table = `0 2048 linear ${uriOf(folder)} 0\n2048 2048 linear ${near} 0`;
    const socket = `unix:${join(folder, 's.sock')}`;
    const serving = await serve(['joined', '--table', table, '--nbd', socket, '--reconnect', '1']);
    const io = (...commands: string[]) =>
      run(peer('qemu-io'), ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), serving.uris[0]!]);
    expect((await io('write -P 3 0 64k', 'write -P 4 1M 64k', 'flush')).code).toBe(0);
    process.kill(server.pid, 'SIGKILL');
    await server.exited;
    const result = await io('read 0 4k', 'read -P 4 1M 64k');
    expect(result.stdout).toMatch(/^read failed: Input\/output error\nread 65536\/65536 bytes at offset 1048576\n/);
    expect(serving.output()).toMatch(
      /k\.sock: the connection was lost and did not come back after \d+ attempts: connect (ENOENT|ECONNREFUSED)/,
    );
    expect(await serving.stop()).toBe(1);
    expect(serving.output()).toMatch(
      /stopping the NBD server: flush on joined .* failed: Input\/output error \(from nbd/,
    );
  });

  test('stops at SIGTERM though a request waits for a server that is gone', async () => {
    const folder = tempDir('r');
    const server = await nbdkit(folder, ['memory', '1M']);
    const socket = `unix:${join(folder, 's.sock')}`;
    const serving = await serve(['far', '--table', `0 2048 linear ${uriOf(folder)} 0`, '--nbd', socket]);
    process.kill(server.pid, 'SIGKILL');
    await server.exited;
    const reading = run(peer('qemu-io'), ['-f', 'raw', '-c', 'read 0 4k', serving.uris[0]!]);
    await expect.poll(() => serving.output()).toMatch(/connection is lost/);
    process.kill(serving.pid, 'SIGTERM');
    expect(await serving.exited).toBe(1);
    expect(serving.output()).toMatch(/it is not waited for any more\n/);
    expect((await reading).stdout).toMatch(/read failed|^$/);
  });

  test('refuses what cannot be, in the words of dmsetup', async () => {
    const folder = tempDir('r');
    const missing = await dmkit(['serve', 'd', '--table', `0 8 linear ${uriOf(folder)} 0`]);
    expect(missing.code).toBe(1);
    expect(missing.stderr.split('\n')).toEqual([
      expect.stringMatching(/^device-mapper: reload ioctl on d \(\d+:0\) failed: No such file or directory$/),
      expect.stringMatching(/^device-mapper: table: \d+:0: linear: Device lookup failed \(-ENOENT\)$/),
      expect.stringMatching(/^cannot connect to nbd\+unix:.*: connect ENOENT /),
      'Command failed.',
      '',
    ]);
    await nbdkit(folder, ['memory', '1M']);
    const large = await dmkit(['serve', 'd', '--table', `0 2049 linear ${uriOf(folder)} 0`]);
    expect(large.stderr).toMatch(/k\.sock too small for target: start=0, len=2049, dev_size=2048/);
    const none = await dmkit(['serve', 'd', '--table', '0 8 zero', '--reconnect', 'soon']);
    expect([none.code, none.stderr]).toEqual([
      1,
      'dmkit: --reconnect soon: a number of seconds is needed, 0 for no attempt\n',
    ]);
  });

  test('passes on that the export is read-only: reads, and EPERM', async () => {
    const folder = tempDir('r');
    await nbdkit(folder, ['-r', 'pattern', '1M']);
    const args = ['d', '--table', `0 2048 linear ${uriOf(folder)} 0`, '--run'];
    const result = await dmkit(['serve', ...args, 'qemu-io -f raw -c "read -v 8 8" -c "write 0 4k" "$uri"']);
    expect(result.stdout).toContain('00 00 00 00 00 00 00 08');
    expect(result.stdout).toContain('write failed: Operation not permitted');
  });
});

describePeer(['qemu-nbd', 'nbdinfo', 'qemu-io', 'nbdcopy'], 'qemu-nbd below', () => {
  test('a linear line: all of it, from its offset on', async () => {
    const folder = tempDir('r');
    const image = join(folder, 'disk.img');
    const content = makeImage(image, 8192, 2);
    await qemuNbd(folder, image);
    const copy = join(folder, 'copy.img');
    const table = `0 4096 linear ${uriOf(folder, 'q.sock')} 1000`;
    const result = await dmkit(['serve', 'd', '--table', table, '--run', `nbdcopy "$uri" ${copy}`]);
    expect([result.code, result.stderr]).toEqual([0, '']);
    expect(readFileSync(copy).equals(content.subarray(1000 * 512, 5096 * 512))).toBe(true);
  });

  test('the origin of a snapshot: golden image far away, changes here, again after a restart', async () => {
    const folder = tempDir('r');
    const golden = join(folder, 'golden.img');
    const content = makeImage(golden, 8192, 4);
    await qemuNbd(folder, golden, ['-r', '-e', '8']);
    const cow = sparse(join(folder, 'cow.img'), 4 * MIB);
    const table = `0 8192 snapshot ${uriOf(folder, 'q.sock')} ${cow} P 8`;
    const overlay = (command: string) => dmkit(['serve', 'vm', '--table', table, '--run', command]);
    const wrote = await overlay('qemu-io -f raw -c "write -P 9 100k 10k" -c flush "$uri"');
    expect([wrote.code, wrote.stderr]).toEqual([0, '']);
    const out = join(folder, 'out.img');
    expect((await overlay(`nbdcopy "$uri" ${out}`)).code).toBe(0);
    const expected = Buffer.from(content).fill(9, 100 * 1024, 110 * 1024);
    expect(readFileSync(out).equals(expected)).toBe(true);
    expect(readFileSync(golden).equals(content)).toBe(true);
  });
});

describePeer(['nbdkit'], 'the daemon and dmkit exec', () => {
  function home(folder: string) {
    const env = { DMKIT_DIR: join(folder, 'd'), LC_ALL: 'C', DMKIT_RECONNECT: '1' };
    onTestFinished(async () => void (await dmkitHere(['shutdown', '--force'], { env })));
    return (args: string[], input?: Uint8Array) =>
      dmkitHere(args, { env, cwd: folder, ...(input === undefined ? {} : { input }) });
  }

  test('create, table, deps, ls, reload; the server dies, is given up, comes back and is loaded again', async () => {
    const folder = tempDir('r');
    const far = sparse(join(folder, 'far.img'), MIB);
    const server = await nbdkit(folder, ['file', far]);
    const call = home(folder);
    const uri = uriOf(folder);
    const stdout = async (...args: string[]): Promise<string> => {
      const { code, stdout: text, stderr } = await call(args);
      expect([code, stderr]).toEqual([0, '']);
      return text;
    };
    // From where the caller is.
    await stdout('create', 'far', '--table', '0 2048 linear nbd+unix:///?socket=k.sock 0');
    expect(await stdout('table', 'far')).toBe(`0 2048 linear ${uri} 0\n`);
    expect(await stdout('status', 'far')).toBe('0 2048 linear \n');
    expect(await stdout('deps', 'far')).toBe(`1 dependencies\t: (${uri})\n`);
    expect(await stdout('ls', '--tree')).toMatch(/^far \(\d+:0\)\n `- \(nbd\+unix:.*k\.sock\)\n$/);
    expect((await call(['write', 'far'], randomBytes(4096, 1))).code).toBe(0);
    expect(readFileSync(far).subarray(0, 4096).equals(randomBytes(4096, 1))).toBe(true);
    process.kill(server.pid, 'SIGKILL');
    await server.exited;
    const failed = await call(['read', 'far', '--count', '8']);
    expect([failed.code, failed.stderr]).toEqual([1, expect.stringMatching(/EIO/)]);
    expect(await stdout('logs')).toMatch(/"a remote device is lost"[\s\S]*did not come back[\s\S]*has failed"/);
    const refused = await call(['reload', 'far', '--table', `0 2048 linear ${uri} 0`]);
    expect([refused.code, refused.stderr]).toEqual([1, expect.stringMatching(/cannot connect to nbd\+unix:/)]);
    await nbdkit(folder, ['file', far]);
    await stdout('reload', 'far', '--table', `0 2048 linear ${uri} 0`);
    await stdout('resume', 'far');
    const bytes = await call(['read', 'far', '--count', '8']);
    expect(bytes.stdoutBytes.equals(randomBytes(4096, 1))).toBe(true);
    await stdout('remove', 'far');
  });

  test('a daemon that was killed: restore connects again', async () => {
    const folder = tempDir('r');
    const far = sparse(join(folder, 'far.img'), MIB);
    const first = await nbdkit(folder, ['file', far]);
    const call = home(folder);
    await call(['create', 'far', '--table', `0 2048 linear ${uriOf(folder)} 0`]);
    const log = readFileSync(join(folder, 'd', 'daemon.log'), 'utf8')
      .trim()
      .split('\n');
    process.kill((JSON.parse(log.at(-1)!) as { pid: number }).pid, 'SIGKILL');
    process.kill(first.pid, 'SIGKILL');
    await first.exited;
    await expect.poll(async () => (await call(['ls'])).stderr).toMatch(/far.*gone.*dmkit restore/);
    const early = await call(['restore']);
    expect([early.code, early.stderr]).toEqual([
      1,
      expect.stringMatching(/far could not be restored: .*cannot connect/),
    ]);
    await nbdkit(folder, ['file', far]);
    expect(await call(['restore'])).toMatchObject({ code: 0, stdout: 'far\n' });
    expect((await call(['table', 'far'])).stdout).toBe(`0 2048 linear ${uriOf(folder)} 0\n`);
  });

  test('a script that knows dmsetup and blockdev alone, with a URI in the place of a device', async () => {
    const folder = tempDir('r');
    await nbdkit(folder, ['memory', '3M']);
    const call = home(folder);
    const script = 'echo "0 $(blockdev --getsz /dev/sdx) linear /dev/sdx 0" | dmsetup create x && dmsetup table x';
    const result = await call(['exec', '--map', `/dev/sdx=${uriOf(folder)}`, '--', 'sh', '-c', script]);
    expect(result).toMatchObject({ code: 0, stdout: `0 6144 linear ${uriOf(folder)} 0\n`, stderr: '' });
  });
});

describe('a URI', () => {
  test('with a blank in its path is one word of a table, and of what is printed', async () => {
    const folder = tempDir('r');
    const home = join(folder, 'a b');
    mkdirSync(home);
    makeImage(join(home, 'a.img'), 64);
    await serve(['d', '--table', '0 64 linear a.img 0', '--nbd', 'unix:s.sock'], { cwd: home });
    const env = { DMKIT_DIR: join(folder, 'd') };
    onTestFinished(async () => void (await dmkitHere(['shutdown', '--force'], { env })));
    const created = await dmkitHere(['create', 'x', '--table', '0 64 linear nbd+unix:///d?socket=s.sock 0'], {
      env,
      cwd: home,
    });
    expect([created.code, created.stderr]).toEqual([0, '']);
    const { stdout } = await dmkitHere(['table', 'x'], { env });
    expect(stdout).toBe(`0 64 linear nbd+unix:///d?socket=${home.replace(' ', '%20')}/s.sock 0\n`);
    expect((await dmkitHere(['create', 'y', '--table', stdout], { env })).code).toBe(0);
    const escaped = `0 64 linear nbd+unix:///d?socket=${home.replace(' ', '\\ ')}/s.sock 0`;
    expect((await dmkitHere(['create', 'z', '--table', escaped], { env })).code).toBe(0);
    expect((await dmkitHere(['table', 'z'], { env })).stdout).toBe(stdout);
  });
});
