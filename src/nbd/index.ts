// The public entry `dmkit/nbd`.
export { NodeLoop } from '../reactor/node-loop.ts';
export type { NbdExport } from './server/exports.ts';
export { NbdServer, type NbdServerOptions, type NbdServerStatistics } from './server/server.ts';
