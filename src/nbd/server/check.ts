// Which requests are refused before a device sees them, and with what ("Request types", "Error values").
import type { BlockDevice } from '../../block/block-device.ts';
import { Errno } from '../../block/errno.ts';
import { SECTOR_SHIFT } from '../../block/sector.ts';
import {
  CMD_FLAG_FUA,
  CMD_FLAG_NO_HOLE,
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

const SECTORS_PER_HIGH = 2 ** (32 - SECTOR_SHIFT);

/** What a connection was told in its handshake, and what its device says now. */
export interface RequestLimits {
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  readonly canTrim: boolean;
  /** Low bits that must be 0 in offset and length. */
  readonly alignmentMask: number;
}

export function requestLimits(entry: NbdExport): RequestLimits {
  return {
    device: entry.device,
    readOnly: isReadOnly(entry),
    canTrim: (exportInfo(entry).transmissionFlags & TRANSMISSION_SEND_TRIM) !== 0,
    alignmentMask: entry.device.limits.logicalBlockSize - 1,
  };
}

/** The errno to refuse a request with, 0 to let it through. Its command is not DISC. */
export function checkRequest(header: RequestHeader, limits: RequestLimits): number {
  switch (header.type) {
    case CMD_READ:
      if ((header.flags & ~CMD_FLAG_FUA) !== 0 || header.byteLength > MAX_PAYLOAD_BYTE_LENGTH) return Errno.EINVAL;
      return checkRange(header, limits, Errno.EINVAL);
    case CMD_WRITE:
      if ((header.flags & ~CMD_FLAG_FUA) !== 0 || header.byteLength > MAX_PAYLOAD_BYTE_LENGTH) return Errno.EINVAL;
      return limits.readOnly ? Errno.EPERM : checkRange(header, limits, Errno.ENOSPC);
    case CMD_FLUSH:
      return (header.flags & ~CMD_FLAG_FUA) === 0 ? 0 : Errno.EINVAL;
    case CMD_TRIM:
      if ((header.flags & ~CMD_FLAG_FUA) !== 0) return Errno.EINVAL;
      if (limits.readOnly) return Errno.EPERM;
      return limits.canTrim ? checkRange(header, limits, Errno.EINVAL) : Errno.EINVAL;
    case CMD_WRITE_ZEROES:
      if ((header.flags & ~(CMD_FLAG_FUA | CMD_FLAG_NO_HOLE)) !== 0) return Errno.EINVAL;
      return limits.readOnly ? Errno.EPERM : checkRange(header, limits, Errno.ENOSPC);
    default:
      return Errno.EINVAL;
  }
}

/**
 * In sectors, so that every 64-bit offset is compared right: offsets that a Number can't hold exactly are past the end
 * of every device.
 */
function checkRange(header: RequestHeader, limits: RequestLimits, pastEnd: number): number {
  const { offsetHigh, offsetLow, byteLength } = header;
  const sector = offsetHigh * SECTORS_PER_HIGH + (offsetLow >>> SECTOR_SHIFT);
  const sectorCount = ((offsetLow & 511) + byteLength) / (1 << SECTOR_SHIFT);
  const deviceSectorCount = limits.device.sectorCount;
  if (sector > deviceSectorCount || sectorCount > deviceSectorCount - sector) return pastEnd;
  // The place for reading, changing and writing back whole blocks, once partial blocks are served.
  return ((offsetLow | byteLength) & limits.alignmentMask) === 0 ? 0 : Errno.EINVAL;
}
