// The marks by which sysfs tells one block device from another: serial numbers, UUIDs, the file behind a loop device.
import fs from 'node:fs';
import { type FileMark, fileMarkOf } from './file-mark.ts';

/** One lasting mark of a block device, the most telling one that it has. Plain JSON values. */
export interface BlockDeviceMark {
  type: 'wwid' | 'serial' | 'partuuid' | 'dm-uuid' | 'md-uuid' | 'loop-backing-file';
  /** The path, of a file behind a loop device. */
  value: string;
  /** Of the file behind a loop device, which is compared instead of its path. */
  file?: FileMark;
  /** Where a loop device starts in its file, where that is not the beginning. */
  offset?: string;
  /** The mark is the whole disk's, and this the number of its partition. */
  partition?: string;
}

/** Where a type of mark is, below a device's folder in sysfs; the most telling first. */
const PLACES: readonly (readonly [BlockDeviceMark['type'], readonly string[]])[] = [
  ['dm-uuid', ['dm/uuid']],
  ['md-uuid', ['md/uuid']],
  // Before the serial number, which all the namespaces of an NVMe controller share.
  ['wwid', ['wwid', 'device/wwid']],
  ['serial', ['serial', 'device/serial']],
];

/** The mark of a block device by its number; null where it has none, or there is no sysfs. */
export function markOf(number: string): BlockDeviceMark | null {
  const folder = `/sys/dev/block/${number}`;
  const partition = textOf(`${folder}/partition`);
  if (partition === null) return markOfDisk(folder);
  const uuid = /^PARTUUID=(.+)$/m.exec(textOf(`${folder}/uevent`) ?? '')?.[1];
  if (uuid !== undefined) return { type: 'partuuid', value: uuid };
  const mark = markOfDisk(`${folder}/..`);
  return mark === null ? null : { ...mark, partition };
}

/** As the kernel counts it now; null where there is no sysfs. */
export function byteLengthInSysfs(number: string): number | null {
  const text = textOf(`/sys/dev/block/${number}/size`);
  return text === null ? null : Number(text) * 512;
}

function markOfDisk(folder: string): BlockDeviceMark | null {
  const path = textOf(`${folder}/loop/backing_file`);
  if (path !== null) return markOfLoop(folder, path);
  for (const [type, places] of PLACES) {
    for (const place of places) {
      const value = textOf(`${folder}/${place}`);
      // Disks without a serial number say so with blanks or zeroes.
      if (value !== null && !/^[0\s]*$/.test(value)) return { type, value };
    }
  }
  return null;
}

function markOfLoop(folder: string, path: string): BlockDeviceMark {
  const mark: BlockDeviceMark = { type: 'loop-backing-file', value: path };
  const offset = textOf(`${folder}/loop/offset`);
  if (offset !== null && offset !== '0') mark.offset = offset;
  try {
    mark.file = fileMarkOf(fs.statSync(path, { bigint: true }), path);
  } catch {
    // Deleted, or in another mount name space: the path has to do.
  }
  return mark;
}

function textOf(path: string): string | null {
  try {
    return fs.readFileSync(path, 'utf8').replace(/\n$/, '');
  } catch {
    return null;
  }
}
