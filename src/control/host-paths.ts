// What a table's device argument means to a caller somewhere else: relative paths start in its folder, and a
// /dev/mapper/NAME that the host and dmkit both have is neither's until somebody says which.
import { realpathSync, statSync } from 'node:fs';
import { resolve } from 'node:path';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { decodeName, rawName } from '../block/file-name.ts';
import { formatDeviceNumber } from '../devices/block.ts';
import { isNbdUri } from '../devices/nbd-uri.ts';
import type { Mapper } from '../mapper/mapper.ts';

const MAPPER_PREFIX = '/dev/mapper/';
const NODE = /^\/dev\/dm-(\d+)$/;

/** True for a path that leads to a block device of this host. */
export function isHostBlockDevice(path: string): boolean {
  try {
    return statSync(rawName(path)).isBlockDevice();
  } catch {
    return false;
  }
}

/** @param isHostDevice for tests */
export function translator(
  mapper: Mapper,
  isHostDevice: (path: string) => boolean = isHostBlockDevice,
): (folder: string | undefined, host: boolean) => (argument: string) => string {
  const isOurs = (argument: string): boolean => {
    if (argument.startsWith(MAPPER_PREFIX)) return mapper.has(argument.slice(MAPPER_PREFIX.length));
    const node = NODE.exec(argument);
    return node !== null && mapper.list().some((device) => device.minor === Number(node[1]));
  };
  const refuseBoth = (argument: string): void => {
    if (!isHostDevice(argument) || !isOurs(argument)) return;
    const name = argument.startsWith(MAPPER_PREFIX) ? argument.slice(MAPPER_PREFIX.length) : 'NAME';
    throw new DmError(
      Errno.EINVAL,
      `${argument} is a device of this host, and dmkit has one of that name: say dm:${name} for dmkit's, or give --host for the host's`,
    );
  };
  return (folder, host) => (argument) => {
    if (argument.startsWith(MAPPER_PREFIX) || NODE.test(argument)) {
      if (host) return hostPath(argument);
      refuseBoth(argument);
      const node = NODE.exec(argument);
      return node !== null && isOurs(argument) ? `${mapper.major}:${node[1]}` : argument;
    }
    if (/^(?:\d+:\d+|dm:.*)$/.test(argument) || isNbdUri(argument) || folder === undefined) return argument;
    return resolve(folder, argument);
  };
}

/** A path to the host's device that is not one of ours. */
function hostPath(path: string): string {
  try {
    const real = decodeName(realpathSync(rawName(path), 'buffer'));
    if (!real.startsWith(MAPPER_PREFIX)) return real;
    return formatDeviceNumber(statSync(rawName(path), { bigint: true }).rdev);
  } catch {
    throw new DmError(Errno.ENODEV, `this host has no ${path}`);
  }
}
