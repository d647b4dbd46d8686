// What several constructors do with their arguments.
import type { BlockDevice } from '../block/block-device.ts';
import { DmError } from '../block/errors.ts';
import { TargetError, type TargetSetup } from '../block/target.ts';

/** Opens the device an argument names; a refusal becomes the target's own `text` with the errno of the look-up. */
export function lookUpDevice(setup: TargetSetup, argument: string, text: string, readOnly?: boolean): BlockDevice {
  return withText(text, () => setup.getDevice(argument, readOnly));
}

/** The same for a device that the target writes to on its own account, as {@link TargetSetup.getOwnDevice} says. */
export function lookUpOwnDevice(setup: TargetSetup, argument: string, text: string, orReadOnly: boolean): BlockDevice {
  return withText(text, () => setup.getOwnDevice(argument, orReadOnly));
}

function withText(text: string, open: () => BlockDevice): BlockDevice {
  try {
    return open();
  } catch (error) {
    if (error instanceof DmError && error.errno !== 0) throw new TargetError(text, error.errno, { cause: error });
    throw error;
  }
}
