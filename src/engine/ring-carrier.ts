// Makes the calls of requests on a ring: the same steps that threads take, each one operation. Nothing is allocated for
// a request once the pools are warm: a request keeps its operation and its iovecs when it goes back to its pool.
import { REQ_OP_READ } from '../block/bio.ts';
import { Errno } from '../block/errno.ts';
import type { Reactor } from '../block/reactor.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { addressOfView, type IovecArray, setIovec } from './cursor.ts';
import type { Libc } from './libc.ts';
import { Ring, type RingCounters, RingOperation } from './ring.ts';
import type { FileRequest } from './threads.ts';
import {
  IORING_FSYNC_DATASYNC,
  IORING_OP_FALLOCATE,
  IORING_OP_FSYNC,
  IORING_OP_READ,
  IORING_OP_READV,
  IORING_OP_WRITE,
  IORING_OP_WRITEV,
} from './uring.ts';

const FEWEST_IOVECS = 16;
const MAX_ZERO_IOVEC_COUNT = 16;
const WORDS_PER_IOVEC = 4;

/** A pooled request's own operation, and room for its iovecs, which grows. */
export class RequestOperation extends RingOperation {
  iovecs: IovecArray = { words: new Uint32Array(0), address: 0 };

  ensureIovecs(libc: Libc, count: number): IovecArray {
    if (this.iovecs.words.length < count * WORDS_PER_IOVEC) {
      let room = FEWEST_IOVECS;
      while (room < count) room *= 2;
      const words = new Uint32Array(room * WORDS_PER_IOVEC);
      this.iovecs = { words, address: libc.addressOf(words.buffer) };
    }
    return this.iovecs;
  }
}

/** The one ring of an engine set, made when the first request needs it and closed when the last file is. */
export class RingCarrier {
  readonly #libc: Libc;
  readonly #reactor: Pick<Reactor, 'wake'>;
  readonly #entryCount: number | undefined;
  #ring: Ring | null = null;
  #reason: string | null = null;
  #fileCount = 0;

  constructor(libc: Libc, reactor: Pick<Reactor, 'wake'>, entryCount?: number) {
    this.#libc = libc;
    this.#reactor = reactor;
    this.#entryCount = entryCount;
  }

  /**
   * Makes the ring unless there is one.
   *
   * @returns why there can be none; null when there is one
   */
  prepare(): string | null {
    if (this.#reason !== null) return this.#reason;
    if (this.#ring !== null && !this.#ring.closed) return null;
    const calls = this.#libc.uring();
    if (calls === null) {
      this.#reason = "koffi can't watch a descriptor in this thread";
      return this.#reason;
    }
    const options = { calls, reactor: this.#reactor };
    const made = Ring.make(this.#entryCount === undefined ? options : { ...options, entryCount: this.#entryCount });
    if (made instanceof Ring) this.#ring = made;
    else this.#reason = made.reason;
    return this.#reason;
  }

  /** Null before the first use, and when the ring was closed with the last file. */
  get counters(): RingCounters | null {
    return this.#ring?.counters ?? null;
  }

  get inFlightCount(): number {
    return this.#ring === null || this.#ring.closed ? 0 : this.#ring.inFlightCount;
  }

  addFile(): void {
    this.#fileCount++;
  }

  dropFile(): void {
    if (--this.#fileCount === 0) this.close();
  }

  /** Closes the ring once nothing is in flight. The next request makes another. */
  close(): void {
    if (this.#ring !== null && !this.#ring.closed) this.#ring.close();
  }

  /** As {@link Ring.wait}. */
  wait(): boolean {
    return this.inFlightCount > 0 && this.#ring!.wait();
  }

  /** Moves a chunk of the request's data: `bounceByteLength` bytes of its buffer, or what its memory has next. */
  transfer(request: FileRequest, bounceByteLength: number): void {
    const { bio, bounce, cursor } = request;
    const isRead = bio.op === REQ_OP_READ;
    const operation = this.#operationOf(request);
    operation.setOffset(bio.sector, cursor.doneByteLength);
    operation.flags = 0;
    if (bounce !== null) {
      operation.opcode = isRead ? IORING_OP_READ : IORING_OP_WRITE;
      operation.address = addressOfView(this.#libc, bounce);
      operation.length = bounceByteLength;
    } else if (cursor.isOnePiece) {
      operation.opcode = isRead ? IORING_OP_READ : IORING_OP_WRITE;
      operation.address = cursor.addressOfFirst(this.#libc);
      operation.length = cursor.chunkByteLength;
    } else {
      operation.opcode = isRead ? IORING_OP_READV : IORING_OP_WRITEV;
      const iovecs = operation.ensureIovecs(this.#libc, cursor.maxChunkPieceCount);
      operation.address = iovecs.address;
      operation.length = cursor.fillIovec(this.#libc, iovecs);
    }
    // The memory was checked before; 0 is what an address or a count is for memory that has gone since.
    if (operation.address === 0 || operation.length === 0) request.onCall(Errno.EFAULT, 0);
    else this.#ring!.start(operation);
  }

  dataSync(request: FileRequest): void {
    const operation = this.#operationOf(request);
    operation.opcode = IORING_OP_FSYNC;
    operation.setOffset(0, 0);
    operation.address = 0;
    operation.length = 0;
    operation.flags = IORING_FSYNC_DATASYNC;
    this.#ring!.start(operation);
  }

  /** Below 2^53 bytes. */
  fallocate(request: FileRequest, mode: number): void {
    const { bio } = request;
    const operation = this.#operationOf(request);
    operation.opcode = IORING_OP_FALLOCATE;
    operation.setOffset(bio.sector, 0);
    operation.address = bio.sectorCount * SECTOR_SIZE;
    operation.length = mode;
    operation.flags = 0;
    this.#ring!.start(operation);
  }

  /** Writes the next zeroes, out of memory that is full of them. */
  writeZeroes(request: FileRequest, zeroes: Uint8Array): void {
    const { bio } = request;
    const operation = this.#operationOf(request);
    const iovecs = operation.ensureIovecs(this.#libc, MAX_ZERO_IOVEC_COUNT);
    operation.opcode = IORING_OP_WRITEV;
    operation.setOffset(bio.sector, request.zeroedByteLength);
    operation.address = iovecs.address;
    operation.length = this.#fillZeroes(iovecs, zeroes, bio.byteLength - request.zeroedByteLength);
    operation.flags = 0;
    this.#ring!.start(operation);
  }

  #fillZeroes(iovecs: IovecArray, zeroes: Uint8Array, byteLength: number): number {
    const address = addressOfView(this.#libc, zeroes);
    let count = 0;
    for (let left = byteLength; left > 0 && count < MAX_ZERO_IOVEC_COUNT; left -= zeroes.byteLength) {
      setIovec(iovecs.words, count++, address, Math.min(left, zeroes.byteLength));
    }
    return count;
  }

  #operationOf(request: FileRequest): RequestOperation {
    request.operation ??= new RequestOperation((result) => {
      request.onCall(Math.max(0, -result), Math.max(0, result));
    });
    const { operation } = request;
    operation.fd = request.file.fd;
    return operation;
  }
}
