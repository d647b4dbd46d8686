// A table over a file or export whose length is no multiple of 512 shows its whole sectors, and its loader hears of the rest.
import { type CutEnd, cutEndText } from '../block/cut-end.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { cutEndSteps } from '../table/cut-ends.ts';
import type { Table } from '../table/table.ts';
import type { Transaction } from './core/transaction.ts';

/** The loop goes on after this many steps of 64 lines. */
const TURN_STEP_COUNT = 16;

/** The cut ends that a table reaches; long tables are gone through in several turns of the loop. */
export async function cutEndsOf(table: Table | null): Promise<CutEnd[]> {
  if (table === null) return [];
  const steps = cutEndSteps(table);
  for (let stepCount = 1; ; stepCount++) {
    const step = steps.next();
    if (step.done) return step.value;
    if (stepCount % TURN_STEP_COUNT === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Tells of the cut ends that the table in the inactive slot reaches. */
export async function tellCutEnds(device: MappedDevice, transaction: Transaction): Promise<void> {
  for (const end of await cutEndsOf(device.inactiveTable)) transaction.tell(cutEndText(end));
}
