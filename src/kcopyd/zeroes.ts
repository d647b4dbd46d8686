// Zeroes for devices that have no write-zeroes: one small buffer, as often as it takes.

import type { BioVec } from '../block/bio.ts';
import type { DmIoMemory } from '../dm-io/index.ts';
import { ownMemory } from '../engine/address.ts';

const ZEROES_BYTE_LENGTH = 65536;
let piece: BioVec | null = null;

export function zeroMemory(byteLength: number): DmIoMemory {
  piece ??= { page: ownMemory(new Uint8Array(ZEROES_BYTE_LENGTH)), offset: 0, byteLength: ZEROES_BYTE_LENGTH };
  return { type: 'bvec', vecs: new Array<BioVec>(Math.ceil(byteLength / ZEROES_BYTE_LENGTH)).fill(piece) };
}
