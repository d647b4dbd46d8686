// dmkit serve: devices out of tables, exported over NBD until a signal comes or the command given has ended.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, constants, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { DeviceMapper } from '../api/device-mapper.ts';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError, TableError } from '../block/errors.ts';
import type { NbdLinkState } from '../devices/nbd-links.ts';
import { isRemote, MAX_THREAD_COUNT, type NbdService, parseListenAddress, serveNbd } from '../nbd/serve.ts';
import type { NbdTlsOptions } from '../nbd/tls.ts';
import { parseTable, type TableEntry } from '../table/text.ts';
import { takeInheritedSocket } from './activation.ts';

import { quoted } from './exec.ts';
import { isHangUpIgnored } from './hang-up.ts';
import { guardEnd } from './leave.ts';
import { printed } from './output.ts';

import { reconnectOptions } from './reconnect.ts';
import { Complaints, say } from './say.ts';

export interface ServeOptions {
  names: string[];
  /** One for each name, in the same order: the table's text, or the file it is in. */
  tables: { kind: 'text' | 'file'; value: string }[];
  readOnly?: boolean;
  nbd?: string;
  /** Without it, TCP addresses beyond this machine are refused. */
  allowRemote?: boolean;
  /** `require` where there are credentials, `off` where there are none, unless given. */
  tls?: 'off' | 'allow' | 'require';
  tlsCertificates?: string;
  tlsPsk?: string;
  tlsVerifyPeer?: boolean;
  run?: string;
  reconnect?: string;
  threads?: string;
}

/** More than this, whoever wants it has to ask for it: each takes memory, and clients need processors too. */
const DEFAULT_MAX_THREAD_COUNT = 4;
/** The same for devices: each thread has all of them for itself, and an open file for each. */
const DEFAULT_MAX_DEVICE_COUNT = 64;
const PARENT_CHECK_MILLISECONDS = 500;
/** For what is still to be printed. */
const EXIT_DELAY_MILLISECONDS = 500;
const NOT_FOUND = 'the URIs of these devices could not be printed, and no client can find them; --nbd names an address';
const EXIT_SUCCESS = 0;
const EXIT_FAILURE = 1;
/** What a shell gives for a process that a signal ended, less the signal's number. */
const EXIT_SIGNAL = 128;

interface NamedTable {
  name: string;
  entries: TableEntry[];
}

/** @throws DmError for a count that does not match, a file that cannot be read, text that is no table */
function readTables(options: ServeOptions): NamedTable[] {
  const { names, tables } = options;
  if (names.length !== tables.length) {
    throw new DmError(
      Errno.EINVAL,
      `${names.length} name${names.length === 1 ? '' : 's'} (${names.join(', ')}) but ${tables.length} of --table and --table-file: each device needs one`,
    );
  }
  return names.map((name, index) => {
    const table = tables[index]!;
    if (table.kind === 'text') return { name, entries: parseTable(table.value) };
    return { name, entries: parseTable(readTableFile(table.value), table.value === '-' ? 'on stdin' : table.value) };
  });
}

function readTableFile(file: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (error) {
    const errno = errnoFromException(error);
    throw new DmError(errno, `cannot read the table file ${file}: ${errnoMessage(errno)}`);
  }
}

/** A refused table in dmsetup's words, then what the kernel would have logged, then what we know of the cause. */
function reportRefusedTable({ name, entries }: NamedTable, major: number, minor: number, error: DmError): void {
  const device = `${major}:${minor}`;
  say(`device-mapper: reload ioctl on ${name} (${device}) failed: ${errnoMessage(error.errno)}\n`);
  if (error instanceof TableError) say(`device-mapper: table: ${device}: ${error.reason}\n`);
  else say(`${error.message}\n`);
  for (let cause = error.cause; cause instanceof Error; cause = cause.cause) say(`${cause.message}\n`);
  const own = /\/dev\/mapper\/((?:\\.|\S)+)/.exec(entries.map(({ params }) => params).join(' '))?.[1];
  if (own !== undefined && error.errno === Errno.ENODEV) {
    say(`A daemon's device has an NBD URI, which a table takes in its place: dmkit uri ${quoted(own)}\n`);
  }
  say('Command failed.\n');
}

async function createDevices(dm: DeviceMapper, tables: readonly NamedTable[], readOnly: boolean): Promise<boolean> {
  for (const { name, entries } of tables) {
    const minor = dm.mapper.list().length;
    try {
      // The server opens the device for itself; a handle of ours would only keep it busy.
      (await dm.create(name, entries, { readOnly })).close();
    } catch (error) {
      if (!(error instanceof DmError) || dm.mapper.has(name)) throw error;
      reportRefusedTable({ name, entries }, dm.mapper.major, minor, error);
      return false;
    }
  }
  return true;
}

/** Variables for the command: the first device's URI as `uri`, and `uri_NAME` for each. */
function environment(service: NbdService, names: readonly string[]): NodeJS.ProcessEnv {
  const variables: NodeJS.ProcessEnv = { ...process.env, uri: service.uri(names[0]!) };
  for (const name of names) variables[`uri_${name.replace(/[^0-9A-Za-z_]/g, '_')}`] = service.uri(name);
  if (service.address.startsWith('unix:')) variables.unixsocket = service.address.slice('unix:'.length);
  return variables;
}

/** Runs the command in a shell; its exit code, or 128 + signal. A signal to us goes on to it. */
function runCommand(command: string, env: NodeJS.ProcessEnv): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, { shell: true, stdio: 'inherit', env });
    const pass = (signal: NodeJS.Signals): void => void child.kill(signal);
    const stop = (): void => {
      for (const signal of STOP_SIGNALS) process.removeListener(signal, pass);
    };
    for (const signal of STOP_SIGNALS) process.on(signal, pass);
    child.once('error', (error) => {
      stop();
      reject(new DmError(errnoFromException(error), `cannot run ${command}: ${error.message}`));
    });
    child.once('exit', (code, signal) => {
      stop();
      resolve(code ?? EXIT_SIGNAL + constants.signals[signal!]);
    });
  });
}

const STOP_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** Resolves at the first signal to stop. A second one ends the process at once. */
function stopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let stopping = false;
    const onSignal = (signal: NodeJS.Signals): void => {
      if (stopping) process.exit(EXIT_SIGNAL + constants.signals[signal]);
      stopping = true;
      resolve();
    };
    for (const signal of STOP_SIGNALS) process.on(signal, onSignal);
    // As under nohup: it is ignored by a process that was started so.
    if (isHangUpIgnored()) process.removeListener('SIGHUP', onSignal).on('SIGHUP', () => {});
  });
}

/**
 * Resolves when the process that started this one has ended. A client that gave us a socket and then failed leaves
 * nobody else who would stop us; systemd does not end.
 */
function parentGone(): Promise<void> {
  const parent = process.ppid;
  return new Promise((resolve) => {
    const timer = setInterval(() => {
      if (process.ppid === parent) return;
      clearInterval(timer);
      resolve();
    }, PARENT_CHECK_MILLISECONDS);
    timer.unref();
  });
}

/**
 * A folder of its own for the socket that only this user can enter, where no address was given.
 *
 * @throws DmError naming each folder that was tried
 */
function privateSocketFolder(): string {
  const tried: string[] = [];
  const { XDG_RUNTIME_DIR: runtimeFolder } = process.env;
  for (const parent of [...(runtimeFolder ? [runtimeFolder] : []), tmpdir()]) {
    try {
      return mkdtempSync(join(resolve(parent), 'dmkit-'));
    } catch (error) {
      tried.push(`${parent}: ${errnoMessage(errnoFromException(error))}`);
    }
  }
  const advice = 'set TMPDIR to a folder that can be written to, or name a socket with --nbd unix:PATH';
  throw new DmError(Errno.ENOENT, `there is no folder for the socket (${tried.join('; ')}): ${advice}`);
}

/** @throws DmError EINVAL for options that do not go together */
function tlsOptions(options: ServeOptions): NbdTlsOptions | undefined {
  const { tlsCertificates: certificates, tlsPsk: psk, tlsVerifyPeer: verifyPeer = false } = options;
  const hasCredentials = certificates !== undefined || psk !== undefined;
  const mode = options.tls ?? (hasCredentials ? 'require' : 'off');
  if (mode === 'off') {
    if (verifyPeer) throw new DmError(Errno.EINVAL, '--tls-verify-peer needs --tls-certificates');
    return undefined;
  }
  if (!hasCredentials) throw new DmError(Errno.EINVAL, `--tls ${mode} needs --tls-certificates or --tls-psk`);
  return {
    mode,
    verifyPeer,
    ...(certificates === undefined ? {} : { certificates: resolve(certificates) }),
    ...(psk === undefined ? {} : { psk: resolve(psk) }),
  };
}

/** Who could come that nobody may have thought of. */
function warnOfStrangers(options: ServeOptions, tls: NbdTlsOptions | undefined): void {
  if (options.nbd === undefined || !isRemote(parseListenAddress(options.nbd))) return;
  const warn = (text: string): void => say(`dmkit: warning: ${text}\n`);
  if (tls === undefined || tls.mode === 'allow') {
    warn(
      `whoever reaches ${options.nbd} can use these devices, and what goes over the wire can be read; --tls require`,
    );
  } else if (tls.psk === undefined && tls.verifyPeer !== true) {
    warn(`whoever reaches ${options.nbd} can use these devices: TLS proves the server alone; --tls-verify-peer`);
  }
}

/** Says why requests wait, and when they no longer do. */
function tellOfRemote(complaints: Complaints, uri: string, state: NbdLinkState, error: DmError | null): void {
  if (state === 'lost') complaints.tell(`${uri}: the connection is lost; requests wait until it is back`);
  else if (state === 'back') complaints.tell(`${uri}: the connection is back`);
  else complaints.tell(error?.message ?? `${uri} has failed`);
}

/** The socket this process was given, if it was. @throws DmError EINVAL for options that make no sense with it */
function inheritedSocket(options: ServeOptions): number | null {
  const inherited = takeInheritedSocket();
  const option = options.nbd !== undefined ? '--nbd' : options.run !== undefined ? '--run' : null;
  if (inherited !== null && option !== null) {
    throw new DmError(Errno.EINVAL, `${option} cannot be: this process was given its socket (LISTEN_FDS)`);
  }
  return inherited;
}

/** @throws DmError EINVAL for what is no count of threads */
function threadCount(option: string | undefined, deviceCount: number): number {
  if (option === undefined) {
    return deviceCount > DEFAULT_MAX_DEVICE_COUNT ? 1 : Math.min(DEFAULT_MAX_THREAD_COUNT, availableParallelism());
  }
  const count = Number(option);
  if (/^\d+$/.test(option) && count >= 1 && count <= MAX_THREAD_COUNT) return count;
  throw new DmError(Errno.EINVAL, `--threads ${option}: a number from 1 to ${MAX_THREAD_COUNT} is needed`);
}

/** Serves until told to stop. @returns the exit code */
export async function serve(options: ServeOptions): Promise<number> {
  guardEnd();
  const tables = readTables(options);
  const readOnly = options.readOnly ?? false;
  const tls = tlsOptions(options);
  const inherited = inheritedSocket(options);
  const complaints = new Complaints();
  const onState = (uri: string, state: NbdLinkState, error: DmError | null): void =>
    tellOfRemote(complaints, uri, state, error);
  const dm = new DeviceMapper({ remote: { ...reconnectOptions(options.reconnect), onState } });
  let folder: string | null = null;
  try {
    if (!(await createDevices(dm, tables, readOnly))) return EXIT_FAILURE;
    warnOfStrangers(options, tls);
    if (inherited === null && options.nbd === undefined) folder = privateSocketFolder();
    const service = await serveNbd(dm, {
      listen: inherited === null ? (options.nbd ?? `unix:${join(folder!, 'nbd.sock')}`) : { fd: inherited },
      names: options.names,
      readOnly,
      allowRemote: options.allowRemote ?? false,
      ...(tls === undefined ? {} : { tls }),
      threads: threadCount(options.threads, options.names.length),
      onError: (error, peer) => complaints.tell(`client ${peer}: ${error.message}`, `client: ${error.message}`),
    });
    try {
      return await waitForEnd(service, options, inherited !== null);
    } finally {
      // Clients whose requests wait for a server that is gone hear so now.
      dm.remotes.abandonLost();
      await service.close();
    }
  } finally {
    if (dm.mapper.list().some((device) => device.pinned !== null)) exitSoon();
    else await dm.close();
    if (folder !== null) rmSync(folder, { recursive: true, force: true });
    complaints.close();
  }
}

/**
 * Devices of a thread that did not stop can't be closed. The service has said so, and the process ends with that; but such
 * a thread may keep it.
 */
function exitSoon(): void {
  setTimeout(() => process.exit(EXIT_FAILURE), EXIT_DELAY_MILLISECONDS).unref();
}

/** Whoever gave us a socket has its own standard output for something else, and knows the address. */
async function waitForEnd(service: NbdService, options: ServeOptions, isActivated: boolean): Promise<number> {
  if (options.run !== undefined) return runCommand(options.run, environment(service, options.names));
  const stopped = stopSignal();
  if (isActivated) {
    await Promise.race([stopped, parentGone()]);
  } else {
    const isFound = await printed(options.names.map((name) => `${service.uri(name)}\n`).join(''));
    if (!isFound && options.nbd === undefined) throw new DmError(Errno.EPIPE, NOT_FOUND);
    await stopped;
  }
  return EXIT_SUCCESS;
}
