// The seam between everything that has sectors and everything that uses them, and the one door for requests: submitBio
// does what the kernel's block core does before a driver sees a bio (block/blk-core.c, submit_bio_noacct).
import {
  type Bio,
  REQ_FUA,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
  REQ_PREFLUSH,
} from './bio.ts';
import { Errno } from './errno.ts';
import type { QueueLimits } from './limits.ts';

/** Flags of an extent; the values are NBD's for base:allocation. */
export const EXTENT_DATA = 0;
export const EXTENT_HOLE = 1;
export const EXTENT_ZERO = 2;

/**
 * Answer to queryExtent: errno, how many sectors from the asked one on are alike (at least one on success), flags, and how
 * deep what is there lies: 1 on the device itself, 2 on the one that it overlays, and so on; 0 where nothing is allocated.
 * A device that overlays nothing leaves the depth out: {@link extentDepth} tells it from the flags.
 */
export type ExtentCallback = (errno: number, sectorCount: number, extentFlags: number, depth?: number) => void;

/** The depth of an extent whose device may have left it out. */
export function extentDepth(extentFlags: number, depth: number | undefined): number {
  return depth ?? ((extentFlags & EXTENT_HOLE) === 0 ? 1 : 0);
}

export interface BlockDevice {
  /** As tables print it: an absolute path for an image, `major:minor` for block devices and mapped devices. */
  readonly name: string;
  /** How messages name it, where `name` alone says little to a person: `joined (253:0)`. */
  readonly label?: string;
  /** May change when a table is swapped or a file grows. */
  readonly sectorCount: number;
  /** Bytes of a file or export behind the last whole sector: no request reaches them. Left out: none. */
  readonly cutByteLength?: number;
  readonly readOnly: boolean;
  readonly limits: QueueLimits;
  /**
   * The driver's entry: takes a bio that submitBio has checked, and ends it once, in this call or later.
   * Everybody else calls {@link submitBio}.
   */
  submit(bio: Bio): void;
  /**
   * Says what is behind `sector`: for up to `sectorCount` sectors, which all exist. Calls back once, in this call or
   * later. Without this method everything is data.
   */
  queryExtent?(sector: number, sectorCount: number, done: ExtentCallback): void;
  /**
   * Takes room for a range, which exists, ahead of its first write; what reads give does not change, and other requests
   * go on meanwhile. Calls back once with an errno, in this call or later. A device without this method can't, or has
   * nothing to gain.
   */
  allocate?(sector: number, sectorCount: number, done: (errno: number) => void): void;
  /** The devices this one is made of now and after a resume, for the search of cycles. */
  lowerDevices?(): Iterable<BlockDevice>;
  /**
   * Why a request given now might end neither inside submit() nor by polling the engines, but only through the event
   * loop or somebody's doing (a resume, a timer, a peer): for the refusal of synchronous calls. Null where it would end.
   * Asked while the engines are set to blocking. Without this method: never.
   */
  syncObstacle?(): string | null;
}

let submitDepth = 0;

/** True inside a {@link submitBio}, which includes the ends of requests that end at once. */
export function isInsideSubmit(): boolean {
  return submitDepth > 0;
}

/** Why no driver may see this bio: an errno, or 0. Also takes off the flags that mean nothing to the device. */
function refusal(bio: Bio, device: BlockDevice): number {
  switch (bio.op) {
    case REQ_OP_READ:
    case REQ_OP_FLUSH:
      return 0;
    case REQ_OP_WRITE:
      // Without a volatile cache there is nothing to flush: the kernel takes the flags off before the driver.
      if (bio.flags & (REQ_PREFLUSH | REQ_FUA) && !device.limits.hasWriteCache) bio.flags &= ~(REQ_PREFLUSH | REQ_FUA);
      return device.readOnly ? Errno.EPERM : 0;
    // What the device cannot do at all goes before what it may not do now.
    case REQ_OP_DISCARD:
      if (device.limits.maxDiscardSectorCount === 0) return Errno.EOPNOTSUPP;
      return device.readOnly ? Errno.EPERM : 0;
    case REQ_OP_WRITE_ZEROES:
      if (device.limits.maxWriteZeroesSectorCount === 0) return Errno.EOPNOTSUPP;
      return device.readOnly ? Errno.EPERM : 0;
    default:
      return Errno.EOPNOTSUPP;
  }
}

/**
 * Gives `bio` to `bio.device`, after the checks that no driver should have to make. The bio ends once, maybe in this
 * call.
 */
export function submitBio(bio: Bio): void {
  submitDepth++;
  try {
    checkAndSubmit(bio);
  } finally {
    submitDepth--;
  }
}

function checkAndSubmit(bio: Bio): void {
  const device = bio.device as BlockDevice;
  const errno = refusal(bio, device);
  if (errno !== 0) {
    bio.fail(errno, device);
  } else if (bio.op === REQ_OP_FLUSH) {
    if (device.limits.hasWriteCache) device.submit(bio);
    else bio.endIo(0);
  } else if (bio.sectorCount > device.sectorCount || bio.sector > device.sectorCount - bio.sectorCount) {
    // bio_check_eod: a bio that reaches past the end fails whole, nothing of it is transferred.
    bio.fail(Errno.EIO, device, Math.max(bio.sector, device.sectorCount));
  } else if (bio.sectorCount === 0) {
    bio.endIo(0);
  } else {
    device.submit(bio);
  }
}

/** {@link BlockDevice.queryExtent} for any device: one without a map says data. */
export function queryExtent(device: BlockDevice, sector: number, sectorCount: number, done: ExtentCallback): void {
  if (device.queryExtent === undefined) done(0, sectorCount, EXTENT_DATA);
  else device.queryExtent(sector, sectorCount, done);
}
