// zero: reads give zeros, writes are dropped. Drawn in drivers/md/dm-zero.c.
import { fillMemory, REQ_OP_READ, REQ_OP_WRITE, REQ_RAHEAD } from '../block/bio.ts';
import { EXTENT_HOLE, EXTENT_ZERO } from '../block/block-device.ts';
import { DM_MAPIO_KILL, DM_MAPIO_SUBMITTED, TargetError, type TargetType } from '../block/target.ts';

/** Syntax: `zero`, no arguments. */
export const zero: TargetType<null> = {
  name: 'zero',
  version: [1, 1, 0],
  stateless: true,

  construct(target, args) {
    if (args.length !== 0) throw new TargetError('No arguments required');
    // As in Linux 6.1, where the device of such a table refuses discards all the same: nothing says they are supported.
    target.discardBioCount = 1;
    return null;
  },

  map(_target, bio) {
    switch (bio.op) {
      case REQ_OP_READ:
        if (bio.flags & REQ_RAHEAD) return DM_MAPIO_KILL;
        fillMemory(bio, 0);
        break;
      case REQ_OP_WRITE:
        break;
      default:
        return DM_MAPIO_KILL;
    }
    bio.endIo(0);
    return DM_MAPIO_SUBMITTED;
  },

  queryExtent(_target, _sector, sectorCount, done) {
    done(0, sectorCount, EXTENT_HOLE | EXTENT_ZERO);
  },
};
