// Real clients of `dmkit serve --tls`: libnbd's and QEMU's, with keys and with certificates; who must be kept out is.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { connectNbd, type NbdUri, parseNbdUri } from '../../src/nbd/index.ts';
import { issueCertificate, makeAuthority } from '../support/certificates.ts';
import { dmkit, serve } from '../support/cli.ts';
import { describePeer, peer, run } from '../support/peers.ts';
import { start } from '../support/process.ts';
import { socketsByLoop } from '../support/threads.ts';
import { makeImage, randomBytes, sha256, tempDir } from '../support/tmp.ts';

const SECTORS = 16384;

async function ok(command: string, args: readonly string[]): Promise<string> {
  const result = await run(command, args);
  expect(`${result.code} ${result.stderr}${result.code === 0 ? '' : result.stdout}`).toMatch(/^0 /);
  return result.stdout;
}

async function fails(command: string, args: readonly string[]): Promise<string> {
  const result = await run(command, args);
  expect([1, 'ended by itself']).toEqual([result.code, result.timedOut ? 'hung' : 'ended by itself']);
  return result.stderr;
}

/** An image and the arguments that serve it. */
function disk(prefix: string): { folder: string; image: string; args: string[] } {
  const folder = tempDir(prefix);
  const image = join(folder, 'a.img');
  makeImage(image, SECTORS, 7);
  return { folder, image, args: ['d', '--table', `0 ${SECTORS} linear ${image} 0`] };
}

async function keys(folder: string, name = 'keys.psk'): Promise<string> {
  await ok(peer('psktool'), ['-u', 'alice', '-p', join(folder, name)]);
  return join(folder, name);
}

/** QEMU's options for an export under TLS; its credentials are an object of their own. */
function qemuImage(uri: NbdUri, credentials: string, hostname?: string): string[] {
  const server =
    uri.socket === undefined
      ? `server.type=inet,server.host=${uri.host},server.port=${uri.port}`
      : `server.type=unix,server.path=${uri.socket}`;
  const name = hostname === undefined ? '' : `,tls-hostname=${hostname}`;
  return ['--object', credentials, '--image-opts', `driver=nbd,${server},export=d,tls-creds=t0${name}`];
}

describePeer(['psktool', 'nbdinfo', 'nbdcopy', 'qemu-img'], 'shared keys', () => {
  test('nbdinfo, nbdcopy and qemu-img come in; without the key nobody does', async () => {
    const { folder, image, args } = disk('psk');
    const psk = await keys(folder);
    const { uris, output } = await serve([...args, '--nbd', `unix:${folder}/s`, '--tls', 'require', '--tls-psk', psk]);
    expect(uris[0]).toMatch(/^nbds\+unix:\/\/alice@\/d\?socket=.*&tls-psk-file=/);
    const info = JSON.parse(await ok(peer('nbdinfo'), ['--json', uris[0]!]));
    expect(info).toMatchObject({ TLS: true, exports: [{ 'export-name': 'd' }] });
    await ok(peer('nbdcopy'), ['-C', '4', uris[0]!, join(folder, 'out.img')]);
    expect(sha256(join(folder, 'out.img'))).toBe(sha256(image));
    writeFileSync(join(folder, 'new.img'), randomBytes(SECTORS * 512, 9));
    await ok(peer('nbdcopy'), ['--flush', join(folder, 'new.img'), uris[0]!]);
    expect(sha256(image)).toBe(sha256(join(folder, 'new.img')));
    const uri = parseNbdUri(uris[0]!);
    const credentials = `tls-creds-psk,id=t0,dir=${folder},username=alice,endpoint=client`;
    expect(await ok(peer('qemu-img'), ['info', ...qemuImage(uri, credentials)])).toMatch(/virtual size: 8 MiB/);

    const wrong = tempDir('psk');
    const wrongKey = await keys(wrong);
    await fails(peer('nbdinfo'), [uris[0]!.replace(psk, wrongKey)]);
    await fails(peer('nbdinfo'), [uris[0]!.replace('alice', 'bob')]);
    await fails(peer('qemu-img'), ['info', ...qemuImage(uri, credentials.replace(`dir=${folder}`, `dir=${wrong}`))]);
    const inTheClear = `nbd+unix:///d?socket=${folder}/s`;
    await fails(peer('nbdinfo'), [inTheClear]);
    await fails(peer('nbdinfo'), ['--list', inTheClear]);
    expect(await fails(peer('qemu-img'), ['info', inTheClear])).toMatch(/TLS/);
    expect(output()).toMatch(/^dmkit: client unix:.*: TLS: /m);
    // All of that harmed nobody.
    await ok(peer('nbdinfo'), [uris[0]!]);
  });

  test('several threads share the connections, each with TLS of its own', async () => {
    const { folder, image, args } = disk('psk');
    const psk = await keys(folder);
    const server = await serve([...args, '--nbd', `unix:${folder}/s`, '--threads', '3', '--tls-psk', psk]);
    const connect = () => Promise.all(Array.from({ length: 6 }, () => connectNbd(server.uris[0]!)));
    // Threads may be there a moment after the server.
    await expect
      .poll(
        async () => {
          const probes = await connect();
          const counts = socketsByLoop(server.pid).sort();
          await Promise.all(probes.map((probe) => probe.close()));
          return counts;
        },
        { timeout: 150_000 },
      )
      // One listens as well.
      .toEqual([2, 2, 3]);
    const clients = await connect();
    await Promise.all(clients.map((client, i) => client.write(i * 1000, Buffer.alloc(1000, i + 1))));
    await clients[0]!.flush();
    const expected = Buffer.concat(clients.map((_, i) => Buffer.alloc(1000, i + 1)));
    for (const client of clients) expect((await client.read(0, 6000)).equals(expected)).toBe(true);
    await Promise.all(clients.map((client) => client.close()));
    await ok(peer('nbdcopy'), ['-C', '4', server.uris[0]!, join(folder, 'out.img')]);
    expect(sha256(join(folder, 'out.img'))).toBe(sha256(image));
    await fails(peer('nbdinfo'), [server.uris[0]!.replace('alice', 'bob')]);
    expect(await server.stop()).toBe(0);
  });

  test('allow serves both ways, off one', async () => {
    const { folder, args } = disk('psk');
    const psk = await keys(folder);
    const allow = await serve([...args, '--nbd', `unix:${folder}/s`, '--tls', 'allow', '--tls-psk', psk]);
    expect(allow.uris[0]).toBe(`nbd+unix:///d?socket=${folder}/s`);
    expect(JSON.parse(await ok(peer('nbdinfo'), ['--json', allow.uris[0]!]))).toMatchObject({ TLS: false });
    const secure = `nbds+unix://alice@/d?socket=${folder}/s&tls-psk-file=${psk}`;
    expect(JSON.parse(await ok(peer('nbdinfo'), ['--json', secure]))).toMatchObject({ TLS: true });
    await allow.stop();
    await serve([...args, '--nbd', `unix:${folder}/s`, '--tls', 'off', '--tls-psk', psk]);
    await fails(peer('nbdinfo'), [secure]);
  });
});

describePeer(['certtool', 'nbdinfo', 'nbdcopy', 'qemu-img'], 'certificates', () => {
  test('QEMU and libnbd verify us, and we verify them', async () => {
    const { folder, image, args } = disk('x509');
    const [pki, client, stranger] = ['pki', 'client', 'stranger'].map((name) => join(folder, name));
    await makeAuthority(pki!);
    await issueCertificate(pki!, pki!, 'server');
    await issueCertificate(pki!, client!, 'client');
    await makeAuthority(stranger!);
    await issueCertificate(stranger!, stranger!, 'client');
    const tls = ['--tls', 'require', '--tls-certificates', pki!, '--tls-verify-peer'];
    const { uris } = await serve([...args, '--nbd', 'tcp:127.0.0.1:0', ...tls]);
    const uri = parseNbdUri(uris[0]!);

    const credentials = (dir: string) => `tls-creds-x509,id=t0,dir=${dir},endpoint=client`;
    const copy = ['convert', '-O', 'raw', ...qemuImage(uri, credentials(client!)), join(folder, 'out.img')];
    await ok(peer('qemu-img'), copy);
    expect(sha256(join(folder, 'out.img'))).toBe(sha256(image));
    await fails(peer('qemu-img'), ['info', ...qemuImage(uri, credentials(stranger!))]);
    await fails(peer('qemu-img'), ['info', ...qemuImage(uri, credentials(client!), 'other.example')]);

    const libnbd = (dir: string) => `nbds://127.0.0.1:${uri.port}/d?tls-certificates=${dir}`;
    await ok(peer('nbdcopy'), ['-C', '4', libnbd(client!), join(folder, 'again.img')]);
    expect(sha256(join(folder, 'again.img'))).toBe(sha256(image));
    await fails(peer('nbdinfo'), [libnbd(stranger!)]);
    await fails(peer('nbdinfo'), [libnbd(pki!)]);
  });

  test('--run has a URI that our own client understands', async () => {
    const { folder, args } = disk('x509');
    const pki = join(folder, 'pki');
    await makeAuthority(pki);
    await issueCertificate(pki, pki, 'server');
    const result = await dmkit(['serve', ...args, '--tls-certificates', pki, '--run', 'echo "$uri"']);
    expect(result.stdout).toMatch(/^nbds\+unix:\/\/\/d\?.*tls-certificates=/);
    const { uris } = await serve([...args, '--nbd', `unix:${folder}/s`, '--tls-certificates', pki]);
    await (await connectNbd(uris[0]!)).close();
  });
});

describePeer(['nbdkit', 'psktool'], 'our client at nbdkit', () => {
  test('with a key; not in the clear where nbdkit has no TLS', async () => {
    const folder = tempDir('nbdkit');
    const psk = await keys(folder);
    const nbdkit = (name: string, args: string[]) =>
      start(peer('nbdkit'), ['-f', '-v', '-U', join(folder, name), ...args, 'memory', '1M'], {
        ready: /bound to unix socket/,
      });
    const uri = (name: string) => `nbds+unix://alice@/?socket=${join(folder, name)}&tls-psk-file=${psk}`;
    const secure = await nbdkit('secure', ['--tls=require', `--tls-psk=${psk}`]);
    try {
      const client = await connectNbd(uri('secure'));
      await client.write(0, Buffer.alloc(4096, 5));
      expect((await client.read(0, 8192)).subarray(4000, 4200)).toEqual(
        Buffer.concat([Buffer.alloc(96, 5), Buffer.alloc(104)]),
      );
      await client.close();
      await expect(connectNbd(`nbd+unix:///?socket=${join(folder, 'secure')}`)).rejects.toThrow();
    } finally {
      await secure.stop();
    }
    const clear = await nbdkit('clear', ['--tls=off']);
    try {
      await expect(connectNbd(uri('clear'))).rejects.toMatchObject({ code: 'EACCES' });
    } finally {
      await clear.stop();
    }
  });
});

describe('options of TLS', () => {
  const args = ['serve', 'd', '--table', '0 8 zero'];
  test.each([
    [['--tls', 'require'], /needs --tls-certificates or --tls-psk/],
    [['--tls', 'maybe'], /Allowed choices are off, allow, require/],
    [['--tls-verify-peer'], /--tls-verify-peer needs --tls-certificates/],
    [['--tls-psk', 'nosuch-file'], /cannot read .*nosuch-file/],
    [['--tls-certificates', 'nosuch-folder'], /cannot read .*nosuch-folder.server-cert\.pem/],
    [['--tls-certificates', 'a', '--tls-psk', 'b'], /either certificates or a file of keys/],
  ])('%j', async (more, message) => {
    const result = await dmkit([...args, ...more]);
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(message);
    expect(result.stderr).not.toMatch(/\n {4}at /);
  });
});
