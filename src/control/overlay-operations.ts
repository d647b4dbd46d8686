// The requests about overlays.

import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import type { MappedDevice } from '../mapper/mapped-device.ts';
import { type ChangesPage, changedExtentsPage, snapshotReports } from '../overlays/changes.ts';
import { OverlayMaking } from '../overlays/create.ts';
import { OverlayDropping } from '../overlays/drop.ts';
import { Merges } from '../overlays/merge.ts';
import type { DroppedOverlay, OverlayPlan } from '../overlays/options.ts';
import { planOverlay } from '../overlays/plan.ts';
import type { RequestContext } from './core/host.ts';
import type { Plane } from './core/plane.ts';
import type { Transaction } from './core/transaction.ts';
import type { OverlayArgs, RequestArgs } from './requests.ts';
import type { DeviceAddress } from './schema.ts';
import type { SnapshotStatus } from './types.ts';

export class OverlayOperations {
  readonly merges: Merges;
  readonly #plane: Plane;
  readonly #find: (address: DeviceAddress) => MappedDevice;

  constructor(plane: Plane, find: (address: DeviceAddress) => MappedDevice) {
    this.#plane = plane;
    this.#find = find;
    this.merges = new Merges(plane);
  }

  list(address?: DeviceAddress): SnapshotStatus[] {
    const devices = address === undefined ? this.#plane.host.mapper.list() : [this.#find(address)];
    return devices.flatMap((device) => this.#statusesOf(device));
  }

  #statusesOf(device: MappedDevice): SnapshotStatus[] {
    const { dmName, uuid, openCount, suspended, table } = device;
    return snapshotReports(device).map((report) => ({
      name: dmName,
      uuid,
      openCount,
      suspended,
      targetCount: table!.targets.length,
      originName: this.#nameOf(report.origin),
      ...report,
    }));
  }

  /** `252:3` by its name, where it is one of dmkit's. */
  #nameOf(printed: string): string | null {
    const { mapper } = this.#plane.host;
    const [major, minor] = printed.split(':');
    if (Number(major) !== mapper.major) return null;
    return mapper.getByNumber(mapper.major, Number(minor)).dmName;
  }

  changes(address: DeviceAddress, sector: number): ChangesPage {
    return changedExtentsPage(this.#find(address), sector);
  }

  async plan(overlays: readonly OverlayArgs[]): Promise<OverlayPlan[]> {
    return overlays.map((options) => planOverlay(this.#plane.host, options));
  }

  createIn = async (
    transaction: Transaction,
    { overlays }: { overlays: readonly OverlayArgs[] },
  ): Promise<() => OverlayPlan[]> => {
    for (const { name } of overlays) {
      if (this.merges.has(name))
        throw new DmError(Errno.EBUSY, `a merge of ${name} has begun: finish it (merge it again)`);
    }
    const plans = await new OverlayMaking(this.#plane, transaction).make(overlays);
    return () => plans;
  };

  async create(overlays: readonly OverlayArgs[], context: RequestContext): Promise<OverlayPlan[]> {
    const reply = await this.#plane.change(context, (transaction) => this.createIn(transaction, { overlays }));
    return reply();
  }

  merge(name: string, deleteCow: boolean, context: RequestContext): Promise<DroppedOverlay> {
    return this.merges.merge(name, deleteCow, context);
  }

  dropIn = (transaction: Transaction, args: RequestArgs<'overlayDrop'>): (() => DroppedOverlay[]) => {
    const dropping = new OverlayDropping(this.#plane, transaction);
    const dropped = args.names.map((name) => dropping.drop(this.#find({ name }), args.deleteCow ?? false));
    return () => dropped;
  };

  async drop(args: RequestArgs<'overlayDrop'>, context: RequestContext): Promise<DroppedOverlay[]> {
    const reply = await this.#plane.change(context, (transaction) => this.dropIn(transaction, args));
    return reply();
  }
}
