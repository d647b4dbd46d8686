// What `dmkit serve` says of its clients, where standard error takes it and where it does not.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, onTestFinished, test } from 'vitest';
import { connectNbd } from '../../src/nbd/index.ts';
import { dmkit, serve } from '../support/cli.ts';
import { tempDir } from '../support/tmp.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

/** A client that sends flags the protocol does not have. */
async function badClient(path: string): Promise<void> {
  const socket = connect(path, () => socket.write(Buffer.alloc(4, 0xff)));
  socket.resume();
  socket.on('error', () => {});
  await once(socket, 'close');
}

async function expectServed(path: string): Promise<void> {
  const disk = await connectNbd(`nbd+unix:///x?socket=${path}`);
  expect((await disk.read(0, 512)).byteLength).toBe(512);
  await disk.close();
}

describe.each(['a pipe whose reader has gone', 'a full disk'])('standard error is %s', (kind) => {
  test.each([1, 2])('bad clients change nothing for others: --threads %i', async (threads) => {
    const path = join(tempDir('err'), 's');
    const full = kind === 'a full disk' ? openSync('/dev/full', 'w') : null;
    const args = ['serve', 'x', '--table', '0 64 zero', '--nbd', `unix:${path}`, '--threads', `${threads}`];
    const child = spawn(process.execPath, [main, ...args], { stdio: ['ignore', 'pipe', full ?? 'pipe'] });
    onTestFinished(() => void child.kill('SIGKILL'));
    if (full !== null) closeSync(full);
    child.stderr?.destroy();
    await once(child.stdout!, 'data');
    for (let i = 0; i < 20; i++) await badClient(path);
    await expectServed(path);
    child.kill('SIGTERM');
    expect(await once(child, 'exit')).toEqual([0, null]);
  });
});

test('a thousand bad clients cause a few lines, and one that counts the others', async () => {
  const path = join(tempDir('err'), 's');
  const server = await serve(['x', '--table', '0 64 zero', '--nbd', `unix:${path}`, '--threads', '1']);
  for (let i = 0; i < 50; i++) await Promise.all(Array.from({ length: 20 }, () => badClient(path)));
  await expectServed(path);
  process.kill(server.pid, 'SIGTERM');
  expect(await server.exited).toBe(0);
  const lines = server
    .output()
    .split('\n')
    .filter((line) => line.startsWith('dmkit:'));
  expect(lines.length).toBe(6);
  expect(lines[5]).toMatch(/^dmkit: 995 more like: client: /);
});

test('a failure that can’t be printed keeps its exit code', async () => {
  const full = openSync('/dev/full', 'w');
  const child = spawn(process.execPath, [main, 'serve', 'x'], { stdio: ['ignore', 'ignore', full] });
  closeSync(full);
  expect(await once(child, 'exit')).toEqual([1, null]);
});

test('what a server says is printed without its escape sequences', async () => {
  const { createServer } = await import('node:net');
  const path = join(tempDir('err'), 's');
  const text = Buffer.from('\u001b[2J\u001b]0;title\u0007\u202e\nFAKE LINE');
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.write(Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), Buffer.from([0, 3])]));
    let seen = Buffer.alloc(0);
    socket.on('data', (chunk) => {
      seen = Buffer.concat([seen, chunk]);
      for (let at = seen.indexOf('IHAVEOPT'); at >= 0 && seen.byteLength >= at + 16; at = seen.indexOf('IHAVEOPT')) {
        const reply = Buffer.alloc(20);
        reply.writeBigUInt64BE(0x3e889045565a9n);
        reply.writeUInt32BE(seen.readUInt32BE(at + 8), 8);
        reply.writeUInt32BE(0x80000002, 12);
        reply.writeUInt32BE(text.byteLength, 16);
        socket.write(Buffer.concat([reply, text]));
        seen = seen.subarray(at + 16 + seen.readUInt32BE(at + 12));
      }
    });
  });
  server.listen(path);
  onTestFinished(() => void server.close());
  const table = `0 8 linear nbd+unix:///x?socket=${path} 0`;
  const result = await dmkit(['serve', 'y', '--table', table, '--reconnect', '0']);
  expect(result.code).toBe(1);
  expect(result.stderr).toContain('\\u001b[2J\\u001b]0;title\\u0007\\u202e\\u000aFAKE LINE');
  expect(/[^\n\x20-\x7e]/.test(result.stderr)).toBe(false);
});
