// kcopyd: copy one region to as many as 8, in parts, through pages set aside (drivers/md/dm-kcopyd.c).
export { KcopydClient, type KcopydClientOptions, type PreparedCallback } from './client.ts';
export { KcopydError } from './error.ts';
export { KcopydThrottle } from './throttle.ts';
export {
  KCOPYD_IGNORE_ERROR,
  KCOPYD_WRITE_SEQ,
  type KcopydJobHandle,
  type KcopydNotifyFunction,
  type KcopydResult,
} from './types.ts';
