// Remote disks for a device mapper: an NBD URI is a device's name once it is attached.
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { TransportSecurity } from '../block/reactor.ts';
import type { DeviceRegistry } from '../devices/index.ts';
import { NbdDevice, type NbdDeviceOptions } from '../devices/nbd.ts';
import type { ConnectAddress, NodeLoop } from '../reactor/node-loop.ts';
import { NBD_DEFAULT_PORT } from './protocol/constants.ts';
import { MalformedError } from './protocol/info.ts';
import { type NbdUri, parseNbdUri } from './protocol/uri.ts';
import { clientTls } from './tls.ts';

/** What an attachment needs of a device mapper: `loop` and `devices`. */
export interface NbdHost {
  readonly loop: NodeLoop;
  readonly devices: DeviceRegistry;
}

export type AttachNbdOptions = Omit<NbdDeviceOptions, 'reactor' | 'connect' | 'exportName' | 'security'>;

/** A remote disk that tables can name. */
export interface AttachedNbd {
  readonly device: NbdDevice;
  /** Takes the name away and says goodbye to the server. @throws DmError EBUSY while a table uses it */
  close(): Promise<void>;
}

const URI_IN_TEXT = /(?<!\S)nbds?(?:\+unix)?:\/\/\S+/g;

function addressOf(uri: NbdUri): ConnectAddress {
  if (uri.socket !== undefined) return { unix: uri.socket };
  return { host: uri.host ?? 'localhost', port: uri.port ?? NBD_DEFAULT_PORT };
}

function parse(uri: string): { uri: NbdUri; security: TransportSecurity | null } {
  try {
    const parsed = parseNbdUri(uri);
    return { uri: parsed, security: clientTls(parsed) };
  } catch (error) {
    if (error instanceof MalformedError) throw new DmError(Errno.EINVAL, error.message, undefined, { cause: error });
    throw error;
  }
}

function cannotConnect(uri: string, error: Error | null): DmError {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return new DmError(errnoFromException(error), `cannot connect to ${uri}: ${error?.message}`, code, { cause: error });
}

/**
 * Connects to an export and makes it a device of `host` under its URI.
 *
 * @throws DmError ECONNREFUSED, ENOENT for an export that is not there, EINVAL for a bad URI, EACCES for TLS, EEXIST for
 *   a URI that is attached already
 */
export async function attachNbd(host: NbdHost, uri: string, options: AttachNbdOptions = {}): Promise<AttachedNbd> {
  const { uri: parsed, security } = parse(uri);
  const device = await new Promise<NbdDevice>((resolve, reject) => {
    NbdDevice.open(
      uri,
      {
        ...options,
        reactor: host.loop,
        connect: (done) => host.loop.connect(addressOf(parsed), done),
        exportName: parsed.exportName,
        security,
      },
      (error, opened) => {
        if (opened !== null) resolve(opened);
        else if (error instanceof DmError) reject(error);
        else reject(cannotConnect(uri, error));
      },
    );
  });
  const disconnect = (): Promise<void> => new Promise((resolve) => device.close(resolve));
  try {
    host.devices.register(uri, device);
  } catch (error) {
    await disconnect();
    throw error;
  }
  return {
    device,
    close: async () => {
      host.devices.unregister(uri);
      await disconnect();
    },
  };
}

/**
 * Attaches every NBD URI in `texts` (tables, arguments of commands) that is no device of `host` yet: a table's devices
 * are opened in one go, and a connection takes time.
 *
 * @throws as {@link attachNbd}; nothing stays attached then
 */
export async function attachNbdUris(
  host: NbdHost,
  texts: readonly string[],
  options: AttachNbdOptions = {},
): Promise<AttachedNbd[]> {
  const known = new Set([...host.devices.list()].map(({ name }) => name));
  const uris = new Set(texts.flatMap((text) => text.match(URI_IN_TEXT) ?? []));
  const results = await Promise.allSettled(
    [...uris].filter((uri) => !known.has(uri)).map((uri) => attachNbd(host, uri, options)),
  );
  const attached = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed === undefined) return attached;
  await Promise.all(attached.map((one) => one.close()));
  throw failed.reason;
}
