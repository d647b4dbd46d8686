// A reload of the same words may mean another file by now. The kernel takes it as it stands, and so does dmkit; but it says so.
import type { BlockDevice } from '../block/block-device.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';

/** Sentences about the disks of the inactive table that have the name, but are not the same as those of the live one. */
export function changedPaths(device: MappedDevice): string[] {
  const live = new Map<string, BlockDevice>();
  for (const lower of device.table?.devices ?? []) live.set(lower.name, lower);
  const sentences: string[] = [];
  for (const lower of device.inactiveTable?.devices ?? []) {
    const before = live.get(lower.name);
    if (before === undefined || before === lower) continue;
    sentences.push(
      `${lower.name} is another file now than the one that the live table of ${device.dmName} has open: the loaded table uses the new one`,
    );
  }
  return sentences;
}
