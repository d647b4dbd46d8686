// NBD URIs as the names of devices: one export has one name, however it was written.
import { resolve } from 'node:path';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { MalformedError } from '../nbd/protocol/info.ts';
import { formatNbdUri, parseNbdUri } from '../nbd/protocol/uri.ts';

const NBD_URI = /^nbds?(?:\+unix)?:\/\//;
/** Parameters that are paths. */
const PATHS = new Set(['tls-certificates', 'tls-psk-file']);

/** True for what begins as one: a typing error further on is to be told, not taken for a path. */
export function isNbdUri(argument: string): boolean {
  return NBD_URI.test(argument);
}

/**
 * The same URI with everything said that it leaves to the reader: host and port in one spelling, paths absolute,
 * parameters in the order of their names.
 *
 * @param baseFolder where relative paths start
 * @throws DmError EINVAL with what is wrong
 */
export function canonicalNbdUri(text: string, baseFolder: string): string {
  try {
    const uri = parseNbdUri(text);
    if (uri.host !== undefined) uri.host = uri.host.toLowerCase();
    // One in Linux's abstract name space is no path.
    if (uri.socket !== undefined && !uri.socket.startsWith('\0')) uri.socket = resolve(baseFolder, uri.socket);
    if (uri.parameters !== undefined) {
      const sorted = [...uri.parameters].sort(([a], [b]) => (a < b ? -1 : 1));
      uri.parameters = new Map(
        sorted.map(([name, value]) => [name, PATHS.has(name) ? resolve(baseFolder, value) : value]),
      );
    }
    return formatNbdUri(uri);
  } catch (error) {
    if (error instanceof MalformedError) throw new DmError(Errno.EINVAL, error.message);
    throw error;
  }
}
