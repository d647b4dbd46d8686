// One request between its header and its reply. Requests are used again: a busy connection makes none.
import { Bio, type BioVec } from '../../block/bio.ts';
import type { RangeRequest } from '../../block/zeroout.ts';
import type { PooledBuffer } from './buffer-pool.ts';

const NO_MEMORY = new Uint8Array(0);

export class Request {
  readonly bio = new Bio();
  /** For commands that may take several bios; made when the first such command comes. */
  range: RangeRequest | null = null;
  command = 0;
  /** Command flags. */
  flags = 0;
  cookieHigh = 0;
  cookieLow = 0;
  byteLength = 0;
  /** A READ's reply, header first, or a WRITE's gathered data; null where there is neither. */
  buffer: PooledBuffer | null = null;
  /** Where in `buffer` this request's region begins. */
  start = 0;
  /** Received memory that a WRITE uses where it is. */
  chargedByteLength = 0;
  /** Between the submission and its end. */
  isSubmitted = false;
  /** Its device threw: nobody knows whether it will still end. */
  isLost = false;
  readonly #vec: BioVec = { page: NO_MEMORY, offset: 0, byteLength: 0 };
  readonly #vecs: readonly BioVec[] = [this.#vec];

  constructor(onEnd: (request: Request) => void) {
    this.bio.onEnd = () => onEnd(this);
  }

  /** The memory of the bio: one piece. */
  setMemory(page: Uint8Array, offset: number, byteLength: number): void {
    this.#vec.page = page;
    this.#vec.offset = offset;
    this.#vec.byteLength = byteLength;
    this.bio.vecs = this.#vecs;
  }

  /** Keeps nothing alive while the request waits for another use. */
  forgetMemory(): void {
    this.#vec.page = NO_MEMORY;
    this.bio.release();
  }
}
