// What making an overlay comes to: which tables, and which file for its store. Looks at files and asks the daemon; changes
// nothing.
import { closeSync, openSync, readFileSync, readSync, type Stats, statSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { escapeArgument } from '../block/escape.ts';
import { MAX_SECTOR_COUNT, SECTOR_SIZE } from '../block/sector.ts';
import type { Control, DeviceStatus } from '../daemon/control.ts';
import {
  chunkSizeObjection,
  DEFAULT_CHUNK_SECTOR_COUNT,
  readHeader,
  recordsPerArea,
  SNAP_MAGIC,
} from '../targets/snapshot/layout.ts';

/** Where an overlay's changes are kept: for good; for good, and readable when full; as long as the device lives. */
export type StoreKind = 'persistent' | 'overflow' | 'transient';

const STORE_WORDS: Readonly<Record<StoreKind, string>> = { persistent: 'P', overflow: 'PO', transient: 'N' };

export interface CreateSnapshotOptions {
  /** An image, a block device, or one of dmkit's devices, as tables name it; or a device's bare name, where no file has it. */
  origin: string;
  /** The overlay's. */
  name: string;
  /** The store; one that is there goes on with what it has. Without it `NAME.cow`, which must be new. */
  cow?: string;
  /** Where `NAME.cow` is made: beside the origin's image unless given. */
  cowFolder?: string;
  /** Bytes of the store: room for a change of everything unless given. It is sparse. */
  cowByteLength?: number;
  /** 32 unless given, or what the store says. */
  chunkSectorCount?: number;
  /** Persistent unless given. */
  store?: StoreKind;
  /** Records of first writes may wait for a flush. */
  lazyCommit?: boolean;
  /** The origin goes on being written, through a device of this name (snapshot-origin), which is made where it is missing. */
  originName?: string;
  /** Where relative paths start: the working directory unless given. */
  baseFolder?: string;
}

/** A device and its table, in one line. */
export interface PlannedDevice {
  name: string;
  table: string;
}

export interface SnapshotPlan {
  name: string;
  /** As tables name it. */
  origin: string;
  sectorCount: number;
  /** Absolute. */
  cow: string;
  cowByteLength: number;
  /** Whether the file is made, or has to grow. */
  makesCow: boolean;
  growsCow: boolean;
  chunkSectorCount: number;
  /** The snapshot-origin that is made first; null where none is, or there is one. */
  originDevice: PlannedDevice | null;
  /** Devices through which the origin is written: they wait while the overlay is made. */
  suspends: string[];
  overlay: PlannedDevice;
}

interface OriginFound {
  /** As a table names it, unescaped. */
  argument: string;
  sectorCount: number;
  /** The image's folder; null for what is no image. */
  folder: string | null;
  /** A snapshot-origin that was named itself. */
  mappedBy: string | null;
}

const invalid = (text: string): DmError => new DmError(Errno.EINVAL, text);

function statOf(path: string): Stats | null {
  try {
    return statSync(path);
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
async function deviceNamed(control: Control, name: string): Promise<DeviceStatus | null> {
  try {
    return await control.call('info', { device: { name } });
  } catch (error) {
    if (error instanceof DmError && error.errno === Errno.ENXIO) return null;
    throw error;
  }
}

async function findOrigin(control: Control, origin: string, folder: string): Promise<OriginFound> {
  const own = /^(?:\/dev\/mapper\/|dm:)(.+)$/.exec(origin)?.[1];
  const path = resolve(folder, origin);
  const stat = own === undefined ? statOf(path) : null;
  if (stat !== null) {
    const sectorCount = Math.floor(byteLengthOf(path, stat) / SECTOR_SIZE);
    if (sectorCount === 0) throw invalid(`${path} has no whole sector: an origin has ${SECTOR_SIZE} bytes at least`);
    return { argument: path, sectorCount, folder: stat.isFile() ? dirname(path) : null, mappedBy: null };
  }
  const name = own ?? origin;
  const device = name.includes('/') ? null : await deviceNamed(control, name);
  if (device === null) {
    const what =
      own === undefined ? `${path} does not exist, and no device is named ${origin}` : `no device is named ${name}`;
    throw new DmError(Errno.ENODEV, `the origin is missing: ${what}`);
  }
  if (!device.live) throw invalid(`the origin ${name} has no live table: load and resume one first`);
  return originOfDevice(control, device);
}

/** A snapshot-origin stands for what is below it. */
async function originOfDevice(control: Control, device: DeviceStatus): Promise<OriginFound> {
  const { name, sectorCount, major, minor } = device;
  const { lines } = await control.call('table', { device: { name }, type: 'table' });
  const [line] = lines;
  if (lines.length === 1 && line!.type === 'snapshot-origin') {
    const argument = line!.params.replace(/\\(.)/g, '$1');
    return { argument, sectorCount, folder: argument.startsWith('/') ? dirname(argument) : null, mappedBy: name };
  }
  return { argument: `${major}:${minor}`, sectorCount, folder: null, mappedBy: null };
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
    fd = openSync(path, 'r');
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
function checkStore(path: string, options: CreateSnapshotOptions): number {
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

function findCow(options: CreateSnapshotOptions, origin: OriginFound, folder: string): CowFound {
  const { cow, cowFolder, name, store = 'persistent' } = options;
  const place = cowFolder ?? origin.folder;
  if (cow === undefined && place === null) {
    throw invalid('the origin is no image: say where the store goes, with a file or a folder for it');
  }
  const path = cow === undefined ? join(resolve(folder, place!), `${name}.cow`) : resolve(folder, cow);
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
async function planOrigin(
  control: Control,
  origin: OriginFound,
  originName: string | undefined,
  origins: string[],
): Promise<Pick<SnapshotPlan, 'originDevice' | 'suspends'>> {
  if (originName === undefined || originName === origin.mappedBy || origins.includes(originName)) {
    return { originDevice: null, suspends: origins };
  }
  if ((await deviceNamed(control, originName)) !== null) {
    throw new DmError(Errno.EBUSY, `${originName} is there, and is no snapshot-origin of ${origin.argument}`);
  }
  const table = `0 ${origin.sectorCount} snapshot-origin ${escapeArgument(origin.argument)}`;
  return { originDevice: { name: originName, table }, suspends: origins };
}

async function checkName(control: Control, name: string): Promise<void> {
  if (basename(name) !== name || name === '') throw invalid(`"${name}" is no name for a device`);
  if ((await deviceNamed(control, name)) !== null) {
    throw new DmError(Errno.EBUSY, `a device named ${name} exists already`);
  }
}

/** @throws DmError for what can't be done, before anything is */
export async function planSnapshot(control: Control, options: CreateSnapshotOptions): Promise<SnapshotPlan> {
  const { name, store = 'persistent', lazyCommit = false, baseFolder = process.cwd() } = options;
  if (lazyCommit && store === 'transient') throw invalid('a transient store commits nothing, lazily or not');
  if (options.originName === name) throw invalid(`${name} can't be the overlay and its origin at once`);
  await checkName(control, name);
  const origin = await findOrigin(control, options.origin, baseFolder);
  const cow = findCow(options, origin, baseFolder);
  const { origins, overlays } = await control.call('snapshotUsers', { origin: origin.argument, cow: cow.path });
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
    ...(await planOrigin(control, origin, options.originName, origins)),
    overlay: { name, table: `0 ${origin.sectorCount} snapshot ${devices} ${words}` },
  };
}
