// What stands in a snapshot's store, as the digits that `poke` takes.

function littleEndian(value: number, byteLength: number): string {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes.toString('hex', 0, byteLength);
}

/** A header's four words. */
export function header({ magic = 0x70416e53, valid = 1, version = 1, chunk = 8 }): string {
  return [magic, valid, version, chunk].map((word) => littleEndian(word, 4)).join('');
}

/** Records, each an old chunk and the new one. */
export function records(...pairs: readonly (readonly [number, number])[]): string {
  return pairs.map(([oldChunk, newChunk]) => littleEndian(oldChunk, 8) + littleEndian(newChunk, 8)).join('');
}
