// A client's credentials for TLS, out of folders of certificates and files of keys, laid out as nbdkit, libnbd and QEMU
// have them and named by the parameters of an NBD URI.
import { isUtf8 } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { NbdUri } from '../nbd/protocol/uri.ts';
import { TlsClient, type TlsIdentity } from './tls.ts';

/** A key shorter than this can be guessed; psktool makes 32. */
const MIN_KEY_BYTE_LENGTH = 16;
/** OpenSSL's bounds. */
const MAX_KEY_BYTE_LENGTH = 256;
const MAX_USER_BYTE_LENGTH = 128;

export function readCredentials(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (error) {
    const errno = errnoFromException(error);
    throw new DmError(errno, `cannot read ${path}: ${errnoMessage(errno)}`);
  }
}

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    const errno = errnoFromException(error);
    throw new DmError(errno, `cannot read ${path}: ${errnoMessage(errno)}`);
  }
}

/** psktool's form of a name with a colon or other bytes that the file could not hold: # and the name in hex. */
const HEX_NAME_LINE = /^#(?:[0-9a-fA-F]{2})+:[0-9a-fA-F]+$/;

/** The user's name of a line; null where its hex is not UTF-8. */
function userOf(text: string, isHex: boolean): string | null {
  if (!isHex) return text;
  const bytes = Buffer.from(text.slice(1), 'hex');
  return isUtf8(bytes) ? bytes.toString() : null;
}

/**
 * Reads a file of keys. Empty lines count for nothing, and lines that begin with # unless they are `#HEXNAME:KEY`.
 *
 * @throws DmError EINVAL naming the line (never what is in it), ENOENT …
 */
export function readPskFile(path: string): Map<string, Buffer> {
  const keys = new Map<string, Buffer>();
  const lines = readCredentials(path).toString('utf8').split(/\r?\n/);
  for (const [index, line] of lines.entries()) {
    const isHexName = HEX_NAME_LINE.test(line);
    if (line === '' || (line.startsWith('#') && !isHexName)) continue;
    const fail = (why: string): never => {
      throw new DmError(Errno.EINVAL, `${path}, line ${index + 1}: ${why}`);
    };
    const colon = line.lastIndexOf(':');
    const user = userOf(line.slice(0, colon), isHexName) ?? fail('a name in hex that is not UTF-8');
    if (colon < 1 || Buffer.byteLength(user) > MAX_USER_BYTE_LENGTH) fail('a line is NAME:KEY, the key in hex');
    const hex = line.slice(colon + 1);
    const byteLength = hex.length / 2;
    if (!/^(?:[0-9a-fA-F]{2})+$/.test(hex) || byteLength < MIN_KEY_BYTE_LENGTH || byteLength > MAX_KEY_BYTE_LENGTH) {
      fail(`a key is ${MIN_KEY_BYTE_LENGTH} to ${MAX_KEY_BYTE_LENGTH} bytes in hex`);
    }
    if (keys.has(user)) fail(`${JSON.stringify(user)} has a key already`);
    keys.set(user, Buffer.from(hex, 'hex'));
  }
  if (keys.size === 0) throw new DmError(Errno.EINVAL, `${path} has no key; psktool makes one`);
  return keys;
}

export function identityIn(folder: string, side: 'server' | 'client'): TlsIdentity {
  return {
    certificate: readCredentials(join(folder, `${side}-cert.pem`)),
    key: readCredentials(join(folder, `${side}-key.pem`)),
  };
}

const TLS_PARAMETERS = ['tls-type', 'tls-certificates', 'tls-psk-file', 'tls-hostname', 'tls-verify-peer'];

function invalid(message: string): never {
  throw new DmError(Errno.EINVAL, message);
}

/** Whether the server's certificate is to be verified: it is, unless the URI says no in so many words. */
function verifiesPeer(value: string | undefined): boolean {
  if (value === undefined || /^(?:1|true|yes|on)$/i.test(value)) return true;
  return /^(?:0|false|no|off)$/i.test(value) ? false : invalid(`tls-verify-peer=${value}: 1 or 0`);
}

function keyClient(uri: NbdUri, file: string): TlsClient {
  if (uri.user === undefined) invalid('tls-psk-file needs a user name in the URI: nbds://USER@…');
  const key = readPskFile(file).get(uri.user!);
  if (key === undefined) throw new DmError(Errno.ENOENT, `${file} has no key for ${JSON.stringify(uri.user)}`);
  return new TlsClient({ user: uri.user!, key });
}

/** Without a name to look for in it, any certificate of the same authority would do; so there always is one. */
function certificateClient(uri: NbdUri, folder: string | undefined): TlsClient {
  const parameters = uri.parameters ?? new Map<string, string>();
  const hostname = parameters.get('tls-hostname') ?? uri.host ?? 'localhost';
  if (hostname === '' || (hostname.includes(':') && isIP(hostname) === 0)) invalid(`tls-hostname=${hostname}`);
  const insecure = !verifiesPeer(parameters.get('tls-verify-peer'));
  if (folder === undefined) return new TlsClient({ hostname, insecure });
  const hasIdentity = readIfThere(join(folder, 'client-cert.pem')) !== undefined;
  return new TlsClient({
    hostname,
    insecure,
    ...(insecure ? {} : { authorities: readCredentials(join(folder, 'ca-cert.pem')) }),
    ...(hasIdentity ? { identity: identityIn(folder, 'client') } : {}),
  });
}

/**
 * What a URI asks of TLS: null for `nbd:`; for `nbds:` a client that goes nowhere without it.
 *
 * `tls-certificates` is a folder with `ca-cert.pem` (without the parameter, the authorities that Node.js trusts count)
 * and, for servers that ask, `client-cert.pem` and `client-key.pem`. `tls-hostname` is the name that the certificate
 * must have: the URI's host, or `localhost` for a Unix socket, unless given.
 *
 * @throws DmError EINVAL for parameters that make no sense (also: any of them in a URI without TLS), ENOENT …
 */
export function clientTls(uri: NbdUri): TlsClient | null {
  const parameters = uri.parameters ?? new Map<string, string>();
  if (uri.tls !== true) {
    const given = TLS_PARAMETERS.find((name) => parameters.has(name));
    return given === undefined ? null : invalid(`${given} means something with nbds: alone`);
  }
  const folder = parameters.get('tls-certificates');
  const pskFile = parameters.get('tls-psk-file');
  const type = parameters.get('tls-type') ?? (pskFile === undefined ? 'x509' : 'psk');
  if (type === 'psk' && folder === undefined)
    return keyClient(uri, pskFile ?? invalid('tls-type=psk needs tls-psk-file'));
  if (type === 'x509' && pskFile === undefined) return certificateClient(uri, folder);
  return invalid(
    type === 'psk' || type === 'x509' ? 'certificates or a key, not both' : `tls-type=${type}: x509 or psk`,
  );
}
