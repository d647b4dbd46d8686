// A mapper over image files with one engine, whichever the machine would choose, on Node's own loop.

import { Disk } from '../../src/api/disk.ts';
import { DeviceRegistry } from '../../src/devices/index.ts';
import type { MappedDevice } from '../../src/mapper/mapped-device.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { NodeLoop } from '../../src/reactor/node-loop.ts';
import { Targets } from '../../src/targets/index.ts';
import type { TestedEngine } from '../engine/harness.ts';

export class EngineWorld {
  readonly loop = new NodeLoop();
  readonly devices: DeviceRegistry;
  readonly mapper: Mapper;

  constructor(engine: TestedEngine, baseFolder: string) {
    this.devices = new DeviceRegistry({ reactor: this.loop, engine, baseFolder });
    this.mapper = new Mapper(new Targets(), this.devices, 253, { reactor: this.loop, engines: this.devices.engines });
  }

  /** Makes a device, loads `table` and resumes it. */
  async create(name: string, table: string, options: { readOnly?: boolean } = {}): Promise<Disk> {
    const device = this.mapper.create(name);
    try {
      await this.load(name, table, options);
    } catch (error) {
      this.mapper.remove(device);
      throw error;
    }
    return new Disk(device, () => {});
  }

  /** Loads `table` into a device and makes it live. */
  async load(name: string, table: string, options: { readOnly?: boolean } = {}): Promise<void> {
    const device = this.mapper.get(name);
    this.mapper.load(device, table, options);
    await new Promise<void>((resolve, reject) => {
      device.resume({}, (error) => (error === null ? resolve() : reject(error)));
    });
  }

  remove(name: string): Promise<void> {
    return new Promise((resolve) => this.mapper.remove(this.mapper.get(name), {}, resolve));
  }

  status(name: string): string {
    return this.mapper.get(name).lines('info')[0]!;
  }

  /** Removes everything, what is on top first. */
  async close(): Promise<void> {
    for (;;) {
      const unused: MappedDevice | undefined = this.mapper.list().find((device) => device.openCount === 0);
      if (unused === undefined) break;
      await this.remove(unused.dmName);
    }
  }
}
