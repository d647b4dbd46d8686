// dmkit serve --stdio: one client on standard input and output, whatever kind of connection they are.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, constants, openSync, readFileSync, statSync } from 'node:fs';
import { connect, createServer, Socket } from 'node:net';
import { join } from 'node:path';
import { Duplex } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { describe, expect, onTestFinished, test } from 'vitest';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { StreamPair } from '../../src/reactor/stream-pair.ts';
import { option, request, u32 } from '../nbd/support.ts';
import { WireClient } from '../nbd/wire-client.ts';
import { dmkit } from '../support/cli.ts';
import { itPeer, peer, run } from '../support/peers.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const SECTORS = 2048;

function image(): { folder: string; path: string; content: Buffer; args: string[] } {
  const folder = tempDir('stdio');
  const path = join(folder, 'a.img');
  const content = makeImage(path, SECTORS);
  return { folder, path, content, args: ['serve', 'd', '--stdio', '--table', `0 ${SECTORS} linear ${path} 0`] };
}

interface Server {
  /** The client's end. */
  stream: Duplex;
  child: ChildProcess;
  exited: Promise<number | string>;
  stderr(): string;
}

type Kind = 'one Unix socket' | 'one TCP socket' | 'two sockets' | 'two pipes';

const WITHOUT_KOFFI = { DMKIT_ENGINE: 'portable' };
const CASES: [Kind, NodeJS.ProcessEnv][] = [
  ['one Unix socket', {}],
  ['one Unix socket', WITHOUT_KOFFI],
  ['two pipes', {}],
  ['two pipes', WITHOUT_KOFFI],
  ['one TCP socket', {}],
  ['two sockets', {}],
];

function watch(child: ChildProcess, stream: Duplex): Server {
  let text = '';
  child.stderr!.on('data', (chunk) => {
    text += chunk;
  });
  const exited = once(child, 'close').then(([code, signal]) => code ?? signal);
  stream.on('error', () => {});
  onTestFinished(async () => {
    stream.destroy();
    child.kill('SIGKILL');
    await exited;
  });
  return { stream, child, exited, stderr: () => text };
}

/** Starts it as inetd would: an accepted connection is its standard input and output. */
async function overOneSocket(args: string[], listen: object, env: NodeJS.ProcessEnv): Promise<Server> {
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(listen);
  await once(server, 'listening');
  const address = server.address();
  const target = typeof address === 'string' ? { path: address } : { port: (address as { port: number }).port };
  const client = connect({ ...target, allowHalfOpen: true });
  const [accepted] = (await once(server, 'connection')) as [Socket];
  await once(client, 'connect');
  const child = spawn(process.execPath, [main, ...args], { stdio: [accepted, accepted, 'pipe'], env });
  accepted.destroy();
  server.close();
  return watch(child, client);
}

async function start(kind: Kind, args: string[], extra: NodeJS.ProcessEnv = {}): Promise<Server> {
  const env = { ...process.env, ...extra };
  if (kind === 'one Unix socket') return overOneSocket(args, { path: join(tempDir('inetd'), 's') }, env);
  if (kind === 'one TCP socket') return overOneSocket(args, { port: 0, host: '127.0.0.1' }, env);
  if (kind === 'two pipes') return overPipes(args, env);
  const child = spawn(process.execPath, [main, ...args], { stdio: 'pipe', env });
  return watch(child, new StreamPair(child.stdout as Socket, child.stdin as unknown as Socket));
}

/** Node.js gives its children sockets for pipes: these are real ones. */
function overPipes(args: string[], env: NodeJS.ProcessEnv): Server {
  const folder = tempDir('pipes');
  const ends = ['in', 'out'].map((name) => {
    const path = join(folder, name);
    expect(spawnSync('mkfifo', [path]).status).toBe(0);
    return { reader: openSync(path, constants.O_RDONLY | constants.O_NONBLOCK), writer: openSync(path, 'w') };
  });
  const [input, output] = ends as [(typeof ends)[0], (typeof ends)[0]];
  const child = spawn(process.execPath, [main, ...args], { stdio: [input.reader, output.writer, 'pipe'], env });
  closeSync(input.reader);
  closeSync(output.writer);
  const reader = new Socket({ fd: output.reader, readable: true, writable: false });
  return watch(child, new StreamPair(reader, new Socket({ fd: input.writer, readable: false, writable: true })));
}

async function shakeHands(server: Server): Promise<WireClient> {
  const client = new WireClient(server.stream as Socket, 'simple');
  server.stream.write(Buffer.concat([u32(3), option(7, encodeGoRequest('', []))]));
  await client.read(18);
  for (;;) {
    const header = await client.read(20);
    await client.read(header.readUInt32BE(16));
    if (header.readUInt32BE(12) === 1) return client;
  }
}

describe.each(CASES)('over %s, with %j', (kind, env) => {
  test('reads, writes, and ends with 0 at a goodbye', async () => {
    const { args, content, path } = image();
    const server = await start(kind, args, env);
    const client = await shakeHands(server);
    expect((await client.ask({ type: 0, offset: 512, length: 65_536 })).data).toEqual(content.subarray(512, 66_048));
    const data = Buffer.alloc(4096, 7);
    expect((await client.ask({ type: 1, offset: 8192, length: data.length, data })).error).toBe(0);
    server.stream.write(client.encode({ type: 2 }));
    await client.ended();
    server.stream.end();
    expect([await server.exited, server.stderr()]).toEqual([0, '']);
    expect(readFileSync(path).subarray(8192, 12_288)).toEqual(data);
  });

  test('a client that only closes its side gets every answer first', async () => {
    const { args, content } = image();
    const server = await start(kind, args, env);
    const client = await shakeHands(server);
    const count = 200;
    const asked = Array.from({ length: count }, (_, cookie) => request({ type: 0, cookie, length: 65_536 }));
    server.stream.end(Buffer.concat(asked));
    const answers = await client.read(count * (16 + 65_536));
    expect(answers.subarray(-65_536)).toEqual(content.subarray(0, 65_536));
    await client.ended();
    expect([await server.exited, server.stderr()]).toEqual([0, '']);
  });

  test('a client that is gone with answers on their way ends it, and what it wrote is there', async () => {
    const { args, path } = image();
    const server = await start(kind, args, env);
    const client = await shakeHands(server);
    const data = Buffer.alloc(4096, 9);
    expect((await client.ask({ type: 1, offset: 0, length: data.length, data })).error).toBe(0);
    // Far more than sockets and pipes hold, and nothing is read of it.
    server.stream.pause();
    for (let cookie = 0; cookie < 40; cookie++) server.stream.write(request({ type: 0, cookie, length: 1 << 20 }));
    await new Promise((resolve) => setTimeout(resolve, 200));
    server.stream.destroy();
    expect(await server.exited).toBe(0);
    expect(server.stderr()).not.toMatch(/unexpected|\n {4}at /);
    expect(readFileSync(path).subarray(0, 4096)).toEqual(data);
  });

  test('SIGTERM ends it with 0 in spite of its client', async () => {
    const { args } = image();
    const server = await start(kind, args, env);
    const client = await shakeHands(server);
    server.child.kill('SIGTERM');
    await client.ended();
    server.stream.end();
    expect([await server.exited, server.stderr()]).toEqual([0, '']);
  });
});

describe('standard output is the client’s alone', () => {
  test('a client that breaks the protocol is told of on standard error alone', async () => {
    const { args } = image();
    const server = await start('two pipes', args);
    const client = new WireClient(server.stream as Socket, 'simple');
    await client.read(18);
    server.stream.write('GET / HTTP/1.0\r\n\r\n');
    await client.ended();
    expect(client.unreadByteLength).toBe(0);
    server.stream.end();
    expect(await server.exited).toBe(0);
    expect(server.stderr()).toMatch(/^dmkit: client fd:\d+: unknown client flags 0x[0-9a-f]+\n$/);
  });

  test('a table that is refused is told on standard error, and the client gets an end', async () => {
    const server = await start('two pipes', ['serve', 'd', '--stdio', '--table', '0 8 linear /nowhere/a.img 0']);
    const client = new WireClient(server.stream as Socket, 'simple');
    await client.ended();
    server.stream.end();
    expect(client.unreadByteLength).toBe(0);
    expect(await server.exited).toBe(1);
    expect(server.stderr()).toMatch(/\nCommand failed\.\n$/);
  });
});

describe('is refused', () => {
  const base = ['serve', 'd', '--stdio', '--table', '0 8 zero'];

  test.each([
    [['--nbd', 'unix:s'], '--nbd'],
    [['--threads', '1'], '--threads'],
    [['--allow-remote'], '--allow-remote'],
    [['--run', 'true'], '--run'],
    [['e', '--table-file', '-'], '--table-file -'],
  ])('with %j', async (args, word) => {
    const result = await dmkit([...base, ...args]);
    expect([result.code, result.stdout]).toEqual([1, '']);
    expect(result.stderr).toBe(
      `dmkit: --stdio and ${word} cannot be together: the one client has standard input and output; leave one of them out\n`,
    );
  });

  test('beside a socket that systemd gave', async () => {
    const args = ['-c', 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', 'sh', process.execPath, main, ...base];
    const result = await run('sh', args);
    expect([result.code, result.stderr]).toEqual([1, expect.stringContaining('--stdio cannot be: this process was')]);
  });

  const script = (redirection: string) => ['-c', `exec "$@" ${redirection}`, 'sh', process.execPath, main, ...base];

  test.each([
    ['</dev/null', 'standard input is a terminal or another device'],
    ['<&-', 'standard input is '],
    ['</etc/passwd', 'standard input is a plain file'],
    ['>/dev/null', 'standard output is a terminal or another device'],
    ['>out', 'standard output is a plain file'],
  ])('where standard streams are no connection: %s', async (redirection, sentence) => {
    const folder = tempDir('stdio');
    const result = await run('sh', script(redirection), { cwd: folder });
    expect([result.code, result.stdout]).toEqual([1, '']);
    expect(result.stderr).toMatch(/^dmkit: --stdio: [^\n]+\n$/);
    expect(result.stderr).toContain(sentence);
    if (redirection === '>out') expect(statSync(join(folder, 'out')).size).toBe(0);
  });

  test('where standard input is a socket that listens', async () => {
    const server = createServer().listen({ path: join(tempDir('stdio'), 's') });
    await once(server, 'listening');
    onTestFinished(() => void server.close());
    const listening = (server as unknown as { _handle: { fd: number } })._handle.fd;
    const child = spawn(process.execPath, [main, ...base], { stdio: [listening, 'pipe', 'pipe'] });
    const { exited, stderr } = watch(child, new Duplex());
    expect(await exited).toBe(1);
    expect(stderr()).toMatch(/^dmkit: --stdio: standard input is a socket that listens: [^\n]+\n$/);
  });
});

itPeer(['python3-libnbd'], 'libnbd starts it by connect_command', async () => {
  const { args, content, folder } = image();
  const code = [
    'import nbd, sys, hashlib',
    'h = nbd.NBD(); h.set_full_info(True)',
    'h.connect_command(sys.argv[1:])',
    'print(h.get_size(), h.get_export_description(), h.get_canonical_export_name())',
    'print(hashlib.sha256(h.pread(h.get_size(), 0)).hexdigest())',
    'h.pwrite(b"z" * 512, 512); h.flush(); h.shutdown()',
  ].join('\n');
  const command = [process.execPath, main, ...args, '--description', 'golden\tthing'];
  const result = await run(peer('python3-libnbd'), ['-c', code, ...command]);
  const hash = createHash('sha256').update(content).digest('hex');
  expect([result.code, result.stderr, result.stdout]).toEqual([
    0,
    '',
    `${content.length} golden\\u0009thing d\n${hash}\n`,
  ]);
  expect(readFileSync(join(folder, 'a.img')).subarray(512, 1024)).toEqual(Buffer.alloc(512, 'z'));
});
