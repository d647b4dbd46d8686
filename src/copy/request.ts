// One dm-io request on one region, awaited: the errno and the first failing sector, or null.
import { REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../block/bio.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { IoError } from '../block/errors.ts';
import type { DmIoClient, DmIoMemory, DmIoRegion } from '../dm-io/index.ts';

/** Sectors of a device that are copied. */
export interface CopyRegion {
  readonly device: BlockDevice;
  readonly sector: number;
  readonly sectorCount: number;
  /** As the user named it. */
  readonly label: string;
}

function request(io: DmIoClient, op: number, region: DmIoRegion, memory?: DmIoMemory): Promise<IoError | null> {
  return new Promise((resolve) => {
    const notify = {
      fn: (_bits: bigint, _context: unknown, error: { failedRegions: readonly { cause: IoError }[] } | null): void => {
        resolve(error === null ? null : error.failedRegions[0]!.cause);
      },
    };
    io.io(memory === undefined ? { op, notify } : { op, memory, notify }, [region]);
  });
}

/** Moves `buffer.byteLength / 512` sectors from `start` of the region on. */
export function transfer(
  io: DmIoClient,
  kind: 'read' | 'write',
  { device, sector }: CopyRegion,
  start: number,
  buffer: Uint8Array,
): Promise<IoError | null> {
  const where = { bdev: device, sector: sector + start, count: buffer.byteLength / 512 };
  return request(io, kind === 'read' ? REQ_OP_READ : REQ_OP_WRITE, where, { type: 'buffer', buffer });
}

export function writeZeroes(
  io: DmIoClient,
  { device, sector }: CopyRegion,
  start: number,
  count: number,
): Promise<IoError | null> {
  return request(io, REQ_OP_WRITE_ZEROES, { bdev: device, sector: sector + start, count });
}

export function flush(io: DmIoClient, { device }: CopyRegion): Promise<IoError | null> {
  return request(io, REQ_OP_FLUSH, { bdev: device, sector: 0, count: 0 });
}
