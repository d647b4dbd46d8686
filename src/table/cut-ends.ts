// Which devices of a table end with bytes that belong to no sector, where the table goes up to that end.
import type { BlockDevice } from '../block/block-device.ts';
import type { CutEnd } from '../block/cut-end.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { beginsStep, type Steps } from './steps.ts';
import type { Table } from './table.ts';

/** The cut end of `device` itself; null where every byte is in a sector. */
export function cutEndOf(device: BlockDevice): CutEnd | null {
  const { name, sectorCount, cutByteLength = 0 } = device;
  return cutByteLength === 0 ? null : { name, byteLength: sectorCount * SECTOR_SIZE + cutByteLength, cutByteLength };
}

/**
 * The cut ends that `table` reaches: a line uses the last whole sector in front of them. In the order in which the table
 * first named the devices. A table over whole sectors alone is not gone through.
 */
export function* cutEndSteps({ devices, targets }: Table): Steps<CutEnd[]> {
  const odd = devices.filter((device) => cutEndOf(device) !== null);
  const reached = new Set<BlockDevice>();
  for (let index = 0; index < targets.length && reached.size < odd.length; index++) {
    if (beginsStep(index)) yield;
    const target = targets[index]!;
    target.type.iterateDevices?.(target, (device, sector, sectorCount) => {
      if (odd.includes(device) && sector + sectorCount >= device.sectorCount) reached.add(device);
    });
  }
  return odd.filter((device) => reached.has(device)).map((device) => cutEndOf(device)!);
}
