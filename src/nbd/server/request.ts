// One request between its header and its reply, or a part of one. Requests are used again: a busy connection makes none.
import { Bio, type BioVec } from '../../block/bio.ts';
import type { RangeRequest } from '../../block/zeroout.ts';
import { CMD_FLAG_FUA } from '../protocol/constants.ts';
import type { PooledBuffer } from './buffer-pool.ts';
import type { ExtentList } from './extents.ts';
import type { RangeClaim } from './range-lock.ts';

const NO_MEMORY = new Uint8Array(0);

export class Request {
  readonly bio = new Bio();
  /** For commands that may take several bios; made when the first such command comes. */
  range: RangeRequest | null = null;
  /** What BLOCK_STATUS has found; made when the first such command comes. */
  extents: ExtentList | null = null;
  /** Made when the first request comes that has to wait for its sectors. */
  claim: RangeClaim | null = null;
  /** Where a write of whole blocks is counted (RangeLock); -1 where it isn't. */
  epoch = -1;
  /** Has its sectors for itself. */
  isExclusive = false;
  command = 0;
  /** Command flags. */
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** As the request has it. */
  offsetHigh = 0;
  offsetLow = 0;
  /** Where on the export it begins: a sector, and bytes of it before the request. */
  sector = 0;
  head = 0;
  byteLength = 0;
  /** What to do when the current bio, range or claim comes to its end; Commands has the meaning. */
  step = 0;
  /** How it ended: errno, and the first sector that failed (-1: not known). */
  errno = 0;
  errorSector = -1;
  /** Of a READ that failed: bytes from its beginning that are good all the same. */
  goodByteLength = 0;
  /** A part that is to end with EOPNOTSUPP. */
  isRefused = false;
  /** A READ's reply, header first, or a WRITE's gathered data; null where there is neither. */
  buffer: PooledBuffer | null = null;
  /** What a WRITE's data arrived in, where it uses it there. */
  inbox: PooledBuffer | null = null;
  /** Where in `buffer` this request's region begins and ends, and the first byte that was asked for. */
  start = 0;
  end = 0;
  dataStart = 0;
  /** The blocks at both ends of a write of part of a block. */
  edges: PooledBuffer | null = null;
  /** Received memory that a WRITE uses where it is. */
  chargedByteLength = 0;
  /** Between the submission and its end. */
  isSubmitted = false;
  /** Its device threw: nobody knows whether it will still end. */
  isLost = false;
  /** The request that this is a part of. */
  parent: Request | null = null;
  /** Parts that are under way, and whether more are to come. */
  partCount = 0;
  isComplete = true;
  readonly #vec: BioVec = { page: NO_MEMORY, offset: 0, byteLength: 0 };
  readonly #one: readonly BioVec[] = [this.#vec];

  constructor(onBioEnd: (request: Request) => void) {
    this.bio.onEnd = () => onBioEnd(this);
  }

  get isFua(): boolean {
    return (this.flags & CMD_FLAG_FUA) !== 0;
  }

  /** The memory of the bio: one piece. */
  setMemory(page: Uint8Array, offset: number, byteLength: number): void {
    this.#vec.page = page;
    this.#vec.offset = offset;
    this.#vec.byteLength = byteLength;
    this.bio.vecs = this.#one;
  }

  /** Other memory for the bio for now; that of the request stays for {@link wrapMemory}. */
  setEdgeMemory(page: Uint8Array, offset: number, byteLength: number): void {
    this.bio.vecs = [{ page, offset, byteLength }];
  }

  /** Puts pieces around the request's memory; a length of 0 leaves one out. */
  wrapMemory(page: Uint8Array, head: number, tailOffset: number, tailByteLength: number): void {
    const vecs: BioVec[] = [this.#vec];
    if (head > 0) vecs.unshift({ page, offset: 0, byteLength: head });
    if (tailByteLength > 0) vecs.push({ page, offset: tailOffset, byteLength: tailByteLength });
    this.bio.vecs = vecs;
  }

  /** Makes it as new, and keeps nothing alive while it waits for another use. */
  clear(): void {
    this.buffer = null;
    this.inbox = null;
    this.edges = null;
    this.chargedByteLength = 0;
    this.parent = null;
    this.partCount = 0;
    this.isComplete = true;
    this.isRefused = false;
    this.isExclusive = false;
    this.errno = 0;
    this.errorSector = -1;
    this.goodByteLength = 0;
    this.#vec.page = NO_MEMORY;
    this.bio.release();
  }
}
