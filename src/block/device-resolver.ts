// How a table line's device argument becomes a device: the table asks, the layers above answer.
import type { BlockDevice } from './block-device.ts';

export interface DeviceResolver {
  /**
   * Opens the device that a table argument names and counts one user; the same device, by whatever path, is the same
   * object.
   *
   * @param argument a path, `major:minor`, or `/dev/mapper/NAME`
   * @throws DmError with the errno the kernel gives: ENODEV, ENXIO, EBUSY, EACCES …
   */
  open(argument: string, readOnly: boolean): BlockDevice;
  /** Gives back what one `open` with the same `readOnly` gave. */
  close(device: BlockDevice, readOnly: boolean): void;
}
