// The commands about the daemon itself.
import { closeSync, createReadStream, existsSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { findDaemon } from '../client/connect.ts';
import { connect } from '../client/index.ts';
import { READY_TEXT } from '../client/start.ts';
import { type Daemon, startDaemon } from '../daemon/daemon.ts';
import { daemonFolder } from '../daemon/folder.ts';
import { keptName, shownName } from './device-names.ts';
import { guardEnd } from './leave.ts';
import { printed } from './output.ts';
import { reconnectOptions } from './reconnect.ts';

const STOP_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
const GONE_ATTEMPTS = 400;
const GONE_MILLISECONDS = 50;

export interface DaemonCommandOptions {
  idleExit?: string;
  reconnect?: string;
  /** Tells the process that started this one, over this descriptor, and hangs up. */
  readyDescriptor?: string;
}

function tellStarter(descriptor: string | undefined, text: string): void {
  if (descriptor === undefined) return;
  try {
    writeSync(Number(descriptor), `${text}\n`);
    closeSync(Number(descriptor));
  } catch {
    // Whoever started it did not wait.
  }
}

function idleSeconds(options: DaemonCommandOptions): number | undefined {
  const text = options.idleExit ?? process.env.DMKIT_IDLE_EXIT;
  if (text === undefined || text === '') return undefined;
  const seconds = Number(text);
  if (!(seconds > 0)) throw new DmError(Errno.EINVAL, `${text} is no number of seconds to wait before an exit`);
  return seconds;
}

async function start(options: DaemonCommandOptions): Promise<Daemon> {
  try {
    const idleExitSeconds = idleSeconds(options);
    const folder = daemonFolder();
    return await startDaemon({
      folder,
      ...(idleExitSeconds === undefined ? {} : { idleExitSeconds }),
      ...reconnectOptions(options.reconnect),
    });
  } catch (error) {
    const code = error instanceof DmError ? error.code : 'error';
    tellStarter(options.readyDescriptor, `${code}: ${(error as Error).message}`);
    throw error;
  }
}

/** Runs a daemon until it is told to stop. */
export async function runDaemon(options: DaemonCommandOptions): Promise<void> {
  guardEnd();
  const daemon = await start(options);
  for (const signal of STOP_SIGNALS) process.on(signal, () => void daemon.stop('signal'));
  process.on('uncaughtExceptionMonitor', (error) => daemon.noteCrash(error));
  if (options.readyDescriptor === undefined) process.stdout.write(`listening in ${daemonFolder().path}\n`);
  tellStarter(options.readyDescriptor, READY_TEXT);
  await daemon.stopped;
  // Whatever still waits for a device that never answers is not waited for.
  process.exit(0);
}

/** Ends the daemon, and waits until it is gone. */
export async function shutdownDaemon(options: { force?: boolean }): Promise<void> {
  const client = connect();
  try {
    await client.shutdown(options);
  } catch (error) {
    if ((error as DmError).code !== 'DM_NO_DAEMON') throw error;
    process.stderr.write('dmkit: no daemon is running\n');
    return;
  } finally {
    await client.close();
  }
  const folder = daemonFolder();
  for (let attempt = 0; attempt < GONE_ATTEMPTS; attempt++) {
    const found = await findDaemon(folder).catch(() => null);
    // Its sockets may be there still: a folder that went read-only keeps their names.
    if (found === null) return;
    await found.close();
    await sleep(GONE_MILLISECONDS);
  }
  throw new DmError(Errno.ETIMEDOUT, `the daemon has not ended yet; see ${folder.logFile}`);
}

/** Prints the daemon's log: the part before the last new beginning, and what follows. */
export async function printLogs(): Promise<void> {
  const { logFile } = daemonFolder();
  const files = [`${logFile}.1`, logFile].filter((file) => existsSync(file));
  if (files.length === 0) throw new DmError(Errno.ENOENT, `there is no log yet: ${logFile}`);
  for (const file of files) for await (const piece of createReadStream(file)) if (!(await printed(piece))) return;
}

/** Takes over grown sizes below a device. */
export async function refresh(name: string): Promise<void> {
  const client = connect();
  try {
    const changed = await client.refresh(await keptName(client, name));
    for (const { name: lower, sectorCount } of changed)
      process.stdout.write(rawName(`${shownName(lower)}: ${sectorCount} sectors now\n`));
    if (changed.length === 0) process.stdout.write('every size is as it was\n');
  } finally {
    await client.close();
  }
}

/** Prints where NBD clients find a device. */
export async function printUri(name: string): Promise<void> {
  const client = connect();
  try {
    process.stdout.write(`${await client.uri(await keptName(client, name))}\n`);
  } finally {
    await client.close();
  }
}
