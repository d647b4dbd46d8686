// One server at several addresses: all of them or none, each told as a URI that leads back to it.
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import { connectNbd, listNbdExports, type ServeNbdOptions, serveNbd } from '../../src/nbd/index.ts';
import { tempDir } from '../support/tmp.ts';

async function mapper(): Promise<DeviceMapper> {
  const dm = new DeviceMapper();
  (await dm.create('d', '0 8 zero')).close();
  onTestFinished(() => dm.close());
  return dm;
}

function tcpIn(port: number, host = '127.0.0.1'): string {
  return `tcp:${host.includes(':') ? `[${host}]` : host}:${port}`;
}

/** A port that another program has. */
async function takenPort(): Promise<number> {
  const server = createServer().listen({ host: '127.0.0.1', port: 0 });
  await new Promise((resolve) => server.once('listening', resolve));
  onTestFinished(() => void server.close());
  return (server.address() as { port: number }).port;
}

test('a Unix socket, IPv4 and IPv6 at once: every URI is absolute and leads to the device', async () => {
  const dm = await mapper();
  const path = join(tempDir('listen'), "a b%&'ü.sock");
  const all = [`unix:${path}`, tcpIn(0), tcpIn(0, '::1'), tcpIn(0, '0.0.0.0'), tcpIn(0, '::')];
  const service = await serveNbd(dm, { listen: all, allowRemote: true, descriptions: { d: 'for people' } });
  try {
    expect(service.addresses).toHaveLength(all.length);
    expect(service.address).toBe(`unix:${path}`);
    expect(service.uri('d')).toBe(service.uris('d')[0]);
    expect(new Set(service.uris('d')).size).toBe(all.length);
    for (const uri of service.uris('d')) {
      const client = await connectNbd(uri);
      expect(client.byteLength).toBe(4096);
      await client.close();
      expect(await listNbdExports(uri)).toEqual([{ name: 'd', description: 'for people' }]);
    }
  } finally {
    await service.close();
  }
  expect(existsSync(path)).toBe(false);
});

test('where the last of them is taken, the others are closed and their files are gone', async () => {
  const dm = await mapper();
  const folder = tempDir('listen');
  const port = await takenPort();
  const listen = [`unix:${folder}/a`, tcpIn(0), `unix:${folder}/b`, tcpIn(port)];
  await expect(serveNbd(dm, { listen })).rejects.toMatchObject({
    errno: 98,
    message: `cannot listen at 127.0.0.1:${port}: another program is listening at this port; port 0 takes a free one`,
  });
  expect(readdirSync(folder)).toEqual([]);
  // The device is free again.
  const service = await serveNbd(dm, { listen: listen.slice(0, 3) });
  expect(readdirSync(folder).sort()).toEqual(['a', 'b']);
  await service.close();
});

const REFUSALS: [string, (folder: string) => ServeNbdOptions['listen'], RegExp][] = [
  ['no address', () => [], /^a server needs an address/],
  ['one twice', (folder) => [`unix:${folder}/a`, `unix:${folder}/x/../a`], /\/a twice: name each address once$/],
  ['a file that is no socket', (folder) => `unix:${folder}/file`, /: a file is there that is not a socket$/],
  ['a folder that is missing', (folder) => `unix:${folder}/no/s`, /no does not exist$/],
  ['a path that is too long', (folder) => `unix:${folder}/${'x'.repeat(120)}`, /has at most 107 bytes/],
  ['an address of another machine', () => ({ host: '192.0.2.1', port: 1, allowRemote: true }), /has no such address$/],
  ['a host that is not known', () => ({ host: 'a.invalid', port: 1, allowRemote: true }), /host a\.invalid is known$/],
  ['other machines, unasked', () => 'tcp:0.0.0.0:0', /not a loopback address/],
];

test.each(REFUSALS)('refused with one plain sentence: %s', async (_what, listen, sentence) => {
  const dm = await mapper();
  const folder = tempDir('listen');
  writeFileSync(join(folder, 'file'), '');
  mkdirSync(join(folder, 'x'));
  const error = (await serveNbd(dm, { listen: listen(folder) }).catch((reason) => reason)) as Error;
  expect(error.message).toMatch(sentence);
  // The sentence is ours: no name of a system call, no code, and no place twice.
  expect(error.message).not.toMatch(/\n|listen E|EADDR|EACCES|getaddrinfo/);
  expect(error.message.match(/cannot listen/g) ?? []).toHaveLength(error.message.startsWith('a server') ? 0 : 1);
  expect(readdirSync(folder).sort()).toEqual(['file', 'x']);
});
