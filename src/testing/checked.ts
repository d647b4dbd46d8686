// A witness in front of a device under test: it looks like the device, and notes whatever breaks the contract of
// BlockDevice and Bio. Memory is swapped for memory of its own, with guards around it, so that it sees who writes where.
import { Bio, type BioVec, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, walkMemory } from '../block/bio.ts';
import { type BlockDevice, type ExtentCallback, queryExtent } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { equalBytes } from './disk-image.ts';
import { type Random, randomBytes, randomFromSeed } from './random.ts';
import { describeRequest } from './request.ts';
import { endLike, WrappingDevice } from './wrapping-device.ts';

const GUARD_BYTE_LENGTH = 64;
const GUARD_BYTE = 0xa7;
const POISON_BYTE = 0xd5;
/** Memory of ended requests that is watched for late writes, newest first. */
const MAX_WATCHED_COUNT = 256;
const MAX_WATCHED_BYTE_LENGTH = 16 * 1024 * 1024;

/** The witness's own request: it hears of every end, the second one included. */
class WitnessBio extends Bio {
  onSecondEnd: () => void = () => {};
  endCount = 0;

  override endIo(errno: number): void {
    if (++this.endCount > 1) this.onSecondEnd();
    super.endIo(errno);
  }
}

/** Memory in the shape of a bio's pieces, each between guards. */
class GuardedMemory {
  readonly vecs: BioVec[] = [];
  readonly bytes: Uint8Array;

  constructor(bio: Bio) {
    const byteLengths: number[] = [];
    walkMemory(bio, 0, bio.byteLength, (piece) => byteLengths.push(piece.byteLength));
    let offset = GUARD_BYTE_LENGTH;
    for (const byteLength of byteLengths) offset += byteLength + GUARD_BYTE_LENGTH;
    this.bytes = new Uint8Array(offset).fill(GUARD_BYTE);
    offset = GUARD_BYTE_LENGTH;
    for (const byteLength of byteLengths) {
      this.vecs.push({ page: this.bytes, offset, byteLength });
      offset += byteLength + GUARD_BYTE_LENGTH;
    }
  }

  pieces(): Uint8Array[] {
    return this.vecs.map(({ offset, byteLength }) => this.bytes.subarray(offset, offset + byteLength));
  }

  get guardsAreWhole(): boolean {
    let start = 0;
    for (const { offset, byteLength } of [...this.vecs, { offset: this.bytes.byteLength, byteLength: 0 }]) {
      if (!isFilledWith(this.bytes.subarray(start, offset), GUARD_BYTE)) return false;
      start = offset + byteLength;
    }
    return true;
  }
}

/** Compares the bytes with themselves, one further on: all are alike. */
function isFilledWith(bytes: Uint8Array, value: number): boolean {
  return bytes[0] === value && equalBytes(bytes.subarray(1), bytes.subarray(0, -1));
}

interface Watched {
  readonly words: string;
  readonly bytes: Uint8Array;
}

/**
 * Wraps `device`, and notes in {@link CheckedDevice.violations} when
 *
 * - a request ends twice, or (by {@link CheckedDevice.check}) never,
 * - the device changes the request, or the memory of a write,
 * - it writes outside the memory of a read, or ends a read as successful without filling it,
 * - it writes to memory after the end,
 * - a failure names a sector outside the request, or a status is no errno,
 * - a request that reaches past the end, or an empty one, gets to it (the caller went around submitBio),
 * - an extent is empty or longer than asked for, or is reported twice.
 *
 * A device that reads the memory of a write after its end gets 0xd5 bytes. A failed read leaves such bytes, too.
 *
 * @example
 * ```ts
 * import assert from 'node:assert/strict';
 * import { MemoryDevice } from 'dmkit';
 * import { checkedDevice, issue } from 'dmkit/testing';
 *
 * const device = checkedDevice(new MemoryDevice('memory', 64));
 * issue(device, 'write', { sector: 1, data: new Uint8Array(1024).fill(1) });
 * assert.equal(issue(device, 'read', { sector: 2, sectorCount: 1 }).data[0], 1);
 * device.check(); // throws where anything was wrong
 * ```
 */
export function checkedDevice(device: BlockDevice): CheckedDevice {
  return new CheckedDevice(device);
}

/** See {@link checkedDevice}. */
export class CheckedDevice extends WrappingDevice {
  readonly #violations: Error[] = [];
  #watched: Watched[] = [];
  #watchedByteLength = 0;
  readonly #inFlight = new Set<Bio>();
  readonly #random: Random = randomFromSeed(1);

  get inFlightCount(): number {
    return this.#inFlight.size;
  }

  /** What was wrong so far; the stack of each shows who did it, where that is known. */
  get violations(): readonly Error[] {
    return this.#violations;
  }

  /**
   * To be called when the device should be idle.
   *
   * @throws Error that lists every violation, and what is in flight
   */
  check(): void {
    for (const watched of this.#watched) this.#checkPoison(watched);
    this.#watched = [];
    this.#watchedByteLength = 0;
    const lines = this.#violations.map((violation) => violation.message);
    for (const bio of this.#inFlight) lines.push(`${describeRequest(bio)} has not ended`);
    if (lines.length === 0) return;
    throw new Error(`${this.name} breaks the contract:\n  ${lines.join('\n  ')}`, { cause: this.#violations[0] });
  }

  submit(bio: Bio): void {
    const flush = bio.op === REQ_OP_FLUSH;
    const { sectorCount } = this.device;
    if (
      !flush &&
      (bio.sectorCount > sectorCount || bio.sector > sectorCount - bio.sectorCount || bio.sectorCount < 1)
    ) {
      this.#note(bio, `was submitted to a device of ${sectorCount} sectors`);
      bio.fail(Errno.EIO, this);
      return;
    }
    const pattern = bio.op === REQ_OP_READ ? randomBytes(this.#random, SECTOR_SIZE) : null;
    const memory = bio.hasData ? new GuardedMemory(bio) : null;
    const witness = new WitnessBio();
    witness.reset(bio.op, bio.flags, this.device, bio.sector, bio.sectorCount);
    if (memory !== null) witness.vecs = memory.vecs;
    if (memory !== null && bio.op === REQ_OP_WRITE) copyOut(bio, memory);
    if (memory !== null && pattern !== null) fillWithPattern(memory, pattern);
    witness.onSecondEnd = () => this.#note(bio, 'ended twice');
    witness.onEnd = () => this.#onEnd(pattern, bio, witness, memory);
    this.#inFlight.add(bio);
    this.device.submit(witness);
  }

  override queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    let answerCount = 0;
    queryExtent(this.device, sector, sectorCount, (errno, count, flags, depth) => {
      const what = `the extent at ${sector}+${sectorCount}`;
      if (++answerCount > 1) this.#add(`${what} was reported twice`);
      if (errno === 0 && !(Number.isSafeInteger(count) && count >= 1 && count <= sectorCount)) {
        this.#add(`${what} was reported as ${count} sectors`);
      }
      if (answerCount === 1) done(errno, count, flags, depth);
    });
  }

  #onEnd(pattern: Uint8Array | null, bio: Bio, witness: WitnessBio, memory: GuardedMemory | null): void {
    this.#inFlight.delete(bio);
    this.#checkRequest(bio, witness, memory);
    if (memory !== null) {
      this.#checkMemory(pattern, bio, witness, memory);
      this.#watch(bio, memory);
    }
    endLike(bio, witness);
  }

  #checkRequest(bio: Bio, witness: Bio, memory: GuardedMemory | null): void {
    const same =
      witness.op === bio.op &&
      witness.flags === bio.flags &&
      witness.sector === bio.sector &&
      witness.sectorCount === bio.sectorCount &&
      witness.device === this.device;
    if (!same) this.#note(bio, `was changed into ${describeRequest(witness)}`);
    if (memory !== null && (witness.vecs !== memory.vecs || witness.vecIndex !== 0 || witness.vecOffset !== 0)) {
      this.#note(bio, 'had its memory list or its iterator changed');
    }
    const { status, errorSector } = witness;
    if (!Number.isInteger(status) || status < 0 || status > 4095) this.#note(bio, `ended with the status ${status}`);
    if (status === 0 || bio.op === REQ_OP_FLUSH || errorSector === -1) return;
    if (!(errorSector >= bio.sector && errorSector < bio.sector + bio.sectorCount)) {
      this.#note(bio, `failed at sector ${errorSector}`);
    }
  }

  #checkMemory(pattern: Uint8Array | null, bio: Bio, witness: Bio, memory: GuardedMemory): void {
    if (!memory.guardsAreWhole) this.#note(bio, 'wrote outside its memory');
    if (bio.op === REQ_OP_WRITE) {
      if (!sameBytes(bio, memory))
        this.#note(bio, 'is a write, and its memory was changed, by the device or the caller');
    } else if (witness.status === 0) {
      const sector = unfilledSector(memory, pattern!);
      if (sector >= 0) this.#note(bio, `ended as successful without filling sector ${bio.sector + sector}`);
      copyIn(bio, memory);
    } else {
      walkMemory(bio, 0, bio.byteLength, (piece) => piece.fill(POISON_BYTE));
    }
  }

  #watch(bio: Bio, memory: GuardedMemory): void {
    memory.bytes.fill(POISON_BYTE);
    this.#watched.push({ words: describeRequest(bio), bytes: memory.bytes });
    this.#watchedByteLength += memory.bytes.byteLength;
    while (this.#watched.length > MAX_WATCHED_COUNT || this.#watchedByteLength > MAX_WATCHED_BYTE_LENGTH) {
      const oldest = this.#watched.shift()!;
      this.#watchedByteLength -= oldest.bytes.byteLength;
      this.#checkPoison(oldest);
    }
  }

  #checkPoison({ words, bytes }: Watched): void {
    if (!isFilledWith(bytes, POISON_BYTE)) this.#add(`${words} had its memory written to after its end`);
  }

  #note(bio: Bio, problem: string): void {
    this.#add(`${describeRequest(bio)} ${problem}`);
  }

  #add(problem: string): void {
    this.#violations.push(new Error(problem));
  }
}

function copyOut(bio: Bio, memory: GuardedMemory): void {
  const pieces = memory.pieces();
  let index = 0;
  walkMemory(bio, 0, bio.byteLength, (piece) => pieces[index++]!.set(piece));
}

function copyIn(bio: Bio, memory: GuardedMemory): void {
  const pieces = memory.pieces();
  let index = 0;
  walkMemory(bio, 0, bio.byteLength, (piece) => piece.set(pieces[index++]!));
}

function sameBytes(bio: Bio, memory: GuardedMemory): boolean {
  const pieces = memory.pieces();
  let index = 0;
  let same = true;
  walkMemory(bio, 0, bio.byteLength, (piece) => {
    same &&= equalBytes(piece, pieces[index++]!);
  });
  return same;
}

/** What a read's memory holds before, sector after sector: no data is like it. */
function fillWithPattern(memory: GuardedMemory, pattern: Uint8Array): void {
  let offset = 0;
  for (const piece of memory.pieces()) {
    for (let i = 0; i < piece.byteLength; i++) piece[i] = pattern[offset++ % SECTOR_SIZE]!;
  }
}

/** The first sector that still holds the pattern whole; -1 for none. */
function unfilledSector(memory: GuardedMemory, pattern: Uint8Array): number {
  let offset = 0;
  let untouched = 0;
  for (const piece of memory.pieces()) {
    for (const byte of piece) {
      if (byte === pattern[offset % SECTOR_SIZE]) untouched++;
      if (++offset % SECTOR_SIZE !== 0) continue;
      if (untouched === SECTOR_SIZE) return offset / SECTOR_SIZE - 1;
      untouched = 0;
    }
  }
  return -1;
}
