// Which chunk of the origin lives where in the store: the exceptions that are complete, in memory.
//
// An open-addressed hash table in typed arrays, 8 bytes a slot (12 or 16 where chunk numbers pass 2^32), between three
// eighths and three quarters full: a million exceptions take 16 MiB. Nothing is allocated for an exception.

const MIN_SLOT_COUNT = 64;
const WORD = 2 ** 32;
/** Fibonacci hashing: consecutive chunks spread over the whole table. */
const HASH_FACTOR = 0x9e3779b1;
const HIGH_FACTOR = 0x85ebca6b;

/** A map from chunk to chunk. Chunk numbers are whole numbers up to 2^53 - 2. */
export class ExceptionTable {
  #count = 0;
  #slotCount = MIN_SLOT_COUNT;
  #shift = 26;
  /** The low words of old chunks. */
  #old = new Uint32Array(MIN_SLOT_COUNT);
  /** The low words of new chunks plus one, so that a slot of zeroes is a free one. */
  #new = new Uint32Array(MIN_SLOT_COUNT);
  // The high words, from the first chunk number on that has one.
  #oldHigh: Uint32Array | null = null;
  #newHigh: Uint32Array | null = null;

  /** How many exceptions there are. */
  get size(): number {
    return this.#count;
  }

  /** Bytes that the table takes. */
  get byteLength(): number {
    return (
      this.#old.byteLength + this.#new.byteLength + (this.#oldHigh?.byteLength ?? 0) + (this.#newHigh?.byteLength ?? 0)
    );
  }

  /** The new chunk for an old one; -1 where there is no exception. */
  get(oldChunk: number): number {
    const slot = this.#find(oldChunk);
    return this.#isFree(slot) ? -1 : this.#newChunk(slot);
  }

  /** @returns false where the old chunk has an exception already, which stays */
  add(oldChunk: number, newChunk: number): boolean {
    if ((this.#count + 1) * 4 > this.#slotCount * 3) this.#grow();
    const slot = this.#find(oldChunk);
    if (!this.#isFree(slot)) return false;
    this.#put(slot, oldChunk, newChunk);
    this.#count++;
    return true;
  }

  /** @returns false where there was none */
  delete(oldChunk: number): boolean {
    let hole = this.#find(oldChunk);
    if (this.#isFree(hole)) return false;
    // What follows and may live nearer to its own place moves up, so that no search ends at the hole.
    const mask = this.#slotCount - 1;
    for (let slot = (hole + 1) & mask; !this.#isFree(slot); slot = (slot + 1) & mask) {
      const home = this.#home(this.#old[slot]!, this.#oldHigh === null ? 0 : this.#oldHigh[slot]!);
      if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
      this.#move(slot, hole);
      hole = slot;
    }
    this.#new[hole] = 0;
    if (this.#newHigh !== null) this.#newHigh[hole] = 0;
    this.#count--;
    return true;
  }

  /** In no order. The table must not change meanwhile. */
  forEach(visit: (oldChunk: number, newChunk: number) => void): void {
    for (let slot = 0; slot < this.#slotCount; slot++) {
      if (!this.#isFree(slot)) visit(this.#oldChunk(slot), this.#newChunk(slot));
    }
  }

  #home(low: number, high: number): number {
    return ((Math.imul(low, HASH_FACTOR) ^ Math.imul(high, HIGH_FACTOR)) >>> 0) >>> this.#shift;
  }

  /** The slot of an old chunk, or the free one where it would go. */
  #find(oldChunk: number): number {
    const low = oldChunk >>> 0;
    const high = oldChunk < WORD ? 0 : Math.floor(oldChunk / WORD);
    const mask = this.#slotCount - 1;
    let slot = this.#home(low, high);
    while (!this.#isFree(slot)) {
      if (this.#old[slot] === low && (this.#oldHigh === null ? 0 : this.#oldHigh[slot]) === high) break;
      slot = (slot + 1) & mask;
    }
    return slot;
  }

  #isFree(slot: number): boolean {
    return this.#new[slot] === 0 && (this.#newHigh === null || this.#newHigh[slot] === 0);
  }

  #oldChunk(slot: number): number {
    return this.#oldHigh === null ? this.#old[slot]! : this.#oldHigh[slot]! * WORD + this.#old[slot]!;
  }

  #newChunk(slot: number): number {
    return (this.#newHigh === null ? 0 : this.#newHigh[slot]! * WORD) + this.#new[slot]! - 1;
  }

  #put(slot: number, oldChunk: number, newChunk: number): void {
    const stored = newChunk + 1;
    this.#old[slot] = oldChunk >>> 0;
    this.#new[slot] = stored >>> 0;
    if (oldChunk >= WORD) this.#oldHigh ??= new Uint32Array(this.#slotCount);
    if (stored >= WORD) this.#newHigh ??= new Uint32Array(this.#slotCount);
    if (this.#oldHigh !== null) this.#oldHigh[slot] = Math.floor(oldChunk / WORD);
    if (this.#newHigh !== null) this.#newHigh[slot] = Math.floor(stored / WORD);
  }

  #move(from: number, to: number): void {
    this.#old[to] = this.#old[from]!;
    this.#new[to] = this.#new[from]!;
    if (this.#oldHigh !== null) this.#oldHigh[to] = this.#oldHigh[from]!;
    if (this.#newHigh !== null) this.#newHigh[to] = this.#newHigh[from]!;
  }

  #grow(): void {
    const before = { old: this.#old, new: this.#new, oldHigh: this.#oldHigh, newHigh: this.#newHigh };
    this.#slotCount *= 2;
    this.#shift--;
    this.#old = new Uint32Array(this.#slotCount);
    this.#new = new Uint32Array(this.#slotCount);
    this.#oldHigh = before.oldHigh === null ? null : new Uint32Array(this.#slotCount);
    this.#newHigh = before.newHigh === null ? null : new Uint32Array(this.#slotCount);
    for (let slot = 0; slot < before.old.length; slot++) {
      const stored = (before.newHigh === null ? 0 : before.newHigh[slot]! * WORD) + before.new[slot]!;
      if (stored === 0) continue;
      const oldChunk = (before.oldHigh === null ? 0 : before.oldHigh[slot]! * WORD) + before.old[slot]!;
      this.#put(this.#find(oldChunk), oldChunk, stored - 1);
    }
  }
}
