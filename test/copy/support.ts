// What the tests of dmkit copy share.
import { onTestFinished } from 'vitest';
import { DeviceMapper } from '../../src/api/device-mapper.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { errnoMessage } from '../../src/block/errno.ts';
import { Copy, type CopyOptions } from '../../src/copy/copy.ts';

/** A device mapper in which `devices` can be named. */
export function mapperWith(devices: readonly BlockDevice[]): DeviceMapper {
  const dm = new DeviceMapper();
  for (const device of devices) dm.devices.register(device.name, device);
  onTestFinished(() => dm.close());
  return dm;
}

/** Copies, and gives the copy back when all is closed. */
export async function copied(
  dm: DeviceMapper,
  source: string | null,
  destinations: readonly string[],
  options: CopyOptions = {},
): Promise<Copy> {
  const copy = await Copy.open(dm, source, destinations, options);
  try {
    await copy.run();
  } finally {
    await copy.close();
  }
  return copy;
}

/** What failed at a destination, to read: `100-107 write: Input/output error`. */
export function failuresOf(copy: Copy, index = 0): string[] {
  const failures = [...copy.destinations[index]!.failures].sort((a, b) => a.start - b.start);
  return failures.map(({ start, end, side, cause }) => `${start}-${end - 1} ${side}: ${errnoMessage(cause.errno)}`);
}
