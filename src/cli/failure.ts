// How a failure reads on a terminal: what went wrong, where, and no stack unless somebody asks for it.
import { DmError } from '../block/errors.ts';
import { say } from './say.ts';

/** Prints an error to standard error. Expected ones as one line, with their causes; a bug with its stack. */
export function reportFailure(error: unknown): void {
  if (!(error instanceof DmError)) {
    say(`dmkit: unexpected: ${error instanceof Error ? error.stack : String(error)}\n`);
    return;
  }
  say(`dmkit: ${error.message}\n`);
  for (let cause = error.cause; cause instanceof Error; cause = cause.cause) {
    say(`  ${cause.message}\n`);
  }
}
