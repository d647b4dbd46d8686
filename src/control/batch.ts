// Several requests as one change: all of them, or none.

import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { RequestContext } from './core/host.ts';
import type { Plane } from './core/plane.ts';
import type { Transaction } from './core/transaction.ts';
import type { DeviceOperations } from './devices.ts';
import type { OverlayOperations } from './overlay-operations.ts';
import { type BatchStep, REQUESTS } from './requests.ts';
import { type Fields, objection } from './schema.ts';

type Step = (transaction: Transaction, args: never) => (() => unknown) | Promise<() => unknown>;

export async function runBatch(
  plane: Plane,
  on: { devices: DeviceOperations; overlays: OverlayOperations },
  steps: readonly { name: BatchStep; args: object }[],
  context: RequestContext,
): Promise<unknown[]> {
  const { devices, overlays } = on;
  const known: Record<BatchStep, Step> = {
    create: devices.createIn,
    load: devices.loadIn,
    clear: devices.clearIn,
    suspend: devices.suspendIn,
    resume: devices.resumeIn,
    remove: devices.removeIn,
    rename: devices.renameIn,
    setUuid: devices.setUuidIn,
    overlayCreate: overlays.createIn,
    overlayDrop: overlays.dropIn,
  };
  for (const [index, { name, args }] of steps.entries()) {
    const problem = objection(REQUESTS[name].args, args as Fields);
    if (problem !== null) throw inStep(new DmError(Errno.EINVAL, `${name}: ${problem}`), index);
  }
  const replies = await plane.change(context, async (transaction) => {
    const done: (() => unknown)[] = [];
    for (const [index, { name, args }] of steps.entries()) {
      try {
        done.push(await known[name](transaction, args as never));
        transaction.checkSignal();
      } catch (error) {
        throw inStep(error, index);
      }
    }
    return done;
  });
  return replies.map((reply) => reply());
}

/** An error that says which step of the batch failed. */
function inStep(error: unknown, index: number): unknown {
  if (error instanceof DmError) error.stepIndex = index;
  return error;
}
