// The plan of an overlay: its tables, and the file for its store. Looks at files and devices; changes nothing.
import { closeSync, openSync, readFileSync, readSync, type Stats, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { type CutEnd, cutEndText } from '../block/cut-end.ts';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { escapeArgument } from '../block/escape.ts';
import { rawName } from '../block/file-name.ts';
import { isMangled, unmangled } from '../block/mangling.ts';
import { MAX_SECTOR_COUNT, SECTOR_SIZE } from '../block/sector.ts';
import type { ControlHost } from '../control/core/host.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import {
  chunkSizeObjection,
  DEFAULT_CHUNK_SECTOR_COUNT,
  readHeader,
  recordsPerArea,
  SNAP_MAGIC,
} from '../targets/snapshot/layout.ts';
import { mappedOriginOf } from '../targets/snapshot/report.ts';
import type { OverlayOptions, OverlayPlan, StoreKind } from './options.ts';
import { mappersOf, overlaysOn } from './users.ts';

const STORE_WORDS: Readonly<Record<StoreKind, string>> = { persistent: 'P', overflow: 'PO', transient: 'N' };

interface OriginFound {
  /** As a table names it, unescaped. */
  argument: string;
  sectorCount: number;
  /** The image's folder; null for what is no image. */
  folder: string | null;
  /** A snapshot-origin that was named itself. */
  mappedBy: string | null;
  /** Null where every byte is in a sector. */
  cutEnd: CutEnd | null;
}

const invalid = (text: string): DmError => new DmError(Errno.EINVAL, text);

function statOf(path: string): Stats | null {
  try {
    return statSync(rawName(path));
  } catch (error) {
    const errno = errnoFromException(error);
    if (errno === Errno.ENOENT || errno === Errno.ENOTDIR) return null;
    throw new DmError(errno, `${path} can't be looked up: ${errnoMessage(errno)}`);
  }
}

/** Bytes of an image or a block device. */
function byteLengthOf(path: string, stat: Stats): number {
  if (stat.isFile()) return stat.size;
  if (!stat.isBlockDevice()) throw new DmError(Errno.ENODEV, `${path} is no image and no block device`);
  const [major, minor] = [
    Math.floor(stat.rdev / 256) & 0xfff,
    (stat.rdev & 0xff) | (Math.floor(stat.rdev / 4096) & ~0xff),
  ];
  return Number(readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * SECTOR_SIZE;
}

/** `name`, as one of dmkit's devices; null where there is none. */
function deviceNamed(host: ControlHost, name: string): MappedDevice | null {
  return host.mapper.has(name) ? host.mapper.get(name) : null;
}

/** A name that dmsetup mangled, as it was given; one that would lead elsewhere stays as it is. */
function fileNameOf(name: string): string {
  const given = isMangled(name) ? unmangled(name) : name;
  return /[/\0]/.test(given) ? name : given;
}

function findOrigin(host: ControlHost, origin: string, folder: string): OriginFound {
  const own = /^(?:\/dev\/mapper\/|dm:)(.+)$/.exec(origin)?.[1];
  const path = resolve(folder, origin);
  const stat = own === undefined ? statOf(path) : null;
  if (stat !== null) {
    const byteLength = byteLengthOf(path, stat);
    const sectorCount = Math.floor(byteLength / SECTOR_SIZE);
    if (sectorCount === 0) throw invalid(`${path} has no whole sector: an origin has ${SECTOR_SIZE} bytes at least`);
    const cutByteLength = byteLength % SECTOR_SIZE;
    const cutEnd = cutByteLength === 0 ? null : { name: path, byteLength, cutByteLength };
    return { argument: path, sectorCount, folder: stat.isFile() ? dirname(path) : null, mappedBy: null, cutEnd };
  }
  const name = own ?? origin;
  const device = name.includes('/') ? null : deviceNamed(host, name);
  if (device === null) {
    const reason =
      own === undefined ? `${path} does not exist, and no device is named ${origin}` : `no device is named ${name}`;
    throw new DmError(Errno.ENODEV, `the origin is missing: ${reason}`);
  }
  if (device.table === null) throw invalid(`the origin ${name} has no live table: load and resume one first`);
  return originOfDevice(device);
}

/** A snapshot-origin stands for the device below it. */
function originOfDevice(device: MappedDevice): OriginFound {
  const { sectorCount, name, dmName, table } = device;
  const [target] = table!.targets;
  const mapped = table!.targets.length === 1 ? mappedOriginOf(target!) : null;
  if (mapped !== null) {
    const argument = mapped.name;
    const folder = argument.startsWith('/') ? dirname(argument) : null;
    return { argument, sectorCount, folder, mappedBy: dmName, cutEnd: null };
  }
  return { argument: name, sectorCount, folder: null, mappedBy: null, cutEnd: null };
}

/** Bytes for a change of every chunk: header, areas (the next one has to be there when one is full) and data. */
export function fullStoreByteLength(sectorCount: number, chunkSectorCount: number, store: StoreKind): number {
  const chunks = Math.ceil(sectorCount / chunkSectorCount);
  const areas = Math.floor(chunks / recordsPerArea(chunkSectorCount)) + 1;
  const all = store === 'transient' ? chunks : 1 + areas + chunks;
  return all * chunkSectorCount * SECTOR_SIZE;
}

/** The first bytes; fewer where the file is shorter. */
function firstBytes(path: string): Uint8Array {
  const bytes = new Uint8Array(SECTOR_SIZE);
  let fd: number;
  try {
    fd = openSync(rawName(path), 'r');
  } catch (error) {
    const errno = errnoFromException(error);
    throw new DmError(errno, `${path} can't be read: ${errnoMessage(errno)}`);
  }
  try {
    readSync(fd, bytes, 0, SECTOR_SIZE, 0);
  } finally {
    closeSync(fd);
  }
  return bytes;
}

/** What a COW that is there holds: its chunk size, 0 for a blank one. @throws DmError where it can't be this overlay's */
function checkStore(path: string, options: OverlayOptions): number {
  const header = readHeader(firstBytes(path));
  if (header.magic === 0) return 0;
  if (header.magic !== SNAP_MAGIC) {
    throw new DmError(
      Errno.ENXIO,
      `${path} holds something that is no store (it begins with neither 0 nor SnAp): nothing was touched; give a new file`,
    );
  }
  if (!header.valid) throw invalid(`the store in ${path} is invalid for ever: its overlay is lost; give a new file`);
  if (options.store === 'transient') {
    throw invalid(`${path} holds a persistent store, which a transient one would overwrite; give a new file`);
  }
  const { chunkSectorCount: wanted } = options;
  const found = header.chunkSectorCount;
  if (wanted !== undefined && wanted !== found) {
    throw invalid(
      `${path} was made with chunks of ${found} sectors, not ${wanted}: leave the chunk size out, or give a new file`,
    );
  }
  return found;
}

interface CowFound {
  path: string;
  byteLength: number;
  makes: boolean;
  grows: boolean;
  chunkSectorCount: number;
}

function findCow(options: OverlayOptions, origin: OriginFound, folder: string): CowFound {
  const { cow, cowFolder, name, store = 'persistent' } = options;
  const place = cowFolder ?? origin.folder;
  if (cow === undefined && place === null) {
    throw invalid('the origin is no image: say where the store goes, with a file or a folder for it');
  }
  const path = cow === undefined ? join(resolve(folder, place!), `${fileNameOf(name)}.cow`) : resolve(folder, cow);
  const stat = statOf(path);
  if (stat !== null && cow === undefined) {
    throw new DmError(Errno.EEXIST, `${path} is there already: name it as the store to go on with it, or delete it`);
  }
  const known = stat === null ? 0 : checkStore(path, options);
  const chunkSectorCount = known || (options.chunkSectorCount ?? DEFAULT_CHUNK_SECTOR_COUNT);
  const objection = chunkSizeObjection(chunkSectorCount, []);
  if (objection !== null) throw invalid(`a chunk of ${chunkSectorCount} sectors: ${objection}`);
  const present = stat === null ? 0 : byteLengthOf(path, stat);
  const wanted = options.cowByteLength ?? (present || fullStoreByteLength(origin.sectorCount, chunkSectorCount, store));
  checkSize(path, wanted, present, chunkSectorCount, store);
  const grows = stat !== null && wanted > present;
  if (grows && !stat.isFile()) throw invalid(`${path} is no file, and can't be made larger`);
  return { path, byteLength: wanted, makes: stat === null, grows, chunkSectorCount };
}

function checkSize(path: string, byteLength: number, present: number, chunk: number, store: StoreKind): void {
  const least = (store === 'transient' ? 1 : 3) * chunk * SECTOR_SIZE;
  if (byteLength < least) {
    const why = store === 'transient' ? 'one chunk' : 'a header, an area of records and one chunk';
    throw new DmError(Errno.ENOSPC, `the store ${path} is too small with ${byteLength} bytes: ${why} take ${least}`);
  }
  if (byteLength < present) throw invalid(`${path} has ${present} bytes: a store can't become smaller`);
  if (byteLength / SECTOR_SIZE > MAX_SECTOR_COUNT) throw invalid(`a store of ${byteLength} bytes is too large`);
}

/** The device that is to map the origin, where one was asked for, and those that do. */
function planOrigin(
  host: ControlHost,
  origin: OriginFound,
  originName: string | undefined,
  origins: string[],
): Pick<OverlayPlan, 'originDevice' | 'suspends'> {
  if (originName === undefined || originName === origin.mappedBy || origins.includes(originName)) {
    return { originDevice: null, suspends: origins };
  }
  if (deviceNamed(host, originName) !== null) {
    throw new DmError(Errno.EBUSY, `${originName} is there, and is no snapshot-origin of ${origin.argument}`);
  }
  const table = `0 ${origin.sectorCount} snapshot-origin ${escapeArgument(origin.argument)}`;
  return { originDevice: { name: originName, table }, suspends: origins };
}

function checkName(host: ControlHost, name: string): void {
  if (basename(name) !== name || name === '') throw invalid(`"${name}" is no name for a device`);
  if (deviceNamed(host, name) !== null) throw new DmError(Errno.EBUSY, `a device named ${name} exists already`);
}

/** @throws DmError for an overlay that can't be made, before anything is done */
export function planOverlay(host: ControlHost, options: OverlayOptions): OverlayPlan {
  const { name, store = 'persistent', lazyCommit = false, folder } = options;
  if (lazyCommit && store === 'transient') throw invalid('a transient store commits nothing, lazily or not');
  if (options.originName === name) throw invalid(`${name} can't be the overlay and its origin at once`);
  checkName(host, name);
  const origin = findOrigin(host, options.origin, folder);
  const cow = findCow(options, origin, folder);
  const overlays = cow.makes ? [] : overlaysOn(host, cow.path);
  if (overlays.length > 0) throw new DmError(Errno.EBUSY, `${cow.path} is the store of ${overlays.join(', ')} already`);
  const devices = `${escapeArgument(origin.argument)} ${escapeArgument(cow.path)}`;
  const words = `${STORE_WORDS[store]} ${cow.chunkSectorCount}${lazyCommit ? ' 1 lazy_commit' : ''}`;
  return {
    name,
    origin: origin.argument,
    sectorCount: origin.sectorCount,
    cow: cow.path,
    cowByteLength: cow.byteLength,
    makesCow: cow.makes,
    growsCow: cow.grows,
    chunkSectorCount: cow.chunkSectorCount,
    ...planOrigin(host, origin, options.originName, mappersOf(host, origin.argument)),
    overlay: { name, table: `0 ${origin.sectorCount} snapshot ${devices} ${words}` },
    notices: origin.cutEnd === null ? [] : [cutEndText(origin.cutEnd)],
  };
}
