// Discards with `discard_zeroes_cow`: a chunk that is covered as a whole and has an exception is zeroed, one that is
// covered in part is passed on, one without an exception stays the origin's. Chunks are not given back.
import type { Bio } from '../../block/bio.ts';
import type { Reactor } from '../../block/reactor.ts';
import { RangeRequest } from '../../block/zeroout.ts';
import type { SnapshotState } from './state.ts';

interface Piece {
  sector: number;
  sectorCount: number;
  whole: boolean;
}

/** The parts of the store that a discard of `bio`'s range is about. */
function piecesOf(state: SnapshotState, bio: Bio): Piece[] {
  const size = state.chunkSectorCount;
  const first = Math.floor(bio.sector / size);
  const end = bio.sector + bio.sectorCount;
  const last = Math.floor((end - 1) / size);
  const pieces: Piece[] = [];
  const add = (chunk: number, newChunk: number): void => {
    if (newChunk < 0 || chunk < first || chunk > last) return;
    const from = Math.max(bio.sector, chunk * size);
    const to = Math.min(end, (chunk + 1) * size);
    pieces.push({ sector: newChunk * size + (from % size), sectorCount: to - from, whole: to - from === size });
  };
  // Of a huge range over few exceptions the exceptions are walked.
  if (last - first > state.exceptions.size) state.exceptions.forEach(add);
  else for (let chunk = first; chunk <= last; chunk++) add(chunk, state.exceptions.get(chunk));
  return pieces;
}

/** Does the discard and ends `bio`. */
export function discardChunks(state: SnapshotState, reactor: Reactor, bio: Bio): void {
  const pieces = piecesOf(state, bio);
  const { device } = state.store;
  const request = new RangeRequest(reactor);
  let at = 0;
  const next = (errno: number): void => {
    const piece = pieces[at++];
    if (errno !== 0) bio.fail(errno, device, request.errorSector);
    else if (piece === undefined) bio.endIo(0);
    else if (piece.whole) request.zeroOut(device, piece.sector, piece.sectorCount, {}, next);
    else request.discard(device, piece.sector, piece.sectorCount, false, next);
  };
  next(0);
}
