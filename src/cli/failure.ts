// How a failure reads on a terminal: what went wrong, where, and no stack unless DMKIT_DEBUG asks for it.
import { errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { say } from './say.ts';

const EXIT_FAILURE = 1;

function print(line: string): void {
  say(`${line}\n`);
}

function isSystemError(error: Error): error is NodeJS.ErrnoException {
  return 'syscall' in error && typeof error.syscall === 'string';
}

/** A system call that failed where its caller had no sentence for it. */
function systemText(error: NodeJS.ErrnoException): string {
  if (error.syscall === 'uv_cwd') {
    return 'the working folder was deleted: go to one that exists, or name files by absolute paths';
  }
  const what = [error.path, (error as { dest?: string }).dest].filter((path) => path !== undefined).join(' to ');
  return `${what === '' ? '' : `${what}: `}${errnoMessage(errnoFromException(error))} (${error.syscall})`;
}

function unexpectedText(error: unknown): string {
  if (!(error instanceof Error)) return `unexpected: ${String(error)}`;
  return isSystemError(error) ? systemText(error) : `unexpected: ${error.name}: ${error.message.split('\n', 1)[0]}`;
}

/** Prints an error to standard error: one line, with its causes; where it is a bug, a hint at how to report it. */
export function reportFailure(error: unknown): void {
  if (error instanceof DmError) {
    print(`dmkit: ${error.message}`);
    for (let cause = error.cause; cause instanceof Error; cause = cause.cause) print(`  ${cause.message}`);
    return;
  }
  print(`dmkit: ${unexpectedText(error)}`);
  if (process.env.DMKIT_DEBUG) print(error instanceof Error ? (error.stack ?? '') : '');
  else if (!(error instanceof Error && isSystemError(error))) {
    print('This is a fault of dmkit. Please report it, with what the same command prints under DMKIT_DEBUG=1.');
  }
}

/** Errors that no command has caught are told in the same way, and end the process with exit code 1. */
export function guardFailures(): void {
  process.on('uncaughtException', (error) => {
    reportFailure(error);
    process.exit(EXIT_FAILURE);
  });
}
