// Making overlays: their stores, the devices that map their origins, and the overlays themselves, of one moment.
import fs from 'node:fs';
import { basename, dirname } from 'node:path';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import type { Plane } from '../control/core/plane.ts';
import type { Transaction } from '../control/core/transaction.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { parseTable } from '../table/text.ts';
import type { StoreMark } from '../targets/snapshot/mark.ts';
import { checkingMarks, newMark, originFacts } from './marks.ts';
import { newOverlayUuid } from './names.ts';
import type { OverlayOptions, OverlayPlan, PlannedDevice } from './options.ts';
import { planOverlay } from './plan.ts';
import { NewFiles } from './store-file.ts';

/** Overlays that are to be made together. */
export class OverlayMaking {
  readonly #plane: Plane;
  readonly #transaction: Transaction;
  readonly #files: NewFiles;

  constructor(plane: Plane, transaction: Transaction) {
    this.#plane = plane;
    this.#transaction = transaction;
    this.#files = new NewFiles(transaction, plane.journal);
  }

  /**
   * @throws DmError EBUSY for a name or store that is taken, ENODEV for an origin that is missing, ENOSPC for a store that
   *   is too small, ESTALE for a store of another origin, EEXIST, EINVAL; TableError
   */
  async make(overlays: readonly OverlayOptions[]): Promise<OverlayPlan[]> {
    const plans = planAll(this.#plane, overlays);
    await this.#files.make(plans.map((plan, index) => ({ plan, mark: this.#markOf(plan, overlays[index]!) })));
    const made = new Set<string>();
    for (const { originDevice } of plans) {
      if (originDevice === null || made.has(originDevice.name)) continue;
      made.add(originDevice.name);
      await this.#makeDevice(originDevice, undefined, null);
    }
    // Every origin stands still before the first overlay begins: a machine with several disks needs one moment of all.
    const suspended = await this.#suspend(plans.flatMap(({ suspends }) => suspends));
    for (const [index, plan] of plans.entries()) {
      await this.#makeDevice(plan.overlay, newOverlayUuid(), { plan, force: overlays[index]!.force ?? false });
    }
    for (const device of suspended) await this.#transaction.resumeLive(device);
    return plans;
  }

  /** Null for a store that has no header of ours: a transient one, or one that is there already. */
  #markOf(plan: OverlayPlan, { store = 'persistent' }: OverlayOptions): StoreMark | null {
    if (!plan.makesCow || store === 'transient') return null;
    const { host } = this.#plane;
    const origin = host.mapper.open(plan.origin, true);
    try {
      return newMark(originFacts(host, origin));
    } finally {
      host.mapper.close(origin, true);
    }
  }

  async #makeDevice(
    { name, table }: PlannedDevice,
    uuid: string | undefined,
    overlay: { plan: OverlayPlan; force: boolean } | null,
  ): Promise<void> {
    const transaction = this.#transaction;
    const device = transaction.create(name, uuid === undefined ? {} : { uuid });
    const checks = {
      force: overlay?.force ?? false,
      isNew: (cow: string) => overlay?.plan.makesCow === true && cow === overlay.plan.cow,
      onNotice: (text: string) => void overlay?.plan.notices.push(text),
    };
    await transaction.load(device, table, checkingMarks(this.#plane, parseTable(table), checks));
    await transaction.resume(device);
  }

  async #suspend(names: readonly string[]): Promise<MappedDevice[]> {
    const { mapper } = this.#plane.host;
    const suspended: MappedDevice[] = [];
    for (const name of new Set(names)) {
      const device = mapper.get(name);
      if (device.suspended) continue;
      await this.#transaction.suspend(device);
      suspended.push(device);
    }
    return suspended;
  }
}

/** @throws DmError EBUSY where two of them want one name or one store */
function planAll(plane: Plane, overlays: readonly OverlayOptions[]): OverlayPlan[] {
  const plans = overlays.map((options) => planOverlay(plane.host, options));
  for (const field of ['name', 'cow'] as const) {
    const seen = new Set<string>();
    for (const plan of plans) {
      if (seen.has(plan[field])) throw new DmError(Errno.EBUSY, `${plan[field]} is asked for twice`);
      seen.add(plan[field]);
    }
  }
  for (const { cow, makesCow } of plans) if (makesCow) checkFolder(cow);
  return plans;
}

/** Said before anything is made: the folder is missing, not the file. */
function checkFolder(cow: string): void {
  const folder = dirname(cow);
  if (fs.existsSync(rawName(folder))) return;
  throw new DmError(
    Errno.ENOENT,
    `${cow}: No such file or directory: the folder ${folder} is missing; make it first, or name another for ${basename(cow)}`,
  );
}
