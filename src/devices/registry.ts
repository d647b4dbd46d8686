// Lower devices by the arguments of tables. One device is one object, whichever path leads to it.
import fs from 'node:fs';
import { resolve } from 'node:path';
import type { BlockDevice } from '../block/block-device.ts';
import type { DeviceResolver } from '../block/device-resolver.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reactor } from '../block/reactor.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { type EngineChoice, type EngineKind, EngineSet } from '../engine/index.ts';
import { workingFolder } from '../files/working-folder.ts';
import { HostBlockDevice, isWriteProtected } from './block.ts';
import type { EngineDevice } from './engine-device.ts';
import { FileDevice, takesHoles } from './file.ts';
import type { FileMark } from './file-mark.ts';
import { type DiskIdentity, identityOfBlockDevice, identityOfMarkedFile, markOfOpenFile } from './identity.ts';
import { NbdDevice } from './nbd.ts';
import { canonicalNbdUri, isNbdUri } from './nbd-uri.ts';
import { type Found, fileKey, findDevice, type HeldFile, type Opened, openFound } from './open.ts';

export interface DeviceRegistryOptions {
  reactor: Reactor;
  /** The engines to use, or which one of new ones: DMKIT_ENGINE, and 'auto' without that, unless given. */
  engine?: EngineSet | EngineChoice;
  /** Where relative paths start: the working directory at each open, unless given. */
  baseFolder?: string;
  /** Which files and block devices are opened around the page cache; 'auto' unless given. */
  directIo?: DirectIoChoice;
  /**
   * Files may be opened for writing though a loop device over them is mounted or otherwise in use: where
   * DMKIT_ALLOW_MOUNTED is 1, unless given.
   */
  allowMounted?: boolean;
  /**
   * What another thread of this process has open, from its {@link DeviceRegistry.heldFile}, to be found by the names that
   * tables print. Nothing else can be opened then, and no path is looked up.
   */
  heldFiles?: readonly HeldFile[];
}

/** O_DIRECT for everything, for nothing, or as each open says: 'auto'. */
export type DirectIoChoice = 'auto' | 'never' | 'always';

export interface OpenOptions {
  /**
   * Go around the page cache (O_DIRECT): for what is read once, or must not push other things out of memory. Requests
   * have to be whole logical blocks, as the device's limits say. Counts with the choice 'auto' alone.
   */
  direct?: boolean;
}

/** What is known about an open device. */
export interface DeviceInfo {
  readonly name: string;
  readonly kind: 'file' | 'block' | 'registered';
  /** Absolute; null for a device that the program registered. */
  readonly path: string | null;
  /** How its bytes are moved; null for a device that the program registered. */
  readonly engine: EngineKind | null;
  /** Its requests go around the page cache. */
  readonly direct: boolean;
  readonly readOnly: boolean;
  readonly readerCount: number;
  readonly writerCount: number;
  /** No other process can open it for writing. */
  readonly locked: boolean;
}

interface Entry {
  readonly device: BlockDevice;
  /** Null for a registered device. */
  readonly opened: { readonly device: EngineDevice; readonly found: Found } | null;
  /** For a registered device: told when its last user has closed it. */
  readonly onUnused: (() => void) | null;
  locked: boolean;
  readerCount: number;
  writerCount: number;
  /** Of the open file, once it was asked for: it stays the same for as long as the file is open. */
  mark: FileMark | null;
}

/** The devices at the bottom of one reactor's stacks, reference-counted. */
export class DeviceRegistry implements DeviceResolver {
  readonly engines: EngineSet;
  readonly #baseFolder: string | undefined;
  readonly #directIo: DirectIoChoice;
  readonly #allowMounted: boolean;
  readonly #heldFiles: ReadonlyMap<string, HeldFile> | null;
  readonly #registered = new Map<string, Entry>();
  readonly #byKey = new Map<string, Entry>();
  readonly #byDevice = new Map<BlockDevice, Entry>();
  /**
   * Writable files that nobody uses any more and that requests in flight keep open, and with them the lock: who opens one
   * of them meanwhile gets it back, by its key.
   */
  readonly #ending = new Map<string, Opened>();

  /** Keys of files that this process has just made. */
  readonly #newFiles = new Set<string>();

  /** @throws DmError EINVAL for a DMKIT_ENGINE that names no engine */
  constructor(options: DeviceRegistryOptions) {
    const { reactor, engine, baseFolder } = options;
    if (engine instanceof EngineSet) this.engines = engine;
    else this.engines = new EngineSet(engine === undefined ? { reactor } : { reactor, engine });
    this.#baseFolder = baseFolder;
    this.#directIo = options.directIo ?? 'auto';
    this.#allowMounted = options.allowMounted ?? process.env.DMKIT_ALLOW_MOUNTED === '1';
    const { heldFiles } = options;
    this.#heldFiles = heldFiles === undefined ? null : new Map(heldFiles.map((held) => [held.name, held]));
  }

  /**
   * Opens a device and counts one user. A device that is open for reading becomes writable when somebody opens it for
   * writing, for all its users; it is closed when nobody uses it any more.
   *
   * @param argument a registered name, a path (relative ones start at the base folder) or `major:minor`
   * @throws DmError ENODEV, ENXIO, EACCES, EROFS, EBUSY (with the holder's name) …; the text says what to do. EBUSY as
   *   well for a device that is to be direct and is open through the page cache here; one that is direct is so for all.
   */
  open(argument: string, readOnly: boolean, options: OpenOptions = {}): BlockDevice {
    const name = this.nameOf(argument);
    const registered = this.#registered.get(name);
    if (registered !== undefined) return count(registered, readOnly);
    if (isNbdUri(name))
      throw new DmError(Errno.ENODEV, `${name} is not connected: a connection is made before an open`);
    const found = this.#find(argument);
    // What is held goes on as it was opened.
    const wanted = this.#directIo === 'auto' ? options.direct === true : this.#directIo === 'always';
    const direct = this.#heldFiles === null ? wanted : found.direct === true;
    let entry = this.#byKey.get(found.key);
    if (entry === undefined) {
      entry = this.#make(direct ? { ...found, direct } : found, readOnly);
      this.#byKey.set(found.key, entry);
      this.#byDevice.set(entry.device, entry);
    } else {
      if (direct && !entry.opened!.device.direct) {
        throw new DmError(Errno.EBUSY, `${found.path} is open through the page cache here; open it with direct first`);
      }
      if (!readOnly && entry.writerCount === 0) this.#makeWritable(entry);
      // A file may have grown since it was opened: the new user counts with the size of now.
      this.refreshSize(entry.device);
    }
    return count(entry, readOnly);
  }

  /**
   * Counts one more user of a device that is open or registered here. No path is looked up: it is that device, also where
   * its file was moved, replaced or deleted meanwhile.
   *
   * @throws DmError EINVAL for a device that is not open here; for one that becomes writable by this, as {@link open}
   */
  openAgain(device: BlockDevice, readOnly: boolean): BlockDevice {
    const entry = this.#byDevice.get(device);
    if (entry === undefined) throw new DmError(Errno.EINVAL, `${device.name} is not open here`);
    if (entry.opened !== null && !readOnly && entry.writerCount === 0) this.#makeWritable(entry);
    return count(entry, readOnly);
  }

  #find(argument: string): Found {
    if (this.#heldFiles === null) return findDevice(argument, resolve(this.#baseFolder ?? workingFolder()));
    const held = this.#heldFiles.get(argument);
    if (held !== undefined) return held;
    throw new DmError(Errno.ENODEV, `${argument} is not among what this thread was given`);
  }

  /** Gives back what one `open` with the same `readOnly` gave. @throws DmError EINVAL for what was not given */
  close(device: BlockDevice, readOnly: boolean): void {
    const entry = this.#byDevice.get(device);
    if (entry === undefined || (readOnly ? entry.readerCount : entry.writerCount) === 0) {
      throw new DmError(Errno.EINVAL, `${device.name} is not open for ${readOnly ? 'reading' : 'writing'} here`);
    }
    if (readOnly) entry.readerCount--;
    else entry.writerCount--;
    const isUnused = entry.readerCount + entry.writerCount === 0;
    if (entry.opened === null) {
      if (isUnused) entry.onUnused?.();
    } else if (isUnused) this.#forget(entry);
    else if (entry.writerCount === 0) this.#makeReadOnly(entry);
  }

  /**
   * Gives a device of the program's own a name that tables can use; it goes before paths.
   *
   * @param onUnused called whenever the last user has closed it
   * @throws DmError EEXIST for a name that is taken, EBUSY for a device that has one
   */
  register(argument: string, device: BlockDevice, onUnused: (() => void) | null = null): void {
    const name = this.nameOf(argument);
    if (this.#registered.has(name)) throw new DmError(Errno.EEXIST, `a device is registered as ${name} already`);
    if (this.#byDevice.has(device)) throw new DmError(Errno.EBUSY, `${device.name} is registered or open already`);
    const entry = newEntry(device, null, onUnused, false);
    this.#registered.set(name, entry);
    this.#byDevice.set(device, entry);
  }

  /** Takes a name away. @throws DmError ENODEV for a name that is not registered, EBUSY while somebody uses the device */
  unregister(argument: string): void {
    const name = this.nameOf(argument);
    const entry = this.#registered.get(name);
    if (entry === undefined) throw new DmError(Errno.ENODEV, `no device is registered as ${name}`);
    const userCount = entry.readerCount + entry.writerCount;
    if (userCount > 0) throw new DmError(Errno.EBUSY, `${name} has ${userCount} users`);
    this.#registered.delete(name);
    this.#byDevice.delete(entry.device);
  }

  /** A device that the program has registered under this name. */
  registered(argument: string): BlockDevice | undefined {
    return this.#registered.get(this.nameOf(argument))?.device;
  }

  /** An argument in the one spelling that a device has, where several can name it: NBD URIs. @throws DmError EINVAL */
  nameOf(argument: string): string {
    return isNbdUri(argument) ? canonicalNbdUri(argument, resolve(this.#baseFolder ?? workingFolder())) : argument;
  }

  /** What is known about a device that is open or registered here. */
  info(device: BlockDevice): DeviceInfo | undefined {
    const entry = this.#byDevice.get(device);
    if (entry === undefined) return undefined;
    const { opened, readerCount, writerCount, locked } = entry;
    return {
      name: device.name,
      kind: opened === null ? 'registered' : opened.found.kind,
      path: opened === null ? null : opened.found.path,
      engine: opened === null ? null : opened.device.engineKind,
      direct: opened?.device.direct ?? false,
      readOnly: device.readOnly,
      readerCount,
      writerCount,
      locked,
    };
  }

  /**
   * The marks by which a device that is open or registered here is known again: of a file, by its open descriptor,
   * whatever its path leads to by now. Null for a device that is not in this registry.
   */
  identity(device: BlockDevice): DiskIdentity | null {
    const entry = this.#byDevice.get(device);
    if (entry === undefined) return null;
    const byteLength = device.sectorCount * SECTOR_SIZE;
    if (entry.opened !== null) {
      const { found, device: opened } = entry.opened;
      if (found.kind === 'block') return identityOfBlockDevice(found.path, found.rdev, byteLength);
      const stat = fs.fstatSync(opened.descriptor, { bigint: true });
      entry.mark ??= markOfOpenFile(found.path, opened.descriptor, stat);
      return identityOfMarkedFile(found.path, stat, entry.mark);
    }
    if (device instanceof NbdDevice) {
      return { kind: 'nbd', uri: device.name, exportName: device.exportName, byteLength };
    }
    for (const [name, other] of this.#registered) if (other === entry) return { kind: 'program', name };
    return null;
  }

  /** The open device that a path leads to; null where none is open, or the path leads nowhere. */
  openAt(path: string): BlockDevice | null {
    try {
      return this.#byKey.get(this.#find(path).key)?.device ?? null;
    } catch (error) {
      if (error instanceof DmError) return null;
      throw error;
    }
  }

  /**
   * Says that an open file was made by this process a moment ago: no loop device is over it, and none is looked for when it
   * is opened, until the function that is returned is called.
   */
  noteNewFile(fd: number): () => void {
    const { dev, ino } = fs.fstatSync(fd, { bigint: true });
    const key = fileKey(dev, ino);
    this.#newFiles.add(key);
    return () => this.#newFiles.delete(key);
  }

  /** True for a device that is open or registered here. */
  isOpen(device: BlockDevice): boolean {
    return this.#byDevice.has(device);
  }

  /** Takes over the size that a file or block device has now. @returns sectorCount */
  refreshSize(device: BlockDevice): number {
    const opened = this.#byDevice.get(device)?.opened?.device;
    return opened instanceof FileDevice || opened instanceof HostBlockDevice
      ? opened.refreshSize()
      : device.sectorCount;
  }

  /** Every device that is open or registered. */
  *list(): Iterable<DeviceInfo> {
    for (const device of this.#byDevice.keys()) yield this.info(device)!;
  }

  /** An open file or block device for registries of other threads; null for a device that is in this thread alone. */
  heldFile(device: BlockDevice): HeldFile | null {
    const opened = this.#byDevice.get(device)?.opened ?? null;
    if (opened === null) return null;
    const { found } = opened;
    return { ...found, name: device.name, direct: opened.device.direct, heldFd: opened.device.descriptor };
  }

  #make(found: Found, readOnly: boolean): Entry {
    const opened = this.#openPossiblyProtected(found, readOnly);
    const { file, locked } = opened;
    const { libc } = this.engines;
    try {
      const device =
        found.kind === 'file'
          ? new FileDevice(file, libc, opened.readOnly)
          : new HostBlockDevice(file, found.rdev, libc, opened.readOnly);
      return newEntry(device, { device, found }, null, locked);
    } catch (error) {
      file.engine.close(file);
      throw error;
    }
  }

  /** A block device that the kernel protects can be in a writable table all the same; writes to it fail, with EPERM. */
  #openPossiblyProtected(found: Found, readOnly: boolean): Opened & { readOnly: boolean } {
    try {
      return { ...this.#openFile(found, readOnly), readOnly };
    } catch (error) {
      const errno = error instanceof DmError ? error.errno : 0;
      const isRefusal = errno === Errno.EACCES || errno === Errno.EPERM || errno === Errno.EROFS;
      if (readOnly || found.kind !== 'block' || !isRefusal) throw error;
      const opened = this.#openFile(found, true);
      if (isWriteProtected(found.rdev)) return { ...opened, readOnly: true };
      opened.file.engine.close(opened.file);
      throw error;
    }
  }

  #makeWritable(entry: Entry): void {
    const { device, found } = entry.opened!;
    if (device instanceof HostBlockDevice && device.writeProtected) return;
    const { file, locked } = this.#openFile(found, false, device.descriptor);
    device.replaceFile(file, false);
    entry.locked = locked;
    // Overlayfs has copied the file up now.
    entry.mark = null;
    const { libc } = this.engines;
    if (found.kind === 'file' && libc !== null && !takesHoles(libc, file.fd)) device.limits.maxDiscardSectorCount = 0;
  }

  /** The last writer left, readers stay: gives the lock back. Where that fails, it is kept until the end. */
  #makeReadOnly(entry: Entry): void {
    const { device, found } = entry.opened!;
    if (device.readOnly) return;
    try {
      const { file } = this.#openFile(found, true, device.descriptor);
      this.#noteEnding(found.key, { file: device.replaceFile(file, true), locked: entry.locked });
      entry.locked = false;
    } catch {
      // It may not be read any more. Readers go on with what is open.
    }
  }

  #forget(entry: Entry): void {
    const { device, found } = entry.opened!;
    this.#byKey.delete(found.key);
    this.#byDevice.delete(device);
    const { readOnly } = device;
    const file = device.close();
    if (!readOnly) this.#noteEnding(found.key, { file, locked: entry.locked });
  }

  /** @param openFd where it is open already: it is opened through that, whatever the path leads to by now */
  #openFile(found: Found, readOnly: boolean, openFd?: number): Opened {
    const ending = readOnly ? undefined : this.#ending.get(found.key);
    const fits = ending !== undefined && (ending.file.directIo !== null || found.direct !== true);
    if (!fits || !ending.file.engine.reopen(ending.file)) {
      const allowMounted = this.#allowMounted || this.#newFiles.has(found.key);
      return openFound(this.engines, found, readOnly, { allowMounted, openFd });
    }
    this.#ending.delete(found.key);
    ending.file.path = found.path;
    ending.file.failure = null;
    return ending;
  }

  #noteEnding(key: string, opened: Opened): void {
    for (const [other, { file }] of this.#ending) if (file.pendingCount === 0) this.#ending.delete(other);
    if (opened.file.pendingCount > 0) this.#ending.set(key, opened);
  }
}

function newEntry(device: BlockDevice, opened: Entry['opened'], onUnused: Entry['onUnused'], locked: boolean): Entry {
  return { device, opened, onUnused, locked, readerCount: 0, writerCount: 0, mark: null };
}

function count(entry: Entry, readOnly: boolean): BlockDevice {
  if (readOnly) entry.readerCount++;
  else entry.writerCount++;
  return entry.device;
}
