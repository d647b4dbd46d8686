// The promise edge of the NBD client.
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor, Transport, TransportSecurity } from '../block/reactor.ts';
import { type ConnectAddress, NodeLoop } from '../reactor/node-loop.ts';
import { NbdClient, type RequestCallback, requestError } from './client/client.ts';
import type { NbdExportDetails } from './client/handshake.ts';
import { NBD_DEFAULT_PORT, TRANSMISSION_READ_ONLY } from './protocol/constants.ts';
import type { ExportDescription } from './protocol/info.ts';
import { type NbdUri, parseNbdUri } from './protocol/uri.ts';
import { clientTls } from './tls.ts';

/**
 * An export of a server, as connectNbd gives it. Offsets and lengths are bytes, multiples of the minimum block size.
 *
 * A request that fails rejects with DmError: `code` is the errno's name that the server gave (EIO, ENOSPC, EPERM …), EIO
 * when the server died.
 */
export class NbdConnection {
  readonly #client: NbdClient;
  readonly #details: NbdExportDetails;

  constructor(client: NbdClient, details: NbdExportDetails) {
    this.#client = client;
    this.#details = details;
  }

  /** The export's size. */
  get byteLength(): number {
    return this.#details.byteLength;
  }

  get readOnly(): boolean {
    return (this.#details.transmissionFlags & TRANSMISSION_READ_ONLY) !== 0;
  }

  /** Everything the server said. */
  get details(): NbdExportDetails {
    return this.#details;
  }

  async read(offset: number, byteLength: number): Promise<Buffer> {
    if (!(byteLength >= 0 && byteLength <= this.#client.maxPayloadByteLength)) {
      throw requestError(Errno.EINVAL, `read of ${byteLength} bytes at ${offset}`);
    }
    const destination = Buffer.allocUnsafeSlow(byteLength);
    await this.#promise(`read at ${offset}`, (done) => this.#client.read(offset, destination, done));
    return destination;
  }

  write(offset: number, data: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    const fua = options.fua ?? false;
    return this.#promise(`write at ${offset}`, (done) => this.#client.write(offset, data, fua, done));
  }

  flush(): Promise<void> {
    return this.#promise('flush', (done) => this.#client.flush(done));
  }

  trim(offset: number, byteLength: number, options: { fua?: boolean } = {}): Promise<void> {
    const fua = options.fua ?? false;
    return this.#promise(`trim at ${offset}`, (done) => this.#client.trim(offset, byteLength, fua, done));
  }

  writeZeroes(offset: number, byteLength: number, options: { fua?: boolean; noHole?: boolean } = {}): Promise<void> {
    const { fua = false, noHole = false } = options;
    return this.#promise(`write-zeroes at ${offset}`, (done) =>
      this.#client.writeZeroes(offset, byteLength, noHole, fua, done),
    );
  }

  /** Waits for the requests in flight, says goodbye, closes. */
  close(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#client.disconnect((error) => (error === null ? resolve() : reject(error)));
    });
  }

  #promise(what: string, start: (done: RequestCallback) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      start((errno) => (errno === 0 ? resolve() : reject(requestError(errno, what))));
    });
  }
}

function addressOf(uri: NbdUri): ConnectAddress {
  if (uri.socket !== undefined) return { unix: uri.socket };
  return { host: uri.host ?? 'localhost', port: uri.port ?? NBD_DEFAULT_PORT };
}

function openTransport(loop: NodeLoop, uri: NbdUri): Promise<Transport> {
  return new Promise((resolve, reject) => {
    loop.connect(addressOf(uri), (error, transport) => {
      if (transport !== null) resolve(transport);
      else
        reject(
          new DmError(errnoFromException(error), `cannot connect: ${error?.message}`, undefined, { cause: error }),
        );
    });
  });
}

/**
 * A client on a transport of any kind, under TLS where `security` is given.
 *
 * @throws DmError when the server refuses: ENOENT for an unknown export, EACCES where TLS fails or is missing …
 */
export function openNbd(
  reactor: Reactor,
  transport: Transport,
  exportName: string,
  security: TransportSecurity | null = null,
): Promise<NbdConnection> {
  return new Promise((resolve, reject) => {
    const client = new NbdClient(reactor, transport, security);
    client.open(exportName, (error, details) => {
      if (details === null || error !== null) reject(error);
      else resolve(new NbdConnection(client, details));
    });
  });
}

/**
 * Connects to an export. `nbds:` means TLS or nothing, see {@link clientTls} for its parameters.
 *
 * @throws MalformedError for a bad URI; DmError ECONNREFUSED …, ENOENT for an export that is not there, EACCES where TLS
 *   is refused on either side, EINVAL for TLS parameters that make no sense
 * @example
 * ```ts
 * const disk = await connectNbd('nbd+unix:///disk?socket=/run/disk.sock');
 * const boot = await disk.read(0, 512);
 * await disk.close();
 * ```
 */
export async function connectNbd(uri: string | NbdUri): Promise<NbdConnection> {
  const parsed = typeof uri === 'string' ? parseNbdUri(uri) : uri;
  const security = clientTls(parsed);
  const loop = new NodeLoop();
  return openNbd(loop, await openTransport(loop, parsed), parsed.exportName, security);
}

/** The exports of a server; the export name of the URI does not matter. @throws as {@link connectNbd} */
export async function listNbdExports(uri: string | NbdUri): Promise<ExportDescription[]> {
  const parsed = typeof uri === 'string' ? parseNbdUri(uri) : uri;
  const security = clientTls(parsed);
  const loop = new NodeLoop();
  const transport = await openTransport(loop, parsed);
  return new Promise((resolve, reject) => {
    new NbdClient(loop, transport, security).list((error, exports) =>
      exports === null ? reject(error) : resolve(exports),
    );
  });
}
