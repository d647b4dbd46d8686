// dmkit copy: one source to as many as 64 destinations, each at its own pace. dm-io moves the bytes; who reads what when,
// what failed and what is left is settled here.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { compareIdentities, identifyPath } from '../devices/identity.ts';
import type { DeviceRegistry } from '../devices/index.ts';
import { DmIoClient } from '../dm-io/index.ts';
import type { NodeLoop } from '../reactor/node-loop.ts';
import {
  BLOCK_SECTOR_COUNT,
  CHECKPOINT_MILLISECONDS,
  MAX_BUSY_BLOCK_COUNT,
  MAX_DESTINATION_COUNT,
  MAX_WINDOW_BLOCK_COUNT,
  SHARED_FILE_PIECE_COUNT,
  SINGLE_FILE_PIECE_COUNT,
} from './bounds.ts';
import { Destination } from './destination.ts';
import { FileCopier } from './files.ts';
import { type FoundMap, findMaps } from './find-map.ts';
import { clearMapfileLeftovers, formatMapfile, saveMapfile } from './mapfile.ts';
import { byteLengthOf, checkApart, OpenedDevices, type OpenedRegion, type OpenOptions, parseRegion } from './open.ts';
import { type MapSide, ownersLine } from './owners.ts';
import { extentsOf, type Piece, piecesOf, type SourceExtent } from './plan.ts';
import { DONE, RangeMap } from './ranges.ts';
import { RateLimit } from './rate.ts';
import { SourceReader } from './reader.ts';
import type { CopyRegion } from './request.ts';
import { openTail, type Tail } from './tail.ts';
import { verify } from './verify.ts';

export interface CopyOptions extends OpenOptions {
  /** Where a read or write fails, it is narrowed to logical blocks, and the rest goes on. */
  keepGoing?: boolean;
  /** Reads everything back and compares. */
  verify?: boolean;
  /** What the source does not hold data for is left alone on the destinations. */
  skipHoles?: boolean;
  /** Bytes a second for each destination. */
  bytesPerSecond?: number;
  /** Keeps a map beside the copy; with several destinations `F.1`, `F.2` … */
  mapfile?: string;
  /** Goes on with what the map lacks. */
  retry?: boolean;
  /** Believes a map that does not belong to these disks. */
  force?: boolean;
  /** Stops: what is in flight ends, the maps are made true. */
  signal?: AbortSignal;
}

export type CopyPhase = 'copying' | 'verifying' | 'done';

/** A destination that takes no part. */
export interface RefusedDestination {
  readonly label: string;
  readonly error: DmError;
}

/** A destination of the command line: open, or refused. */
type Wanted = OpenedRegion | RefusedDestination;

interface Part {
  readonly destination: Destination;
  readonly opened: OpenedRegion;
  readonly mapfile: string | null;
}

export interface CopyHost {
  readonly loop: NodeLoop;
  readonly devices: DeviceRegistry;
}

function tailOf(io: DmIoClient, opened: OpenedRegion): Tail {
  const { path, nbd, takesBytes, tailByteLength } = opened;
  return openTail(io, {
    region: opened,
    byteLength: tailByteLength,
    filePath: takesBytes && nbd === null ? path : null,
    nbd: takesBytes ? nbd : null,
  });
}

/** A file that was deleted or replaced meanwhile has got what was written to it, and is not where it is looked for. */
function checkThere({ destination, opened: { disk, isFile, path, label } }: Part): void {
  if (!isFile || path === null) return;
  let text: string;
  try {
    const mismatch = compareIdentities(disk, identifyPath(path, '/'));
    if (mismatch === null) return;
    text = mismatch.text;
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    text = `${label} is not there any more`;
  }
  destination.giveUp(new DmError(Errno.ESTALE, `${text}: it was deleted or replaced while it was written`));
}

function isOpened(wanted: Wanted): wanted is OpenedRegion {
  return 'device' in wanted;
}

function sideOf({ disk, sector }: OpenedRegion): MapSide {
  return { disk, sector };
}

/** A copy whose devices are open. */
export class Copy {
  /** Null for zeroing. */
  readonly source: OpenedRegion | null;
  /** Every destination in the order of the command line. */
  readonly results: readonly (Destination | RefusedDestination)[];
  phase: CopyPhase = 'copying';
  /** Sectors read back, of all destinations. */
  verifiedSectorCount = 0;
  /** Why all of it stopped: the source could not be read, or a mapfile not be written. */
  failure: DmError | null = null;
  readonly #host: CopyHost;
  readonly #options: CopyOptions;
  readonly #devices: OpenedDevices;
  readonly #parts: Part[] = [];
  readonly #files: FileCopier[] = [];
  readonly #reader: SourceReader | null;
  readonly #sourceTail: Tail | null;
  #tailBytes: Promise<Uint8Array> | null = null;
  /** Of the source; empty for zeroing. */
  #extents: SourceExtent[] = [];

  private constructor(
    host: CopyHost,
    options: CopyOptions,
    devices: OpenedDevices,
    source: OpenedRegion | null,
    wanted: readonly Wanted[],
  ) {
    this.#host = host;
    this.#options = options;
    this.#devices = devices;
    this.source = source;
    const readerPages = (MAX_BUSY_BLOCK_COUNT * BLOCK_SECTOR_COUNT) / 8;
    const io = source === null ? null : this.#client(readerPages);
    this.#reader = source === null ? null : new SourceReader(io!, source, this.#keepGoing);
    this.#sourceTail = source === null || source.tailByteLength === 0 ? null : tailOf(io!, source);
    const destinations = wanted.filter(isOpened);
    const maps = this.#findMaps(destinations, wanted.length === 1);
    let index = 0;
    this.results = wanted.map((one) => {
      if (!isOpened(one)) return one;
      const part = this.#makePart(one, maps?.[index++] ?? null, destinations.length);
      this.#parts.push(part);
      return part.destination;
    });
  }

  /**
   * Opens everything and refuses what can't be right: a destination that is mounted or in use, the source itself, or
   * named twice; a map that is there without `retry`, or belongs to other disks. One of several destinations that is too
   * small takes no part, and with `keepGoing` none that can't be opened.
   *
   * @param source null: the destinations are filled with zeroes
   * @throws DmError
   */
  static async open(
    host: CopyHost,
    source: string | null,
    destinations: readonly string[],
    options: CopyOptions = {},
  ): Promise<Copy> {
    if (destinations.length > MAX_DESTINATION_COUNT) {
      throw new DmError(
        Errno.EINVAL,
        `${destinations.length} destinations; there can be 1 to ${MAX_DESTINATION_COUNT}`,
      );
    }
    const devices = new OpenedDevices(host, options);
    try {
      const from = source === null ? null : await devices.source(parseRegion(source));
      const byteLength = from === null ? null : byteLengthOf(from);
      const wanted: Wanted[] = [];
      for (const text of destinations) wanted.push(await openOrRefuse(devices, text, byteLength, options));
      const to = wanted.filter(isOpened);
      const first = wanted.find((one) => !isOpened(one));
      if (to.length === 0 && first !== undefined) throw (first as RefusedDestination).error;
      checkApart(from, to);
      return new Copy(host, options, devices, from, wanted);
    } catch (error) {
      await devices.undo();
      throw error;
    }
  }

  get destinations(): readonly Destination[] {
    return this.#parts.map(({ destination }) => destination);
  }

  get stopped(): boolean {
    return this.#options.signal?.aborted ?? false;
  }

  /** Everything that was to be done is done, on every destination. */
  get complete(): boolean {
    const isWhole = this.failure === null && !this.stopped && this.results.length === this.#parts.length;
    return isWhole && this.destinations.every(({ failed }) => !failed);
  }

  get #keepGoing(): boolean {
    return this.#options.keepGoing ?? false;
  }

  #client(pageCount: number): DmIoClient {
    return new DmIoClient({ reactor: this.#host.loop, engines: this.#host.devices.engines, pageCount });
  }

  #findMaps(destinations: readonly OpenedRegion[], isSingle: boolean): FoundMap[] | null {
    const { source } = this;
    const { mapfile = null, retry = false, force = false } = this.#options;
    if (mapfile === null) return null;
    const search = {
      ...{ base: mapfile, isSingle, retry, force },
      source: source === null ? null : sideOf(source),
      sourceEndByte: source === null ? null : source.deviceByteLength,
    };
    const seekers = destinations.map((opened) => {
      return { label: opened.label, side: sideOf(opened), byteLength: byteLengthOf(opened), isNew: opened.isNew };
    });
    return findMaps(search, seekers);
  }

  #makePart(opened: OpenedRegion, found: FoundMap | null, count: number): Part {
    const { bytesPerSecond } = this.#options;
    const windowBlockCount = Math.max(1, Math.min(MAX_WINDOW_BLOCK_COUNT, Math.floor(MAX_BUSY_BLOCK_COUNT / count)));
    const files = this.source === null ? null : FileCopier.open(this.source, opened);
    if (files !== null) this.#files.push(files);
    const io = this.#client((windowBlockCount * BLOCK_SECTOR_COUNT) / 8);
    const { tailByteLength } = opened;
    const destination = new Destination({
      files,
      region: opened,
      map: found?.map ?? new RangeMap(Math.ceil(byteLengthOf(opened) / SECTOR_SIZE)),
      io,
      tailByteLength,
      tail: tailByteLength === 0 ? null : { place: tailOf(io, opened), bytes: () => this.#readTail(tailByteLength) },
      reader: this.#reader,
      keepGoing: this.#keepGoing,
      bytesPerSecond: bytesPerSecond ?? null,
      rate: bytesPerSecond === undefined ? null : new RateLimit(this.#host.loop, bytesPerSecond),
      windowBlockCount,
      filePieceCount: count === 1 ? SINGLE_FILE_PIECE_COUNT : SHARED_FILE_PIECE_COUNT,
    });
    if (found !== null) clearMapfileLeftovers(found.path);
    return { destination, opened, mapfile: found?.path ?? null };
  }

  /** The last bytes of the source, read once. @throws DmError */
  #readTail(byteLength: number): Promise<Uint8Array> {
    if (this.#sourceTail === null) return Promise.resolve(new Uint8Array(byteLength));
    this.#tailBytes ??= this.#sourceTail.read();
    return this.#tailBytes;
  }

  /** Copies, verifies, brings the maps up to date. What failed where is told by the destinations, and by `failure`. */
  async run(): Promise<void> {
    if (this.source !== null) this.#extents = await extentsOf(this.source);
    const plans = this.#parts.map(({ destination }) => [...this.#piecesFor(destination)]);
    for (const [index, { destination }] of this.#parts.entries()) {
      destination.totalSectorCount = plans[index]!.reduce((sum, { start, end }) => sum + end - start, 0);
    }
    const { signal } = this.#options;
    signal?.addEventListener('abort', this.#release);
    if (this.stopped) this.#release();
    const timer = setInterval(() => void this.#checkpoint(), CHECKPOINT_MILLISECONDS);
    try {
      await Promise.all(this.#parts.map((part, index) => this.#runPart(part, plans[index]!.values())));
    } finally {
      clearInterval(timer);
      signal?.removeEventListener('abort', this.#release);
    }
    await this.#checkpoint();
    for (const part of this.#parts) checkThere(part);
    if (this.#options.verify && !this.#shouldStop()) await this.#verifyAll();
    this.phase = 'done';
  }

  readonly #shouldStop = (): boolean => this.stopped || this.failure !== null;

  *#piecesFor({ map, region, pieceSectorCount }: Destination): Generator<Piece> {
    yield* piecesOf(this.#meantFor(region), map, pieceSectorCount);
    const tail = { start: region.sectorCount, end: map.sectorCount };
    if (tail.start < tail.end && [...map.ranges([DONE], tail)].length === 0) yield { ...tail, zero: false };
  }

  /** Whole sectors that are to be handled at all. */
  #meantFor({ sectorCount }: CopyRegion): SourceExtent[] {
    if (this.source === null) return [{ start: 0, end: sectorCount, zero: true }];
    return this.#options.skipHoles ? this.#extents.filter(({ zero }) => !zero) : this.#extents;
  }

  async #runPart({ destination }: Part, pieces: Iterator<Piece>): Promise<void> {
    try {
      await destination.run(pieces, this.#shouldStop);
    } catch (error) {
      this.#failed(error);
    }
  }

  /** What waits for its rate does not hold up the end. */
  readonly #release = (): void => {
    for (const destination of this.destinations) destination.release();
  };

  #failed(error: unknown): void {
    if (!(error instanceof DmError)) throw error;
    this.failure ??= error;
    this.#release();
  }

  /** Makes what was written durable, and then says so in the maps. */
  async #checkpoint(): Promise<void> {
    await Promise.all(
      this.#parts.map(async ({ destination, mapfile, opened }) => {
        await destination.checkpoint();
        if (mapfile !== null) this.#save(mapfile, destination, opened);
      }),
    );
  }

  #save(path: string, destination: Destination, opened: OpenedRegion): void {
    const { source } = this;
    const comment = [
      'Mapfile. Written by dmkit copy, in the format of GNU ddrescue.',
      `${source?.label ?? 'zeroes'} to ${opened.label}`.replace(/[\r\n]/g, ' '),
      ownersLine({
        source: source === null ? null : sideOf(source),
        destination: sideOf(opened),
        byteLength: byteLengthOf(opened),
      }),
    ];
    try {
      saveMapfile(path, formatMapfile(destination.map, this.source?.sector ?? 0, destination.byteLength, comment));
    } catch (error) {
      this.#failed(error);
    }
  }

  async #verifyAll(): Promise<void> {
    this.phase = 'verifying';
    const setup = {
      loop: this.#host.loop,
      reader: this.#reader,
      shouldStop: this.#shouldStop,
      onProgress: (sectorCount: number): void => {
        this.verifiedSectorCount += sectorCount;
      },
    };
    await Promise.all(
      this.#parts.map(async ({ destination, opened, mapfile }) => {
        if (destination.dead !== null) return;
        try {
          await verify(destination, { ...setup, opened, within: this.#meantFor(opened) });
        } catch (error) {
          this.#failed(error);
        }
        if (mapfile !== null) this.#save(mapfile, destination, opened);
      }),
    );
  }

  /** Sectors that verification has to read, of all destinations. */
  get verifiableSectorCount(): number {
    return this.destinations.reduce((sum, { map }) => sum + map.count(DONE), 0);
  }

  /** Closes the devices. */
  async close(): Promise<void> {
    for (const files of this.#files.splice(0)) files.close();
    await this.#devices.close();
  }
}

/** @throws DmError for what stops the whole copy */
async function openOrRefuse(
  devices: OpenedDevices,
  text: string,
  byteLength: number | null,
  { keepGoing = false }: CopyOptions,
): Promise<Wanted> {
  const argument = parseRegion(text);
  try {
    return await devices.destination(argument, byteLength);
  } catch (error) {
    if (!(error instanceof DmError) || (!keepGoing && error.errno !== Errno.ENOSPC)) throw error;
    return { label: text, error };
  }
}
