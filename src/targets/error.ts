// error: every read and write fails with EIO. Drawn in drivers/md/dm-target.c.
import { DM_MAPIO_KILL, type TargetType } from '../block/target.ts';

/** Syntax: `error`, and any arguments, which Linux 6.1 ignores. */
export const error: TargetType<null> = {
  name: 'error',
  version: [1, 5, 0],
  stateless: true,

  construct(target) {
    target.discardBioCount = 1;
    return null;
  },

  map() {
    return DM_MAPIO_KILL;
  },
};
