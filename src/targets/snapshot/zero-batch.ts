// Whole chunks of zeroes: holes in the store instead of data. The chunks of one turn that are neighbours in the store become
// one request, so that zeroing a large range costs few calls, and its store little room.
import type { BlockDevice } from '../../block/block-device.ts';
import type { TargetServices } from '../../block/target.ts';
import { RangeRequest } from '../../block/zeroout.ts';

/** Sectors in one request: 16 MiB. */
const MAX_BATCH_SECTOR_COUNT = 32_768;

/** More wait: so a turn has few answers, each of which may bring the next piece of a long range, and others get theirs. */
const MAX_IN_FLIGHT_COUNT = 4;

type Done = (errno: number, writing: boolean) => void;

export class ZeroBatches {
  readonly #device: BlockDevice;
  readonly #services: TargetServices;
  #sector = 0;
  #sectorCount = 0;
  #dones: Done[] = [];
  #isQueued = false;
  readonly #idle: RangeRequest[] = [];
  #inFlightCount = 0;
  readonly #waiting: (() => void)[] = [];
  readonly #onTurn = (): void => {
    this.#isQueued = false;
    this.#send();
  };

  constructor(device: BlockDevice, services: TargetServices) {
    this.#device = device;
    this.#services = services;
  }

  /** Tells whether the device makes zeroes without being sent any. */
  get areCheap(): boolean {
    return this.#device.limits.maxWriteZeroesSectorCount > 0;
  }

  /** Makes the range read as zeroes, whatever it held. `done` is called once, with `writing` true as of a write. */
  add(sector: number, sectorCount: number, done: Done): void {
    const isNeighbour = this.#sector + this.#sectorCount === sector;
    if (this.#sectorCount > 0 && (!isNeighbour || this.#sectorCount >= MAX_BATCH_SECTOR_COUNT)) this.#send();
    if (this.#sectorCount === 0) this.#sector = sector;
    this.#sectorCount += sectorCount;
    this.#dones.push(done);
    // In a synchronous call there is no later turn.
    if (this.#services.engines?.blocking) this.#send();
    if (this.#sectorCount === 0 || this.#isQueued) return;
    this.#isQueued = true;
    this.#services.reactor.wake(this.#onTurn);
  }

  /** Sends what waits for a later turn, or for others: in a synchronous call nothing may wait. */
  hurry(): void {
    this.#send();
    for (const run of this.#waiting.splice(0)) run();
  }

  #send(): void {
    if (this.#sectorCount === 0) return;
    const [sector, sectorCount, dones] = [this.#sector, this.#sectorCount, this.#dones];
    this.#sectorCount = 0;
    this.#dones = [];
    if (this.#inFlightCount < MAX_IN_FLIGHT_COUNT || this.#services.engines?.blocking) {
      this.#run(sector, sectorCount, dones);
    } else {
      this.#waiting.push(() => this.#run(sector, sectorCount, dones));
    }
  }

  #run(sector: number, sectorCount: number, dones: readonly Done[]): void {
    this.#inFlightCount++;
    const request = this.#idle.pop() ?? new RangeRequest(this.#services.reactor);
    request.zeroOut(this.#device, sector, sectorCount, {}, (errno) => {
      this.#idle.push(request);
      this.#inFlightCount--;
      for (const done of dones) done(errno, true);
      this.#waiting.shift()?.();
    });
  }
}
