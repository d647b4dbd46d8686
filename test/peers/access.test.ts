// Who gets at an export, and how far: sockets, addresses, read-only.
import { chmodSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, test } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { encodeGoRequest } from '../../src/nbd/protocol/info.ts';
import { HeldDevice, option, request, Session, u32 } from '../nbd/support.ts';
import { issueCertificate, makeAuthority } from '../support/certificates.ts';
import { dmkit, serve } from '../support/cli.ts';
import { describePeer, itPeer, peer, run } from '../support/peers.ts';
import { makeImage, sha256, tempDir } from '../support/tmp.ts';

const ZEROES = ['d', '--table', '0 2048 zero'];

describe('TCP beyond this machine', () => {
  test.each(['0.0.0.0', '[::]', 'example.org'])('%s needs --allow-remote', async (host) => {
    const result = await dmkit(['serve', ...ZEROES, '--nbd', `tcp:${host}:0`]);
    expect([result.code, result.stdout]).toEqual([1, '']);
    expect(result.stderr).toMatch(/not a loopback address.*--allow-remote/);
  });

  test('with it is served, and warned of once', async () => {
    const server = await serve([...ZEROES, '--nbd', 'tcp:0.0.0.0:0', '--allow-remote']);
    expect(server.uris[0]).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/d$/);
    expect(
      server.output().match(/^dmkit: warning: any program that reaches tcp:0\.0\.0\.0:0 .*--tls require$/gm),
    ).toHaveLength(1);
  });

  test.each(['tcp:127.0.0.1:0', 'tcp:localhost:0', 'tcp:[::1]:0'])('%s is this machine', async (address) => {
    const server = await serve([...ZEROES, '--nbd', address, '--allow-remote']);
    expect(server.output()).not.toContain('warning');
  });

  itPeer(['psktool', 'certtool'], 'with TLS is warned of where that tells no clients apart', async () => {
    const folder = tempDir('access');
    const remote = [...ZEROES, '--nbd', 'tcp:0.0.0.0:0', '--allow-remote'];
    const psk = join(folder, 'keys.psk');
    await run(peer('psktool'), ['-u', 'alice', '-p', psk]);
    const withKeys = await serve([...remote, '--tls-psk', psk]);
    expect(withKeys.output()).not.toContain('warning');
    // The files of this machine mean nothing on others.
    expect(withKeys.uris[0]).toMatch(/^nbds:\/\/alice@127\.0\.0\.1:\d+\/d$/);
    expect((await serve([...remote, '--tls', 'allow', '--tls-psk', psk])).output()).toMatch(/warning: .*--tls require/);
    await makeAuthority(folder);
    await issueCertificate(folder, folder, 'server');
    const certificates = [...remote, '--tls-certificates', folder];
    expect((await serve(certificates)).output()).toMatch(/warning: .*--tls-verify-peer/);
    expect((await serve([...certificates, '--tls-verify-peer'])).output()).not.toContain('warning');
  });
});

describePeer(['python3-libnbd', 'nbdcopy', 'nbdinfo'], 'read-only', () => {
  test('every command that would change something gets EPERM, and nothing has changed', async () => {
    const folder = tempDir('access');
    const image = join(folder, 'a.img');
    makeImage(image, 2048);
    const before = sha256(image);
    const { uris } = await serve([
      'd',
      '--table',
      `0 2048 linear ${image} 0`,
      '--read-only',
      '--nbd',
      `unix:${folder}/s`,
    ]);
    const script = `
import errno, nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
for call in (lambda: h.pwrite(bytes(512), 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0),
             lambda: h.pwrite(bytes(512), 0, nbd.CMD_FLAG_FUA), lambda: h.zero(512, 0, nbd.CMD_FLAG_NO_HOLE)):
    try:
        call()
        print("done")
    except nbd.Error as error:
        print(errno.errorcode.get(error.errnum))
h.pread(512, 0)
h.flush()`;
    const result = await run(peer('python3-libnbd'), ['-c', script, uris[0]!]);
    expect([result.code, result.stdout.trim().split('\n')]).toEqual([0, Array(5).fill('EPERM')]);
    expect((await run(peer('nbdcopy'), [image, uris[0]!])).code).not.toBe(0);
    expect(sha256(image)).toBe(before);
  });
});

itPeer(['root', 'python3-libnbd'], 'another user cannot connect to a Unix socket', async () => {
  const folder = tempDir('access');
  chmodSync(folder, 0o755);
  const socket = join(folder, 's');
  await serve([...ZEROES, '--nbd', `unix:${socket}`]);
  expect(statSync(socket).mode & 0o777).toBe(0o600);
  const script = `
import os, socket, sys
for user in (0, 65534):
    os.setuid(user)
    try:
        socket.socket(socket.AF_UNIX).connect(sys.argv[1])
        print("connected")
    except PermissionError:
        print("refused")`;
  const result = await run(peer('python3-libnbd'), ['-c', script, socket]);
  expect([result.stdout, result.stderr]).toEqual(['connected\nrefused\n', '']);
});

describe('a client that only knocks', () => {
  it('reaches no device before the end of its handshake (CVE-2019-14850)', () => {
    const device = new HeldDevice(8);
    const session = new Session(device);
    const info = encodeGoRequest('disk', [1, 2, 3]);
    session.send(u32(3), option(3), option(6, info), request({ type: 0, length: 512 }));
    expect([device.bios, device.flushCount, session.isClosed]).toEqual([[], 0, true]);
  });

  it('is not told what it did not ask for', () => {
    const session = new Session(new MemoryDevice('disk', 8));
    expect(session.take(session.receivedByteLength)).toHaveLength(18);
  });
});
