// Fills a new chunk: with what the origin has, but for the stretch that a write is about to overwrite, which comes from
// that write's own memory. So a write of a whole chunk copies nothing, and one of a part is one read and one write.
//
//   chunk of the origin  [aaaaaaaaaaaaaaaaaaaa]         read: from the first to the last sector that is needed
//   the write                  [wwwwww]
//   new chunk            [aaaaa wwwwww aaaaaaaa]        one write, gathered from both memories
//
// A chunk larger than a buffer goes in segments, one after the other.
import { Bio, type BioVec, REQ_FUA, REQ_OP_READ, REQ_OP_WRITE, shareMemory } from '../../block/bio.ts';
import { type BlockDevice, submitBio } from '../../block/block-device.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import type { CopyBuffers } from './copy-buffers.ts';

export interface CopyRange {
  /** Null where nothing is to be copied. */
  from: BlockDevice | null;
  fromSector: number;
  to: BlockDevice | null;
  toSector: number;
  sectorCount: number;
}

const NO_VECS: readonly BioVec[] = [];
/** The two sides of a chunk and the write between them; a write of more pieces is rare. */
const MAX_SPARE_VEC_COUNT = 4;
const NO_PAGE = new Uint8Array(0);
const position = new Bio();

export class ChunkCopy {
  /** Sectors that the last run read. */
  copiedSectorCount = 0;
  /** What the next run copies: the caller's to fill in. */
  readonly range: CopyRange = { from: null, fromSector: 0, to: null, toSector: 0, sectorCount: 0 };
  readonly #bio = new Bio();
  readonly #vecs: BioVec[] = [];
  /** Pieces for reuse. */
  readonly #spareVecs: BioVec[] = [];
  #buffers!: CopyBuffers;
  #buffer: Uint8Array | null = null;
  #writer: Bio | null = null;
  /** Where the writer's data goes, in sectors from the range's start. */
  #writerStart = 0;
  #writerEnd = 0;
  #flags = 0;
  #done!: (errno: number, writing: boolean) => void;
  // The segment under way.
  #start = 0;
  #count = 0;
  readonly #onBuffer = (buffer: Uint8Array): void => {
    this.#buffer = buffer;
    this.#read();
  };
  readonly #onReadEnd = (): void => {
    if (this.#bio.status !== 0) this.#finish(this.#bio.status, false);
    else this.#write();
  };
  readonly #onWriteEnd = (): void => {
    if (this.#bio.status !== 0) {
      this.#finish(this.#bio.status, true);
      return;
    }
    this.#start += this.#count;
    if (this.#start < this.range.sectorCount) this.#segment();
    else this.#finish(0, true);
  };

  /**
   * @param writer the write whose data goes along, `writerStart` sectors behind the start of the range; or null
   * @param flags REQ_FUA for the writes, where the writer asks for it and nothing else makes them durable
   * @param done called once, with the errno and whether it was the writing that failed
   */
  run(
    buffers: CopyBuffers,
    writer: Bio | null,
    writerStart: number,
    flags: number,
    done: (errno: number, writing: boolean) => void,
  ): void {
    this.#buffers = buffers;
    this.#writer = writer;
    this.#writerStart = writer === null ? 0 : writerStart;
    this.#writerEnd = writer === null ? 0 : writerStart + writer.sectorCount;
    this.#flags = flags & REQ_FUA;
    this.#done = done;
    this.#start = 0;
    this.copiedSectorCount = 0;
    this.#segment();
  }

  /** The writer's part of the segment, in sectors from the segment's start. */
  get #overlapStart(): number {
    return Math.min(Math.max(this.#writerStart - this.#start, 0), this.#count);
  }

  get #overlapEnd(): number {
    return Math.min(Math.max(this.#writerEnd - this.#start, 0), this.#count);
  }

  #segment(): void {
    this.#count = Math.min(this.range.sectorCount - this.#start, this.#buffers.byteLength / SECTOR_SIZE);
    // A writer's data that fills its range needs no buffer, however long it is.
    if (this.#writerStart <= this.#start && this.#writerEnd >= this.range.sectorCount) {
      this.#count = this.range.sectorCount - this.#start;
      this.#write();
    } else if (this.#overlapStart === 0 && this.#overlapEnd === this.#count) {
      this.#write();
    } else if (this.#buffer === null) {
      this.#buffers.take(this.#onBuffer);
    } else {
      this.#read();
    }
  }

  #read(): void {
    const { from, fromSector } = this.range;
    const [overlapStart, overlapEnd] = [this.#overlapStart, this.#overlapEnd];
    const hasOverlap = overlapEnd > overlapStart;
    const first = hasOverlap && overlapStart === 0 ? overlapEnd : 0;
    const last = hasOverlap && overlapEnd === this.#count ? overlapStart : this.#count;
    const bio = this.#bio;
    bio.reset(REQ_OP_READ, 0, from, fromSector + this.#start + first, last - first);
    this.#clearVecs();
    this.#addBuffer(first, last);
    bio.vecs = this.#vecs;
    bio.onEnd = this.#onReadEnd;
    this.copiedSectorCount += last - first;
    submitBio(bio);
  }

  #addBuffer(first: number, last: number): void {
    if (first === last) return;
    this.#addVec(this.#buffer!, first * SECTOR_SIZE, (last - first) * SECTOR_SIZE);
  }

  #addVec(page: Uint8Array, offset: number, byteLength: number): void {
    const vec = this.#spareVecs.pop();
    if (vec === undefined) {
      this.#vecs.push({ page, offset, byteLength });
      return;
    }
    vec.page = page;
    vec.offset = offset;
    vec.byteLength = byteLength;
    this.#vecs.push(vec);
  }

  #clearVecs(): void {
    for (let vec = this.#vecs.pop(); vec !== undefined; vec = this.#vecs.pop()) {
      vec.page = NO_PAGE;
      if (this.#spareVecs.length < MAX_SPARE_VEC_COUNT) this.#spareVecs.push(vec);
    }
  }

  #write(): void {
    const { to, toSector } = this.range;
    const [overlapStart, overlapEnd] = [this.#overlapStart, this.#overlapEnd];
    const bio = this.#bio;
    bio.reset(REQ_OP_WRITE, this.#flags, to, toSector + this.#start, this.#count);
    this.#clearVecs();
    if (overlapEnd - overlapStart === this.#count) {
      // All of it is the writer's: its memory as it is.
      shareMemory(bio, this.#writer!, (this.#start - this.#writerStart) * SECTOR_SIZE);
    } else if (overlapEnd === overlapStart) {
      this.#addBuffer(0, this.#count);
    } else {
      this.#addBuffer(0, overlapStart);
      this.#addWriter(overlapStart, overlapEnd);
      this.#addBuffer(overlapEnd, this.#count);
    }
    if (this.#vecs.length > 0) bio.vecs = this.#vecs;
    bio.onEnd = this.#onWriteEnd;
    submitBio(bio);
  }

  /** The pieces of the writer's memory for a stretch of the segment. */
  #addWriter(first: number, last: number): void {
    shareMemory(position, this.#writer!, (this.#start + first - this.#writerStart) * SECTOR_SIZE);
    let left = (last - first) * SECTOR_SIZE;
    let offset = position.vecOffset;
    for (let index = position.vecIndex; left > 0; index++, offset = 0) {
      const vec = position.vecs[index]!;
      const byteLength = Math.min(left, vec.byteLength - offset);
      if (byteLength === 0) continue;
      this.#addVec(vec.page, vec.offset + offset, byteLength);
      left -= byteLength;
    }
    position.release();
  }

  #finish(errno: number, writing: boolean): void {
    const buffer = this.#buffer;
    this.#buffer = null;
    this.#writer = null;
    // Pooled, it keeps no device alive.
    this.range.from = null;
    this.range.to = null;
    this.#clearVecs();
    this.#bio.vecs = NO_VECS;
    if (buffer !== null) this.#buffers.give(buffer);
    this.#done(errno, writing);
  }
}
