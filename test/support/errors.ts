import { DmError } from '../../src/block/errors.ts';

/** The DmError of a call that must throw one. */
export function errorOf(call: () => unknown): DmError {
  try {
    call();
  } catch (error) {
    if (error instanceof DmError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

/** The errno of a promise that may reject with a DmError; 0 where it resolves. */
export async function errnoOf(work: Promise<unknown>): Promise<number> {
  try {
    await work;
    return 0;
  } catch (error) {
    if (error instanceof DmError) return error.errno;
    throw error;
  }
}
