// One request of the client between its sending and its end, with what its replies have brought so far.
import { MalformedError } from '../protocol/info.ts';
import { MAX_SCATTERED_PIECE_COUNT } from './bounds.ts';

/**
 * Called once when a request has ended: 0, or the errno that the server (or the loss of it) gave; with it the first byte
 * that failed, where the server says so, else -1.
 */
export type RequestCallback = (errno: number, errorOffset: number) => void;

const NO_DATA = new Uint8Array(0);

export class PendingRequest {
  /** What the server calls it, once it is sent. */
  cookie = 0;
  command = 0;
  flags = 0;
  offset = 0;
  byteLength = 0;
  /** A READ's destination or a WRITE's data. */
  data: Uint8Array = NO_DATA;
  done: RequestCallback = () => {};
  errno = 0;
  errorOffset = -1;
  /** What BLOCK_STATUS brought: lengths in bytes and flags, one after the other. */
  extents: number[] = [];
  /** Starts and ends of what has arrived, in order, neighbours joined: for a server whose pieces overlap or are not all. */
  readonly #pieces: number[] = [];

  /** An error that is not the first is none that counts; the first byte that failed does. */
  fail(errno: number, errorOffset: number): void {
    if (this.errno === 0) this.errno = errno;
    if (errorOffset >= 0 && (this.errorOffset < 0 || errorOffset < this.errorOffset)) this.errorOffset = errorOffset;
  }

  /** Takes note of a piece of a READ's data. @throws MalformedError where it is not inside, or was there already */
  addPiece(offset: number, byteLength: number): void {
    const start = offset - this.offset;
    const end = start + byteLength;
    if (!(start >= 0 && byteLength > 0 && end <= this.byteLength))
      throw new MalformedError('data that was not asked for');
    const pieces = this.#pieces;
    let at = pieces.length;
    while (at > 0 && pieces[at - 2]! >= end) at -= 2;
    if (at > 0 && pieces[at - 1]! > start) throw new MalformedError('data that was sent already');
    if (at > 0 && pieces[at - 1] === start) pieces[at - 1] = end;
    else if (at < pieces.length && pieces[at] === end) pieces[at] = start;
    else pieces.splice(at, 0, start, end);
    if (pieces.length > 2 * MAX_SCATTERED_PIECE_COUNT) throw new MalformedError('data in too many pieces');
  }

  /** Whether all of a READ's data has arrived. */
  get isWhole(): boolean {
    if (this.byteLength === 0) return true;
    let covered = 0;
    for (let i = 0; i < this.#pieces.length; i += 2) covered += this.#pieces[i + 1]! - this.#pieces[i]!;
    return covered === this.byteLength;
  }
}
