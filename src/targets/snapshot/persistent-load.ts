// Opening a persistent store: reads the header and all records, or makes a new store where the device is blank.
import type { BlockDevice } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import { ChunkNumbers } from './chunk-numbers.ts';
import {
  areaChunk,
  chunkSizeObjection,
  DEFAULT_CHUNK_SECTOR_COUNT,
  dataChunk,
  dataChunkIndex,
  type Header,
  isBlank,
  isMetadataChunk,
  RECORD_BYTE_LENGTH,
  Records,
  readHeader,
  recordsPerArea,
  SNAP_MAGIC,
  SNAPSHOT_DISK_VERSION,
  windowByteLength,
  writeHeader,
} from './layout.ts';
import { StoreError } from './store.ts';
import type { SyncIo } from './sync-io.ts';

/** Areas are read in pieces of this size, so that the empty rest of a large one costs little. */
const MAX_READ_BYTE_LENGTH = 65536;

export interface FoundStore {
  chunkSectorCount: number;
  valid: boolean;
  /** The area with the first free record, which record that is, and the window that it stands in. */
  area: number;
  recordCount: number;
  window: Uint8Array;
  /** The data chunks that no record names are free. */
  numbers: ChunkNumbers;
}

export type AddException = (oldChunk: number, newChunk: number) => boolean;

/**
 * Opens what `device` holds. The chunk size in its header goes before `wantedChunkSectorCount`; 0 wants the default.
 *
 * @throws StoreError ENXIO for what is no store, EINVAL for one that makes no sense, EIO
 */
export function openStore(
  io: SyncIo,
  device: BlockDevice,
  wantedChunkSectorCount: number,
  add: AddException,
): FoundStore {
  const logicalBlock = device.limits.logicalBlockSize / SECTOR_SIZE;
  const wanted = wantedChunkSectorCount || Math.max(DEFAULT_CHUNK_SECTOR_COUNT, logicalBlock);
  checkRoom(device, wanted);
  const first = new Uint8Array(windowByteLength(device, wanted));
  io.read(0, first);
  const header = readHeader(first);
  if (header.magic === 0 && device.readOnly) {
    throw new StoreError(
      Errno.EIO,
      `${device.name} holds no store yet, and may not be written: make the store where it can be, or allow writing`,
    );
  }
  if (header.magic === 0) return new StoreMaker(io, device, wanted).make();
  const chunkSectorCount = checkHeader(header, device);
  if (!header.valid) return invalidStore(chunkSectorCount);
  return new StoreReader(io, device, chunkSectorCount, add).read();
}

function checkRoom(device: BlockDevice, sectorCount: number): void {
  if (device.sectorCount >= sectorCount) return;
  throw new StoreError(Errno.EIO, `${device.name} ends inside the store's metadata, at sector ${device.sectorCount}`);
}

/** @returns the chunk size */
function checkHeader(header: Header, device: BlockDevice): number {
  if (header.magic !== SNAP_MAGIC) {
    throw new StoreError(
      Errno.ENXIO,
      `${device.name} holds something that is no snapshot: it begins with neither 0 nor SnAp`,
    );
  }
  const objection = chunkSizeObjection(header.chunkSectorCount, [device]);
  if (objection !== null) {
    throw new StoreError(Errno.EINVAL, `invalid on-disk chunk size ${header.chunkSectorCount}: ${objection}`);
  }
  if (header.version !== SNAPSHOT_DISK_VERSION) {
    throw new StoreError(Errno.EINVAL, `unable to handle snapshot disk version ${header.version}`);
  }
  return header.chunkSectorCount;
}

function invalidStore(chunkSectorCount: number): FoundStore {
  return {
    chunkSectorCount,
    valid: false,
    area: 0,
    recordCount: 0,
    window: new Uint8Array(0),
    numbers: new ChunkNumbers(),
  };
}

class StoreMaker {
  readonly #io: SyncIo;
  readonly #device: BlockDevice;
  readonly #chunk: number;

  constructor(io: SyncIo, device: BlockDevice, chunkSectorCount: number) {
    this.#io = io;
    this.#device = device;
    this.#chunk = chunkSectorCount;
  }

  make(): FoundStore {
    checkRoom(this.#device, 2 * this.#chunk);
    // The area first: with a header in front of it, whatever it held would be records.
    const wasBlank = this.#clear(this.#chunk, this.#chunk);
    const window = new Uint8Array(windowByteLength(this.#device, this.#chunk));
    const windowSectorCount = window.byteLength / SECTOR_SIZE;
    if (this.#chunk > windowSectorCount) this.#clear(windowSectorCount, this.#chunk - windowSectorCount);
    writeHeader(window, true, this.#chunk);
    this.#io.write(0, window, !wasBlank);
    window.fill(0);
    return { chunkSectorCount: this.#chunk, valid: true, area: 0, recordCount: 0, window, numbers: new ChunkNumbers() };
  }

  /** Writes only where something stands: a blank file stays as sparse as it is. @returns whether all was blank */
  #clear(sector: number, sectorCount: number): boolean {
    const piece = new Uint8Array(Math.min(sectorCount * SECTOR_SIZE, MAX_READ_BYTE_LENGTH));
    const pieceSectorCount = piece.byteLength / SECTOR_SIZE;
    for (let done = 0; done < sectorCount; done += pieceSectorCount) {
      const count = Math.min(pieceSectorCount, sectorCount - done);
      const bytes = piece.subarray(0, count * SECTOR_SIZE);
      this.#io.read(sector + done, bytes);
      if (isBlank(bytes)) continue;
      this.#io.zero(sector, sectorCount);
      return false;
    }
    return true;
  }
}

class StoreReader {
  readonly #io: SyncIo;
  readonly #device: BlockDevice;
  readonly #chunk: number;
  readonly #perArea: number;
  readonly #add: AddException;
  readonly #piece: Uint8Array;
  readonly #numbers = new ChunkNumbers();
  #ascending = true;
  #count = 0;

  constructor(io: SyncIo, device: BlockDevice, chunkSectorCount: number, add: AddException) {
    this.#io = io;
    this.#device = device;
    this.#chunk = chunkSectorCount;
    this.#perArea = recordsPerArea(chunkSectorCount);
    this.#add = add;
    this.#piece = new Uint8Array(Math.min(chunkSectorCount * SECTOR_SIZE, MAX_READ_BYTE_LENGTH));
  }

  read(): FoundStore {
    let area = 0;
    let recordCount = this.#readArea(area);
    while (recordCount === this.#perArea) recordCount = this.#readArea(++area);
    if (!this.#ascending) this.#checkNewChunks(area, recordCount);
    const window = this.#lastWindow(area, recordCount);
    this.#distrustGaps();
    return { chunkSectorCount: this.#chunk, valid: true, area, recordCount, window, numbers: this.#numbers };
  }

  /** A record that leads behind the device's end comes from damage, or the device lost its end: nothing is to fill its gaps. */
  #distrustGaps(): void {
    const { next } = this.#numbers;
    const end = next === 0 ? 0 : (dataChunk(next - 1, this.#perArea) + 1) * this.#chunk;
    if (end > this.#device.sectorCount) this.#numbers.reset(next);
  }

  #sectorOf(area: number): number {
    return areaChunk(area, this.#perArea) * this.#chunk;
  }

  /** @returns how many records the area has */
  #readArea(area: number): number {
    checkRoom(this.#device, this.#sectorOf(area) + this.#chunk);
    const records = new Records(this.#piece);
    for (let base = 0; base < this.#perArea; base += records.count) {
      this.#io.read(this.#sectorOf(area) + (base * RECORD_BYTE_LENGTH) / SECTOR_SIZE, this.#piece);
      for (let index = 0; index < records.count; index++) {
        const newChunk = records.newChunk(index);
        if (newChunk === 0) return base + index;
        this.#take(area, base + index, records.oldChunk(index), newChunk);
      }
    }
    return this.#perArea;
  }

  #take(area: number, index: number, oldChunk: number, newChunk: number): void {
    if (isMetadataChunk(newChunk, this.#perArea)) {
      this.#refuse(area, index, `sends chunk ${oldChunk} to chunk ${newChunk}, which is metadata`);
    }
    if (!this.#add(oldChunk, newChunk)) this.#refuse(area, index, `is the second one for chunk ${oldChunk}`);
    this.#count++;
    if (!this.#numbers.note(dataChunkIndex(newChunk, this.#perArea))) this.#ascending = false;
  }

  #refuse(area: number, index: number, what: string): never {
    throw new StoreError(
      Errno.EINVAL,
      `${this.#device.name}: record ${index} of area ${area} ${what}: the store is damaged`,
    );
  }

  /** Where records don't ascend, which is rare, all are read again: for gaps, and two records that name one chunk. */
  #checkNewChunks(lastArea: number, lastCount: number): void {
    const all = new Float64Array(this.#count);
    let at = 0;
    const records = new Records(this.#piece);
    for (let area = 0; area <= lastArea; area++) {
      const count = area === lastArea ? lastCount : this.#perArea;
      for (let base = 0; base < count; base += records.count) {
        this.#io.read(this.#sectorOf(area) + (base * RECORD_BYTE_LENGTH) / SECTOR_SIZE, this.#piece);
        for (let i = 0; i < Math.min(records.count, count - base); i++) all[at++] = records.newChunk(i);
      }
    }
    this.#numbers.reset(0);
    for (const newChunk of all.sort()) {
      if (this.#numbers.note(dataChunkIndex(newChunk, this.#perArea))) continue;
      throw new StoreError(
        Errno.EINVAL,
        `${this.#device.name}: two records name chunk ${newChunk}: the store is damaged`,
      );
    }
  }

  /**
   * The window of the first free record. What stands behind the last record counts as soon as the list reaches it, so that
   * it has to be zeroes: where it is not, somebody damaged the store, and it is cleared now.
   */
  #lastWindow(area: number, recordCount: number): Uint8Array {
    const window = new Uint8Array(windowByteLength(this.#device, this.#chunk));
    const windowSectorCount = window.byteLength / SECTOR_SIZE;
    const perWindow = window.byteLength / RECORD_BYTE_LENGTH;
    const index = Math.floor(recordCount / perWindow);
    this.#io.read(this.#sectorOf(area) + index * windowSectorCount, window);
    const records = new Records(window);
    const from = recordCount % perWindow;
    const restStart = (index + 1) * windowSectorCount;
    if (!this.#device.readOnly) {
      if (!records.isClearFrom(from)) {
        records.clearFrom(from);
        this.#io.write(this.#sectorOf(area) + index * windowSectorCount, window, true);
      }
      if (restStart < this.#chunk) this.#clearRest(this.#sectorOf(area) + restStart, this.#chunk - restStart);
    }
    return window;
  }

  #clearRest(sector: number, sectorCount: number): void {
    const pieceSectorCount = this.#piece.byteLength / SECTOR_SIZE;
    for (let done = 0; done < sectorCount; done += pieceSectorCount) {
      const bytes = this.#piece.subarray(0, Math.min(pieceSectorCount, sectorCount - done) * SECTOR_SIZE);
      this.#io.read(sector + done, bytes);
      if (isBlank(bytes)) continue;
      this.#io.zero(sector + done, sectorCount - done);
      return;
    }
  }
}
