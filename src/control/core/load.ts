// A table's way into a device's inactive slot: remote disks are connected first, and long tables are built in slices.
import { Errno } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import { isNbdUri } from '../../devices/nbd-uri.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { LoadOptions } from '../../mapper/mapper.ts';
import type { RemoteLease } from '../../reactor/remote-devices.ts';
import { RemoteDevices } from '../../reactor/remote-devices.ts';
import type { TableInput } from '../../table/text.ts';
import type { ControlHost } from './host.ts';
import { entriesWith } from './long-table.ts';
import { changed, leased } from './waiting.ts';

/** @throws TableError; DmError ENXIO for a device that was removed meanwhile, EINTR after the signal */
export async function loadTable(
  host: ControlHost,
  device: MappedDevice,
  table: TableInput,
  options: LoadOptions & { folder?: string | undefined },
  signal: AbortSignal | undefined,
): Promise<void> {
  const { folder, ...loadOptions } = options;
  const uris = host.remotes === undefined ? [] : RemoteDevices.urisIn(await entriesWith(table, '://'));
  if (uris.length === 0) {
    await changed(signal, (done) => host.mapper.loadSliced(device, table, loadOptions, done));
    return;
  }
  const lease = await leased(signal, host.remotes!.lease(uris, folder), (late: RemoteLease) => late.release());
  try {
    if (!host.mapper.isListed(device)) {
      throw new DmError(Errno.ENXIO, `${device.dmName} was removed while its remote devices were connected`);
    }
    const translate = loadOptions.translate ?? ((argument: string) => argument);
    loadOptions.translate = (argument) => (isNbdUri(argument) ? lease.translate(argument) : translate(argument));
    await changed(signal, (done) => host.mapper.loadSliced(device, table, loadOptions, done));
  } finally {
    lease.release();
  }
}
