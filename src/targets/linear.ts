// linear: sectors of the line, shifted, on one device. Drawn in drivers/md/dm-linear.c.
import type { Bio } from '../block/bio.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { queryExtent } from '../block/block-device.ts';
import { escapeArgument } from '../block/escape.ts';
import { scanUnsigned64 } from '../block/numbers.ts';
import { DM_MAPIO_REMAPPED, TargetError, type TargetType } from '../block/target.ts';
import { lookUpDevice } from './arguments.ts';

interface LinearContext {
  device: BlockDevice;
  /** Sector of the device behind the line's first sector. */
  start: number;
}

/** Syntax: `linear DEVICE OFFSET`, the offset in sectors. */
export const linear: TargetType<LinearContext> = {
  name: 'linear',
  version: [1, 4, 0],
  stateless: true,

  construct(target, args, setup) {
    if (args.length !== 2) throw new TargetError('Invalid argument count');
    const start = scanUnsigned64(args[1]!);
    if (start === undefined) throw new TargetError('Invalid device sector');
    const device = lookUpDevice(setup, args[0]!, 'Device lookup failed');
    target.flushBioCount = 1;
    target.discardBioCount = 1;
    target.writeZeroesBioCount = 1;
    target.flushBypassesMap = true;
    return { device, start };
  },

  map(target, bio: Bio) {
    bio.device = target.context.device;
    bio.sector = target.context.start + (bio.sector - target.begin);
    return DM_MAPIO_REMAPPED;
  },

  status(target, type) {
    return type === 'table' ? `${escapeArgument(target.context.device.name)} ${target.context.start}` : '';
  },

  iterateDevices(target, visit) {
    visit(target.context.device, target.context.start, target.sectorCount);
  },

  queryExtent(target, sector, sectorCount, done) {
    queryExtent(target.context.device, target.context.start + (sector - target.begin), sectorCount, done);
  },
};
