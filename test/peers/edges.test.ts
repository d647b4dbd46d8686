// `dmkit serve` at its edges: told to stop in the middle of work, deserted by clients, full of them.
import { statSync, writeFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { connectNbd, type NbdConnection } from '../../src/nbd/index.ts';
import { type Serving, serve } from '../support/cli.ts';
import { describePeer, peer, run } from '../support/peers.ts';
import { start } from '../support/process.ts';
import { clientsOfAllThreads, connectionsByThread } from '../support/threads.ts';
import { randomBytes, sha256, tempDir } from '../support/tmp.ts';

const MIB = 1 << 20;
const SIZE = 32 * MIB;
/** A machine under load takes its time. */
const patient = { timeout: 150_000 };

function image(prefix: string): { folder: string; path: string; args: string[] } {
  const folder = tempDir(prefix);
  const path = join(folder, 'a.img');
  writeFileSync(path, randomBytes(SIZE, 3));
  return { folder, path, args: ['d', '--table', `0 ${SIZE / 512} linear ${path} 0`, '--nbd', `unix:${folder}/s`] };
}

/** Sends SIGTERM and waits: the exit code, and how long it took. */
async function terminate(server: Serving): Promise<{ code: number | null; seconds: number }> {
  const begin = performance.now();
  process.kill(server.pid, 'SIGTERM');
  const code = await server.exited;
  return { code, seconds: (performance.now() - begin) / 1000 };
}

/** What an engine may open on its way; every client that is left behind would count for itself. */
const ENGINE_FILES = 4;

const openFiles = async (pid: number): Promise<number> => (await readdir(`/proc/${pid}/fd`)).length;

/** Has every thread do something of everything, so that it has opened what it needs. @returns what is open then */
async function usedFiles(server: Serving, threadCount: number): Promise<number> {
  const clients = await clientsOfAllThreads(server, threadCount);
  for (const client of clients) {
    await client.write(0, await client.read(0, 4096));
    await client.flush();
  }
  await Promise.all(clients.map((client) => client.close()));
  await expect.poll(() => connectionsByThread(server.pid), patient).toEqual([]);
  // Of each connection Node's own socket goes a moment later.
  await new Promise((resolve) => setTimeout(resolve, 200));
  return openFiles(server.pid);
}

describePeer(['fio'], 'SIGTERM', () => {
  test('while fio writes and reads: the server ends with 0, fio with errors, neither hangs', async () => {
    const { folder, path, args } = image('sigterm');
    const server = await serve([...args, '--threads', '2']);
    // A thread asks when it starts whether the file takes holes, and that is a change of it.
    for (const client of await clientsOfAllThreads(server, 2)) await client.close();
    const { mtimeMs } = statSync(path);
    const fio = run(
      peer('fio'),
      [
        '--name=busy',
        '--ioengine=nbd',
        `--uri=${server.uris[0]}`,
        '--rw=randrw',
        '--bs=64k',
        '--size=16M',
        '--iodepth=32',
        '--time_based',
        '--runtime=200',
      ],
      { cwd: folder, timeoutSeconds: 240 },
    );
    // At work: what it writes arrives in the image.
    await expect.poll(() => statSync(path).mtimeMs).not.toBe(mtimeMs);
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { code, seconds } = await terminate(server);
    expect(code).toBe(0);
    // fio would go on for 200 seconds.
    expect(seconds).toBeLessThan(100);
    const ended = await fio;
    expect([ended.timedOut, ended.code === 0]).toEqual([false, false]);
    expect(ended.stdout + ended.stderr).toMatch(/err=\s*(108|107|32|5|104|22|95)|shutdown|error/i);
    expect(server.output()).not.toMatch(/unexpected|\n {4}at /);
  });
});

test('SIGTERM does not wait for clients that never finish their handshake (CVE-2024-7409)', async () => {
  const { folder, args } = image('sigterm');
  const server = await serve(args);
  const sockets = await Promise.all(Array.from({ length: 20 }, () => open(join(folder, 's'))));
  sockets[0]!.write(Buffer.from('00000003', 'hex'));
  sockets[1]!.write(Buffer.from('0000000349484156', 'hex'));
  const { code, seconds } = await terminate(server);
  expect(code).toBe(0);
  // Their handshakes would be given up after 30 seconds.
  expect(seconds).toBeLessThan(25);
});

/** A connected socket that reads what comes and is closed when the test ends. */
function open(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    onTestFinished(() => void socket.destroy());
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.on('error', () => {});
      socket.resume();
      resolve(socket);
    });
  });
}

describePeer(['nbdcopy'], 'clients that vanish', () => {
  test('killed in the middle of copies, leave nothing, and harm nobody', async () => {
    const { folder, path, args } = image('vanish');
    writeFileSync(join(folder, 'big.img'), randomBytes(SIZE, 4));
    const server = await serve([...args, '--threads', '2']);
    await usedFiles(server, 2);
    const steady = await connectNbd(server.uris[0]!);
    await steady.read(0, 4096);
    const before = await openFiles(server.pid);
    for (let round = 0; round < 5; round++) {
      const copies = [
        await start(peer('nbdcopy'), ['-C', '4', server.uris[0]!, 'null:']),
        await start(peer('nbdcopy'), ['-C', '4', join(folder, 'big.img'), server.uris[0]!]),
      ];
      await new Promise((resolve) => setTimeout(resolve, 10 + round * 15));
      for (const copy of copies) {
        try {
          process.kill(copy.pid, 'SIGKILL');
        } catch {
          // It has finished already.
        }
      }
      await Promise.all(copies.map((copy) => copy.exited));
      expect(await steady.read(0, 4096)).toHaveLength(4096);
    }
    await expect.poll(() => openFiles(server.pid), patient).toBeLessThan(before + ENGINE_FILES);
    await steady.close();
    const whole = await run(peer('nbdcopy'), ['--flush', join(folder, 'big.img'), server.uris[0]!]);
    expect(whole.code).toBe(0);
    expect((await terminate(server)).code).toBe(0);
    expect(sha256(path)).toBe(sha256(join(folder, 'big.img')));
  });
});

test('256 clients at once are served; one more is not, until one leaves', async () => {
  const { folder, args } = image('many');
  const server = await serve([...args, '--threads', '2']);
  const before = await usedFiles(server, 2);
  const clients: NbdConnection[] = [];
  for (let i = 0; i < 256; i += 32) {
    clients.push(...(await Promise.all(Array.from({ length: 32 }, () => connectNbd(server.uris[0]!)))));
  }
  const block = (i: number) => Buffer.alloc(4096, i);
  await Promise.all(clients.map((client, i) => client.write(i * 4096, block(i))));
  await Promise.all(clients.map((client) => client.flush()));
  const read = await Promise.all(clients.map((client, i) => client.read(((i + 1) % 256) * 4096, 4096)));
  for (const [i, data] of read.entries()) expect(data.equals(block((i + 1) % 256))).toBe(true);

  await expect(connectNbd(server.uris[0]!)).rejects.toThrow();
  await clients.pop()!.close();
  const late = await expectConnection(server.uris[0]!);
  expect((await late.read(0, 4096)).equals(block(0))).toBe(true);
  await Promise.all([late, ...clients].map((client) => client.close()));
  await expect.poll(() => openFiles(server.pid), patient).toBeLessThan(before + ENGINE_FILES);

  // The same number of idlers in the handshake, and then the end.
  await Promise.all(Array.from({ length: 256 }, () => open(join(folder, 's'))));
  expect(await terminate(server)).toMatchObject({ code: 0 });
});

test('threads give back every descriptor of connections that came and went', async () => {
  const { args } = image('back');
  const server = await serve([...args, '--threads', '3']);
  const before = await usedFiles(server, 3);
  for (let round = 0; round < 20; round++) {
    const clients = await Promise.all(Array.from({ length: 9 }, () => connectNbd(server.uris[0]!)));
    await Promise.all(clients.map((client) => client.read(0, 4096)));
    await Promise.all(clients.map((client) => client.close()));
  }
  await expect.poll(() => openFiles(server.pid), patient).toBeLessThanOrEqual(before);
});

/** Connects as soon as there is room. */
async function expectConnection(uri: string): Promise<NbdConnection> {
  let connection: NbdConnection | undefined;
  await expect
    .poll(async () => {
      connection ??= await connectNbd(uri).catch(() => undefined);
      return connection !== undefined;
    }, patient)
    .toBe(true);
  return connection!;
}
