// The objects that do what requests ask for, as the table of requests sees them.

import type { RequestContext } from './core/host.ts';
import type { DeviceOperations } from './devices.ts';
import type { OverlayOperations } from './overlay-operations.ts';
import type { Recovery } from './recovery.ts';
import type { BatchStep } from './requests.ts';
import type { DaemonInfo } from './types.ts';

/** The process that holds the devices. */
export interface DaemonOperations {
  info(): DaemonInfo;
  shutdown(force: boolean): Promise<void> | void;
}

export interface Operations {
  readonly devices: DeviceOperations;
  readonly overlays: OverlayOperations;
  batch(steps: readonly { name: BatchStep; args: object }[], context: RequestContext): Promise<unknown[]>;
  /** @throws DmError EOPNOTSUPP in a process without a journal */
  recovery(): Recovery;
  /** @throws DmError EOPNOTSUPP in a process that is no daemon */
  daemon(): DaemonOperations;
}
