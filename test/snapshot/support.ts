// What the tests of snapshots are built on: a mapper with a reactor in virtual time, and requests as plain calls that are
// driven to their end.
import type { BlockDevice } from '../../src/block/block-device.ts';
import type { TargetServices } from '../../src/block/target.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { Targets } from '../../src/targets/index.ts';
import { type IssueOptions, issue, type Operation, SimulatedReactor } from '../../src/testing/index.ts';
import { CountingResolver } from '../support/stack.ts';

/** Devices, a mapper over them, and the clock. */
export class World {
  readonly reactor: SimulatedReactor;
  readonly resolver: CountingResolver;
  readonly mapper: Mapper;
  readonly services: TargetServices & { engines: { blocking: boolean; poll(): boolean } };

  constructor(...devices: BlockDevice[]) {
    this.reactor = new SimulatedReactor({ seed: 1 });
    this.resolver = new CountingResolver(...devices);
    this.services = { reactor: this.reactor, engines: { blocking: false, poll: () => false } };
    this.mapper = new Mapper(new Targets(), this.resolver, 253, this.services);
  }

  /** Makes a device, loads `table` and resumes it. */
  activate(name: string, table: string, options: { readOnly?: boolean } = {}): MappedDevice {
    const device = this.mapper.create(name);
    try {
      this.mapper.load(device, table, options);
      this.resume(device);
    } catch (error) {
      this.mapper.remove(device);
      throw error;
    }
    return device;
  }

  load(device: MappedDevice, table: string): void {
    this.mapper.load(device, table);
  }

  resume(device: MappedDevice): void {
    const outcome: (Error | null)[] = [];
    device.resume({}, (error) => outcome.push(error));
    if (outcome.length === 0) this.reactor.runUntilIdle();
    if (outcome.length === 0) throw new Error('the resume waits');
    if (outcome[0]) throw outcome[0];
  }

  suspend(device: MappedDevice): void {
    let done = false;
    device.suspend({}, () => {
      done = true;
    });
    this.reactor.runUntilIdle();
    if (!done) throw new Error('the suspend waits');
  }

  remove(device: MappedDevice): void {
    this.mapper.remove(device);
    this.reactor.runUntilIdle();
  }

  /** A request, driven to its end. @returns its errno */
  io(device: BlockDevice, op: Operation, options: IssueOptions = {}): number {
    const request = issue(device, op, options);
    this.reactor.runUntilIdle();
    if (!request.ended) throw new Error(`${op} did not end`);
    return request.errno!;
  }

  write(device: BlockDevice, sector: number, sectorCount: number, fill: number, flags = 0): number {
    return this.io(device, 'write', { sector, data: new Uint8Array(sectorCount * 512).fill(fill), flags });
  }

  /** The first byte of each sector. @throws Error where the read fails */
  read(device: BlockDevice, sector: number, sectorCount: number): number[] {
    const request = issue(device, 'read', { sector, sectorCount });
    this.reactor.runUntilIdle();
    if (request.errno !== 0) throw new Error(`the read ended with ${request.errno}`);
    return Array.from({ length: sectorCount }, (_, index) => request.data[index * 512]!);
  }
}

/** Sectors filled with a value that says where they are. */
export function pattern(sectorCount: number, base: number): Uint8Array {
  const bytes = new Uint8Array(sectorCount * 512);
  for (let sector = 0; sector < sectorCount; sector++)
    bytes.fill((base + sector) & 0xff, sector * 512, sector * 512 + 512);
  return bytes;
}
