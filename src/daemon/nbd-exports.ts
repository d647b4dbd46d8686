// Every device as an export of its own name, and each client that has chosen one as a user of that device.
import type { Transport, TransportHandler } from '../block/reactor.ts';
import { MappedDevice } from '../mapper/mapped-device.ts';
import type { Mapper } from '../mapper/mapper.ts';
import { Connection } from '../nbd/server/connection.ts';
import type { NbdServer } from '../nbd/server/server.ts';
import type { NodeLoop } from '../reactor/node-loop.ts';

/** Keeps a server's exports and the devices of a mapper alike. */
export class NbdExports {
  readonly #server: NbdServer;
  readonly #mapper: Mapper;
  readonly #loop: NodeLoop;
  readonly #names = new Map<MappedDevice, string>();

  constructor(server: NbdServer, mapper: Mapper, loop: NodeLoop) {
    this.#server = server;
    this.#mapper = mapper;
    this.#loop = loop;
  }

  /** The device was loaded or renamed: as in the kernel, it can be opened from its first load on. */
  update(device: MappedDevice): void {
    const known = this.#names.get(device);
    if (!device.everLoaded || known === device.dmName || !this.#isListed(device)) return;
    // Whoever uses it goes on: only the name is another one.
    if (known !== undefined) this.#server.exports.remove(known);
    this.#takeName(device.dmName);
    this.#names.set(device, device.dmName);
    this.#server.exports.add({ name: device.dmName, device });
  }

  #isListed(device: MappedDevice): boolean {
    return this.#mapper.has(device.dmName) && this.#mapper.get(device.dmName) === device;
  }

  /** A device that is on its way out may have the name still. */
  #takeName(name: string): void {
    for (const [device, known] of this.#names) if (known === name) this.remove(device);
  }

  /** The device is gone. */
  remove(device: MappedDevice): void {
    const name = this.#names.get(device);
    if (name === undefined) return;
    this.#names.delete(device);
    this.#server.removeExport(name);
  }

  /** Gives a client's connection to the server, and counts it as a user from the moment it has chosen an export. */
  accept(transport: Transport): void {
    this.#server.accept(new CountedTransport(transport, this.#mapper, this.#loop));
  }
}

/** A transport that looks what its connection has chosen, and tells the mapper. */
class CountedTransport implements Transport {
  readonly #inner: Transport;
  readonly #mapper: Mapper;
  readonly #loop: NodeLoop;
  #connection: Connection | null = null;
  #device: MappedDevice | null = null;
  #closed = false;

  constructor(inner: Transport, mapper: Mapper, loop: NodeLoop) {
    this.#inner = inner;
    this.#mapper = mapper;
    this.#loop = loop;
  }

  get peer(): string {
    return this.#inner.peer;
  }

  get pendingByteLength(): number {
    return this.#inner.pendingByteLength;
  }

  setHandler(handler: TransportHandler): void {
    if (handler instanceof Connection) this.#connection = handler;
    this.#inner.setHandler({
      onData: (chunk) => {
        handler.onData(chunk);
        if (this.#device === null) this.#look();
      },
      onEnd: () => handler.onEnd(),
      onDrain: () => handler.onDrain(),
      onReadable: () => handler.onReadable?.() ?? false,
      onClose: (error) => {
        this.#closed = true;
        handler.onClose(error);
        if (this.#device !== null) this.#mapper.release(this.#device);
        this.#device = null;
      },
    });
  }

  #look(): void {
    const device = this.#connection?.entry?.device;
    if (this.#closed || this.#device !== null || !(device instanceof MappedDevice)) return;
    this.#device = device;
    this.#mapper.acquire(device);
  }

  send(chunks: readonly Uint8Array[], onSent: () => void): void {
    this.#inner.send(chunks, onSent);
    // An export may be chosen in a turn of its own, when a full queue had to wait: the answer to it comes through here.
    if (this.#device === null) this.#loop.wake(() => this.#look());
  }

  sendNow(page: Uint8Array, offset: number, byteLength: number): number {
    return this.#inner.sendNow?.(page, offset, byteLength) ?? 0;
  }

  startPull(): void {
    this.#inner.startPull?.();
  }

  fetch(page: Uint8Array, offset: number, byteLength: number): number {
    return this.#inner.fetch?.(page, offset, byteLength) ?? 0;
  }

  fetchTwo(
    page: Uint8Array,
    offset: number,
    byteLength: number,
    nextPage: Uint8Array,
    nextOffset: number,
    nextByteLength: number,
  ): number {
    return this.#inner.fetchTwo?.(page, offset, byteLength, nextPage, nextOffset, nextByteLength) ?? 0;
  }

  pause(): void {
    this.#inner.pause();
  }

  resume(): void {
    this.#inner.resume();
  }

  end(): void {
    this.#inner.end();
  }

  destroy(): void {
    this.#inner.destroy();
  }
}
