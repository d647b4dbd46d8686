// The devices that a live table has open, kept open and used again without a look at any path.
import type { BlockDevice } from '../../block/block-device.ts';
import { MappedDevice } from '../../mapper/mapped-device.ts';
import type { LoadOptions } from '../../mapper/mapper.ts';
import type { Table } from '../../table/table.ts';
import type { TableEntry } from '../../table/text.ts';
import type { ControlHost } from './host.ts';

export function entriesOf(table: Table): TableEntry[] {
  return table.targets.map((target) => ({
    sector: target.begin,
    sectorCount: target.sectorCount,
    type: target.type.name,
    params: target.type.status?.(target, 'table') ?? '',
  }));
}

/** Load options under which the names that `tables` print mean the very devices that these tables have open. */
export function reopening(host: ControlHost, ...tables: readonly Table[]): Pick<LoadOptions, 'openAgain'> {
  const byName = new Map<string, BlockDevice>();
  for (const table of tables) for (const device of table.devices) byName.set(device.name, device);
  return {
    openAgain: (argument, readOnly) => {
      const device = byName.get(argument);
      if (device === undefined) return null;
      if (device instanceof MappedDevice) return device;
      return host.devices?.isOpen(device) ? host.devices.openAgain(device, readOnly) : null;
    },
  };
}

export interface HeldTable {
  readonly entries: TableEntry[];
  readonly options: LoadOptions;
  release(): void;
}

/** Keeps everything open that `table` has open, so that the same table can be built again when it is gone. */
export function holdTable(host: ControlHost, table: Table): HeldTable {
  const held: { device: BlockDevice; readOnly: boolean }[] = [];
  const { mapper, devices } = host;
  for (const device of table.devices) {
    if (device instanceof MappedDevice) mapper.acquire(device);
    else if (devices?.isOpen(device)) devices.openAgain(device, device.readOnly);
    else continue;
    held.push({ device, readOnly: device.readOnly });
  }
  return {
    entries: entriesOf(table),
    options: { readOnly: table.readOnly, ...reopening(host, table) },
    release: () => {
      for (const { device, readOnly } of held.splice(0)) {
        if (device instanceof MappedDevice) mapper.release(device);
        else devices!.close(device, readOnly);
      }
    },
  };
}
