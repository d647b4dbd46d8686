// A device in front of another that fails what touches a bad sector, and tells of every request that ends.
import { type Bio, REQ_OP_FLUSH, REQ_OP_READ } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { endLike, submitCopy, WrappingDevice } from '../../src/testing/wrapping-device.ts';

export interface BadSectors {
  op: 'read' | 'write' | 'any';
  sector: number;
  sectorCount: number;
}

export class FaultyDevice extends WrappingDevice {
  readonly bad: readonly BadSectors[];
  onEnd: () => void = () => {};
  #inFlightCount = 0;

  constructor(device: BlockDevice, bad: readonly BadSectors[]) {
    super(device);
    this.bad = bad;
  }

  get inFlightCount(): number {
    return this.#inFlightCount;
  }

  fails(bio: Pick<Bio, 'op' | 'sector' | 'sectorCount'>): boolean {
    if (bio.op === REQ_OP_FLUSH) return false;
    const name = bio.op === REQ_OP_READ ? 'read' : 'write';
    return this.bad.some(
      ({ op, sector, sectorCount }) =>
        (op === 'any' || op === name) && sector < bio.sector + bio.sectorCount && bio.sector < sector + sectorCount,
    );
  }

  submit(bio: Bio): void {
    this.#inFlightCount++;
    if (this.fails(bio)) {
      this.#ended();
      bio.fail(Errno.EIO, this);
      return;
    }
    submitCopy(bio, this.device, (copy) => {
      this.#ended();
      endLike(bio, copy);
    });
  }

  #ended(): void {
    this.#inFlightCount--;
    this.onEnd();
  }
}
