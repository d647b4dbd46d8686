// Remote disks that a program attaches itself, with options of its own; a table that names a URI connects to it anyway.
import type { NbdDevice } from '../devices/nbd.ts';
import { connectNbdDevice, type RemoteConnectOptions, type RemoteHost } from '../reactor/remote-devices.ts';

/** What an attachment needs of a device mapper: `loop` and `devices`. */
export type NbdHost = RemoteHost;

export type AttachNbdOptions = RemoteConnectOptions;

/** A remote disk that tables can name. */
export interface AttachedNbd {
  readonly device: NbdDevice;
  /** Takes the name away and says goodbye to the server. @throws DmError EBUSY while a table uses it */
  close(): Promise<void>;
}

/**
 * Connects to an export and makes it a device of `host` under its URI, until it is closed: what tables that name the URI
 * find. Without it they connect by themselves, and the connection goes with the last of them.
 *
 * @throws DmError ECONNREFUSED, ENOENT for an export that is not there, EINVAL for a bad URI, EACCES for TLS, EEXIST for
 *   a URI that is attached already
 */
export async function attachNbd(host: NbdHost, uri: string, options: AttachNbdOptions = {}): Promise<AttachedNbd> {
  const device = await connectNbdDevice(host.loop, host.devices.nameOf(uri), options);
  const disconnect = (): Promise<void> => new Promise((resolve) => device.close(resolve));
  try {
    host.devices.register(device.name, device);
  } catch (error) {
    await disconnect();
    throw error;
  }
  return {
    device,
    close: async () => {
      host.devices.unregister(device.name);
      await disconnect();
    },
  };
}
