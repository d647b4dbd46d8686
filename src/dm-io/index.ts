// dm-io: read one region, write one to 64, an error bit for each (drivers/md/dm-io.c).
export { DmIoClient, type DmIoClientOptions } from './client.ts';
export { dmIo } from './dm-io.ts';
export { DmIoError, type FailedRegion } from './error.ts';
export type {
  DmIoMemory,
  DmIoNotify,
  DmIoNotifyFunction,
  DmIoRegion,
  DmIoRequest,
  DmIoResult,
  PageList,
  SyncEngines,
} from './types.ts';
