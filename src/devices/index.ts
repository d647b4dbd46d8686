// What is at the bottom of a stack: memory, image files, block devices, and the registry that makes each one object.
export { HostBlockDevice } from './block.ts';
export { FileDevice } from './file.ts';
export {
  compareIdentities,
  type DiskIdentity,
  describeIdentity,
  type IdentityMismatch,
  identifyPath,
  isWeak,
} from './identity.ts';
export { MemoryDevice, type MemoryDeviceOptions } from './memory.ts';
export type { HeldFile } from './open.ts';
export {
  type DeviceInfo,
  DeviceRegistry,
  type DeviceRegistryOptions,
  type DirectIoChoice,
  type OpenOptions,
} from './registry.ts';
