// How long the server of a remote device that went away is waited for: --reconnect and DMKIT_RECONNECT.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { NbdReconnectOptions } from '../devices/nbd-links.ts';

/** @throws DmError EINVAL for what is no number of seconds */
export function reconnectOptions(option: string | undefined): { reconnect?: NbdReconnectOptions } {
  const text = option ?? process.env.DMKIT_RECONNECT;
  if (text === undefined || text === '') return {};
  const seconds = Number(text);
  if (!(seconds >= 0 && Number.isFinite(seconds))) {
    const where = option === undefined ? 'DMKIT_RECONNECT' : '--reconnect';
    throw new DmError(Errno.EINVAL, `${where} ${text}: a number of seconds is needed, 0 for no attempt`);
  }
  // The time alone is to count.
  const maxAttemptCount = seconds === 0 ? 0 : Number.POSITIVE_INFINITY;
  return { reconnect: { timeLimitMilliseconds: seconds * 1000, maxAttemptCount } };
}
