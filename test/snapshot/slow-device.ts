// A device that answers at once until it is told to take its time: constructors read their metadata synchronously, and
// everything else shall end out of order.
import type { Bio } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import type { Reactor } from '../../src/block/reactor.ts';
import type { Random } from '../../src/testing/index.ts';
import { endLike, submitCopy, WrappingDevice } from '../../src/testing/wrapping-device.ts';

export class SlowDevice extends WrappingDevice {
  slow = false;
  inFlightCount = 0;
  readonly #reactor: Reactor;
  readonly #random: Random;

  constructor(device: BlockDevice, reactor: Reactor, random: Random) {
    super(device);
    this.#reactor = reactor;
    this.#random = random;
  }

  submit(bio: Bio): void {
    this.inFlightCount++;
    // Half of the time passes before the request reaches the device, half after it.
    this.#wait(() =>
      submitCopy(bio, this.device, (copy) =>
        this.#wait(() => {
          this.inFlightCount--;
          endLike(bio, copy);
        }),
      ),
    );
  }

  #wait(next: () => void): void {
    if (this.slow) this.#reactor.after(this.#random() * 5, next);
    else next();
  }
}
