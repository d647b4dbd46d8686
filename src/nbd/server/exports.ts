// What a server offers: devices by name.
import type { BlockDevice } from '../../block/block-device.ts';
import { SECTOR_SIZE } from '../../block/sector.ts';
import {
  TRANSMISSION_CAN_MULTI_CONN,
  TRANSMISSION_HAS_FLAGS,
  TRANSMISSION_READ_ONLY,
  TRANSMISSION_SEND_CACHE,
  TRANSMISSION_SEND_DF,
  TRANSMISSION_SEND_FAST_ZERO,
  TRANSMISSION_SEND_FLUSH,
  TRANSMISSION_SEND_FUA,
  TRANSMISSION_SEND_TRIM,
  TRANSMISSION_SEND_WRITE_ZEROES,
} from '../protocol/constants.ts';
import { type BlockSizes, type ExportInfo, encodeString } from '../protocol/info.ts';
import { MAX_PAYLOAD_BYTE_LENGTH, PREFERRED_BLOCK_BYTE_LENGTH } from './bounds.ts';
import type { Negotiation } from './negotiation.ts';

/** One device under one name. */
export interface NbdExport {
  /** What clients ask for; at most 4096 bytes of UTF-8. `''` may be a name too. */
  readonly name: string;
  /** For people, in LIST and INFO. */
  readonly description?: string;
  /** Refuses everything that changes the device, whatever the device itself would allow. */
  readonly readOnly?: boolean;
  readonly device: BlockDevice;
}

/** The part of an export that is its description, where it has one. */
export function descriptionOf(
  name: string,
  descriptions: Readonly<Record<string, string>> = {},
): Pick<NbdExport, 'description'> {
  return Object.hasOwn(descriptions, name) ? { description: descriptions[name]! } : {};
}

export function isReadOnly(entry: NbdExport): boolean {
  return entry.readOnly === true || entry.device.readOnly;
}

/** Size in bytes (exact, as a multiple of 512) and the transmission flags that follow from the device's limits. */
export function exportInfo(entry: NbdExport, negotiation: Negotiation): ExportInfo {
  const { device } = entry;
  // All connections of an export in one thread share one device, without a cache of its own. Devices of other threads of
  // this server end in the same files, so that they share the kernel's page cache. A flush on any connection covers all.
  let flags = TRANSMISSION_HAS_FLAGS | TRANSMISSION_SEND_FLUSH | TRANSMISSION_SEND_FUA | TRANSMISSION_CAN_MULTI_CONN;
  flags |= TRANSMISSION_SEND_CACHE;
  if (negotiation.hasChunks) flags |= TRANSMISSION_SEND_DF;
  if (isReadOnly(entry)) {
    flags |= TRANSMISSION_READ_ONLY;
  } else {
    flags |= TRANSMISSION_SEND_WRITE_ZEROES | TRANSMISSION_SEND_FAST_ZERO;
    if (device.limits.maxDiscardSectorCount > 0) flags |= TRANSMISSION_SEND_TRIM;
  }
  return { byteLength: device.sectorCount * SECTOR_SIZE, transmissionFlags: flags };
}

/** Any byte will do; better are requests of whole blocks. */
export function exportBlockSizes(entry: NbdExport): BlockSizes {
  return {
    minimum: 1,
    preferred: Math.max(entry.device.limits.logicalBlockSize, PREFERRED_BLOCK_BYTE_LENGTH),
    maximumPayload: MAX_PAYLOAD_BYTE_LENGTH,
  };
}

/** The exports by name. */
export class ExportTable {
  readonly #byName = new Map<string, NbdExport>();

  /** @throws MalformedError for a name or description the protocol can't carry; Error for a name that is taken */
  add(entry: NbdExport): void {
    encodeString(entry.name, 'the export name');
    encodeString(entry.description ?? '', 'the description');
    if (this.#byName.has(entry.name)) throw new Error(`there is an export named ${JSON.stringify(entry.name)} already`);
    this.#byName.set(entry.name, entry);
  }

  remove(name: string): NbdExport | undefined {
    const entry = this.#byName.get(name);
    this.#byName.delete(name);
    return entry;
  }

  /** The empty name is the export of that name or else the first one. */
  find(name: string): NbdExport | undefined {
    const entry = this.#byName.get(name);
    if (entry !== undefined || name !== '') return entry;
    for (const first of this.#byName.values()) return first;
    return undefined;
  }

  [Symbol.iterator](): IterableIterator<NbdExport> {
    return this.#byName.values();
  }
}
