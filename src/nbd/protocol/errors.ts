// Which error numbers may go over the wire ("Error values"), and what the others become.
import { Errno } from '../../block/errno.ts';

const ON_THE_WIRE = new Set<number>([
  Errno.EPERM,
  Errno.EIO,
  Errno.ENOMEM,
  Errno.EINVAL,
  Errno.ENOSPC,
  Errno.EOVERFLOW,
  Errno.ESHUTDOWN,
]);

/**
 * The number a reply carries for a request that ended with `errno`; 0 stays 0.
 *
 * A device's EOPNOTSUPP becomes EINVAL: NBD_ENOTSUP is kept for a FAST_ZERO that would be slow.
 */
export function wireErrorFromErrno(errno: number): number {
  if (errno === 0 || ON_THE_WIRE.has(errno)) return errno;
  switch (errno) {
    case Errno.EDQUOT:
    case Errno.EFBIG:
      return Errno.ENOSPC;
    case Errno.EROFS:
    case Errno.EACCES:
      return Errno.EPERM;
    case Errno.EOPNOTSUPP:
      return Errno.EINVAL;
    default:
      return Errno.EIO;
  }
}

/** The errno for a number that a server sent: one that the protocol doesn't have counts as EINVAL, as it asks. */
export function errnoFromWireError(error: number): number {
  if (error === 0 || error === Errno.EOPNOTSUPP || ON_THE_WIRE.has(error)) return error;
  return Errno.EINVAL;
}
