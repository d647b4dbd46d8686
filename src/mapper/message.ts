// Messages to a mapped device (drivers/md/dm-ioctl.c, target_message).
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { TargetError } from '../block/target.ts';
import type { Table } from '../table/table.ts';
import { splitArguments } from '../table/text.ts';

/** What a message needs of the device. */
export interface MessageReceiver {
  readonly dmName: string;
  readonly table: Table | null;
  deferredRemove: boolean;
}

function refuse(text: string, errno: number = Errno.EINVAL): DmError {
  return new DmError(errno, text);
}

/**
 * Words that begin with @ are for the device itself, others for the target that owns `sector`.
 *
 * @returns the reply, or nothing
 * @throws DmError with what the kernel would log
 */
export function sendMessage(device: MessageReceiver, sector: number, text: string): string | undefined {
  const args = splitArguments(text);
  const first = args[0];
  if (first === undefined) throw refuse('Empty message received.');
  if (first.startsWith('@')) return sendToCore(device, args);
  const { table } = device;
  if (table === null) throw refuse('The device has no table.');
  const target = table.find(sector);
  if (target === undefined) throw refuse('Target message sector outside device.');
  if (target.type.message === undefined) throw refuse('Target type does not support messages');
  try {
    return target.type.message(target, args);
  } catch (error) {
    if (error instanceof TargetError) throw refuse(error.text, error.errno);
    throw error;
  }
}

function sendToCore(device: MessageReceiver, args: readonly string[]): undefined {
  if (args.length !== 1 || args[0] !== '@cancel_deferred_remove') {
    throw refuse(`Unsupported message sent to DM core: ${args[0]}`);
  }
  device.deferredRemove = false;
}
