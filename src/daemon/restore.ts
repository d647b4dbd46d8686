// Devices of a journal made again.
import { errnoMessage } from '../block/errno.ts';
import { DmError, TableError } from '../block/errors.ts';
import type { Control, Restored } from './control.ts';
import { type JournalDevice, type JournalState, type JournalTable, withMajor } from './journal.ts';

/** Why it failed, and what is behind it, in one line. */
function reasonOf(error: unknown): string {
  if (!(error instanceof DmError)) throw error;
  const text = error instanceof TableError ? error.reason : error.message;
  const cause = error.cause instanceof Error ? `: ${error.cause.message}` : '';
  return `${text}${cause} (${errnoMessage(error.errno)})`;
}

/** One device of the journal, with its tables as they read under the major number of now. */
class Restoring {
  readonly #control: Control;
  readonly #state: JournalState;
  readonly #major: number;

  constructor(control: Control, state: JournalState, major: number) {
    this.#control = control;
    this.#state = state;
    this.#major = major;
  }

  async make(device: JournalDevice): Promise<void> {
    const { name, uuid, minor, live, inactive } = device;
    const address = { name };
    await this.#control.call('create', { name, minor, ...(uuid === '' ? {} : { uuid }) });
    try {
      if (live !== null) {
        await this.#load(name, live);
        await this.#control.call('resume', { device: address });
      }
      if (device.suspended) await this.#control.call('suspend', { device: address });
      if (inactive !== null) await this.#load(name, inactive);
    } catch (error) {
      await this.#control.call('remove', { device: address });
      throw error;
    }
  }

  async #load(name: string, table: JournalTable): Promise<void> {
    const { readOnly, lines } = withMajor(table, this.#state.major, this.#major);
    await this.#control.call('load', { device: { name }, table: lines, readOnly });
  }
}

/**
 * Makes the devices in rounds, so that those below come before those on top of them, whatever their names.
 *
 * @returns each device, with the reason where it could not be made; the others are there
 */
export async function restoreDevices(control: Control, state: JournalState, major: number): Promise<Restored[]> {
  const restoring = new Restoring(control, state, major);
  const results = new Map<string, Restored>();
  let waiting = state.devices;
  for (let progress = true; progress && waiting.length > 0; ) {
    const failed: JournalDevice[] = [];
    for (const device of waiting) {
      try {
        await restoring.make(device);
        results.set(device.name, { name: device.name, error: null });
      } catch (error) {
        results.set(device.name, { name: device.name, error: reasonOf(error) });
        failed.push(device);
      }
    }
    progress = failed.length < waiting.length;
    waiting = failed;
  }
  return state.devices.map(({ name }) => results.get(name)!);
}
