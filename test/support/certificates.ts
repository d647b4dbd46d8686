// Authorities and certificates for TLS tests, made with certtool, laid out as libnbd, nbdkit and QEMU expect.
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { peer, run } from './peers.ts';

async function certtool(args: string[]): Promise<void> {
  const result = await run(peer('certtool'), args);
  expect(`${result.code} ${result.stderr}`).toMatch(/^0 /);
}

/** A new authority in `folder`: `ca-cert.pem` and its key. */
export async function makeAuthority(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const [key, template, certificate] = ['ca-key.pem', 'ca.info', 'ca-cert.pem'].map((name) => join(folder, name));
  writeFileSync(template!, 'cn = Test authority\nca\ncert_signing_key\n');
  await certtool(['--generate-privkey', '--ecc', '--outfile', key!]);
  await certtool([
    '--generate-self-signed',
    '--load-privkey',
    key!,
    '--template',
    template!,
    '--outfile',
    certificate!,
  ]);
}

/** `server-cert.pem` or `client-cert.pem`, its key, and the authority's certificate, in `folder`. */
export async function issueCertificate(
  authority: string,
  folder: string,
  side: 'server' | 'client',
  options: { names?: string[]; addresses?: string[]; isExpired?: boolean } = {},
): Promise<void> {
  const { names = ['localhost'], addresses = ['127.0.0.1', '::1'], isExpired = false } = options;
  mkdirSync(folder, { recursive: true });
  if (folder !== authority) copyFileSync(join(authority, 'ca-cert.pem'), join(folder, 'ca-cert.pem'));
  const key = join(folder, `${side}-key.pem`);
  const template = join(folder, `${side}.info`);
  const lines = [
    `cn = ${side}`,
    ...names.map((name) => `dns_name = ${name}`),
    ...addresses.map((address) => `ip_address = ${address}`),
    `tls_www_${side}`,
    'signing_key',
    ...(isExpired ? ['activation_date = "2001-01-01 00:00:00"', 'expiration_date = "2001-02-01 00:00:00"'] : []),
  ];
  writeFileSync(template, `${lines.join('\n')}\n`);
  await certtool(['--generate-privkey', '--ecc', '--outfile', key]);
  const signer = [
    '--load-ca-certificate',
    join(authority, 'ca-cert.pem'),
    '--load-ca-privkey',
    join(authority, 'ca-key.pem'),
  ];
  const issue = ['--generate-certificate', '--load-privkey', key, ...signer, '--template', template];
  await certtool([...issue, '--outfile', join(folder, `${side}-cert.pem`)]);
}
