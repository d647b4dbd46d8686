// A client that blocks: it sends long READs and then a WRITE, and reads no reply before all of that has left. A server that
// reads no request while replies wait never answers it.
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { issueCertificate, makeAuthority } from '../support/certificates.ts';
import { serve } from '../support/cli.ts';
import { describePeer } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';
import { HeldDevice, option, pattern, request, Session, u32 } from './support.ts';
import { WireClient } from './wire-client.ts';

const [READ, WRITE, DISC] = [0, 1, 2];
const MIB = 1 << 20;
const READ_COUNT = 4;
const READ_BYTE_LENGTH = 32 * MIB;
const REPLY_BYTE_LENGTH = 16;

/** Simple replies, after TLS where `folder` has an authority. */
async function open(socket: Socket, folder: string | null): Promise<WireClient> {
  socket.write(u32(3));
  if (folder === null) return go(new WireClient(socket, 'simple'), 18);
  const plain = new WireClient(socket, 'simple');
  await plain.read(18);
  socket.write(option(5));
  await plain.read(20);
  socket.removeAllListeners('data');
  const ca = readFileSync(join(folder, 'ca-cert.pem'));
  const secured = connectTls({ socket, ca, servername: 'localhost' });
  await once(secured, 'secureConnect');
  return go(new WireClient(secured, 'simple'), 0);
}

async function go(client: WireClient, greetingByteLength: number): Promise<WireClient> {
  await client.read(greetingByteLength);
  client.socket.write(option(7, encodeGoRequest('', [])));
  for (let type = 0; type !== 1; ) {
    const header = await client.read(20);
    await client.read(header.readUInt32BE(16));
    type = header.readUInt32BE(12);
  }
  return client;
}

/** Sends it all, and reads nothing before the kernel has it all. */
async function sendBlocking({ socket }: WireClient, messages: readonly Uint8Array[]): Promise<void> {
  socket.pause();
  await new Promise<void>((resolve, reject) => {
    socket.write(Buffer.concat(messages), (error) => (error ? reject(error) : resolve()));
  });
  socket.resume();
}

/** Cookies in the order of their replies; READs are those above zero. */
async function cookies(client: WireClient, count: number, readByteLength: number): Promise<number[]> {
  const got: number[] = [];
  while (got.length < count) {
    const header = await client.read(REPLY_BYTE_LENGTH);
    expect(header.readUInt32BE(4)).toBe(0);
    const cookie = Number(header.readBigUInt64BE(8));
    if (cookie > 0) await client.read(readByteLength);
    got.push(cookie);
  }
  return got;
}

describePeer(['certtool'], `${READ_COUNT} READs of 32 MiB and a WRITE before the first reply is read`, () => {
  test.each([
    ['unix', 'auto', 1],
    ['unix', 'node', 1],
    // The kernel's buffers for TCP alone take several MiB.
    ['tcp', 'auto', 24],
    ['tcp', 'node', 24],
    ['tls', 'auto', 24],
  ])('are answered: %s, DMKIT_SOCKETS=%s', async (kind, sockets, writeMib) => {
    const folder = tempDir('blocking');
    const path = join(folder, 's');
    const args = ['x', '--table', '0 131072 zero', '--threads', '1'];
    args.push('--nbd', kind === 'unix' ? `unix:${path}` : 'tcp:127.0.0.1:0');
    if (kind === 'tls') {
      await makeAuthority(folder);
      await issueCertificate(folder, folder, 'server');
      args.push('--tls-certificates', folder);
    }
    const { uris } = await serve(args, { env: { DMKIT_SOCKETS: sockets } });
    const port = Number(/:(\d+)\//.exec(uris[0]!)?.[1]);
    const socket = kind === 'unix' ? connect(path) : connect(port, '127.0.0.1');
    const client = await open(socket, kind === 'tls' ? folder : null);
    const reads = Array.from({ length: READ_COUNT }, (_, i) =>
      request({ type: READ, cookie: i + 1, length: READ_BYTE_LENGTH }),
    );
    await sendBlocking(client, [...reads, request({ type: WRITE, cookie: 0, data: new Uint8Array(writeMib * MIB) })]);
    expect((await cookies(client, READ_COUNT + 1, READ_BYTE_LENGTH)).toSorted()).toEqual([0, 1, 2, 3, 4]);
    client.socket.destroy();
  });
});

test('what waits for the client takes no memory, and only so many wait', () => {
  const session = new Session(new MemoryDevice('disk', (64 * MIB) / 512)).go();
  session.serverSide.autoDeliver = false;
  for (let i = 0; i < 15; i++) session.send(request({ type: READ, cookie: i, length: 32 * MIB }));
  for (let i = 0; i < 40; i++) session.send(request({ type: WRITE, cookie: 100 + i, data: pattern(MIB) }));
  session.reactor.turn();
  expect(session.server.statistics.usedByteLength).toBeLessThan(2 * 33 * MIB + 6 * MIB);
  expect(session.serverSide.isPaused).toBe(true);
  session.serverSide.autoDeliver = true;
  session.serverSide.deliver();
  session.reactor.turn();
  expect(session.receivedByteLength).toBe(15 * (16 + 32 * MIB) + 40 * 16);
  expect(session.server.statistics).toMatchObject({ requestCount: 0, usedByteLength: 0 });
  expect(session.serverSide.isPaused).toBe(false);
});

test('WRITEs of a client that reads nothing reach a slow device few at a time', () => {
  const device = new HeldDevice((64 * MIB) / 512);
  const session = new Session(device).go();
  session.serverSide.autoDeliver = false;
  session.send(request({ type: READ, cookie: 0, length: MIB }));
  device.finish(0);
  session.reactor.turn();
  for (let i = 1; i <= 10; i++) session.send(request({ type: WRITE, cookie: i, data: pattern(MIB) }));
  for (let i = 1; i <= 10; i++) {
    expect(device.bios.length).toBeGreaterThan(0);
    expect(device.bios.length).toBeLessThanOrEqual(4);
    expect(session.server.statistics.usedByteLength).toBeLessThan(9 * MIB);
    device.finish(0);
    session.reactor.turn();
  }
  session.serverSide.autoDeliver = true;
  session.serverSide.deliver();
  session.reactor.turn();
  expect(session.receivedByteLength).toBe(16 + MIB + 10 * 16);
});

test('READs that wait are answered before a client that said goodbye is let go', () => {
  const session = new Session(new MemoryDevice('disk', (64 * MIB) / 512)).go();
  session.serverSide.autoDeliver = false;
  for (let i = 0; i < 8; i++) session.send(request({ type: READ, cookie: i, length: 8 * MIB }));
  session.send(request({ type: DISC }));
  expect(session.server.statistics.requestCount).toBeGreaterThan(0);
  session.serverSide.autoDeliver = true;
  session.serverSide.deliver();
  session.reactor.turn();
  expect(session.receivedByteLength).toBe(8 * (16 + 8 * MIB));
  expect(session.server.statistics).toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
});

test('READs that wait for a client that is gone are forgotten, and a shutdown does not wait for them', () => {
  for (const how of ['gone', 'shutdown'] as const) {
    const session = new Session(new MemoryDevice('disk', (64 * MIB) / 512)).go();
    session.serverSide.autoDeliver = false;
    for (let i = 0; i < 8; i++) session.send(request({ type: READ, cookie: i, length: 8 * MIB }));
    let outcome: Error | null | undefined;
    if (how === 'gone') session.client.destroy();
    else {
      session.server.shutdown((error) => {
        outcome = error;
      });
    }
    session.reactor.turn();
    expect(session.server.statistics.requestCount).toBe(0);
    session.serverSide.autoDeliver = true;
    session.serverSide.deliver();
    session.reactor.turn();
    if (how === 'shutdown') expect(outcome).toBe(null);
    expect(session.server.statistics).toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
  }
});

test('a READ that waited while its device changed is refused', () => {
  const device = new HeldDevice((64 * MIB) / 512);
  const session = new Session(device).go();
  session.serverSide.autoDeliver = false;
  session.send(request({ type: READ, cookie: 0, length: MIB }));
  device.finish(0);
  session.reactor.turn();
  session.send(request({ type: READ, cookie: 1, length: MIB }));
  expect(device.bios).toHaveLength(0);
  Object.assign(device, { sectorCount: 8 });
  session.serverSide.autoDeliver = true;
  session.serverSide.deliver();
  session.reactor.turn();
  expect(session.takeReply().error).toBe(0);
  session.take(MIB);
  expect(session.takeReply().error).toBe(Errno.ESHUTDOWN);
});
