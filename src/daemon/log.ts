// The daemon's log: JSON lines in its folder, by pino, which is loaded when a daemon starts and not before.
import { DmError } from '../block/errors.ts';
import { printableLines } from '../block/printable.ts';
import { MAX_LOG_BYTE_LENGTH } from '../control/bounds.ts';
import { ProtocolError } from '../control/wire.ts';
import { MalformedError } from '../nbd/protocol/info.ts';
import { ComplaintLimit } from './complaint-limit.ts';
import { LineFile } from './line-file.ts';

export interface Log {
  info(fields: object, message: string): void;
  error(fields: object, message: string): void;
  /** What a peer did wrong, or its connection: some lines of each kind are written, the others counted. */
  complain(fields: object, error: Error | null, message: string): void;
  /** Writes how many complaints there were more. */
  close(): void;
}

/** Whether an error tells of a peer's doing, so that a stack of ours says nothing about it. */
function isPeersDoing(error: Error): boolean {
  return error instanceof MalformedError || error instanceof ProtocolError || error instanceof DmError;
}

/**
 * Opens the log to append. One that is too long goes on in a new file, and the old one is kept beside it. A line that can't
 * be written is dropped, and the next that can says so.
 *
 * @throws Error of node:fs where it can't be opened
 */
export async function openLog(path: string, maxByteLength: number = MAX_LOG_BYTE_LENGTH): Promise<Log> {
  const { pino } = await import('pino');
  // Written at once: what a crash leaves unsaid is what one looks for.
  const file = new LineFile(path, maxByteLength, (count) => {
    const time = new Date().toISOString();
    return `${JSON.stringify({ level: 50, time, pid: process.pid, count, msg: 'log lines could not be written' })}\n`;
  });
  const stream = { write: (line: string) => file.write(printableLines(line)) };
  const logger = pino({ base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime }, stream);
  const limit = new ComplaintLimit((count, like) => logger.error({ count, like }, 'more of the same'));
  return {
    info: (fields, message) => logger.info(fields, message),
    error: (fields, message) => logger.error(fields, message),
    complain: (fields, error, message) => {
      if (!limit.allows(error === null ? message : `${message}: ${error.message}`)) return;
      if (error === null) logger.info(fields, message);
      else logger.error({ ...fields, ...(isPeersDoing(error) ? { reason: error.message } : { err: error }) }, message);
    },
    close: () => limit.close(),
  };
}
