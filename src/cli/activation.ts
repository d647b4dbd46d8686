// Socket activation, as systemd and libnbd do it: the process is started with a socket that listens already, at file
// descriptor 3, and two variables that say so.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

const FIRST_DESCRIPTOR = 3;

/** Whether this process was given its socket. Whoever did that keeps its own output in our standard output. */
export function hasInheritedSocket(env: NodeJS.ProcessEnv = process.env, pid: number = process.pid): boolean {
  // A parent's variables, inherited by accident, name the parent.
  return env.LISTEN_PID !== undefined && env.LISTEN_PID === String(pid);
}

/**
 * The socket that was made for this process; null when there is none. The variables go, so that no child of this process
 * takes them for its own.
 *
 * @throws DmError EINVAL when there are several: which one would be whose is nowhere said
 */
export function takeInheritedSocket(env: NodeJS.ProcessEnv = process.env, pid: number = process.pid): number | null {
  if (!hasInheritedSocket(env, pid)) return null;
  const { LISTEN_FDS } = env;
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete env[name];
  if (LISTEN_FDS !== '1')
    throw new DmError(Errno.EINVAL, `LISTEN_FDS is "${LISTEN_FDS}": one socket is taken, no more`);
  return FIRST_DESCRIPTOR;
}
