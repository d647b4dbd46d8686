// What a daemon without devices would answer, so that nobody starts one only to hear it.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { Reply, RequestName } from '../daemon/control.ts';

export async function withoutDaemon<Name extends RequestName>(name: Name): Promise<Reply<Name>> {
  return (await answer(name)) as Reply<Name>;
}

async function answer(name: RequestName): Promise<unknown> {
  switch (name) {
    case 'list':
    case 'snapshots':
    case 'removeAll':
      return [];
    case 'snapshotUsers':
      return { origins: [], overlays: [] };
    case 'targets': {
      const { builtinTargets } = await import('../targets/index.ts');
      return builtinTargets.map((type) => ({ name: type.name, version: type.version }));
    }
    case 'daemon':
    case 'shutdown':
      throw new DmError(0, 'no daemon is running', 'DM_NO_DAEMON');
    default:
      throw new DmError(Errno.ENXIO, 'there is no such device: no daemon is running');
  }
}
