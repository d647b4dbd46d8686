// NBD URIs (doc/uri.md of the nbd project): nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, and nbds… for TLS.
import { decodeName, encodeName, isOddName } from '../../block/file-name.ts';
import { NBD_DEFAULT_PORT } from './constants.ts';
import { encodeString, MalformedError } from './info.ts';

/** A server's address and an export of it. Either `socket` or `host` says where. */
export interface NbdUri {
  /** Path of a Unix socket; one that begins with NUL is in Linux's abstract name space. */
  socket?: string;
  /** A name or an address; IPv6 without brackets. */
  host?: string;
  /** 10809 unless given. */
  port?: number;
  /** `''` for the server's default export. */
  exportName: string;
  /** nbds: TLS is required. */
  tls?: boolean;
  /** The user part, for TLS with a pre-shared key. */
  user?: string;
  /** Parameters other than `socket`: tls-type, tls-hostname … */
  parameters?: ReadonlyMap<string, string>;
}

const URI = /^([a-z+]+):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?$/;
const AUTHORITY = /^(?:([^@]*)@)?(?:\[([0-9a-fA-F:.]+)\]|([^:@[\]\s]*))(?::([0-9]*))?$/;
const SCHEMES = new Map([
  ['nbd', { tls: false, unix: false }],
  ['nbds', { tls: true, unix: false }],
  ['nbd+unix', { tls: false, unix: true }],
  ['nbds+unix', { tls: true, unix: true }],
]);

function fail(text: string, reason: string): never {
  throw new MalformedError(`${JSON.stringify(text)} is no NBD URI: ${reason}`);
}

function decode(part: string, text: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    // Sequences for bytes that are not UTF-8, or none at all.
    if (/%(?![0-9a-fA-F]{2})/.test(part)) return fail(text, `a bad percent sequence in ${JSON.stringify(part)}`);
    const bytes = encodeName(part).toString('latin1');
    const decoded = bytes.replace(/%(..)/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 16)));
    return decodeName(Buffer.from(decoded, 'latin1'));
  }
}

function parseQuery(query: string | undefined, text: string): Map<string, string> {
  const parameters = new Map<string, string>();
  for (const pair of (query ?? '').split(/[&;]/)) {
    if (pair === '') continue;
    const equals = pair.indexOf('=');
    const name = decode(equals < 0 ? pair : pair.slice(0, equals), text);
    if (parameters.has(name)) fail(text, `${name} is given twice`);
    parameters.set(name, equals < 0 ? '' : decode(pair.slice(equals + 1), text));
  }
  return parameters;
}

function parsePort(port: string | undefined, text: string): number {
  if (port === undefined || port === '') return NBD_DEFAULT_PORT;
  const value = Number(port);
  if (port.length > 5 || value < 1 || value > 65535) fail(text, `port ${port}`);
  return value;
}

/**
 * Reads a URI.
 *
 * @throws MalformedError with what is wrong
 * @example
 * parseNbdUri('nbd+unix:///disk?socket=/run/x.sock') // { socket: '/run/x.sock', exportName: 'disk' }
 */
export function parseNbdUri(text: string): NbdUri {
  const parts = URI.exec(text) ?? fail(text, 'it must look like nbd://host/export or nbd+unix:///export?socket=path');
  const scheme = SCHEMES.get(parts[1]!) ?? fail(text, `the scheme ${parts[1]}`);
  const authority = AUTHORITY.exec(parts[2]!) ?? fail(text, `the host part ${JSON.stringify(parts[2])}`);
  // One slash separates the host from the name; a second one belongs to the name.
  const exportName = decode(parts[3]!.slice(1), text);
  encodeString(exportName, 'the export name');
  const parameters = parseQuery(parts[4], text);
  const uri: NbdUri = { exportName };
  if (scheme.tls) uri.tls = true;
  if (authority[1] !== undefined) uri.user = decode(authority[1], text);
  const socket = parameters.get('socket');
  parameters.delete('socket');
  if (parameters.size > 0) uri.parameters = parameters;
  const host = authority[2] ?? decode(authority[3]!, text);
  if (scheme.unix) {
    if (!socket) return fail(text, 'the parameter socket is missing');
    if (host !== '' || authority[4] !== undefined) fail(text, 'a Unix socket has no host');
    uri.socket = socket;
  } else {
    if (socket !== undefined) fail(text, 'the parameter socket needs nbd+unix');
    uri.host = host === '' ? 'localhost' : host;
    uri.port = parsePort(authority[4], text);
  }
  return uri;
}

/** Leaves slashes as they are, as people write them in paths. */
function encodePath(path: string): string {
  if (!isOddName(path)) return encodeURIComponent(path).replaceAll('%2F', '/');
  const bytes = encodeName(path).toString('latin1');
  return bytes.replace(/[^A-Za-z0-9_.!~*'()/-]/g, (byte) => {
    return `%${byte.charCodeAt(0).toString(16).toUpperCase().padStart(2, '0')}`;
  });
}

/** Writes a URI; {@link parseNbdUri} reads the same back. */
export function formatNbdUri(uri: NbdUri): string {
  const scheme = `nbd${uri.tls ? 's' : ''}${uri.socket === undefined ? '' : '+unix'}`;
  const user = uri.user === undefined ? '' : `${encodeURIComponent(uri.user)}@`;
  const query = [...(uri.parameters ?? [])].map(([name, value]) => [name, encodePath(value)]);
  if (uri.socket !== undefined) query.unshift(['socket', encodePath(uri.socket)]);
  const queryText = query.map(([name, value]) => `${encodeURIComponent(name!)}=${value}`).join('&');
  return `${scheme}://${user}${hostText(uri)}/${encodePath(uri.exportName)}${queryText === '' ? '' : `?${queryText}`}`;
}

function hostText({ socket, host = 'localhost', port = NBD_DEFAULT_PORT }: NbdUri): string {
  if (socket !== undefined) return '';
  const name = host.includes(':') ? `[${host}]` : encodeURIComponent(host);
  return port === NBD_DEFAULT_PORT ? name : `${name}:${port}`;
}
