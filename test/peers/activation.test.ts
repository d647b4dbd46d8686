// Socket activation: libnbd starts `dmkit serve` with a socket that listens already, and ends it when it has finished.
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, test } from 'vitest';
import { takeInheritedSocket } from '../../src/cli/activation.ts';
import { connectNbd } from '../../src/nbd/index.ts';
import { describePeer, peer, run } from '../support/peers.ts';
import { clientsOfAllThreads, connectionsByThread } from '../support/threads.ts';
import { makeImage, randomBytes, sha256, tempDir } from '../support/tmp.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const SECTORS = 8192;

/** An image, and `[ dmkit serve … ]` for libnbd's tools. */
function bracketed(...more: string[]): { folder: string; image: string; command: string[] } {
  const folder = tempDir('activation');
  const image = join(folder, 'a.img');
  makeImage(image, SECTORS, 3);
  const table = `0 ${SECTORS} linear ${image} 0`;
  return { folder, image, command: ['[', process.execPath, main, 'serve', 'disk', '--table', table, ...more, ']'] };
}

/** Command lines of processes that have `text` in theirs. */
function processesWith(text: string): string[] {
  return readdirSync('/proc')
    .filter((name) => /^[0-9]+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
      } catch {
        return ''; // It has ended meanwhile.
      }
    })
    .filter((line) => line.includes(text));
}

async function expectNoProcess(text: string): Promise<void> {
  await expect.poll(() => processesWith(text)).toEqual([]);
}

describePeer(['nbdinfo', 'nbdcopy'], 'libnbd starts the server', () => {
  test('nbdinfo: the default export is the device, and nothing of ours is in its output', async () => {
    const { folder, command } = bracketed();
    const result = await run(peer('nbdinfo'), ['--json', '--', ...command]);
    expect([result.code, result.stderr]).toEqual([0, '']);
    expect(JSON.parse(result.stdout).exports).toMatchObject([{ 'export-name': 'disk', 'export-size': SECTORS * 512 }]);
    await expectNoProcess(folder);
  });

  test('nbdcopy: out of it, and into it', async () => {
    const { folder, image, command } = bracketed();
    const out = await run(peer('nbdcopy'), ['--', ...command, join(folder, 'out.img')]);
    expect([out.code, out.stdout, out.stderr]).toEqual([0, '', '']);
    expect(sha256(join(folder, 'out.img'))).toBe(sha256(image));
    writeFileSync(join(folder, 'new.img'), randomBytes(SECTORS * 512, 4));
    const into = await run(peer('nbdcopy'), ['--flush', '--', join(folder, 'new.img'), ...command]);
    expect([into.code, into.stdout, into.stderr]).toEqual([0, '', '']);
    expect(sha256(image)).toBe(sha256(join(folder, 'new.img')));
    await expectNoProcess(folder);
  });

  test('nbdcopy: from one dmkit to another, on standard output', async () => {
    const { image, command } = bracketed('--read-only');
    const piped = await run(peer('nbdcopy'), ['--', ...command, '-']);
    expect(piped.code).toBe(0);
    writeFileSync(`${image}.piped`, piped.stdoutBytes);
    expect(sha256(`${image}.piped`)).toBe(sha256(image));
    const second = bracketed();
    const result = await run(peer('nbdcopy'), ['--', ...command, ...second.command]);
    expect([result.code, result.stderr]).toEqual([0, '']);
    expect(sha256(second.image)).toBe(sha256(image));
  });

  test('a client that dies leaves no server behind', async () => {
    const { folder, command } = bracketed();
    const script = 'import nbd, os, sys\nh = nbd.NBD()\nh.connect_systemd_socket_activation(sys.argv[1:])\nos._exit(3)';
    const result = await run(peer('python3-libnbd'), ['-c', script, ...command.slice(1, -1)], { timeoutSeconds: 240 });
    expect(result.code).toBe(3);
    await expectNoProcess(folder);
  });

  test.each([
    ['--nbd', 'unix:other.sock'],
    ['--run', 'true'],
  ])('%s with it is refused by name', async (...more) => {
    const { command } = bracketed(...more);
    const result = await run(peer('nbdinfo'), ['--', ...command]);
    expect(result.code).toBe(1);
    expect(result.stderr).toContain(`dmkit: ${more[0]} cannot be: this process was given its socket (LISTEN_FDS)`);
  });
});

describe('an inherited socket', () => {
  it('is taken once, from variables that are meant for this process', () => {
    const env = { LISTEN_PID: '42', LISTEN_FDS: '1', LISTEN_FDNAMES: 'x', HOME: 'h' };
    expect(takeInheritedSocket({ ...env }, 43)).toBe(null);
    expect(takeInheritedSocket({}, 43)).toBe(null);
    const ours: NodeJS.ProcessEnv = { ...env };
    expect(takeInheritedSocket(ours, 42)).toBe(3);
    expect(ours).toEqual({ HOME: 'h' });
    for (const count of ['2', '0', '', undefined]) {
      expect(() => takeInheritedSocket({ LISTEN_PID: '42', LISTEN_FDS: count }, 42)).toThrow(/one socket/);
    }
  });

  it.each([1, 3])('over TCP serves client after client until SIGTERM, as under systemd, with %i threads', async (n) => {
    const { image } = bracketed();
    const listener = createServer();
    await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
    const { port } = listener.address() as { port: number };
    const table = `0 ${SECTORS} linear ${image} 0`;
    // The shell's process becomes dmkit, so that LISTEN_PID is right.
    const args = [
      '-c',
      'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"',
      'sh',
      process.execPath,
      main,
      'serve',
      'disk',
      '--table',
    ];
    const handle = (listener as unknown as { _handle: { fd: number } })._handle;
    const child = spawn('sh', [...args, table, '--threads', String(n)], {
      stdio: ['ignore', 'pipe', 'inherit', handle.fd],
    });
    const exited = new Promise((resolve) => child.once('exit', resolve));
    let output = '';
    child.stdout!.on('data', (chunk) => {
      output += chunk;
    });
    listener.close();
    try {
      for (let i = 0; i < 3; i++) {
        const client = await connectNbd(`nbd://127.0.0.1:${port}/`);
        expect(client.byteLength).toBe(SECTORS * 512);
        await client.close();
      }
      const clients = await clientsOfAllThreads({ pid: child.pid!, uris: [`nbd://127.0.0.1:${port}/`] }, n);
      await expect.poll(() => connectionsByThread(child.pid!)).toEqual(Array.from({ length: n }, () => 2));
      await Promise.all(clients.map((client, i) => client.write(i * 1000, Buffer.alloc(1000, i + 1))));
      const expected = Buffer.concat(clients.map((_, i) => Buffer.alloc(1000, i + 1)));
      for (const client of clients) expect((await client.read(0, expected.byteLength)).equals(expected)).toBe(true);
      for (const client of clients) await client.close();
    } finally {
      child.kill('SIGTERM');
    }
    expect([await exited, output]).toEqual([0, '']);
  });

  it('that is no socket is refused', async () => {
    const { image } = bracketed();
    const script = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3</dev/null';
    const serve = [process.execPath, main, 'serve', 'disk', '--table', `0 8 linear ${image} 0`];
    const result = await run('sh', ['-c', script, 'sh', ...serve]);
    expect([result.code, result.stderr]).toEqual([1, expect.stringMatching(/^dmkit: cannot listen/)]);
  });
});
