// Users of a block device that the kernel counts: mounts, swap, devices on top, processes; also of the disk that a
// partition is on, of a disk's partitions, and of the loop devices over an image file.
import fs from 'node:fs';
import { basename } from 'node:path';
import { Errno, errnoFromException } from '../block/errno.ts';
import { formatDeviceNumber } from './block.ts';

interface Mount {
  readonly id: string;
  /** `major:minor` of the file system. */
  readonly number: string;
  readonly place: string;
  readonly source: string;
}

/** The mounts of this name space, in the order they were made. */
function mounts(): Mount[] {
  const list: Mount[] = [];
  for (const line of textOf('/proc/self/mountinfo').split('\n')) {
    // 42 26 259:0 / /mnt rw,relatime shared:1 - ext4 /dev/loop0p1 rw
    const words = line.split(' ');
    const dash = words.indexOf('-', 6);
    if (dash < 0) continue;
    const [id = '', , number = '', , place = ''] = words;
    list.push({ id, number, place: unescaped(place), source: unescaped(words[dash + 2] ?? '') });
  }
  return list;
}

/** Blanks and backslashes are octal numbers in mountinfo. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_all, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));
}

/** The first user that keeps a block device from being opened exclusively; null where none is found. */
export function holderOfBlockDevice(rdev: bigint): string | null {
  const number = formatDeviceNumber(rdev);
  const mounted = mountOrSwapOf(number);
  if (mounted !== null) return mounted;
  const holders = namesIn(`/sys/dev/block/${number}/holders`);
  if (holders.length > 0) return `the block device ${holders.join(', ')} on top of it`;
  return findProcess((pidText, fdText) => rdevOf(`/proc/${pidText}/fd/${fdText}`) === rdev);
}

/** A mount, or swap, that a write to this block device would reach behind its back. */
function mountOrSwapOf(number: string): string | null {
  const family = familyOf(number);
  for (const { number: mounted, place, source } of mounts()) {
    // File systems that can have several devices (btrfs) have a number of their own.
    if (family.has(mounted) || family.has(numberOf(source))) return `the file system mounted at ${place}`;
  }
  for (const line of textOf('/proc/swaps').split('\n').slice(1)) {
    const path = line.split(/\s+/)[0]!;
    if (family.has(numberOf(path))) return 'swap';
  }
  return null;
}

/** The device, its partitions or the disk that it is a partition of, and the devices on top of each, by number. */
function familyOf(number: string): Set<string> {
  const folder = `/sys/dev/block/${number}`;
  const family = new Set<string>();
  if (textOf(`${folder}/partition`) !== '') addWithHolders(family, textOf(`${folder}/../dev`).trim());
  addWithHolders(family, number);
  addPartitions(family, folder);
  return family;
}

function addPartitions(family: Set<string>, folder: string): void {
  for (const name of namesIn(folder)) {
    if (textOf(`${folder}/${name}/partition`) !== '') addWithHolders(family, textOf(`${folder}/${name}/dev`).trim());
  }
}

function addWithHolders(family: Set<string>, number: string): void {
  if (number === '' || family.has(number)) return;
  family.add(number);
  for (const name of namesIn(`/sys/dev/block/${number}/holders`)) {
    addWithHolders(family, textOf(`/sys/class/block/${name}/dev`).trim());
    addPartitions(family, `/sys/class/block/${name}`);
  }
}

/**
 * The use of an image file through a loop device, which a second writer would not be noticed by: a mounted file system,
 * swap, a program that has the loop device for itself.
 *
 * @param fd the file, open
 * @returns a sentence's end: `/dev/loop0, which is used by …`; null where there is none
 */
export function loopUseOf(fd: number): string | null {
  for (const name of loopsOver(fd)) {
    const number = textOf(`/sys/block/${name}/dev`).trim();
    const node = `/dev/${name}`;
    const mounted = mountOrSwapOf(number);
    if (mounted !== null) return `${node}, which is used by ${mounted}`;
    // Mounts of other containers are in no list that is to be seen here, but the kernel knows of them.
    if (!isExclusive(node)) continue;
    const rdev = rdevOf(node);
    const holder = rdev === null ? null : holderOfBlockDevice(rdev);
    return `${node}, which is in use${holder === null ? '' : ` by ${holder}`}`;
  }
  return null;
}

/** True where a device is mounted, or open for one user alone. */
function isExclusive(node: string): boolean {
  const { O_RDONLY, O_EXCL } = fs.constants;
  try {
    fs.closeSync(fs.openSync(node, O_RDONLY | O_EXCL));
    return false;
  } catch (error) {
    return errnoFromException(error) === Errno.EBUSY;
  }
}

function loopsOver(fd: number): string[] {
  const backings: [string, string][] = [];
  for (const name of namesIn('/sys/block')) {
    if (!name.startsWith('loop')) continue;
    // Most loop devices have no file: an exception for each would cost more than the question.
    if (!fs.existsSync(`/sys/block/${name}/loop`)) continue;
    const path = textOf(`/sys/block/${name}/loop/backing_file`).replace(/\n$/, '');
    if (path !== '') backings.push([name, path]);
  }
  if (backings.length === 0) return [];
  const list = mounts();
  const stat = fs.fstatSync(fd, { bigint: true });
  const mountId = /^mnt_id:\s*(\d+)$/m.exec(textOf(`/proc/self/fdinfo/${fd}`))?.[1];
  const own = list.find(({ id }) => id === mountId)?.number ?? formatDeviceNumber(stat.dev);
  return backings.filter(([, path]) => isSameFile(path, stat, own, list)).map(([name]) => name);
}

/** Looks only at paths on the file's own file system: another one may wait for a server, which may be this process. */
function isSameFile(path: string, stat: fs.BigIntStats, fileSystem: string, list: readonly Mount[]): boolean {
  let under: Mount | null = null;
  for (const mount of list) {
    const isAbove = mount.place === '/' || path === mount.place || path.startsWith(`${mount.place}/`);
    if (isAbove && mount.place.length >= (under?.place.length ?? 0)) under = mount;
  }
  if (under?.number !== fileSystem) return false;
  try {
    const { dev, ino } = fs.statSync(path, { bigint: true });
    return dev === stat.dev && ino === stat.ino;
  } catch {
    return false;
  }
}

/** The first process with a descriptor that `matches`. Only processes that this user may look at are seen. */
export function findProcess(matches: (pid: string, fd: string) => boolean): string | null {
  for (const pid of namesIn('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    for (const fd of namesIn(`/proc/${pid}/fd`)) if (matches(pid, fd)) return describeProcess(Number(pid));
  }
  return null;
}

export function describeProcess(pid: number): string {
  const itself = pid === process.pid ? ', which is this one' : '';
  return `process ${pid} (${programOf(pid)})${itself}`;
}

/** `qemu-system-x86_64`, `node server.js`: enough to recognise it, and none of its options. */
function programOf(pid: number): string {
  const [program = '', script = ''] = textOf(`/proc/${pid}/cmdline`).split('\0');
  if (program === '') return textOf(`/proc/${pid}/comm`).trim() || 'its name can not be read';
  return script === '' || script.startsWith('-') ? basename(program) : `${basename(program)} ${basename(script)}`;
}

/** The number of a block device's node; empty for anything else. */
function numberOf(path: string): string {
  const rdev = path.startsWith('/dev/') ? rdevOf(path) : null;
  return rdev === null ? '' : formatDeviceNumber(rdev);
}

function rdevOf(path: string): bigint | null {
  try {
    const stat = fs.statSync(path, { bigint: true });
    return stat.isBlockDevice() ? stat.rdev : null;
  } catch {
    return null;
  }
}

/** A file of proc or sysfs; empty where it can't be read. */
export function textOf(path: string): string {
  try {
    return fs.readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function namesIn(path: string): string[] {
  try {
    return fs.readdirSync(path);
  } catch {
    return [];
  }
}
