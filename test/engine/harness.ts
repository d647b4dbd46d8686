// What the engine tests are built on: an image, an engine for it (real calls, or calls that a test makes fail), and
// requests as promises.
import fs from 'node:fs';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import { Bio, type BioVec } from '../../src/block/bio.ts';
import { type BlockDevice, type ExtentCallback, submitBio } from '../../src/block/block-device.ts';
import { defaultLimits, UNLIMITED_SECTOR_COUNT } from '../../src/block/limits.ts';
import type { Reactor } from '../../src/block/reactor.ts';
import { blockingCalls, type FileCalls, threadCalls } from '../../src/engine/calls.ts';
import { type EngineFile, EngineSet, type EngineSetOptions, type Libc } from '../../src/engine/index.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { tempDir } from '../support/tmp.ts';

/** The ring where this machine has one. */
export const ENGINES: readonly TestedEngine[] =
  new EngineSet({ reactor: new NodeLoop(), engine: 'auto' }).ringReason === null
    ? ['direct', 'ring', 'portable']
    : ['direct', 'portable'];
export type TestedEngine = 'direct' | 'ring' | 'portable';

/** Folders of file systems that differ in what they support: a disk's, and memory where there is one. */
export const memoryFolder: string | undefined = fs.existsSync('/dev/shm') ? '/dev/shm' : undefined;
export const FOLDERS: readonly (readonly [string, string | undefined])[] =
  memoryFolder === undefined
    ? [['the temporary folder', undefined]]
    : [
        ['the temporary folder', undefined],
        ['tmpfs', memoryFolder],
      ];

/** A new folder, in `parent` or where temporary files go. */
export function folderIn(parent: string | undefined): string {
  if (parent === undefined) return tempDir('engine');
  const path = fs.mkdtempSync(join(parent, 'dmkit-engine-'));
  onTestFinished(() => fs.rmSync(path, { recursive: true, force: true }));
  return path;
}

export const clock: Reactor = {
  now: () => performance.now(),
  after: () => {
    throw new Error('engines set no timers');
  },
  wake: (callback) => {
    setImmediate(callback);
  },
  afterSockets: (callback) => {
    setImmediate(callback);
  },
};

/** The C library with some calls replaced. */
export function libcWith(overrides: (real: Libc) => Partial<Libc>): Libc {
  const { libc, reason } = loadLibc();
  if (libc === null) throw new Error(`no C library: ${reason}`);
  return { ...libc, ...overrides(libc) };
}

export function callsWith(overrides: Partial<FileCalls>): { threadCalls: FileCalls; blockingCalls: FileCalls } {
  return { threadCalls: { ...threadCalls, ...overrides }, blockingCalls: { ...blockingCalls, ...overrides } };
}

/** An open image as the engine's device. */
export class TestDevice implements BlockDevice {
  readonly name: string;
  sectorCount: number;
  readOnly = false;
  readonly limits = {
    ...defaultLimits(),
    hasWriteCache: true,
    maxDiscardSectorCount: UNLIMITED_SECTOR_COUNT,
    maxWriteZeroesSectorCount: UNLIMITED_SECTOR_COUNT,
  };
  readonly engines: EngineSet;
  readonly file: EngineFile;

  constructor(engines: EngineSet, path: string, flags = 'r+') {
    this.name = path;
    this.engines = engines;
    const fd = fs.openSync(path, flags);
    this.sectorCount = Math.floor(fs.fstatSync(fd).size / 512);
    this.file = engines.open(fd, 'file', path);
  }

  submit(bio: Bio): void {
    this.file.engine.submit(this.file, bio);
  }

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    this.file.engine.queryExtent(this.file, sector, sectorCount, done);
  }

  close(): void {
    this.file.engine.close(this.file);
  }
}

/** An image of `sectorCount` sectors of `byte`, open with an engine; closed after the test. */
export function openImage(
  engine: TestedEngine | 'auto',
  options: Partial<EngineSetOptions> & { sectorCount?: number; byte?: number; folder?: string } = {},
): TestDevice {
  const { sectorCount = 2048, byte = 0, folder = folderIn(undefined), ...rest } = options;
  const path = join(folder, 'image');
  fs.writeFileSync(path, Buffer.alloc(sectorCount * 512, byte));
  const device = new TestDevice(new EngineSet({ reactor: clock, engine, ...rest }), path);
  onTestFinished(() => device.close());
  return device;
}

/** Memory of one piece. */
export function vecOf(page: Uint8Array): BioVec[] {
  return [{ page, offset: 0, byteLength: page.byteLength }];
}

export interface RequestOptions {
  flags?: number;
  vecs?: readonly BioVec[];
  vecIndex?: number;
  vecOffset?: number;
}

/** Gives a request to a device through submitBio. */
export function start(
  device: BlockDevice,
  op: number,
  sector: number,
  sectorCount: number,
  onEnd: (bio: Bio) => void,
  options: RequestOptions = {},
): Bio {
  const bio = new Bio();
  bio.reset(op, options.flags ?? 0, device, sector, sectorCount);
  if (options.vecs !== undefined) bio.vecs = options.vecs;
  bio.vecIndex = options.vecIndex ?? 0;
  bio.vecOffset = options.vecOffset ?? 0;
  bio.onEnd = onEnd;
  submitBio(bio);
  return bio;
}

/** The same as a promise for the ended bio. */
export function request(
  device: BlockDevice,
  op: number,
  sector: number,
  sectorCount: number,
  options: RequestOptions = {},
): Promise<Bio> {
  return new Promise((resolve) => {
    start(device, op, sector, sectorCount, resolve, options);
  });
}
