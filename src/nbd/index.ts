// The public entry `dmkit/nbd`: serving devices, an NBD server, a client, URIs, and the event loop they run on.
export { NbdDevice } from '../devices/nbd.ts';
export type { NbdReconnectOptions } from '../devices/nbd-links.ts';
export {
  type ConnectAddress,
  type ConnectedStreams,
  type ListenAddress,
  type Listener,
  NodeLoop,
} from '../reactor/node-loop.ts';
export { type AttachedNbd, type AttachNbdOptions, attachNbd, type NbdHost } from './attach.ts';
export type { NbdExportDetails } from './client/handshake.ts';
export {
  type ConnectNbdOptions,
  connectNbd,
  listNbdExports,
  NbdConnection,
  type NbdExtent,
  type NbdWriteZeroesOptions,
  openNbd,
} from './connect.ts';
export { parseListenAddress } from './listen.ts';
export { type BlockSizes, type ExportDescription, MalformedError } from './protocol/info.ts';
export { formatNbdUri, type NbdUri, parseNbdUri } from './protocol/uri.ts';
export { type NbdService, type ServeNbdOptions, serveNbd } from './serve.ts';
export type { ExportTable, NbdExport } from './server/exports.ts';
export { NbdServer, type NbdServerOptions, type NbdServerStatistics } from './server/server.ts';
export { type NbdTlsOptions, serverTls } from './tls.ts';
