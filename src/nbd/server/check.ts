// Which requests are refused before a device sees them, and with what ("Request types", "Error values").
import type { BlockDevice } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SHIFT } from '../../block/sector.ts';
import {
  CMD_BLOCK_STATUS,
  CMD_CACHE,
  CMD_FLAG_DF,
  CMD_FLAG_FAST_ZERO,
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
  CMD_FLAG_REQ_ONE,
  CMD_FLUSH,
  CMD_READ,
  CMD_TRIM,
  CMD_WRITE,
  CMD_WRITE_ZEROES,
  TRANSMISSION_SEND_TRIM,
} from '../protocol/constants.ts';
import type { RequestHeader } from '../protocol/wire.ts';
import { MAX_PAYLOAD_BYTE_LENGTH } from './bounds.ts';
import { exportInfo, isReadOnly, type NbdExport } from './exports.ts';
import type { Negotiation } from './negotiation.ts';

const SECTORS_PER_HIGH = 2 ** (32 - SECTOR_SHIFT);

/** What a connection was told in its handshake. */
export interface RequestLimits {
  readonly device: BlockDevice;
  /** The size that the client knows. */
  readonly sectorCount: number;
  readonly readOnly: boolean;
  readonly canTrim: boolean;
  /** Low bits of offset and length that are 0 where a request begins and ends with a block of the device. */
  readonly alignmentMask: number;
  readonly blockSectorCount: number;
  /** DF may be asked for. */
  readonly hasChunks: boolean;
  /** What BLOCK_STATUS tells; without any it is refused. */
  readonly contextIds: readonly number[];
}

export function requestLimits(entry: NbdExport, negotiation: Negotiation): RequestLimits {
  const { device } = entry;
  return {
    device,
    sectorCount: device.sectorCount,
    readOnly: isReadOnly(entry),
    canTrim: (exportInfo(entry, negotiation).transmissionFlags & TRANSMISSION_SEND_TRIM) !== 0,
    alignmentMask: device.limits.logicalBlockSize - 1,
    blockSectorCount: device.limits.logicalBlockSize >> SECTOR_SHIFT,
    hasChunks: negotiation.hasChunks,
    contextIds: negotiation.contextIds(entry),
  };
}

/** The device is not what the client was told any more: smaller, or of other blocks. Growing takes nothing away. */
export function hasChanged({ device, sectorCount, alignmentMask }: RequestLimits): boolean {
  return device.sectorCount < sectorCount || device.limits.logicalBlockSize !== alignmentMask + 1;
}

function allowedFlags(type: number, limits: RequestLimits): number {
  switch (type) {
    case CMD_READ:
      return limits.hasChunks ? CMD_FLAG_FUA | CMD_FLAG_DF : CMD_FLAG_FUA;
    case CMD_WRITE_ZEROES:
      return CMD_FLAG_FUA | CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO;
    case CMD_BLOCK_STATUS:
      return CMD_FLAG_FUA | CMD_FLAG_REQ_ONE;
    default:
      return CMD_FLAG_FUA;
  }
}

/** The errno to refuse a request with, 0 to let it through. Its command is not DISC. */
export function checkRequest(header: RequestHeader, limits: RequestLimits): number {
  const { type } = header;
  if ((header.flags & ~allowedFlags(type, limits)) !== 0) return Errno.EINVAL;
  switch (type) {
    case CMD_READ:
      if (header.byteLength > MAX_PAYLOAD_BYTE_LENGTH) return Errno.EINVAL;
      return checkRange(header, limits, Errno.EINVAL);
    case CMD_WRITE:
      if (header.byteLength > MAX_PAYLOAD_BYTE_LENGTH) return Errno.EINVAL;
      return limits.readOnly ? Errno.EPERM : checkRange(header, limits, Errno.ENOSPC);
    case CMD_FLUSH:
      return 0;
    case CMD_TRIM:
      if (limits.readOnly) return Errno.EPERM;
      return limits.canTrim ? checkRange(header, limits, Errno.EINVAL) : Errno.EINVAL;
    case CMD_WRITE_ZEROES:
      return limits.readOnly ? Errno.EPERM : checkRange(header, limits, Errno.ENOSPC);
    case CMD_CACHE:
      return checkRange(header, limits, Errno.EINVAL);
    case CMD_BLOCK_STATUS:
      return limits.contextIds.length > 0 ? checkRange(header, limits, Errno.EINVAL) : Errno.EINVAL;
    default:
      return Errno.EINVAL;
  }
}

/**
 * In sectors and parts of them, so that every 64-bit offset is compared right: offsets that a Number can't hold exactly
 * are past the end of every device.
 */
function checkRange(header: RequestHeader, limits: RequestLimits, pastEnd: number): number {
  const { offsetHigh, offsetLow, byteLength } = header;
  const sector = offsetHigh * SECTORS_PER_HIGH + (offsetLow >>> SECTOR_SHIFT);
  const sectorCount = ((offsetLow & 511) + byteLength) / (1 << SECTOR_SHIFT);
  return sector > limits.sectorCount || sectorCount > limits.sectorCount - sector ? pastEnd : 0;
}
