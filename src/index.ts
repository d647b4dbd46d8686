// The public entry of dmkit.

export { DeviceMapper, type DeviceMapperOptions, type TableOptions } from './api/device-mapper.ts';
export { Disk, type Extent, type WriteOptions, type WriteZeroesOptions } from './api/disk.ts';
export * from './api/dm-io-global.ts';
export * from './api/dm-io-promise.ts';
export * from './api/kcopyd-promise.ts';
export {
  type CreateSnapshotOptions,
  type DropOptions,
  type DroppedSnapshot,
  type MergeOptions,
  type MergeProgress,
  type SnapshotPlan,
  Snapshots,
} from './api/snapshots.ts';
export { changedExtentsOfStore } from './api/store-changes.ts';
export * from './block/bio.ts';
export type { BlockDevice, ExtentCallback } from './block/block-device.ts';
export { EXTENT_DATA, EXTENT_HOLE, EXTENT_ZERO, extentDepth, queryExtent, submitBio } from './block/block-device.ts';
export type { CutEnd } from './block/cut-end.ts';
export type { DeviceResolver } from './block/device-resolver.ts';
export { Errno, errnoMessage, errnoName } from './block/errno.ts';
export { DmError, IoError, TableError } from './block/errors.ts';
export { defaultLimits, type QueueLimits } from './block/limits.ts';
export { MAX_SECTOR_COUNT, SECTOR_SIZE } from './block/sector.ts';
export * from './block/target.ts';
export { version } from './block/version.ts';
export {
  type DeviceInfo,
  DeviceRegistry,
  type DeviceRegistryOptions,
  type DirectIoChoice,
  MemoryDevice,
  type MemoryDeviceOptions,
  type OpenOptions,
} from './devices/index.ts';
export * from './dm-io/index.ts';
export * from './kcopyd/index.ts';
export { MappedDevice, type SuspendOptions } from './mapper/mapped-device.ts';
export { type CreateOptions, Mapper } from './mapper/mapper.ts';
export {
  type ChangedExtent,
  changedExtents,
  type SnapshotCondition,
  type SnapshotCounters,
  type SnapshotReport,
  snapshotReports,
} from './overlays/changes.ts';
export { NodeLoop } from './reactor/node-loop.ts';
export type { RemoteDevicesOptions } from './reactor/remote-devices.ts';
export { formatTable, parseTable, type TableEntry } from './table/text.ts';
export { builtinTargets, Targets } from './targets/index.ts';
