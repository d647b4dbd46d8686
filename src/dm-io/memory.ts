// The kinds of memory, all seen as one: a list of pieces and a position where the data starts. Nothing is copied.
//
//   page list   [ ..offset|#########] -> [#########] -> [####.....]      the last page in part, further ones not at all
//   bvec        [####] [##########] [#######...]
//   bio         vecs of the bio, from its iterator (and byteOffset) on
//   buffer      [#########################......]
import { Bio, type BioVec, shareMemory } from '../block/bio.ts';
import { MAX_POOLED_OBJECT_COUNT } from '../block/bounds.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { checkMemory } from '../engine/address.ts';
import type { DmIoMemory, PageList } from './types.ts';

const NO_VECS: readonly BioVec[] = [];
const NO_PAGE = new Uint8Array(0);

function refused(text: string): DmError {
  return new DmError(Errno.EINVAL, `dm-io memory: ${text}`);
}

function tooShort(kind: string, byteLength: number, wanted: number): DmError {
  return refused(`the ${kind} has ${byteLength} bytes, and the largest region takes ${wanted}`);
}

/** The memory of one request. Reused by the requests of a pool. */
export class DataSource {
  vecs: readonly BioVec[] = NO_VECS;
  /** Where the data starts: byte `vecOffset` of piece `vecIndex`. */
  vecIndex = 0;
  vecOffset = 0;
  /** Pieces made here, for lists of pages and buffers; kept for the next request. */
  #ownVecs: BioVec[] = [];
  #ownCount = 0;
  readonly #scratch = new Bio();

  /**
   * Takes `byteLength` bytes of `memory`, after checking that they are there.
   *
   * @throws DmError EINVAL for memory that is too short or of no known kind, and for an offset that cannot be; EFAULT for
   * a buffer that was transferred away, or may move or shrink (resizable, WebAssembly's)
   */
  load(memory: DmIoMemory, byteLength: number): void {
    switch (memory.type) {
      case 'page-list':
        this.#loadPages(memory.pages, memory.offset ?? 0, byteLength);
        break;
      case 'bvec':
        this.#use(memory.vecs, 0, 0);
        this.#check('list of bio vectors', byteLength);
        break;
      case 'bio':
        this.#loadBio(memory.bio, memory.byteOffset ?? 0, byteLength);
        break;
      case 'buffer':
        this.#loadBuffer(memory.buffer, byteLength);
        break;
      default:
        throw refused(`${JSON.stringify((memory as { type: unknown }).type)} is no kind of memory`);
    }
  }

  /** Lets go of the caller's memory. */
  release(): void {
    this.vecs = NO_VECS;
    if (this.#ownVecs.length > MAX_POOLED_OBJECT_COUNT) this.#ownVecs = [];
    else for (let i = 0; i < this.#ownCount; i++) this.#ownVecs[i]!.page = NO_PAGE;
    this.#ownCount = 0;
  }

  #use(vecs: readonly BioVec[], vecIndex: number, vecOffset: number): void {
    this.vecs = vecs;
    this.vecIndex = vecIndex;
    this.vecOffset = vecOffset;
  }

  #add(page: Uint8Array, offset: number, byteLength: number): void {
    const vec = this.#ownVecs[this.#ownCount];
    if (vec === undefined) {
      this.#ownVecs.push({ page, offset, byteLength });
    } else {
      vec.page = page;
      vec.offset = offset;
      vec.byteLength = byteLength;
    }
    this.#ownCount++;
  }

  #loadPages(pages: PageList, offset: number, byteLength: number): void {
    if (!Number.isSafeInteger(offset) || offset < 0 || offset % SECTOR_SIZE !== 0) {
      throw refused(`offset ${offset} into the first page is no multiple of ${SECTOR_SIZE}`);
    }
    let total = 0;
    let number = 0;
    let start = offset;
    for (let entry: PageList | null = pages; total < byteLength; entry = entry.next, number++, start = 0) {
      if (entry === null) throw tooShort(`list of ${number} pages`, total, byteLength);
      checkPage(entry.page, number, start);
      const length = Math.min(entry.page.byteLength - start, byteLength - total);
      this.#add(entry.page, start, length);
      total += length;
    }
    this.#use(this.#ownVecs, 0, 0);
  }

  #loadBuffer(buffer: Uint8Array, byteLength: number): void {
    checkMemory(buffer);
    if (buffer.byteLength < byteLength) throw tooShort('buffer', buffer.byteLength, byteLength);
    this.#add(buffer, 0, byteLength);
    this.#use(this.#ownVecs, 0, 0);
  }

  #loadBio(bio: Bio, byteOffset: number, byteLength: number): void {
    if (!Number.isSafeInteger(byteOffset) || byteOffset < 0)
      throw refused(`byteOffset ${byteOffset} is no byte offset`);
    const left = bio.byteLength - byteOffset;
    if (left < byteLength) throw tooShort(`bio from byte ${byteOffset} on`, Math.max(0, left), byteLength);
    try {
      shareMemory(this.#scratch, bio, byteOffset);
    } catch (error) {
      throw new DmError(Errno.EINVAL, "dm-io memory: the bio's pieces end before its range", undefined, {
        cause: error,
      });
    }
    this.#use(bio.vecs, this.#scratch.vecIndex, this.#scratch.vecOffset);
    this.#scratch.release();
    this.#check('bio', byteLength);
  }

  /** Goes through the pieces that will be used. */
  #check(kind: string, byteLength: number): void {
    const { vecs } = this;
    let total = 0;
    let offset = this.vecOffset;
    for (let index = this.vecIndex; total < byteLength; index++, offset = 0) {
      const vec = vecs[index];
      if (vec === undefined) throw tooShort(kind, total, byteLength);
      checkMemory(vec.page, vec.offset, vec.byteLength);
      total += vec.byteLength - offset;
    }
  }
}

function checkPage(page: Uint8Array, number: number, offset: number): void {
  checkMemory(page);
  const { byteLength } = page;
  if (byteLength === 0 || byteLength % SECTOR_SIZE !== 0) {
    throw refused(`page ${number} of the list has ${byteLength} bytes; a page is a whole number of sectors, 1 or more`);
  }
  if (offset >= byteLength)
    throw refused(`offset ${offset} is not within the first page, which has ${byteLength} bytes`);
}
