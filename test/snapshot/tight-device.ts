// A store's device that refuses writes, as a file on a full file system does: before anything is written, in the middle, or
// when all of it is written and only the flush behind it fails. Slow where it has a reactor.
import { Bio, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import { type BlockDevice, submitBio } from '../../src/block/block-device.ts';
import type { Reactor } from '../../src/block/reactor.ts';
import type { Random } from '../../src/testing/index.ts';
import { endLike, WrappingDevice } from '../../src/testing/wrapping-device.ts';

/** How a write ends, and how many of its sectors are written before. */
export interface Refusal {
  errno: number;
  sectorCount: number;
}

export class TightDevice extends WrappingDevice {
  inFlightCount = 0;
  refuse: (bio: Bio) => Refusal | null = () => null;
  /** Called when a write has reached the device below, or has been refused. */
  onWrite: () => void = () => {};
  slow: { reactor: Reactor; random: Random } | null = null;

  constructor(device: BlockDevice) {
    super(device);
  }

  submit(bio: Bio): void {
    this.inFlightCount++;
    this.#later(() => this.#run(bio));
  }

  #later(next: () => void): void {
    if (this.slow === null) next();
    else this.slow.reactor.after(this.slow.random() * 5, next);
  }

  #run(bio: Bio): void {
    const writes = bio.op === REQ_OP_WRITE || bio.op === REQ_OP_WRITE_ZEROES;
    const refusal = writes ? this.refuse(bio) : null;
    const end = (copy: Bio | null): void => {
      if (writes) this.onWrite();
      this.#later(() => {
        this.inFlightCount--;
        if (refusal !== null) bio.fail(refusal.errno, this);
        else endLike(bio, copy!);
      });
    };
    const sectorCount = refusal?.sectorCount ?? bio.sectorCount;
    if (refusal !== null && sectorCount === 0) {
      end(null);
      return;
    }
    const copy = new Bio();
    copy.reset(bio.op, bio.flags, this.device, bio.sector, sectorCount);
    copy.vecs = bio.vecs;
    copy.vecIndex = bio.vecIndex;
    copy.vecOffset = bio.vecOffset;
    copy.onEnd = end;
    submitBio(copy);
  }
}
