// What the wrappers of this folder have in common: a device that looks like the one below it and sends copies of
// requests down, so that the owner's bio ends when the wrapper says so.
import { Bio } from '../block/bio.ts';
import { type BlockDevice, type ExtentCallback, queryExtent, submitBio } from '../block/block-device.ts';
import type { QueueLimits } from '../block/limits.ts';

export abstract class WrappingDevice implements BlockDevice {
  /** The device below. */
  readonly device: BlockDevice;
  /** Requests that this device has taken and that have not ended. */
  abstract readonly inFlightCount: number;

  constructor(device: BlockDevice) {
    this.device = device;
  }

  get name(): string {
    return this.device.name;
  }

  get sectorCount(): number {
    return this.device.sectorCount;
  }

  get readOnly(): boolean {
    return this.device.readOnly;
  }

  get limits(): QueueLimits {
    return this.device.limits;
  }

  abstract submit(bio: Bio): void;

  queryExtent(sector: number, sectorCount: number, done: ExtentCallback): void {
    queryExtent(this.device, sector, sectorCount, done);
  }

  lowerDevices(): Iterable<BlockDevice> {
    return [this.device];
  }
}

/** Sends a copy of `bio` down; `onEnd` gets it when it has ended, and `bio` is untouched until {@link endLike}. */
export function submitCopy(bio: Bio, device: BlockDevice, onEnd: (copy: Bio) => void): void {
  const copy = new Bio();
  copy.reset(bio.op, bio.flags, device, bio.sector, bio.sectorCount);
  copy.vecs = bio.vecs;
  copy.vecIndex = bio.vecIndex;
  copy.vecOffset = bio.vecOffset;
  copy.onEnd = onEnd;
  submitBio(copy);
}

/** Ends `bio` as its copy ended. */
export function endLike(bio: Bio, copy: Bio): void {
  bio.errorSector = copy.errorSector;
  bio.errorDevice = copy.errorDevice;
  bio.errorDeviceSector = copy.errorDeviceSector;
  bio.endIo(copy.status);
}
