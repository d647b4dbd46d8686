// An origin, three snapshots of it with chunks of their own, and requests to all of them at the same time over devices
// that end them in any order, against arrays of bytes. Reloads, removals, merges and new snapshots on the way.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import {
  ByteModel,
  type IssuedRequest,
  issue,
  type Random,
  randomFromSeed,
  randomInteger,
  randomItem,
  SimulatedDevice,
} from '../../src/testing/index.ts';
import { runs } from '../support/seed.ts';
import { SlowDevice } from './slow-device.ts';
import { World } from './support.ts';

const SECTOR_COUNT = 96;

interface Line {
  name: string;
  device: MappedDevice;
  table: string;
  model: ByteModel;
}

class Scenario {
  readonly world = new World();
  readonly random: Random;
  readonly disks: SlowDevice[] = [];
  readonly snapshots: Line[] = [];
  readonly origin: MappedDevice;
  originModel = new ByteModel(SECTOR_COUNT);
  #fill = 1;
  #number = 0;

  constructor(seed: number) {
    this.random = randomFromSeed(seed);
    this.#disk('o', SECTOR_COUNT);
    this.origin = this.world.activate('og', `0 ${SECTOR_COUNT} snapshot-origin o`);
    for (let i = 0; i < 8; i++) this.#write(this.origin, this.originModel);
    this.settle([]);
    for (let i = 0; i < 3; i++) this.addSnapshot();
  }

  #disk(name: string, sectorCount: number): void {
    const seed = randomInteger(this.random, 0, 2 ** 31);
    const disk = new SimulatedDevice(name, sectorCount, { seed, discardedSectors: 'old' });
    const slow = new SlowDevice(disk, this.world.reactor, this.random);
    this.disks.push(slow);
    this.world.resolver.devices.set(name, slow);
  }

  /** Tables are changed while nothing is slow: constructors read. */
  calmly<T>(work: () => T): T {
    for (const disk of this.disks) disk.slow = false;
    return work();
  }

  addSnapshot(): void {
    const name = `s${this.#number++}`;
    const chunk = randomItem(this.random, [1, 4, 8, 16]);
    this.#disk(`c-${name}`, 4 * SECTOR_COUNT + 4 * chunk);
    const features = randomItem(this.random, ['', '', ' 1 discard_zeroes_cow', ' 1 lazy_commit']);
    const table = `0 ${SECTOR_COUNT} snapshot o c-${name} ${randomItem(this.random, ['P', 'PO', 'N'])} ${chunk}${features}`;
    const model = new ByteModel(SECTOR_COUNT);
    model.write(0, this.originModel.expected(0, SECTOR_COUNT)!);
    const device = this.calmly(() => this.world.activate(name, table));
    this.snapshots.push({ name, device, table, model });
  }

  #write(device: MappedDevice, model: ByteModel): IssuedRequest {
    const sector = randomInteger(this.random, 0, SECTOR_COUNT - 1);
    const count = randomInteger(this.random, 1, Math.min(20, SECTOR_COUNT - sector));
    const data = new Uint8Array(count * 512);
    for (let at = 0; at < data.byteLength; at += 512) {
      this.#fill = (this.#fill + 1) & 0xff;
      data.fill(this.#fill, at, at + 512);
    }
    model.write(sector, data);
    return issue(device, 'write', { sector, data, flags: randomInteger(this.random, 0, 3) });
  }

  settle(requests: readonly IssuedRequest[]): void {
    this.world.reactor.runUntilIdle();
    for (const request of requests) expect(request.errno).toBe(0);
  }

  /** Requests that don't depend on each other: one for each device, and reads of what is not written. */
  burst(): void {
    for (const disk of this.disks) disk.slow = true;
    const requests: IssuedRequest[] = [];
    const lines = [{ device: this.origin, model: this.originModel }, ...this.snapshots];
    for (const { device, model } of lines) {
      const before = model.expected(0, SECTOR_COUNT)!;
      if (this.random() < 0.7) requests.push(this.#write(device, model));
      if (this.random() < 0.2) requests.push(issue(device, 'flush'));
      const read = issue(device, 'read', { sector: 0, sectorCount: SECTOR_COUNT });
      requests.push(read);
      const after = model.expected(0, SECTOR_COUNT)!;
      this.#checks.push(() => {
        for (let at = 0; at < before.byteLength; at += 512) {
          expect([before[at], after[at]]).toContain(read.data[at]);
        }
      });
    }
    this.settle(requests);
    for (const check of this.#checks.splice(0)) check();
  }

  readonly #checks: (() => void)[] = [];

  change(): void {
    const line = this.snapshots.length === 0 ? undefined : randomItem(this.random, this.snapshots);
    const kind = randomItem(this.random, ['reload', 'remove', 'merge', 'discard', 'add'] as const);
    if (kind === 'add' || line === undefined) {
      if (this.snapshots.length < 4) this.addSnapshot();
      return;
    }
    if (kind === 'discard' && line.table.includes('discard')) this.#discard(line);
    if (kind === 'reload') this.#reload(line);
    if (kind === 'remove' && !line.table.includes(' N ')) this.#removeAndReturn(line);
    if (kind === 'merge' && !line.table.includes(' N ')) this.#merge(line);
  }

  #discard({ device, model }: Line): void {
    const sector = randomInteger(this.random, 0, SECTOR_COUNT - 1);
    const sectorCount = randomInteger(this.random, 1, SECTOR_COUNT - sector);
    const before = model.expected(0, SECTOR_COUNT)!;
    const request = issue(device, 'discard', { sector, sectorCount });
    this.settle([request]);
    const read = issue(device, 'read', { sector: 0, sectorCount: SECTOR_COUNT });
    this.settle([read]);
    for (let at = 0; at < SECTOR_COUNT; at++) {
      const inside = at >= sector && at < sector + sectorCount;
      expect(inside ? [0, before[at * 512]] : [before[at * 512]]).toContain(read.data[at * 512]);
    }
    model.write(0, read.data);
  }

  #reload({ device, table }: Line): void {
    this.calmly(() => {
      this.world.load(device, table);
      this.world.resume(device);
    });
  }

  #removeAndReturn(line: Line): void {
    this.world.remove(line.device);
    line.device = this.calmly(() => this.world.activate(line.name, line.table));
  }

  /** The snapshot comes home with requests going on; the origin's device shows its contents from then on. */
  #merge(line: Line): void {
    this.snapshots.splice(this.snapshots.indexOf(line), 1);
    this.world.remove(line.device);
    this.originModel = line.model;
    this.calmly(() => {
      this.world.load(this.origin, line.table.replace('snapshot', 'snapshot-merge'));
      this.world.resume(this.origin);
    });
    for (let i = 0; i < 3; i++) this.burst();
    expect(this.origin.lines('info')[0]).toMatch(/ (\d+)\/\d+ \1$/);
    this.calmly(() => {
      this.world.load(this.origin, `0 ${SECTOR_COUNT} snapshot-origin o`);
      this.world.resume(this.origin);
    });
  }

  checkAll(): void {
    for (const { device, model } of [{ device: this.origin, model: this.originModel }, ...this.snapshots]) {
      const read = issue(device, 'read', { sector: 0, sectorCount: SECTOR_COUNT });
      this.settle([read]);
      expect(read.errno).toBe(0);
      model.assertRead(0, read.data);
    }
  }
}

test('every device holds what was written to it, and nothing of the others', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 31 - 1 }), (seed) => {
      const scenario = new Scenario(seed);
      for (let round = 0; round < 12; round++) {
        scenario.burst();
        scenario.checkAll();
        if (scenario.random() < 0.5) scenario.change();
        scenario.checkAll();
      }
    }),
    { numRuns: runs(25) },
  );
});
