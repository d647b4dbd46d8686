// TLS for connections that begin in the clear: the credentials of one side, and how they wrap a socket.
//
// TLS 1.2 is the least. Pre-shared keys go by TLS 1.3, or by the suites of TLS 1.2 that agree on a fresh secret as well
// (a key that leaks later opens no recorded traffic). GnuTLS, which libnbd and QEMU use, takes either; of TLS 1.3 only
// the suites with SHA-256 work with keys that come without a hash of their own.
import type { Socket } from 'node:net';
import {
  type ConnectionOptions,
  checkServerIdentity,
  connect,
  createSecureContext,
  createServer,
  type PeerCertificate,
  type SecureContextOptions,
  type TLSSocket,
  type TlsOptions,
} from 'node:tls';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { printable } from '../block/printable.ts';
import type { TransportSecurity } from '../block/reactor.ts';

const MIN_VERSION = 'TLSv1.2';
const KEY_SUITES = [
  'TLS_AES_128_GCM_SHA256',
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-PSK-CHACHA20-POLY1305',
  'DHE-PSK-AES256-GCM-SHA384',
  'DHE-PSK-AES128-GCM-SHA256',
  'DHE-PSK-CHACHA20-POLY1305',
].join(':');

/** PEM texts. */
export interface TlsIdentity {
  certificate: Buffer;
  key: Buffer;
}

/** How a server proves itself: with a certificate, or by knowing the keys of its clients. */
export type TlsServerCredentials =
  | {
      identity: TlsIdentity;
      /** Given: clients must have a certificate that one of these authorities (PEM) has issued. */
      clientAuthorities?: Buffer;
    }
  | { keys: ReadonlyMap<string, Buffer> };

/** How a client proves itself and whom it believes. */
export type TlsClientCredentials =
  | {
      /** PEM; the authorities that Node.js brings unless given. */
      authorities?: Buffer;
      /** The name or address that the server's certificate must have. */
      hostname: string;
      /** For servers that want to see one. */
      identity?: TlsIdentity;
      /** Believe any server: whoever is on the way can read and change everything. */
      insecure?: boolean;
    }
  | { user: string; key: Buffer };

type Secured = (error: Error | null, socket: TLSSocket | null) => void;

/** What a socket transport needs of a TransportSecurity. */
export abstract class SocketSecurity implements TransportSecurity {
  abstract readonly side: 'server' | 'client';
  /** Shakes hands on a connected socket from which nothing more is read. `done` is called once. */
  abstract wrap(socket: Socket, done: Secured): void;
}

/** Once, whatever else happens. */
function once(done: Secured): Secured {
  let isDone = false;
  return (error, socket) => {
    if (isDone) return;
    isDone = true;
    done(error, socket);
  };
}

/** Without OpenSSL's file names and line ends: its reason alone, or what else there is, in one line for a person. */
function tlsReason(error: Error): Error {
  const { reason, code } = error as { reason?: unknown; code?: unknown };
  const text = typeof reason === 'string' ? reason : error.message;
  return Object.assign(new Error(printable(text.trim())), code === undefined ? {} : { code });
}

/** @throws DmError EINVAL for PEM texts that can't be read or a key that is not its certificate's */
function checkContext(options: SecureContextOptions): void {
  try {
    createSecureContext(options);
  } catch (error) {
    throw new DmError(Errno.EINVAL, `certificates or key cannot be used: ${(error as Error).message}`, undefined, {
      cause: error,
    });
  }
}

/** A server's side of TLS. */
export class TlsServer extends SocketSecurity {
  readonly side = 'server';
  readonly #options: TlsOptions;

  /** @throws DmError EINVAL for credentials that can't be used */
  constructor(credentials: TlsServerCredentials) {
    super();
    this.#options =
      'keys' in credentials
        ? keyServerOptions(credentials.keys)
        : certificateServerOptions(credentials.identity, credentials.clientAuthorities);
    checkContext(this.#options);
  }

  wrap(socket: Socket, done: Secured): void {
    const settle = once(done);
    // A server object for each connection: it tells which connection its events belong to, and it (not a bare
    // TLSSocket) is what refuses clients without a good certificate. No session outlives a connection, either.
    const server = createServer(this.#options);
    server.once('secureConnection', (secured) => settle(null, secured));
    server.once('tlsClientError', (error, secured) => {
      const why = secured.authorizationError;
      settle(why ? new Error(`the client's certificate is refused: ${why}`, { cause: error }) : tlsReason(error), null);
    });
    server.emit('connection', socket);
  }
}

function keyServerOptions(keys: ReadonlyMap<string, Buffer>): TlsOptions {
  return {
    minVersion: MIN_VERSION,
    ciphers: KEY_SUITES,
    dhparam: 'auto',
    pskCallback: (_socket, user) => keys.get(user) ?? null,
  };
}

function certificateServerOptions(identity: TlsIdentity, clientAuthorities: Buffer | undefined): TlsOptions {
  return {
    minVersion: MIN_VERSION,
    cert: identity.certificate,
    key: identity.key,
    ...(clientAuthorities === undefined ? {} : { ca: clientAuthorities, requestCert: true, rejectUnauthorized: true }),
  };
}

/** A client's side of TLS. */
export class TlsClient extends SocketSecurity {
  readonly side = 'client';
  readonly #options: ConnectionOptions;

  /** @throws DmError EINVAL for credentials that can't be used */
  constructor(credentials: TlsClientCredentials) {
    super();
    const options = 'user' in credentials ? keyClientOptions(credentials) : certificateClientOptions(credentials);
    checkContext(options);
    this.#options = options;
  }

  wrap(socket: Socket, done: Secured): void {
    const settle = once(done);
    const secured = connect({ ...this.#options, socket });
    secured.once('secureConnect', () => settle(null, secured));
    secured.on('error', (error) => settle(tlsReason(error), null));
    secured.once('close', () => settle(new Error('the server closed the connection'), null));
  }
}

function keyClientOptions({ user, key }: { user: string; key: Buffer }): ConnectionOptions {
  return {
    minVersion: MIN_VERSION,
    ciphers: KEY_SUITES,
    ca: [],
    pskCallback: () => ({ identity: user, psk: key }),
    checkServerIdentity: (_hostname, certificate) => {
      // Comes with a certificate: then it has not shown that it knows the key.
      return Object.keys(certificate).length === 0 ? undefined : new Error('the server did not use the shared key');
    },
  };
}

function certificateClientOptions(credentials: Exclude<TlsClientCredentials, { user: string }>): ConnectionOptions {
  const { authorities, hostname, identity, insecure = false } = credentials;
  const isName = !/^[0-9.]+$|:/.test(hostname);
  return {
    minVersion: MIN_VERSION,
    rejectUnauthorized: !insecure,
    checkServerIdentity: (_hostname: string, certificate: PeerCertificate) =>
      checkServerIdentity(hostname, certificate),
    // Only names may be said to the server before it has proved itself; addresses are none.
    ...(isName ? { servername: hostname } : {}),
    ...(authorities === undefined ? {} : { ca: authorities }),
    ...(identity === undefined ? {} : { cert: identity.certificate, key: identity.key }),
  };
}
