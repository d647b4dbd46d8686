// Copies from a stream and to one. A stream has no length beforehand and is read once: no maps, no second look at the
// source; what is verified is compared by a checksum that was taken on the way.
import { createHash } from 'node:crypto';
import { existsSync, rmSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { DmIoClient } from '../dm-io/index.ts';
import { dropFromPageCache } from '../engine/advice.ts';
import { BLOCK_SECTOR_COUNT } from './bounds.ts';
import type { CopyHost } from './copy.ts';
import {
  byteLengthOf,
  checkApart,
  createImage,
  OpenedDevices,
  type OpenedRegion,
  type OpenOptions,
  parseRegion,
} from './open.ts';
import { flush, transfer, writeZeroes } from './request.ts';
import { openTail, type Tail } from './tail.ts';
import { sizeText } from './units.ts';
import { dropCache } from './verify.ts';

const BLOCK_BYTE_LENGTH = BLOCK_SECTOR_COUNT * SECTOR_SIZE;
const ZEROES = new Uint8Array(BLOCK_BYTE_LENGTH);

/** A place that a stream is written to, block after block. All throw DmError. */
interface Target {
  /** Whole sectors, but for the last block. */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /** Nothing follows: makes it durable. */
  finish(byteLength: number): Promise<void>;
  /** Fills `bytes`, of which the stream had `byteLength - offset` more at least. */
  read(offset: number, bytes: Uint8Array): Promise<void>;
  close(): Promise<void>;
}

function isZero(bytes: Uint8Array): boolean {
  return Buffer.compare(bytes, ZEROES.subarray(0, bytes.byteLength)) === 0;
}

/** An image that was made for the stream: it grows, and zero blocks become holes. */
class NewFile implements Target {
  readonly #file: FileHandle;
  readonly #base: number;
  readonly #label: string;

  constructor(file: FileHandle, base: number, label: string) {
    this.#file = file;
    this.#base = base;
    this.#label = label;
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#try('write', async () => {
      if (isZero(bytes)) return;
      for (let at = 0; at < bytes.byteLength; ) {
        const position = this.#base + offset + at;
        at += (await this.#file.write(bytes, at, bytes.byteLength - at, position)).bytesWritten;
      }
    });
  }

  finish(byteLength: number): Promise<void> {
    return this.#try('write', async () => {
      await this.#file.truncate(this.#base + byteLength);
      await this.#file.sync();
      dropFromPageCache(this.#file.fd);
    });
  }

  read(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#try('read', async () => {
      for (let at = 0; at < bytes.byteLength; ) {
        const { bytesRead } = await this.#file.read(bytes, at, bytes.byteLength - at, this.#base + offset + at);
        if (bytesRead === 0) throw new DmError(Errno.EIO, `${this.#label} is shorter than what was written to it`);
        at += bytesRead;
      }
    });
  }

  async #try(operation: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof DmError) throw error;
      const errno = errnoFromException(error);
      const message = `${operation} on ${this.#label} failed: ${errnoMessage(errno)}`;
      throw new DmError(errno, message, undefined, { cause: error });
    }
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

/** A device, or an image that was there. */
class OpenedTarget implements Target {
  readonly #io: DmIoClient;
  readonly #region: OpenedRegion;
  #hasWriteZeroes: boolean;

  constructor(io: DmIoClient, region: OpenedRegion) {
    this.#io = io;
    this.#region = region;
    this.#hasWriteZeroes = region.device.limits.maxWriteZeroesSectorCount > 0;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    const room = byteLengthOf(this.#region);
    if (offset + bytes.byteLength > room) {
      throw new DmError(Errno.ENOSPC, `${this.#region.label} is too small: more than ${sizeText(room)} came`);
    }
    const tailByteLength = bytes.byteLength % SECTOR_SIZE;
    const whole = bytes.subarray(0, bytes.byteLength - tailByteLength);
    if (whole.byteLength > 0) await this.#writeSectors(offset / SECTOR_SIZE, whole);
    if (tailByteLength > 0) {
      await this.#tail(offset + whole.byteLength, tailByteLength).write(bytes.subarray(whole.byteLength));
    }
  }

  async #writeSectors(start: number, bytes: Uint8Array): Promise<void> {
    if (this.#hasWriteZeroes && isZero(bytes)) {
      const cause = await writeZeroes(this.#io, this.#region, start, bytes.byteLength / SECTOR_SIZE);
      if (cause === null) return;
      this.#hasWriteZeroes = false;
    }
    const cause = await transfer(this.#io, 'write', this.#region, start, bytes);
    if (cause !== null) throw cause;
  }

  #tail(offset: number, byteLength: number): Tail {
    const { nbd, path, takesBytes } = this.#region;
    return openTail(this.#io, {
      region: { ...this.#region, sectorCount: offset / SECTOR_SIZE },
      byteLength,
      filePath: takesBytes && nbd === null ? path : null,
      nbd: takesBytes ? nbd : null,
    });
  }

  async finish(): Promise<void> {
    const cause = await flush(this.#io, this.#region);
    if (cause !== null) throw cause;
    if (this.#region.path !== null) dropCache(this.#region.path);
  }

  async read(offset: number, bytes: Uint8Array): Promise<void> {
    const tailByteLength = bytes.byteLength % SECTOR_SIZE;
    const whole = bytes.subarray(0, bytes.byteLength - tailByteLength);
    if (whole.byteLength > 0) {
      const cause = await transfer(this.#io, 'read', this.#region, offset / SECTOR_SIZE, whole);
      if (cause !== null) throw cause;
    }
    if (tailByteLength === 0) return;
    const tail = await this.#tail(offset + whole.byteLength, tailByteLength).read();
    bytes.set(tail.subarray(0, tailByteLength), whole.byteLength);
  }

  async close(): Promise<void> {}
}

export interface StreamDestination {
  readonly label: string;
  /** Why it was given up; null while it takes part. */
  error: DmError | null;
  doneByteLength: number;
  verified: boolean;
}

export interface StreamCopyOptions extends OpenOptions {
  /** Reads everything back and compares checksums. */
  verify?: boolean;
  signal?: AbortSignal;
  /** Told after each block how much of the stream is written. */
  onProgress?: (byteLength: number) => void;
}

/** Blocks of 1 MiB; the last one is shorter. The memory of a block is used again for the next. */
async function* blocksOf(input: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const block = Buffer.allocUnsafeSlow(BLOCK_BYTE_LENGTH);
  let filled = 0;
  for await (const chunk of input) {
    for (let at = 0; at < chunk.byteLength; ) {
      const count = Math.min(chunk.byteLength - at, BLOCK_BYTE_LENGTH - filled);
      block.set(chunk.subarray(at, at + count), filled);
      at += count;
      filled += count;
      if (filled < BLOCK_BYTE_LENGTH) continue;
      yield block;
      filled = 0;
    }
  }
  if (filled > 0) yield block.subarray(0, filled);
}

/**
 * Copies a stream to all of `names`. A destination that fails is given up, and the others go on.
 *
 * @throws DmError where a destination can't be opened (nothing is read then), and what `input` throws
 */
export async function copyFromStream(
  host: CopyHost,
  input: AsyncIterable<Uint8Array>,
  names: readonly string[],
  options: StreamCopyOptions,
): Promise<StreamDestination[]> {
  const devices = new OpenedDevices(host, options);
  const io = new DmIoClient({ reactor: host.loop, engines: host.devices.engines, pageCount: BLOCK_SECTOR_COUNT });
  const targets: Target[] = [];
  try {
    await openTargets(devices, io, names, targets);
    const results = names.map((label) => ({ label, error: null, doneByteLength: 0, verified: false }));
    await run(input, targets, results, options);
    return results;
  } finally {
    for (const target of targets) await target.close();
    await devices.close();
  }
}

/** Opens all of them, or makes none. */
async function openTargets(devices: OpenedDevices, io: DmIoClient, names: readonly string[], targets: Target[]) {
  const created: string[] = [];
  const regions: OpenedRegion[] = [];
  try {
    for (const name of names) {
      const argument = parseRegion(name);
      const wasEmpty = existsSync(rawName(argument.device));
      if (createImage(argument, 0)) {
        if (!wasEmpty) created.push(argument.device);
        targets.push(new NewFile(await open(rawName(argument.device), 'r+'), argument.sector * SECTOR_SIZE, name));
      } else {
        const region = await devices.destination(argument, null);
        regions.push(region);
        targets.push(new OpenedTarget(io, region));
      }
    }
    if (regions.length > 0) checkApart(null, regions);
  } catch (error) {
    for (const path of created) rmSync(rawName(path), { force: true });
    throw error;
  }
}

async function run(
  input: AsyncIterable<Uint8Array>,
  targets: readonly Target[],
  results: StreamDestination[],
  { verify = false, signal, onProgress }: StreamCopyOptions,
): Promise<void> {
  const hash = createHash('sha256');
  let byteLength = 0;
  const each = (work: (target: Target, result: StreamDestination) => Promise<void>): Promise<unknown> =>
    Promise.all(
      targets.map(async (target, index) => {
        const result = results[index]!;
        if (result.error !== null) return;
        try {
          await work(target, result);
        } catch (error) {
          if (!(error instanceof DmError)) throw error;
          result.error = error;
        }
      }),
    );
  for await (const block of blocksOf(input)) {
    if (signal?.aborted) break;
    if (verify) hash.update(block);
    const offset = byteLength;
    await each(async (target, result) => {
      await target.write(offset, block);
      result.doneByteLength = offset + block.byteLength;
    });
    byteLength += block.byteLength;
    onProgress?.(byteLength);
    // Nothing is left to write to: the program that feeds the stream need not go on.
    if (results.every(({ error }) => error !== null)) break;
  }
  await each((target, result) => target.finish(result.doneByteLength));
  if (!verify || signal?.aborted) return;
  const wanted = hash.digest('hex');
  const memory = Buffer.allocUnsafeSlow(BLOCK_BYTE_LENGTH);
  // One after the other: they share the memory.
  for (const [index, target] of targets.entries()) {
    const result = results[index]!;
    if (result.error !== null) continue;
    try {
      const found = createHash('sha256');
      for (let at = 0; at < byteLength; at += BLOCK_BYTE_LENGTH) {
        const bytes = memory.subarray(0, Math.min(BLOCK_BYTE_LENGTH, byteLength - at));
        await target.read(at, bytes);
        found.update(bytes);
      }
      if (found.digest('hex') === wanted) result.verified = true;
      else result.error = new DmError(Errno.EIO, `verify: ${result.label} does not hold what was written`);
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      result.error = error;
    }
  }
}

/** The bytes of `name`, in order. @throws DmError where they can't be had */
export async function* streamOf(host: CopyHost, name: string, options: OpenOptions): AsyncGenerator<Uint8Array> {
  const devices = new OpenedDevices(host, options);
  const io = new DmIoClient({ reactor: host.loop, engines: host.devices.engines, pageCount: BLOCK_SECTOR_COUNT });
  try {
    const source = await devices.source(parseRegion(name));
    for (let at = 0; at < source.sectorCount; at += BLOCK_SECTOR_COUNT) {
      const count = Math.min(BLOCK_SECTOR_COUNT, source.sectorCount - at);
      // Not used again: a pipe may still hold it.
      const bytes = Buffer.allocUnsafeSlow(count * SECTOR_SIZE);
      const cause = await transfer(io, 'read', source, at, bytes);
      if (cause !== null) throw cause;
      yield bytes;
    }
    if (source.tailByteLength === 0) return;
    const { nbd, path, takesBytes, tailByteLength } = source;
    const filePath = takesBytes && nbd === null ? path : null;
    yield await openTail(io, { region: source, byteLength: tailByteLength, filePath, nbd }).read();
  } finally {
    await devices.close();
  }
}
