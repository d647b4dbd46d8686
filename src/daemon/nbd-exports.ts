// Every device as an export of its own name, and each client that has chosen one as a user of that device.
import type { BlockDevice } from '../block/block-device.ts';
import { MappedDevice } from '../mapper/mapped-device.ts';
import type { Mapper } from '../mapper/mapper.ts';
import type { NbdServer } from '../nbd/server/server.ts';

/** Keeps a server's exports and the devices of a mapper alike. */
export class NbdExports {
  readonly #server: NbdServer;
  readonly #mapper: Mapper;
  readonly #names = new Map<MappedDevice, string>();
  /** The other way round. */
  readonly #byName = new Map<string, MappedDevice>();

  constructor(server: NbdServer, mapper: Mapper) {
    this.#server = server;
    this.#mapper = mapper;
  }

  /** The device was loaded or renamed: as in the kernel, it can be opened from its first load on. */
  update(device: MappedDevice): void {
    const known = this.#names.get(device);
    if (!device.everLoaded || known === device.dmName || !this.#isListed(device)) return;
    // Whoever uses it goes on: only the name is another one.
    if (known !== undefined) {
      this.#server.exports.remove(known);
      this.#byName.delete(known);
    }
    this.#takeName(device.dmName);
    this.#names.set(device, device.dmName);
    this.#byName.set(device.dmName, device);
    this.#server.exports.add({ name: device.dmName, device });
  }

  #isListed(device: MappedDevice): boolean {
    return this.#mapper.has(device.dmName) && this.#mapper.get(device.dmName) === device;
  }

  /** A device that is on its way out may have the name still. */
  #takeName(name: string): void {
    const device = this.#byName.get(name);
    if (device !== undefined) this.remove(device);
  }

  /** The device is gone. */
  remove(device: MappedDevice): void {
    const name = this.#names.get(device);
    if (name === undefined) return;
    this.#names.delete(device);
    this.#byName.delete(name);
    this.#server.removeExport(name);
  }

  /** A client has chosen the export: it uses the device. */
  onAttach(device: BlockDevice): void {
    if (device instanceof MappedDevice) this.#mapper.acquire(device);
  }

  /** The client's connection is gone. */
  onDetach(device: BlockDevice): void {
    if (device instanceof MappedDevice) this.#mapper.release(device);
  }
}
