// What an overlay that was made here is known by, and what is said of one that is in use.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { newId } from '../control/core/records.ts';

/** What its uuid begins with. */
const UUID_PREFIX = 'DMKIT-OVERLAY-';

export function newOverlayUuid(): string {
  return `${UUID_PREFIX}${newId()}`;
}

export function isOverlayUuid(uuid: string): boolean {
  return uuid.startsWith(UUID_PREFIX);
}

export function inUse({ name, openCount }: { name: string; openCount: number }): DmError {
  return new DmError(Errno.EBUSY, `${name} is in use by ${openCount}: end its NBD clients, and what is stacked on it`);
}
