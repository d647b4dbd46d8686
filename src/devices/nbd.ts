// An export of an NBD server as a device, so that a source or a leg may be on another machine.
import {
  type Bio,
  copyFromMemory,
  copyToMemory,
  hasMemory,
  REQ_FUA,
  REQ_NOFALLBACK,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
  walkMemory,
} from '../block/bio.ts';
import { type BlockDevice, EXTENT_DATA, type ExtentCallback } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { defaultLimits, type QueueLimits } from '../block/limits.ts';
import type { Reactor, Transport, TransportSecurity } from '../block/reactor.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { canHold, ownMemory } from '../engine/address.ts';
import type { NbdClient } from '../nbd/client/client.ts';
import type { NbdExportDetails } from '../nbd/client/handshake.ts';
import {
  TRANSMISSION_READ_ONLY,
  TRANSMISSION_SEND_FAST_ZERO,
  TRANSMISSION_SEND_FLUSH,
  TRANSMISSION_SEND_FUA,
  TRANSMISSION_SEND_TRIM,
  TRANSMISSION_SEND_WRITE_ZEROES,
} from '../nbd/protocol/constants.ts';
import { type NbdLinkState, NbdLinks, type NbdReconnectOptions, type Sendable } from './nbd-links.ts';

export interface NbdDeviceOptions {
  reactor: Reactor;
  /** Makes a connection to the server; called again after a loss. */
  connect(done: (error: Error | null, transport: Transport | null) => void): void;
  exportName: string;
  /** For TLS. */
  security?: TransportSecurity | null;
  /** Connections, where the server allows several: 4 unless given. */
  connectionCount?: number;
  /** Nothing can be written, whatever the server allows. */
  readOnly?: boolean;
  reconnect?: NbdReconnectOptions;
  /** Told when the connection is lost, back, or given up; `error` says why it was. */
  onState?: (state: NbdLinkState, error: DmError | null) => void;
}

/** Ranges without data: 1 GiB, so that a server that zeroes slowly answers from time to time. */
const MAX_RANGE_BYTE_LENGTH = 2 ** 30;
/** What goes over the wire in one request at the most. */
const MAX_DATA_BYTE_LENGTH = 2 ** 20;
/** Pieces of memory from this length on are requests of their own; shorter ones are copied together. */
const MIN_DIRECT_BYTE_LENGTH = 32768;

type Send = (client: NbdClient, done: (errno: number, errorOffset: number) => void) => void;

function limitsOf(details: NbdExportDetails): QueueLimits {
  const has = (flag: number): boolean => (details.transmissionFlags & flag) !== 0;
  const limits = defaultLimits();
  const { blockSizes } = details;
  if (blockSizes !== null) {
    limits.logicalBlockSize = Math.max(SECTOR_SIZE, blockSizes.minimum);
    limits.physicalBlockSize = Math.max(limits.logicalBlockSize, blockSizes.preferred);
    limits.ioMin = limits.physicalBlockSize;
  }
  limits.hasWriteCache = has(TRANSMISSION_SEND_FLUSH);
  limits.hasFua = has(TRANSMISSION_SEND_FUA);
  const most = MAX_RANGE_BYTE_LENGTH / SECTOR_SIZE;
  limits.maxWriteZeroesSectorCount = has(TRANSMISSION_SEND_WRITE_ZEROES) ? most : 0;
  limits.maxDiscardSectorCount = has(TRANSMISSION_SEND_TRIM) ? most : 0;
  if (has(TRANSMISSION_SEND_TRIM)) limits.discardGranularity = limits.logicalBlockSize;
  return limits;
}

/** One bio under way: its requests, and the flushes around them. */
class Work {
  readonly bio: Bio;
  pending = 0;
  errno = 0;
  /** First byte of the device that failed, as far as it is known. */
  errorOffset = Number.POSITIVE_INFINITY;
  next: (() => void) | null = null;

  constructor(bio: Bio) {
    this.bio = bio;
  }

  note(errno: number, offset: number): void {
    if (errno === 0 || (this.errno !== 0 && offset >= this.errorOffset)) return;
    this.errno = errno;
    this.errorOffset = offset;
  }
}

/**
 * An export of an NBD server. Its requests never end inside submit(). A connection that is lost comes back by itself,
 * and what was in flight is sent again; where writes had been acknowledged and not flushed by then, the next flush fails
 * with EIO, because a server that was restarted may have lost them.
 *
 * @example
 * ```ts
 * import { DeviceMapper } from 'dmkit';
 *
 * const dm = new DeviceMapper();
 * const disk = await dm.create('overlay', '0 204800 snapshot nbd://golden.example/debian overlay.cow P 16');
 * await dm.close();
 * ```
 */
export class NbdDevice implements BlockDevice {
  /** The URI. */
  readonly name: string;
  readonly exportName: string;
  readonly sectorCount: number;
  readonly readOnly: boolean;
  readonly limits: QueueLimits;
  readonly #links: NbdLinks;
  readonly #maxDataByteLength: number;
  /** Writes were acknowledged since the last flush. */
  #isDirty = false;
  /** Flushes under way that cover such writes. */
  #dirtyFlushCount = 0;
  /** How often a connection was lost with such writes, and how many of these losses a flush has told. */
  #lossCount = 0;
  #toldLossCount = 0;

  /**
   * Connects. `done` is called once.
   *
   * @param name as tables name it
   */
  static open(
    name: string,
    options: NbdDeviceOptions,
    done: (error: Error | null, device: NbdDevice | null) => void,
  ): void {
    let device: NbdDevice | null = null;
    const links = new NbdLinks({
      reactor: options.reactor,
      connect: (connected) => options.connect(connected),
      exportName: options.exportName,
      security: options.security ?? null,
      connectionCount: options.connectionCount ?? 4,
      reconnect: options.reconnect ?? {},
      label: name,
      onConnectionLost: () => device?.onConnectionLost(),
      onState: (state, error) => options.onState?.(state, error),
    });
    links.open((error) => {
      if (error === null) device = new NbdDevice(name, links, options);
      done(error, device);
    });
  }

  private constructor(name: string, links: NbdLinks, { exportName, readOnly = false }: NbdDeviceOptions) {
    const { details } = links;
    this.name = name;
    this.exportName = exportName;
    this.#links = links;
    this.sectorCount = Math.floor(details.byteLength / SECTOR_SIZE);
    this.readOnly = readOnly || (details.transmissionFlags & TRANSMISSION_READ_ONLY) !== 0;
    this.limits = limitsOf(details);
    const most = Math.min(MAX_DATA_BYTE_LENGTH, details.blockSizes?.maximumPayload ?? MAX_DATA_BYTE_LENGTH);
    this.#maxDataByteLength = Math.max(
      this.limits.logicalBlockSize,
      most - (most % Math.max(SECTOR_SIZE, this.limits.logicalBlockSize)),
    );
  }

  /** Why every request fails: the connection is lost for good. Null while the device works. */
  get failure(): DmError | null {
    return this.#links.failure;
  }

  get connectionCount(): number {
    return this.#links.connectionCount;
  }

  /** The export's size. Up to 511 bytes of it may follow the last sector; {@link readBytes} and {@link writeBytes} reach them. */
  get byteLength(): number {
    return this.#links.details.byteLength;
  }

  /** Bytes of the export behind its last whole sector. */
  get cutByteLength(): number {
    return this.byteLength % SECTOR_SIZE;
  }

  /** The server takes requests of single bytes. */
  get takesBytes(): boolean {
    return (this.#links.details.blockSizes?.minimum ?? 1) === 1;
  }

  /** Reads bytes that are no whole sectors, one request's worth. Not to be touched until `done`, which gets an errno. */
  readBytes(offset: number, bytes: Uint8Array, done: (errno: number) => void): void {
    this.#links.submit({ send: (client, sent) => client.read(offset, bytes, sent), end: done });
  }

  /** Writes bytes that are no whole sectors, one request's worth; a flush makes them durable. `done` gets an errno. */
  writeBytes(offset: number, bytes: Uint8Array, done: (errno: number) => void): void {
    this.#links.submit({
      send: (client, sent) => client.write(offset, bytes, false, sent),
      end: (errno) => {
        if (errno === 0) this.#isDirty = true;
        done(errno);
      },
    });
  }

  syncObstacle(): string {
    return `${this.name} is on another machine, or in another process, which must answer`;
  }

  /** Tries to connect again where the connection is lost for good; requests work again where that succeeds. */
  revive(done: (error: Error | null) => void): void {
    this.#links.revive(done);
  }

  /** Waits no longer for a connection that is lost. */
  abandon(): void {
    this.#links.abandon();
  }

  /** Says goodbye; requests under way end first. */
  close(done: () => void): void {
    this.#links.close(done);
  }

  onConnectionLost(): void {
    // A loss may be noticed only when the flush is sent: the writes that it covers count until it has ended.
    if (this.#isDirty || this.#dirtyFlushCount > 0) this.#lossCount++;
  }

  submit(bio: Bio): void {
    const work = new Work(bio);
    const wantsFlushAfter = (bio.flags & REQ_FUA) !== 0 && !this.limits.hasFua && this.limits.hasWriteCache;
    const finish = wantsFlushAfter ? () => this.#flush(work, null) : null;
    if (bio.op === REQ_OP_FLUSH) this.#flush(work, null);
    else if ((bio.flags & REQ_PREFLUSH) !== 0) this.#flush(work, () => this.#run(work, finish));
    else this.#run(work, finish);
  }

  #run(work: Work, next: (() => void) | null): void {
    work.next = next;
    // One more than there are, so that requests that end at once don't end the bio before the last is sent.
    work.pending = 1;
    try {
      if (work.bio.hasData) this.#sendData(work);
      else this.#sendRanges(work);
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      work.note(Errno.EFAULT, work.bio.sector * SECTOR_SIZE);
    }
    this.#ended(work);
  }

  #flush(work: Work, next: (() => void) | null): void {
    work.next = next;
    work.pending = 1;
    const dirtyFlushCount = this.#isDirty ? 1 : 0;
    this.#isDirty = false;
    this.#dirtyFlushCount += dirtyFlushCount;
    const toldLossCount = this.#toldLossCount;
    this.#links.submit({
      send: (client, done) => client.flush(done),
      end: (errno) => {
        this.#dirtyFlushCount -= dirtyFlushCount;
        const lost = this.#lossCount > toldLossCount;
        if (errno !== 0) this.#isDirty = true;
        else this.#toldLossCount = this.#lossCount;
        work.note(errno === 0 && lost ? Errno.EIO : errno, 0);
        this.#ended(work);
      },
    });
  }

  /** Data in requests of what lies together in memory; small pieces are copied together. */
  #sendData(work: Work): void {
    const { bio } = work;
    if (!hasMemory(bio)) {
      work.note(Errno.EFAULT, bio.sector * SECTOR_SIZE);
      return;
    }
    const views: Uint8Array[] = [];
    walkMemory(bio, 0, bio.byteLength, (view) => views.push(view));
    const block = this.limits.logicalBlockSize;
    const isDirect =
      views.length === 1 ||
      views.every((view) => view.byteLength >= MIN_DIRECT_BYTE_LENGTH && view.byteLength % block === 0);
    let at = 0;
    if (isDirect && views.every(canHold)) {
      for (const view of views) {
        for (let start = 0; start < view.byteLength; start += this.#maxDataByteLength) {
          const piece = view.subarray(start, start + this.#maxDataByteLength);
          this.#sendPiece(work, at, piece, null);
          at += piece.byteLength;
        }
      }
      return;
    }
    for (; at < bio.byteLength; at += this.#maxDataByteLength) {
      const piece = ownMemory(new Uint8Array(Math.min(this.#maxDataByteLength, bio.byteLength - at)));
      if (bio.op === REQ_OP_WRITE) copyFromMemory(bio, piece, at);
      const start = at;
      const onRead = (): void => {
        if (hasMemory(bio)) copyToMemory(bio, piece, start);
        else work.note(Errno.EFAULT, bio.sector * SECTOR_SIZE + start);
      };
      this.#sendPiece(work, at, piece, bio.op === REQ_OP_READ ? onRead : null);
    }
  }

  #sendPiece(work: Work, at: number, piece: Uint8Array, onRead: (() => void) | null): void {
    const { bio } = work;
    const offset = bio.sector * SECTOR_SIZE + at;
    const fua = (bio.flags & REQ_FUA) !== 0 && this.limits.hasFua;
    if (bio.op === REQ_OP_READ) this.#send(work, offset, (client, done) => client.read(offset, piece, done), onRead);
    else this.#send(work, offset, (client, done) => client.write(offset, piece, fua, done), null);
  }

  #sendRanges(work: Work): void {
    const { bio } = work;
    const start = bio.sector * SECTOR_SIZE;
    const end = start + bio.byteLength;
    const noHole = (bio.flags & REQ_NOUNMAP) !== 0;
    const knowsFast = (this.#links.details.transmissionFlags & TRANSMISSION_SEND_FAST_ZERO) !== 0;
    const fast = (bio.flags & REQ_NOFALLBACK) !== 0 && knowsFast;
    for (let at = start; at < end; at += MAX_RANGE_BYTE_LENGTH) {
      const offset = at;
      const byteLength = Math.min(MAX_RANGE_BYTE_LENGTH, end - at);
      if (bio.op === REQ_OP_DISCARD) {
        this.#send(work, offset, (client, done) => client.trim(offset, byteLength, false, done), null);
      } else {
        const zeroing = { noHole, fua: false, fast };
        this.#send(work, offset, (client, done) => client.writeZeroes(offset, byteLength, zeroing, done), null);
      }
    }
  }

  #send(work: Work, offset: number, send: Send, onSuccess: (() => void) | null): void {
    work.pending++;
    const request: Sendable = {
      send,
      end: (errno, errorOffset) => {
        if (errno === 0) onSuccess?.();
        this.#refused(work.bio, errno);
        work.note(errno, errorOffset < 0 ? offset : errorOffset);
        if (errno === 0 && work.bio.op !== REQ_OP_READ) this.#isDirty = true;
        this.#ended(work);
      },
    };
    this.#links.submit(request);
  }

  /** What the server turns out not to do is not asked of it again. */
  #refused(bio: Bio, errno: number): void {
    if (errno !== Errno.EOPNOTSUPP || (bio.flags & REQ_NOFALLBACK) !== 0) return;
    if (bio.op === REQ_OP_DISCARD) this.limits.maxDiscardSectorCount = 0;
    if (bio.op === REQ_OP_WRITE_ZEROES) this.limits.maxWriteZeroesSectorCount = 0;
  }

  #ended(work: Work): void {
    if (--work.pending > 0) return;
    const { bio, next } = work;
    if (work.errno !== 0) {
      const sector = Math.floor(work.errorOffset / SECTOR_SIZE);
      bio.fail(work.errno, this, bio.op === REQ_OP_FLUSH ? bio.sector : Math.max(bio.sector, sector));
    } else if (next !== null) {
      next();
    } else {
      bio.endIo(0);
    }
  }

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    const offset = sector * SECTOR_SIZE;
    const byteLength = Math.min(sectorCount * SECTOR_SIZE, MAX_RANGE_BYTE_LENGTH);
    let pairs: readonly number[] = [];
    this.#links.submit({
      send: (client, sent) => {
        client.blockStatus(offset, byteLength, true, (errno, extents) => {
          pairs = extents;
          sent(errno, -1);
        });
      },
      end: (errno) => {
        const length = Math.min(pairs[0] ?? 0, byteLength);
        // A server that does not answer the question has data; so has a sector of which only a part is a hole.
        if (errno !== 0 || length < SECTOR_SIZE) done(0, errno !== 0 ? byteLength / SECTOR_SIZE : 1, EXTENT_DATA);
        else done(0, Math.floor(length / SECTOR_SIZE), pairs[1]! & 3);
      },
    });
  }
}
