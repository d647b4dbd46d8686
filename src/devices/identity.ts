// The marks by which a disk is known again: plain values for a journal, a map or a store, and their comparison. Paths,
// numbers and names are how people refer to a disk; code that goes on with existing data compares identities first.
import fs from 'node:fs';
import { resolve } from 'node:path';
import { rawName } from '../block/file-name.ts';
import { NBD_DEFAULT_PORT } from '../nbd/protocol/constants.ts';
import { type NbdUri, parseNbdUri } from '../nbd/protocol/uri.ts';
import { formatDeviceNumber } from './block.ts';
import { type BlockDeviceMark, byteLengthInSysfs, markOf } from './block-mark.ts';
import { type FileMark, fileMarkOf } from './file-mark.ts';
import { canonicalNbdUri, isNbdUri } from './nbd-uri.ts';
import { findDevice } from './open.ts';

/** An image file. */
export interface FileIdentity {
  kind: 'file';
  /** Where it was found: for messages, never compared. */
  path: string;
  /** Empty where the file system does not keep inode numbers (FAT, exFAT). */
  inode: string;
  /** When the file was made, in nanoseconds since 1970; null where the file system does not tell it, or changes it. */
  birth: string | null;
  /** st_dev; counts only within one boot. */
  dev: string;
  /** Empty where the system has no number for its boot. */
  bootId: string;
  byteLength: number;
}

/** A block device of this machine. */
export interface HostBlockIdentity {
  kind: 'block';
  path: string;
  /** `major:minor`: compared only where there is no mark. */
  number: string;
  /** Null for a device that is known by number and size alone. */
  mark: BlockDeviceMark | null;
  /** 0 where it is not known. */
  byteLength: number;
}

/** An export of an NBD server. */
export interface NbdIdentity {
  kind: 'nbd';
  uri: string;
  exportName: string;
  /** 0 where it is not known: before a connection. */
  byteLength: number;
}

/** The marks by which a disk is known again. Plain JSON values. */
export type DiskIdentity =
  | FileIdentity
  | HostBlockIdentity
  | NbdIdentity
  /** One of dmkit's own devices. */
  | { kind: 'mapped'; id: string; name: string }
  /** A device that the program registered: it has no identity beyond its name. */
  | { kind: 'program'; name: string };

/** Why two identities are not of one disk. */
export interface IdentityMismatch {
  /** One sentence that names both sides. */
  text: string;
}

const NANOSECONDS = 1_000_000_000n;

/**
 * Identifies what a table's argument names: a path (relative ones start at `baseFolder`), `major:minor` or an NBD URI.
 * Nothing is opened and no server is asked.
 *
 * @throws DmError ENODEV for a path that leads to nothing of use, ENXIO for a number without a device, EACCES, EINVAL
 *   for a bad URI
 */
export function identifyPath(argument: string, baseFolder: string): DiskIdentity {
  if (isNbdUri(argument)) {
    const uri = canonicalNbdUri(argument, resolve(baseFolder));
    return { kind: 'nbd', uri, exportName: parseNbdUri(uri).exportName, byteLength: 0 };
  }
  const found = findDevice(argument, resolve(baseFolder));
  if (found.kind === 'block') return identityOfBlockDevice(found.path, found.rdev, null);
  return identityOfFile(found.path, fs.statSync(rawName(found.path), { bigint: true }), found.path);
}

/** The part of an open file's identity that stays the same for as long as it is open. */
export function markOfOpenFile(path: string, fd: number, stat: fs.BigIntStats): FileMark {
  const ofDescriptor = `/proc/self/fd/${fd}`;
  return fileMarkOf(stat, fs.existsSync(ofDescriptor) ? ofDescriptor : path);
}

/** @param byteLength as an open device has it; null: as sysfs says */
export function identityOfBlockDevice(path: string, rdev: bigint, byteLength: number | null): HostBlockIdentity {
  const number = formatDeviceNumber(rdev);
  const size = byteLength ?? byteLengthInSysfs(number) ?? 0;
  return { kind: 'block', path, number, mark: markOf(number), byteLength: size };
}

function identityOfFile(path: string, stat: fs.BigIntStats, place: string): FileIdentity {
  return identityOfMarkedFile(path, stat, fileMarkOf(stat, place));
}

/** A file's whose mark is known. */
export function identityOfMarkedFile(path: string, stat: fs.BigIntStats, { inode, birth }: FileMark): FileIdentity {
  return { kind: 'file', path, inode, birth, dev: String(stat.dev), bootId: bootId(), byteLength: Number(stat.size) };
}

let boot: string | null = null;

function bootId(): string {
  if (boot === null) {
    try {
      boot = fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    } catch {
      boot = '';
    }
  }
  return boot;
}

/** True for a disk that nothing lasting tells from another one of its size. */
export function isWeak(identity: DiskIdentity): boolean {
  if (identity.kind === 'block') return identity.mark === null;
  return identity.kind === 'file' && identity.inode === '' && identity.birth === null;
}

/** For messages: where the disk was found, and its marks. */
export function describeIdentity(identity: DiskIdentity): string {
  switch (identity.kind) {
    case 'file':
      return `${identity.path} (${marksOfFile(identity, false)}, ${identity.byteLength} bytes)`;
    case 'block':
      return `${placeOfBlock(identity)} (${describeMark(identity.mark)}, ${identity.byteLength} bytes)`;
    case 'nbd':
      return `${identity.uri} (${describeExport(identity)}, ${identity.byteLength} bytes)`;
    case 'mapped':
      return `the mapped device ${identity.name}`;
    case 'program':
      return `the device ${identity.name} of this program`;
  }
}

/**
 * Compares the disk that is there with the one that was written down. A path and a host's name are not compared; a disk
 * that has grown is the same.
 *
 * @returns null where they are the same disk, as far as they can be told apart
 */
export function compareIdentities(expected: DiskIdentity, found: DiskIdentity): IdentityMismatch | null {
  const text = difference(expected, found);
  return text === null ? null : { text };
}

function difference(expected: DiskIdentity, found: DiskIdentity): string | null {
  switch (found.kind) {
    case 'file':
      if (expected.kind === 'file') return differenceOfFiles(expected, found);
      break;
    case 'block':
      if (expected.kind === 'block') return differenceOfBlocks(expected, found);
      break;
    case 'nbd':
      if (expected.kind === 'nbd') return differenceOfExports(expected, found);
      break;
    case 'mapped':
      if (expected.kind === 'mapped' && expected.id === found.id) return null;
      break;
    case 'program':
      if (expected.kind === 'program' && expected.name === found.name) return null;
      break;
  }
  return `${describeIdentity(found)} is there, and ${describeIdentity(expected)} was expected`;
}

function differenceOfFiles(expected: FileIdentity, found: FileIdentity): string | null {
  const { path } = found;
  const isOther =
    (expected.inode !== '' && found.inode !== '' && expected.inode !== found.inode) ||
    (expected.birth !== null && found.birth !== null && expected.birth !== found.birth);
  if (isOther) {
    const precise = secondOf(expected.birth) === secondOf(found.birth);
    const [is, was] = [marksOfFile(found, precise), marksOfFile(expected, precise)];
    return `${path} is another file now: ${is}, and ${was} was expected${movedFrom(expected, found)}`;
  }
  if (expected.bootId !== '' && expected.bootId === found.bootId && expected.dev !== found.dev) {
    const [is, was] = [found.dev, expected.dev].map((dev) => formatDeviceNumber(BigInt(dev)));
    return `${path} is another file now: on the file system ${is}, and one on ${was} was expected`;
  }
  return shrunk(path, expected.byteLength, found.byteLength);
}

function movedFrom(expected: FileIdentity, found: FileIdentity): string {
  return expected.path === found.path ? '' : ` (it was ${expected.path})`;
}

function marksOfFile({ inode, birth }: FileIdentity, precise: boolean): string {
  const made = birth === null ? '' : `made ${formatTime(birth, precise)}`;
  const number = inode === '' ? '' : `inode ${inode}`;
  return [number, made].filter((mark) => mark !== '').join(' ') || 'a file without lasting marks';
}

const secondOf = (birth: string | null): bigint | null => (birth === null ? null : BigInt(birth) / NANOSECONDS);

function formatTime(nanoseconds: string, precise: boolean): string {
  const time = BigInt(nanoseconds);
  const date = new Date(Number(time / 1_000_000n));
  if (Number.isNaN(date.getTime())) return `${nanoseconds} ns`;
  const text = date.toISOString().slice(0, 19).replace('T', ' ');
  return precise ? `${text}.${(time % NANOSECONDS).toString().padStart(9, '0')}` : text;
}

function shrunk(place: string, expected: number, found: number): string | null {
  if (expected === 0 || found >= expected) return null;
  return `${place} is shorter now: ${found} bytes, and ${expected} were expected`;
}

function differenceOfBlocks(expected: HostBlockIdentity, found: HostBlockIdentity): string | null {
  const place = placeOfBlock(found);
  if (expected.mark === null) {
    const isSame = expected.number === found.number && haveOneSize(expected, found);
    if (isSame) return null;
    return (
      `${place} is another block device now: ${found.number} with ${found.byteLength} bytes, and ` +
      `${expected.number} with ${expected.byteLength} bytes was expected`
    );
  }
  if (!isSameMark(expected.mark, found.mark)) {
    const [is, was] = [describeMark(found.mark), describeMark(expected.mark)];
    return `${place} is another block device now: ${is}, and ${was} was expected`;
  }
  return found.byteLength === 0 ? null : shrunk(place, expected.byteLength, found.byteLength);
}

function haveOneSize(a: HostBlockIdentity, b: HostBlockIdentity): boolean {
  return a.byteLength === b.byteLength || a.byteLength === 0 || b.byteLength === 0;
}

function isSameMark(expected: BlockDeviceMark, found: BlockDeviceMark | null): boolean {
  if (found === null || found.type !== expected.type) return false;
  if (found.partition !== expected.partition || found.offset !== expected.offset) return false;
  const [was, is] = [expected.file, found.file];
  if (was === undefined || is === undefined) return expected.value === found.value;
  return was.inode === is.inode && (was.birth === null || is.birth === null || was.birth === is.birth);
}

function placeOfBlock({ path, number }: HostBlockIdentity): string {
  return `${path} (${number})`;
}

const MARK_NAMES: Record<BlockDeviceMark['type'], string> = {
  serial: 'serial number',
  wwid: 'WWID',
  partuuid: 'partition UUID',
  'dm-uuid': "device mapper's UUID",
  'md-uuid': "RAID array's UUID",
  'loop-backing-file': 'a loop device of',
};

function describeMark(mark: BlockDeviceMark | null): string {
  if (mark === null) return 'no lasting mark';
  const { type, value, file, partition, offset } = mark;
  const inode = file === undefined ? '' : `, inode ${file.inode}`;
  const start = offset === undefined ? '' : ` from byte ${offset} on`;
  const part = partition === undefined ? '' : `partition ${partition} of the disk with `;
  return `${part}${MARK_NAMES[type]} ${value}${inode}${start}`;
}

function differenceOfExports(expected: NbdIdentity, found: NbdIdentity): string | null {
  // Without a name the address is all that tells two servers' exports apart.
  const isOther =
    expected.exportName !== found.exportName ||
    (found.exportName === '' && addressOf(expected.uri) !== addressOf(found.uri));
  if (isOther) {
    return `${found.uri} is another export: ${describeExport(found)}, and ${describeExport(expected)} of ${expected.uri} was expected`;
  }
  return found.byteLength === 0 ? null : shrunk(found.uri, expected.byteLength, found.byteLength);
}

function describeExport({ exportName }: NbdIdentity): string {
  return exportName === '' ? 'the export without a name' : `the export ${exportName}`;
}

function addressOf(text: string): string {
  let uri: NbdUri;
  try {
    uri = parseNbdUri(text);
  } catch {
    // The name that a program gave it.
    return text;
  }
  if (uri.socket !== undefined) return `unix:${uri.socket}`;
  return `${(uri.host ?? 'localhost').toLowerCase()}:${uri.port ?? NBD_DEFAULT_PORT}`;
}
