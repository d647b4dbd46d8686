// The daemon's log: JSON lines in its folder, by pino, which is loaded when a daemon starts and not before.
import { renameSync, statSync } from 'node:fs';
import { MAX_LOG_BYTE_LENGTH } from '../control/bounds.ts';

export interface Log {
  info(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/** Opens the log to append; a long one begins anew. */
export async function openLog(path: string): Promise<Log> {
  try {
    if (statSync(path).size > MAX_LOG_BYTE_LENGTH) renameSync(path, `${path}.1`);
  } catch {
    // There is none yet.
  }
  const { pino } = await import('pino');
  // Written at once: what a crash leaves unsaid is what one looks for.
  const destination = pino.destination({ dest: path, sync: true, mode: 0o600 });
  const logger = pino({ base: { pid: process.pid }, timestamp: pino.stdTimeFunctions.isoTime }, destination);
  return {
    info: (fields, message) => logger.info(fields, message),
    error: (fields, message) => logger.error(fields, message),
  };
}
