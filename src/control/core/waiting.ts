// Callbacks of the mapper as promises, and the signals that interrupt them.
import { Errno } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import type { StateChange } from '../../mapper/mapped-device.ts';

export function interrupted(): DmError {
  return new DmError(Errno.EINTR, 'interrupted: it was undone');
}

/** @throws DmError EINTR after the signal */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw interrupted();
}

/** Waits for a change of state; the signal undoes it. */
export function changed(
  signal: AbortSignal | undefined,
  begin: (done: (error: DmError | null) => void) => StateChange,
): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(interrupted());
      return;
    }
    let over = false;
    const change = begin((error) => {
      over = true;
      signal?.removeEventListener('abort', onAbort);
      if (error === null) resolve();
      else reject(error);
    });
    function onAbort(): void {
      change.cancel();
      reject(interrupted());
    }
    if (!over) signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** Waits for a thing that can not be undone on its way; after the signal `release` gets it when it is there. */
export function leased<Lease>(
  signal: AbortSignal | undefined,
  pending: Promise<Lease>,
  release: (lease: Lease) => void,
): Promise<Lease> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      void pending.then(release, () => {});
      reject(interrupted());
    };
    if (signal?.aborted) {
      onAbort();
      return;
    }
    signal?.addEventListener('abort', onAbort, { once: true });
    pending.then((lease) => {
      signal?.removeEventListener('abort', onAbort);
      if (!signal?.aborted) resolve(lease);
    }, reject);
  });
}
