// A server's credentials for TLS: folders of certificates and files of keys, laid out as nbdkit, libnbd and QEMU have
// them, named by options.
import { join } from 'node:path';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { identityIn, readCredentials, readPskFile } from '../reactor/nbd-credentials.ts';
import { TlsServer } from '../reactor/tls.ts';
import type { NbdUri } from './protocol/uri.ts';
import type { ServerTls } from './server/connection.ts';

/** TLS of a server, as {@link ServeNbdOptions} takes it: either certificates or keys. */
export interface NbdTlsOptions {
  /** `allow` lets clients do without TLS, and thereby whoever is on the way take it from them; `require` unless given. */
  mode?: 'allow' | 'require';
  /** A folder with `server-cert.pem` and `server-key.pem`, and `ca-cert.pem` for `verifyPeer`. */
  certificates?: string;
  /** A file of lines `name:key`, the key in hex, as `psktool` writes it. */
  psk?: string;
  /** Clients must show a certificate that `ca-cert.pem` has issued. Needs `certificates`. */
  verifyPeer?: boolean;
}

/**
 * The TLS of a server.
 *
 * @throws DmError EINVAL for options that do not go together or credentials that cannot be used; ENOENT, EACCES …
 */
export function serverTls(options: NbdTlsOptions): ServerTls {
  const { certificates, psk, verifyPeer = false } = options;
  const required = options.mode !== 'allow';
  if ((certificates === undefined) === (psk === undefined)) {
    throw new DmError(Errno.EINVAL, 'TLS needs either certificates or a file of keys');
  }
  if (psk !== undefined) {
    if (verifyPeer) throw new DmError(Errno.EINVAL, 'clients with keys have no certificates to verify');
    return { required, security: new TlsServer({ keys: readPskFile(psk) }) };
  }
  const identity = identityIn(certificates!, 'server');
  if (!verifyPeer) return { required, security: new TlsServer({ identity }) };
  const clientAuthorities = readCredentials(join(certificates!, 'ca-cert.pem'));
  return { required, security: new TlsServer({ identity, clientAuthorities }) };
}

/**
 * What a client's URI must say to be let in: parameters for a URI on this machine, for servers that require TLS.
 * The first key is taken. With an address for other machines it names no files: they have their own.
 */
export function tlsUriParts(options: NbdTlsOptions, isRemote: boolean): Pick<NbdUri, 'tls' | 'user' | 'parameters'> {
  if (options.mode === 'allow') return {};
  const [first] = options.psk === undefined ? [] : readPskFile(options.psk).keys();
  if (isRemote) return { tls: true, ...(first === undefined ? {} : { user: first }) };
  if (options.certificates !== undefined) {
    return { tls: true, parameters: new Map([['tls-certificates', options.certificates]]) };
  }
  return { tls: true, user: first!, parameters: new Map([['tls-psk-file', options.psk!]]) };
}
