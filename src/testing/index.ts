// The public testing tools: devices that fail, wait, tear and lose, and what checks that others keep the contract.
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
