// nbds: URIs as devices of a table: nbdkit and our own server below, each with certificates and with keys; whoever cannot
// prove itself, or is not believed, is refused with the reason.
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { issueCertificate, makeAuthority } from '../support/certificates.ts';
import { dmkit, serve } from '../support/cli.ts';
import { describePeer, peer, run, start } from '../support/peers.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

const SECTOR_COUNT = 2048;

interface Below {
  /** A URI without its parameters. */
  uri: string;
}

interface Kind {
  name: string;
  certificates(folder: string, pki: string, verifyPeer: boolean): Promise<Below>;
  keys(folder: string, file: string): Promise<Below>;
}

async function nbdkit(folder: string, tls: string[]): Promise<Below> {
  const socket = join(folder, 'k.sock');
  const server = await start(peer('nbdkit'), ['-f', '-v', '-U', socket, '--tls=require', ...tls, 'memory', '1M'], {
    ready: /bound to unix socket/,
    timeoutSeconds: 240,
  });
  onTestFinished(async () => void (await server.stop()));
  return { uri: `+unix:///?socket=${socket}&` };
}

async function ours(folder: string, tls: string[]): Promise<Below> {
  makeImage(join(folder, 'a.img'), SECTOR_COUNT);
  const args = ['d', '--table', `0 ${SECTOR_COUNT} linear ${join(folder, 'a.img')} 0`, '--nbd', 'tcp:127.0.0.1:0'];
  const { uris } = await serve([...args, ...tls]);
  return { uri: `://127.0.0.1:${new URL(uris[0]!).port}/d?` };
}

const KINDS: Kind[] = [
  {
    name: 'nbdkit',
    certificates: (folder, pki, verifyPeer) =>
      nbdkit(folder, [`--tls-certificates=${pki}`, ...(verifyPeer ? ['--tls-verify-peer'] : [])]),
    keys: (folder, file) => nbdkit(folder, [`--tls-psk=${file}`]),
  },
  {
    name: 'dmkit serve',
    certificates: (folder, pki, verifyPeer) =>
      ours(folder, ['--tls-certificates', pki, ...(verifyPeer ? ['--tls-verify-peer'] : [])]),
    keys: (folder, file) => ours(folder, ['--tls-psk', file]),
  },
];

/** Uses a device over `uri` through another dmkit. */
function through(uri: string, cwd?: string) {
  const table = `0 ${SECTOR_COUNT} linear ${uri} 0`;
  const commands = 'qemu-io -f raw -c "write -P 7 5k 100k" -c flush -c "read -P 7 5k 100k" "$uri"';
  return dmkit(['serve', 'top', '--table', table, '--run', commands], cwd === undefined ? {} : { cwd });
}

async function isServed(uri: string, cwd?: string): Promise<void> {
  const { code, stdout, stderr } = await through(uri, cwd);
  expect([code, stderr]).toEqual([0, '']);
  expect(stdout).toMatch(/wrote 102400\/102400[\s\S]*read 102400\/102400/);
}

async function isRefused(uri: string, errno: string, reason: RegExp): Promise<void> {
  const { code, stdout, stderr } = await through(uri);
  expect([code, stdout]).toEqual([1, '']);
  expect(stderr).toContain(`linear: Device lookup failed (-${errno})\n`);
  expect(stderr).toMatch(reason);
}

for (const kind of KINDS) {
  describePeer(['nbdkit', 'certtool', 'psktool', 'qemu-io'], `a device at ${kind.name} over TLS`, () => {
    test('with certificates: the right authority, a wrong one, a wrong name, none at all, in the clear', async () => {
      const folder = tempDir('t');
      const [pki, stranger] = [join(folder, 'pki'), join(folder, 'stranger')];
      await makeAuthority(pki);
      await issueCertificate(pki, pki, 'server');
      await makeAuthority(stranger);
      const { uri } = await kind.certificates(folder, pki, false);
      await isServed(`nbds${uri}tls-certificates=${pki}`);
      // A folder from where the caller is.
      await isServed(`nbds${uri}tls-certificates=pki`, folder);
      await isRefused(`nbds${uri}tls-certificates=${stranger}`, 'EACCES', /TLS: .*(certificate|signature)/);
      await isRefused(
        `nbds${uri}tls-certificates=${pki}&tls-hostname=other.example`,
        'EACCES',
        /TLS: .*other\.example/,
      );
      await isRefused(`nbds${uri}`, 'EACCES', /TLS: .*(self-signed|unable to (get|verify))/);
      await isRefused(
        `nbds${uri}tls-certificates=${join(folder, 'none')}`,
        'ENOENT',
        /cannot read .*none.ca-cert\.pem/,
      );
      await isRefused(`nbd${uri}`, 'EACCES', /the server refuses the export/);
    });

    test('with certificates of clients', async () => {
      const folder = tempDir('t');
      const [pki, client, stranger] = [join(folder, 'pki'), join(folder, 'client'), join(folder, 'stranger')];
      await makeAuthority(pki);
      await issueCertificate(pki, pki, 'server');
      await issueCertificate(pki, client, 'client');
      await makeAuthority(stranger);
      await issueCertificate(stranger, stranger, 'client');
      const { uri } = await kind.certificates(folder, pki, true);
      await isServed(`nbds${uri}tls-certificates=${client}`);
      const { code } = await through(`nbds${uri}tls-certificates=${stranger}&tls-verify-peer=0`);
      expect(code).toBe(1);
    });

    test('with keys: the right one, a wrong one, a name without one', async () => {
      const folder = tempDir('t');
      const [file, other] = [join(folder, 'keys.psk'), join(folder, 'other.psk')];
      for (const path of [file, other]) expect((await run(peer('psktool'), ['-u', 'alice', '-p', path])).code).toBe(0);
      const { uri } = await kind.keys(folder, file);
      const keyed = (user: string, path: string): string =>
        `nbds${uri.replace('://', `://${user}@`)}tls-psk-file=${path}`;
      await isServed(keyed('alice', file));
      const wrong = await through(keyed('alice', other));
      expect([wrong.code, wrong.stdout]).toEqual([1, '']);
      expect(wrong.stderr).toMatch(/Device lookup failed[\s\S]*cannot connect to nbds/);
      await isRefused(keyed('bob', file), 'ENOENT', /has no key for "bob"/);
    });
  });
}
