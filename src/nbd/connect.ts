// The promise edge of the NBD client.
import { EXTENT_HOLE, EXTENT_ZERO } from '../block/block-device.ts';
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor, Transport, TransportSecurity } from '../block/reactor.ts';
import { clientTls } from '../reactor/nbd-credentials.ts';
import { type ConnectAddress, NodeLoop } from '../reactor/node-loop.ts';
import { MAX_CONNECTION_COUNT } from './client/bounds.ts';
import { NbdClient, requestError } from './client/client.ts';
import type { NbdExportDetails } from './client/handshake.ts';
import type { RequestCallback } from './client/pending.ts';
import { NBD_DEFAULT_PORT, TRANSMISSION_CAN_MULTI_CONN, TRANSMISSION_READ_ONLY } from './protocol/constants.ts';
import type { ExportDescription } from './protocol/info.ts';
import { type NbdUri, parseNbdUri } from './protocol/uri.ts';

/** A stretch of an export that is alike. */
export interface NbdExtent {
  offset: number;
  byteLength: number;
  /** Nothing is allocated for it. */
  hole: boolean;
  /** It reads as zeros. */
  zero: boolean;
}

export interface NbdWriteZeroesOptions {
  fua?: boolean;
  /** Keeps the range provisioned. */
  noHole?: boolean;
  /** EOPNOTSUPP rather than take as long as writing zeroes. */
  fast?: boolean;
}

/**
 * An export of a server, as connectNbd gives it. Offsets and lengths are bytes, multiples of the minimum block size. Reads
 * and writes of any length are split where the server has a bound.
 *
 * A request that fails rejects with DmError: `code` is the errno's name that the server gave (EIO, ENOSPC, EPERM …), EIO
 * when the server died.
 */
export class NbdConnection {
  readonly #clients: readonly NbdClient[];
  readonly #details: NbdExportDetails;

  /** @param clients of one export of one server: more than one only where it says CAN_MULTI_CONN */
  constructor(clients: readonly NbdClient[], details: NbdExportDetails) {
    this.#clients = clients;
    this.#details = details;
  }

  /** The export's size. */
  get byteLength(): number {
    return this.#details.byteLength;
  }

  get readOnly(): boolean {
    return (this.#details.transmissionFlags & TRANSMISSION_READ_ONLY) !== 0;
  }

  /** Connections to the server. */
  get connectionCount(): number {
    return this.#clients.length;
  }

  /** Everything the server said. */
  get details(): NbdExportDetails {
    return this.#details;
  }

  /** The connection with the least to do. */
  get #client(): NbdClient {
    let best = this.#clients[0]!;
    for (const client of this.#clients) {
      if (client.isOpen && (!best.isOpen || client.requestCount < best.requestCount)) best = client;
    }
    return best;
  }

  async read(offset: number, byteLength: number): Promise<Buffer> {
    if (!(offset >= 0 && byteLength >= 0 && offset + byteLength <= this.byteLength)) {
      throw requestError(Errno.EINVAL, `read of ${byteLength} bytes at ${offset}`);
    }
    const destination = Buffer.allocUnsafeSlow(byteLength);
    await this.#inPieces(offset, destination, (at, piece) =>
      this.#promise(`read at ${at}`, (client, done) => client.read(at, piece, done)),
    );
    return destination;
  }

  write(offset: number, data: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    const fua = options.fua ?? false;
    return this.#inPieces(offset, data, (at, piece) =>
      this.#promise(`write at ${at}`, (client, done) => client.write(at, piece, fua, done)),
    );
  }

  /** All at once; the first failure by its place counts, when all have ended and nobody uses the memory any more. */
  async #inPieces(
    offset: number,
    memory: Uint8Array,
    start: (offset: number, piece: Uint8Array) => Promise<void>,
  ): Promise<void> {
    const most = this.#clients[0]!.bestPayloadByteLength;
    const pieces: Promise<void>[] = [];
    for (let at = 0; at === 0 || at < memory.byteLength; at += most) {
      pieces.push(start(offset + at, memory.subarray(at, at + most)));
    }
    for (const result of await Promise.allSettled(pieces)) if (result.status === 'rejected') throw result.reason;
  }

  flush(): Promise<void> {
    return this.#promise('flush', (client, done) => client.flush(done));
  }

  trim(offset: number, byteLength: number, options: { fua?: boolean } = {}): Promise<void> {
    const fua = options.fua ?? false;
    return this.#promise(`trim at ${offset}`, (client, done) => client.trim(offset, byteLength, fua, done));
  }

  writeZeroes(offset: number, byteLength: number, options: NbdWriteZeroesOptions = {}): Promise<void> {
    const { fua = false, noHole = false, fast = false } = options;
    return this.#promise(`write-zeroes at ${offset}`, (client, done) =>
      client.writeZeroes(offset, byteLength, { noHole, fua, fast }, done),
    );
  }

  /** Says that a range will soon be read. */
  cache(offset: number, byteLength: number): Promise<void> {
    return this.#promise(`cache at ${offset}`, (client, done) => client.cache(offset, byteLength, done));
  }

  /** What is allocated of a range, neighbours that are alike joined. A server that does not tell has data everywhere. */
  async *extents(offset = 0, byteLength: number = this.byteLength - offset): AsyncGenerator<NbdExtent> {
    const end = offset + byteLength;
    let pending: NbdExtent | null = null;
    for (let at = offset; at < end; ) {
      const pairs = await this.#blockStatus(at, Math.min(end - at, MAX_STATUS_BYTE_LENGTH));
      for (let i = 0; i < pairs.length; i += 2) {
        const extent = extentOf(at, pairs[i]!, pairs[i + 1]!);
        at += extent.byteLength;
        if (pending !== null && pending.hole === extent.hole && pending.zero === extent.zero) {
          pending.byteLength += extent.byteLength;
        } else {
          if (pending !== null) yield pending;
          pending = extent;
        }
      }
    }
    if (pending !== null) yield pending;
  }

  #blockStatus(offset: number, byteLength: number): Promise<readonly number[]> {
    return new Promise((resolve, reject) => {
      this.#client.blockStatus(offset, byteLength, false, (errno, pairs) => {
        if (errno === 0) resolve(pairs);
        else reject(requestError(errno, `block status at ${offset}`));
      });
    });
  }

  /** Waits for the requests in flight, says goodbye, closes. */
  async close(): Promise<void> {
    const closed = this.#clients.map(
      (client) =>
        new Promise<void>((resolve, reject) => {
          client.disconnect((error) => (error === null ? resolve() : reject(error)));
        }),
    );
    for (const result of await Promise.allSettled(closed)) if (result.status === 'rejected') throw result.reason;
  }

  #promise(what: string, start: (client: NbdClient, done: RequestCallback) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      start(this.#client, (errno, errorOffset) =>
        errno === 0 ? resolve() : reject(requestError(errno, what, errorOffset)),
      );
    });
  }
}

/** Lengths on the wire have 32 bits; a whole number of the largest blocks there are. */
const MAX_STATUS_BYTE_LENGTH = 2 ** 32 - 65_536;

function extentOf(offset: number, byteLength: number, flags: number): NbdExtent {
  return { offset, byteLength, hole: (flags & EXTENT_HOLE) !== 0, zero: (flags & EXTENT_ZERO) !== 0 };
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

function openClient(
  reactor: Reactor,
  transport: Transport,
  exportName: string,
  security: TransportSecurity | null,
): Promise<{ client: NbdClient; details: NbdExportDetails }> {
  return new Promise((resolve, reject) => {
    const client = new NbdClient(reactor, transport, security);
    client.open(exportName, (error, details) => {
      if (details === null || error !== null) reject(error);
      else resolve({ client, details });
    });
  });
}

/**
 * A client on a transport of any kind, under TLS where `security` is given.
 *
 * @throws DmError when the server refuses: ENOENT for an unknown export, EACCES where TLS fails or is missing …
 */
export async function openNbd(
  reactor: Reactor,
  transport: Transport,
  exportName: string,
  security: TransportSecurity | null = null,
): Promise<NbdConnection> {
  const { client, details } = await openClient(reactor, transport, exportName, security);
  return new NbdConnection([client], details);
}

export interface ConnectNbdOptions {
  /** Connections to the export, where the server allows several (CAN_MULTI_CONN); 1. */
  connections?: number;
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
export async function connectNbd(uri: string | NbdUri, options: ConnectNbdOptions = {}): Promise<NbdConnection> {
  const { connections = 1 } = options;
  if (!(Number.isInteger(connections) && connections >= 1 && connections <= MAX_CONNECTION_COUNT)) {
    throw new DmError(Errno.EINVAL, `${connections} connections: 1 to ${MAX_CONNECTION_COUNT} are possible`);
  }
  const parsed = typeof uri === 'string' ? parseNbdUri(uri) : uri;
  const security = clientTls(parsed);
  const loop = new NodeLoop();
  const open = async () => openClient(loop, await openTransport(loop, parsed), parsed.exportName, security);
  const first = await open();
  const canShare = (first.details.transmissionFlags & TRANSMISSION_CAN_MULTI_CONN) !== 0;
  const others = await Promise.allSettled(Array.from({ length: canShare ? connections - 1 : 0 }, open));
  const clients = [first.client];
  let failure: unknown = null;
  for (const other of others) {
    if (other.status === 'rejected') failure ??= other.reason;
    else {
      clients.push(other.value.client);
      if (other.value.details.byteLength !== first.details.byteLength) {
        failure ??= new DmError(Errno.ESTALE, 'the export changed its size while we connected');
      }
    }
  }
  if (failure === null) return new NbdConnection(clients, first.details);
  for (const client of clients) client.destroy();
  throw failure;
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
