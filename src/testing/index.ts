// The public testing tools: devices that fail, wait, tear and lose, and what checks that others keep the contract.

export { ByteModel, type ByteModelOptions } from './byte-model.ts';
export { CheckedDevice, checkedDevice } from './checked.ts';
export { DiskImage } from './disk-image.ts';
export type { CrashChoice } from './disk-model.ts';
export {
  FailEveryNthError,
  type FailEveryNthOptions,
  type FailEveryNthResult,
  type FailNthContext,
  FailNthDevice,
  type FailNthOptions,
  FailurePlan,
  failEveryNth,
} from './fail-nth.ts';
export type { Fault, FaultEffect, FaultTrigger } from './faults.ts';
export {
  type RandomRequest,
  type RandomRequestOptions,
  randomRegion,
  randomRequest,
  randomVecs,
} from './generators.ts';
export { HoldingDevice, type HoldingOptions } from './holding.ts';
export {
  mixSeed,
  type Random,
  randomBytes,
  randomFromSeed,
  randomInteger,
  randomItem,
  shuffled,
} from './random.ts';
export type { CrashState, CrashStatesOptions, Recording } from './recording.ts';
export {
  describeRequest,
  type IssuedRequest,
  type IssueOptions,
  issue,
  matchesFilter,
  type Operation,
  type Region,
  type RequestFilter,
} from './request.ts';
export type { OperationStats, SimulatedStats } from './request-log.ts';
export { type CrashOptions, type Latency, SimulatedDevice, type SimulatedDeviceOptions } from './simulated-device.ts';
export { SimulatedReactor, type SimulatedReactorOptions } from './simulated-reactor.ts';
