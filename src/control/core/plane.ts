// Where mapped devices are changed: each change is undone where it fails or its client disappears, and counts when the
// journal has it.
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { ClientInfo, ControlHost, JournalSink, Json, RequestContext } from './host.ts';
import { DEVICE_PREFIX, type DeviceRecord, describeDevice, idOf, type Suspension } from './records.ts';
import { Transaction } from './transaction.ts';

export interface PlaneHooks {
  /** A device has changed for good. */
  onChange?: (device: MappedDevice) => void;
  /** A sentence for the log: a step that nothing depends on has failed. */
  onError?: (error: Error, text: string) => void;
}

export class Plane {
  readonly host: ControlHost;
  readonly hooks: PlaneHooks;
  /** Null in a process that keeps none, and at a stop. */
  journal: JournalSink | null;
  readonly #suspensions = new WeakMap<MappedDevice, Suspension>();

  constructor(host: ControlHost, hooks: PlaneHooks = {}, journal: JournalSink | null = null) {
    this.host = host;
    this.hooks = hooks;
    this.journal = journal;
  }

  /**
   * Does `work`, whole or not at all: where it throws, its client disappears or the journal can't be written, its steps
   * are undone.
   */
  async change<Result>(
    context: RequestContext,
    work: (transaction: Transaction) => Promise<Result> | Result,
  ): Promise<Result> {
    const transaction = new Transaction(this.host, context);
    let result: Result;
    try {
      result = await work(transaction);
      transaction.checkSignal();
      this.#noteSuspensions(transaction, context.client ?? null);
      await this.#commit(transaction);
    } catch (error) {
      await transaction.rollBack();
      throw error;
    }
    await transaction.finish();
    for (const device of transaction.touched) if (!transaction.removed.has(device)) this.hooks.onChange?.(device);
    return result;
  }

  async #commit(transaction: Transaction): Promise<void> {
    if (this.journal === null) return;
    const changes = new Map(transaction.keys);
    for (const device of transaction.touched) {
      if (transaction.removed.has(device)) continue;
      changes.set(DEVICE_PREFIX + idOf(device), asJson(await this.describe(device)));
    }
    for (const device of transaction.removed) {
      const key = DEVICE_PREFIX + idOf(device);
      if (this.journal.values.has(key)) changes.set(key, null);
    }
    if (changes.size > 0) await this.journal.commit(changes);
  }

  describe(device: MappedDevice): Promise<DeviceRecord> {
    return describeDevice(device, this.host, device.suspended ? this.suspensionOf(device) : null);
  }

  /**
   * Writes to the journal how a device will be, before it is so: for a step that can't be undone.
   *
   * @throws DmError where the journal can't be written: nothing has changed then
   */
  async foretell(device: MappedDevice, future: Partial<DeviceRecord>, more?: ReadonlyMap<string, Json>): Promise<void> {
    if (this.journal === null) return;
    const record = { ...(await this.describe(device)), ...future };
    await this.journal.commit(new Map([...(more ?? []), [DEVICE_PREFIX + idOf(device), asJson(record)]]));
  }

  /** Writes how a device is; a failure is only logged, because nothing can be undone any more. */
  async note(device: MappedDevice): Promise<void> {
    try {
      const isListed = this.host.mapper.isListed(device);
      const key = DEVICE_PREFIX + idOf(device);
      if (isListed) await this.foretell(device, {});
      else if (this.journal?.values.has(key)) await this.journal.commit(new Map([[key, null]]));
    } catch (error) {
      this.hooks.onError?.(error as Error, 'the journal could not be written');
    }
    if (this.host.mapper.isListed(device)) this.hooks.onChange?.(device);
  }

  // Suspended devices

  #noteSuspensions(transaction: Transaction, client: ClientInfo | null): void {
    for (const device of transaction.touched) {
      if (!device.suspended) this.#suspensions.delete(device);
      else if (!this.#suspensions.has(device)) this.setSuspension(device, client, null);
    }
  }

  setSuspension(device: MappedDevice, client: ClientInfo | null, reason: string | null, since = Date.now()): void {
    this.#suspensions.set(device, { client, since, reason });
  }

  /** Null for a device that is not suspended, or for a suspension that the daemon knows nothing of. */
  suspensionOf(device: MappedDevice): Suspension | null {
    return this.#suspensions.get(device) ?? null;
  }

  /** Also a device without a live table can be held back: it has no table before its resume. */
  clearSuspension(device: MappedDevice): void {
    this.#suspensions.delete(device);
  }
}

/** A record is plain data already. */
export function asJson(record: object): Json {
  return record as Json;
}
