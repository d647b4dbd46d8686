// The disks of a case on dmkit's side: in memory, which takes any block size and costs nothing, or image files in a
// folder, which is how disks go from one side to the other.
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DeviceMapper } from '../src/api/device-mapper.ts';
import { MemoryDevice } from '../src/index.ts';
import type { Case, DiskSpec } from './case.ts';
import { diskContent } from './noise.ts';

/** Content by disk. */
export type Contents = Record<string, Uint8Array>;

export class Disks {
  readonly #one: Case;
  readonly #folder: string | null;
  readonly #memory = new Map<string, MemoryDevice>();

  /**
   * @param contents of disks that do not hold what their line says
   * @param folder where image files go; null: all in memory
   */
  constructor(dm: DeviceMapper, one: Case, contents: Contents, folder: string | null) {
    this.#one = one;
    this.#folder = folder;
    for (const disk of one.disks) {
      const content = contents[disk.name] ?? diskContent(disk);
      if (this.#isFile(disk)) writeFileSync(this.argument(disk.name), content);
      else this.#register(dm, disk, content);
    }
  }

  /** A file has blocks of 512 bytes; a disk of larger ones stays in memory. */
  #isFile(disk: DiskSpec): boolean {
    return this.#folder !== null && disk.blockSize === 512;
  }

  #register(dm: DeviceMapper, disk: DiskSpec, content: Uint8Array): void {
    const device = new MemoryDevice(disk.name, disk.sectorCount, {
      limits: { logicalBlockSize: disk.blockSize, physicalBlockSize: disk.blockSize, hasWriteCache: true },
    });
    device.poke(0, content);
    this.#memory.set(disk.name, device);
    dm.devices.register(disk.name, device);
  }

  has(name: string): boolean {
    return this.#one.disks.some((disk) => disk.name === name);
  }

  /** What a table calls the disk. */
  argument(name: string): string {
    return this.#folder === null || this.#memory.has(name) ? name : join(this.#folder, `${name}.img`);
  }

  /** Puts the case's names in the place of paths. */
  rename(text: string): string {
    if (this.#folder === null) return text;
    return this.#one.disks.reduce((result, { name }) => result.replaceAll(this.argument(name), name), text);
  }

  /** What the disks hold now. */
  state(): Contents {
    const state: Contents = {};
    for (const { name, sectorCount, isFile } of this.#one.disks) {
      if (isFile) continue;
      state[name] = this.#memory.get(name)?.peek(0, sectorCount) ?? readFileSync(this.argument(name));
    }
    return state;
  }
}
