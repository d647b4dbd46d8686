// TLS between our client and our server over real sockets: who is let in, who is not, and how a refusal reads.
import { rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { connect as connectTls } from 'node:tls';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { connectNbd, formatNbdUri, type Listener, listNbdExports, NbdServer, NodeLoop } from '../../src/nbd/index.ts';
import { type NbdTlsOptions, serverTls } from '../../src/nbd/tls.ts';
import { readPskFile } from '../../src/reactor/nbd-credentials.ts';
import { issueCertificate, makeAuthority } from '../support/certificates.ts';
import { describePeer } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';
import { option, pattern, u32 } from './support.ts';

/** A machine under load takes its time. */
const patient = { timeout: 150_000 };
const ALICE = '00112233445566778899aabbccddeeff';
const STARTTLS = 5;

function pskFile(text = `alice:${ALICE}\nbob:${'f'.repeat(64)}\n`): string {
  const path = join(tempDir('psk'), 'keys.psk');
  writeFileSync(path, text, { mode: 0o600 });
  return path;
}

interface Served {
  server: NbdServer;
  listener: Listener;
  errors: string[];
  socket: string;
  /** A URI with TLS, with what is given in its query. */
  uri(parameters: Record<string, string>, user?: string): string;
}

async function serve(
  tls: NbdTlsOptions | null,
  options: { tcp?: boolean; handshakeTimeoutMilliseconds?: number } = {},
) {
  const loop = new NodeLoop();
  const errors: string[] = [];
  const { tcp = false, ...rest } = options;
  const server = new NbdServer({
    reactor: loop,
    exports: [{ name: 'disk', device: new MemoryDevice('disk', 32768) }],
    onError: (error) => errors.push(error.message),
    ...(tls === null ? {} : { tls: serverTls(tls) }),
    ...rest,
  });
  const socket = join(tempDir('tls'), 's.sock');
  const listener = await new Promise<Listener>((resolve, reject) =>
    loop.listen(
      tcp ? { host: '127.0.0.1', port: 0 } : { unix: socket },
      (transport) => server.accept(transport),
      (error, made) => (made === null ? reject(error) : resolve(made)),
    ),
  );
  onTestFinished(() => listener.close());
  const where = tcp ? { host: '127.0.0.1', port: listener.port } : { socket };
  const uri: Served['uri'] = (parameters, user) =>
    formatNbdUri({
      ...where,
      tls: true,
      exportName: 'disk',
      parameters: new Map(Object.entries(parameters)),
      ...(user === undefined ? {} : { user }),
    });
  return { server, listener, errors, socket, uri } satisfies Served;
}

async function expectQuiet({ server }: Served): Promise<void> {
  await expect
    .poll(() => server.statistics, patient)
    .toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
}

async function expectServed(uri: string): Promise<void> {
  expect(await listNbdExports(uri)).toMatchObject([{ name: 'disk' }]);
  const disk = await connectNbd(uri);
  const data = pattern(3 << 20);
  await Promise.all([disk.write(0, data), disk.write(4 << 20, data, { fua: true })]);
  expect(Buffer.compare(await disk.read(4 << 20, data.length), data)).toBe(0);
  await disk.flush();
  await disk.close();
}

const refused = (promise: Promise<unknown>, code = 'EACCES') => expect(promise).rejects.toMatchObject({ code });

describe('a shared key', () => {
  it.each([false, true])('lets in whoever has it (over TCP: %s)', async (tcp) => {
    const psk = pskFile();
    const served = await serve({ psk }, { tcp });
    await expectServed(served.uri({ 'tls-psk-file': psk }, 'alice'));
    await expectServed(served.uri({ 'tls-psk-file': psk, 'tls-type': 'psk' }, 'bob'));
    await expectQuiet(served);
    expect(served.errors).toEqual([]);
  });

  it('keeps out a wrong key, an unknown name, and who comes without TLS', async () => {
    const served = await serve({ psk: pskFile(`alice:${ALICE}\n`) });
    const other = pskFile();
    await refused(connectNbd(served.uri({ 'tls-psk-file': other }, 'bob')));
    const wrong = pskFile(`alice:${ALICE.replace('0', '1')}\n`);
    await refused(connectNbd(served.uri({ 'tls-psk-file': wrong }, 'alice')));
    await refused(connectNbd(formatNbdUri({ socket: served.socket, exportName: 'disk' })));
    await refused(connectNbd(served.uri({})));
    await expectQuiet(served);
    expect(served.errors.every((text) => text.startsWith('TLS: '))).toBe(true);
  });

  it('goes by TLS 1.2 too, with fresh secrets; not by 1.1, not by the key alone', async () => {
    const served = await serve({ psk: pskFile() });
    const attempt = (options: object) =>
      new Promise<string>((resolve) => {
        const plain = connect(served.socket);
        plain.on('error', () => {});
        plain.write(Buffer.concat([u32(3), option(STARTTLS)]));
        let answerByteLength = 0;
        plain.on('data', function take(chunk) {
          answerByteLength += chunk.length;
          if (answerByteLength < 18 + 20) return;
          plain.removeListener('data', take);
          const secured = connectTls({
            socket: plain,
            pskCallback: () => ({ identity: 'alice', psk: Buffer.from(ALICE, 'hex') }),
            checkServerIdentity: () => undefined,
            ...options,
          });
          secured.once('secureConnect', () => {
            resolve(`${secured.getProtocol()} ${secured.getCipher().name}`);
            secured.destroy();
          });
          secured.once('error', (error) => resolve(error.message));
        });
      });
    expect(await attempt({ ciphers: 'PSK', maxVersion: 'TLSv1.2' })).toMatch(/^TLSv1\.2 (ECDHE|DHE)-PSK/);
    expect(await attempt({ ciphers: 'PSK' })).toMatch(/^TLSv1\.3 /);
    const old = { ciphers: 'PSK:@SECLEVEL=0', minVersion: 'TLSv1', maxVersion: 'TLSv1.1' };
    expect(await attempt(old)).toMatch(/alert|version/i);
    expect(await attempt({ ciphers: 'PSK-AES128-GCM-SHA256', maxVersion: 'TLSv1.2' })).toMatch(/handshake failure/);
  });

  it('takes names in hex as psktool writes them, and other lines that begin with # for comments', () => {
    const hex = Buffer.from('al:ice é').toString('hex');
    const text = `# ours\n#alice:${ALICE}\n#abc:${ALICE}\n#${hex}:${ALICE}\nbob:${ALICE}\n`;
    expect([...readPskFile(pskFile(text)).keys()]).toEqual(['al:ice é', 'bob']);
  });

  it.each([
    ['', /has no key/],
    ['alice\n', /line 1: a line is NAME:KEY/],
    [':00112233445566778899aabbccddeeff\n', /line 1: a line is NAME:KEY/],
    ['# ours\n\nalice:xyz\n', /line 3: a key is 16 to 256 bytes/],
    ['alice:0011\n', /line 1: a key is/],
    [`#ff00:${ALICE}\n`, /line 1: a name in hex that is not UTF-8/],
    [`#6162:${ALICE}\nab:${ALICE}\n`, /line 2: "ab" has a key already/],
    [`alice:${ALICE}\nalice:${ALICE}\n`, /line 2: "alice" has a key already/],
    [`${'x'.repeat(129)}:${ALICE}\n`, /NAME:KEY/],
  ])('a file of keys may not be %j', (text, message) => {
    expect(() => readPskFile(pskFile(text))).toThrow(message);
    expect(() => readPskFile(pskFile(text))).not.toThrow(/xyz|0011/);
  });
});

describePeer(['certtool'], 'certificates', () => {
  it.each([false, true])('serve whoever knows the authority (over TCP: %s)', async (tcp) => {
    const folder = tempDir('pki');
    await makeAuthority(folder);
    await issueCertificate(folder, folder, 'server');
    const served = await serve({ certificates: folder }, { tcp });
    await expectServed(served.uri({ 'tls-certificates': folder }));
    await expectQuiet(served);
    expect(served.errors).toEqual([]);
  });

  it('a client refuses the wrong authority, the wrong name and a certificate past its time', async () => {
    const [ours, theirs] = [tempDir('pki'), tempDir('pki')];
    await Promise.all([makeAuthority(ours), makeAuthority(theirs)]);
    await issueCertificate(ours, ours, 'server', { names: ['disk.example'], addresses: ['192.0.2.1'] });
    const served = await serve({ certificates: ours }, { tcp: true });
    const certificates = { 'tls-certificates': ours };
    await expectServed(served.uri({ ...certificates, 'tls-hostname': 'disk.example' }));
    await expectServed(served.uri({ ...certificates, 'tls-hostname': '192.0.2.1' }));
    await refused(connectNbd(served.uri(certificates)));
    await refused(connectNbd(served.uri({ ...certificates, 'tls-hostname': 'other.example' })));
    await refused(connectNbd(served.uri({ 'tls-certificates': theirs, 'tls-hostname': 'disk.example' })));
    await refused(connectNbd(served.uri({ 'tls-hostname': 'disk.example' })));
    await refused(listNbdExports(served.uri(certificates)));
    // Only who says so goes on all the same.
    await expectServed(served.uri({ 'tls-verify-peer': '0' }));
    const expired = tempDir('pki');
    await issueCertificate(ours, expired, 'server', { isExpired: true });
    await refused(connectNbd((await serve({ certificates: expired })).uri(certificates)));
  });

  it('on a Unix socket are for "localhost", not for anybody', async () => {
    const folder = tempDir('pki');
    await makeAuthority(folder);
    await issueCertificate(folder, folder, 'server', { names: ['other.example'] });
    const served = await serve({ certificates: folder });
    await refused(connectNbd(served.uri({ 'tls-certificates': folder })));
    await expectServed(served.uri({ 'tls-certificates': folder, 'tls-hostname': 'other.example' }));
  });

  it('are asked of clients with verifyPeer', async () => {
    const [folder, client, stranger, bare] = ['pki', 'client', 'stranger', 'bare'].map((name) => tempDir(name));
    await makeAuthority(folder!);
    await issueCertificate(folder!, folder!, 'server');
    const served = await serve({ certificates: folder!, verifyPeer: true });
    await issueCertificate(folder!, client!, 'client');
    await expectServed(served.uri({ 'tls-certificates': client! }));
    expect(served.errors).toEqual([]);

    // A certificate of another authority, none, and none from a client that verifies nothing itself.
    await makeAuthority(stranger!);
    await issueCertificate(stranger!, stranger!, 'client');
    const parameters = { 'tls-certificates': stranger!, 'tls-verify-peer': 'no' };
    await expect(connectNbd(served.uri(parameters))).rejects.toThrow();
    await issueCertificate(folder!, bare!, 'client');
    rmSync(join(bare!, 'client-cert.pem'));
    await expect(connectNbd(served.uri({ 'tls-certificates': bare! }))).rejects.toThrow();
    await expect(connectNbd(served.uri({ 'tls-verify-peer': 'false' }))).rejects.toThrow();
    await expect.poll(() => served.errors.length, patient).toBe(3);
    await expectQuiet(served);
  });

  it('and keys do not meet', async () => {
    const folder = tempDir('pki');
    await makeAuthority(folder);
    await issueCertificate(folder, folder, 'server');
    const psk = pskFile();
    // A server with a certificate of any kind has not shown that it knows the key.
    await refused(connectNbd((await serve({ certificates: folder })).uri({ 'tls-psk-file': psk }, 'alice')));
    await refused(connectNbd((await serve({ psk })).uri({ 'tls-certificates': folder })));
  });

  it('are read when the server is made, with what is wrong with them', async () => {
    const folder = tempDir('pki');
    expect(() => serverTls({ certificates: folder })).toThrow(/cannot read .*server-cert\.pem: No such file/);
    await makeAuthority(folder);
    await issueCertificate(folder, folder, 'server');
    rmSync(join(folder, 'ca-cert.pem'));
    expect(() => serverTls({ certificates: folder, verifyPeer: true })).toThrow(/ca-cert\.pem/);
    expect(serverTls({ certificates: folder })).toMatchObject({ required: true });
    writeFileSync(join(folder, 'server-key.pem'), 'no key');
    expect(() => serverTls({ certificates: folder })).toThrow(/cannot be used/);
  });
});

describe('who does without TLS', () => {
  it('is served where it is only allowed', async () => {
    const psk = pskFile();
    const served = await serve({ psk, mode: 'allow' });
    await (await connectNbd(formatNbdUri({ socket: served.socket, exportName: 'disk' }))).close();
    await expectServed(served.uri({ 'tls-psk-file': psk }, 'alice'));
  });

  it('a server without TLS gets nothing from a client that wants it', async () => {
    const served = await serve(null);
    await refused(connectNbd(served.uri({ 'tls-psk-file': pskFile() }, 'alice')));
    await refused(listNbdExports(served.uri({})));
    await expectQuiet(served);
  });

  it.each([
    [{ 'tls-type': 'anon' }, /tls-type=anon/],
    [{ 'tls-type': 'psk' }, /needs tls-psk-file/],
    [{ 'tls-psk-file': 'keys' }, /needs a user name/],
    [{ 'tls-certificates': 'pki', 'tls-psk-file': 'keys' }, /not both/],
    [{ 'tls-verify-peer': 'maybe' }, /1 or 0/],
    [{ 'tls-hostname': '' }, /tls-hostname/],
    [{ 'tls-certificates': 'nosuch-folder' }, /cannot read nosuch-folder/],
  ] as [Record<string, string>, RegExp][])('a URI may not say %j', async (parameters, message) => {
    const uri = { socket: 'nosuch.sock', exportName: '', parameters: new Map(Object.entries(parameters)) };
    await expect(connectNbd({ ...uri, tls: true })).rejects.toThrow(message);
    await expect(connectNbd(uri)).rejects.toThrow(/nbds: alone/);
  });
});

describe('hostile clients', () => {
  const plain = async (served: Served, ...messages: Uint8Array[]) => {
    const socket = connect(served.socket);
    socket.on('error', () => {});
    const closed = new Promise<number>((resolve) => {
      let byteLength = 0;
      socket.on('data', (chunk) => {
        byteLength += chunk.length;
      });
      socket.on('close', () => resolve(byteLength));
    });
    socket.write(Buffer.concat([u32(3), ...messages]));
    return { socket, closed };
  };

  it('bytes in the clear behind STARTTLS end the connection before TLS', async () => {
    const served = await serve({ psk: pskFile() });
    const { closed } = await plain(served, option(STARTTLS), option(3));
    expect(await closed).toBeLessThanOrEqual(18 + 20);
    expect(served.errors).toEqual([expect.stringMatching(/in the clear/)]);
    await expectQuiet(served);
  });

  it('no TLS after STARTTLS, garbage for it, or a sudden end: each ends that connection alone', async () => {
    const psk = pskFile();
    const served = await serve({ psk }, { handshakeTimeoutMilliseconds: 700 });
    const silent = await plain(served, option(STARTTLS));
    const garbage = await plain(served, option(STARTTLS));
    setTimeout(() => garbage.socket.write(Buffer.from('GET / HTTP/1.1\r\n\r\n')), 50);
    const sudden = await plain(served, option(STARTTLS));
    setTimeout(() => sudden.socket.destroy(), 50);
    await Promise.all([silent.closed, garbage.closed, sudden.closed]);
    await expect.poll(() => served.errors.length, patient).toBeGreaterThanOrEqual(3);
    await expectServed(served.uri({ 'tls-psk-file': psk }, 'alice'));
    await expectQuiet(served);
  });
});
