// What dmsetup's words need of the process they run in, and how they end.
import type { DmError } from '../../block/errors.ts';

/** The process around a command: everything it reads and writes, so that a test can stand in for it. */
export interface DmsetupIo {
  /** As getopt names it in its messages. */
  readonly programName: string;
  stdout(text: string): void;
  stderr(text: string): void;
  /** What dmsetup would not say: the reasons that the kernel logs, and dmkit's own advice. Goes to standard error. */
  note(text: string): void;
  /** All of standard input. */
  readStdin(): string;
  /** @throws where it cannot be read */
  readFile(path: string): string;
  /** Where relative paths in tables start. */
  readonly folder: string;
  /** Width of the terminal; undefined without one. */
  readonly columns?: number | undefined;
  /** Trees are drawn in UTF-8. */
  readonly utf8: boolean;
  sleep(milliseconds: number): Promise<void>;
  /** Runs a program, without a shell, with standard output and error, and waits. */
  run(command: readonly string[]): void;
  /** The kernel's name of a block device of this host, as `vdb`; null where there is none. */
  blockDeviceName(major: number, minor: number): string | null;
  /** A path leads to a block device of this host. */
  isHostDevice(path: string): boolean;
  /** Rewrites a table's device argument (--map of dmkit exec). */
  mapDevice(argument: string): string;
  /** Lines of `version` beside dmsetup's own two. */
  versionLines(): string[];
  readonly signal?: AbortSignal;
}

/** The command has failed and has said why: `Command failed.` and exit code 1 follow. */
export class CommandFailed extends Error {}

/** The command line cannot be processed, and why has been said. */
export class UsageFailed extends Error {
  /** What follows on standard error. */
  readonly last: string;

  constructor(last: string) {
    super(last);
    this.last = last;
  }
}

/** The reason behind a refusal, as far as dmsetup's own line does not tell it: the kernel's log line, and the causes. */
export function reasonsOf(error: DmError, prefix: string): string[] {
  const lines = [`${prefix}${error.message}`];
  for (let cause = error.cause; cause instanceof Error; cause = cause.cause) lines.push(cause.message);
  return lines;
}
