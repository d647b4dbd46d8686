// dmkit serve: devices out of tables, exported over NBD until a signal comes or the command given has ended.
import { spawn } from 'node:child_process';
import { availableParallelism, constants, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { DeviceMapper } from '../api/device-mapper.ts';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { printable } from '../block/printable.ts';
import type { NbdLinkState } from '../devices/nbd-links.ts';
import { isRemote, parseListenAddress } from '../nbd/listen.ts';
import { MAX_STRING_BYTE_LENGTH } from '../nbd/protocol/constants.ts';
import { MAX_THREAD_COUNT, type NbdService, type ServeNbdOptions, serveNbd } from '../nbd/serve.ts';
import type { NbdTlsOptions } from '../nbd/tls.ts';
import { takeInheritedSocket } from './activation.ts';
import { isHangUpIgnored } from './hang-up.ts';
import { guardEnd } from './leave.ts';
import { printed } from './output.ts';
import { rawCommand } from './raw-command.ts';
import { reconnectOptions } from './reconnect.ts';
import { Complaints, say } from './say.ts';
import { createDevices, readTables, type TableOption } from './serve-tables.ts';
import { takeStandardStreams } from './stdio.ts';
import { makeTemporaryFolder, type TemporaryFolder } from './temporary-folder.ts';

export interface ServeOptions {
  names: string[];
  /** One for each name, in the same order. */
  tables: TableOption[];
  /** None, or one for each name, in the same order. */
  description?: string[];
  readOnly?: boolean;
  /** Addresses; a socket in a folder of its own where there are none. */
  nbd?: string[];
  /** One client on standard input and output, in the place of addresses. */
  stdio?: boolean;
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

/** Variables for the command: the first device's URI as `uri`, and `uri_NAME` for each. */
function environment(service: NbdService, names: readonly string[]): NodeJS.ProcessEnv {
  const variables: NodeJS.ProcessEnv = { ...process.env, uri: service.uri(names[0]!) };
  for (const name of names) variables[`uri_${name.replace(/[^0-9A-Za-z_]/g, '_')}`] = service.uri(name);
  const socket = service.addresses.find((address) => address.startsWith('unix:'));
  if (socket !== undefined) variables.unixsocket = socket.slice('unix:'.length);
  return variables;
}

/** Runs the command in a shell; its exit code, or 128 + signal. A signal to us goes on to it. */
function runCommand(command: string, env: NodeJS.ProcessEnv): Promise<number> {
  return new Promise((resolve, reject) => {
    const { program, args } = rawCommand({ program: '/bin/sh', args: ['-c', command] });
    const child = spawn(program, args, { stdio: 'inherit', env });
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
function privateSocketFolder(): TemporaryFolder {
  const tried: string[] = [];
  const { XDG_RUNTIME_DIR: runtimeFolder } = process.env;
  for (const parent of [...(runtimeFolder ? [runtimeFolder] : []), tmpdir()]) {
    try {
      return makeTemporaryFolder(resolve(parent), 'dmkit-serve-');
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

/** Warns where other machines can connect and nothing proves them. */
function warnOfStrangers(options: ServeOptions, tls: NbdTlsOptions | undefined): void {
  for (const address of options.nbd ?? []) {
    if (!isRemote(parseListenAddress(address))) continue;
    const reach = `dmkit: warning: any program that reaches ${address} can use these devices`;
    if (tls === undefined || tls.mode === 'allow') {
      say(`${reach}, and what goes over the wire can be read; --tls require\n`);
    } else if (tls.psk === undefined && tls.verifyPeer !== true) {
      say(`${reach}: TLS proves the server alone; --tls-verify-peer\n`);
    }
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
  const option =
    options.nbd !== undefined
      ? '--nbd'
      : options.run !== undefined
        ? '--run'
        : options.stdio === true
          ? '--stdio'
          : null;
  if (inherited !== null && option !== null) {
    throw new DmError(Errno.EINVAL, `${option} cannot be: this process was given its socket (LISTEN_FDS)`);
  }
  return inherited;
}

/** @throws DmError EINVAL for options that make no sense with one client on standard input and output */
function checkStdio(options: ServeOptions): void {
  if (options.stdio !== true) return;
  const given: [string, boolean][] = [
    ['--nbd', options.nbd !== undefined],
    ['--allow-remote', options.allowRemote === true],
    ['--threads', options.threads !== undefined],
    ['--run', options.run !== undefined],
    ['--table-file -', options.tables.some(({ kind, value }) => kind === 'file' && value === '-')],
  ];
  const other = given.find(([, isGiven]) => isGiven)?.[0];
  if (other === undefined) return;
  throw new DmError(
    Errno.EINVAL,
    `--stdio and ${other} cannot be together: the one client has standard input and output; leave one of them out`,
  );
}

/**
 * The descriptions by name, with control characters escaped: clients print them on terminals.
 *
 * @throws DmError EINVAL for a count that does not match, and for a text that the protocol can't carry
 */
function descriptions({ names, description: texts = [] }: ServeOptions): Record<string, string> {
  if (texts.length > 0 && texts.length !== names.length) {
    throw new DmError(
      Errno.EINVAL,
      `${names.length} name${names.length === 1 ? '' : 's'} (${names.join(', ')}) but ${texts.length} of --description: give none or one for each device, in the same order`,
    );
  }
  const result: [string, string][] = [];
  for (const [index, text] of texts.entries()) {
    const shown = printable(text);
    const byteLength = Buffer.byteLength(shown);
    if (byteLength > MAX_STRING_BYTE_LENGTH) {
      throw new DmError(
        Errno.EINVAL,
        `the description of ${names[index]} has ${byteLength} bytes, and NBD carries ${MAX_STRING_BYTE_LENGTH} at the most: shorten it`,
      );
    }
    if (shown !== '') result.push([names[index]!, shown]);
  }
  return Object.fromEntries(result);
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
  checkStdio(options);
  const tables = readTables(options);
  const texts = descriptions(options);
  const readOnly = options.readOnly ?? false;
  const tls = tlsOptions(options);
  const inherited = inheritedSocket(options);
  const streams = options.stdio === true ? takeStandardStreams() : null;
  const complaints = new Complaints();
  const onState = (uri: string, state: NbdLinkState, error: DmError | null): void =>
    tellOfRemote(complaints, uri, state, error);
  const dm = new DeviceMapper({ remote: { ...reconnectOptions(options.reconnect), onState } });
  let folder: TemporaryFolder | null = null;
  try {
    if (!(await createDevices(dm, tables, readOnly))) return EXIT_FAILURE;
    let listen: ServeNbdOptions['listen'];
    if (streams !== null) listen = streams;
    else if (inherited !== null) listen = { fd: inherited };
    else if (options.nbd !== undefined) listen = options.nbd;
    else {
      folder = privateSocketFolder();
      listen = `unix:${join(folder.path, 'nbd.sock')}`;
    }
    const service = await serveNbd(dm, {
      listen,
      names: options.names,
      descriptions: texts,
      readOnly,
      allowRemote: options.allowRemote ?? false,
      ...(tls === undefined ? {} : { tls }),
      threads: threadCount(options.threads, options.names.length),
      onError: (error, peer) => complaints.tell(`client ${peer}: ${error.message}`, `client: ${error.message}`),
    });
    warnOfStrangers(options, tls);
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
    folder?.remove();
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

/** A process that gave us its socket has its own output in our standard output, and knows the address. */
async function waitForEnd(service: NbdService, options: ServeOptions, isActivated: boolean): Promise<number> {
  if (options.run !== undefined) return runCommand(options.run, environment(service, options.names));
  const stopped = stopSignal();
  if (options.stdio === true) {
    await Promise.race([stopped, service.disconnected]);
  } else if (isActivated) {
    await Promise.race([stopped, parentGone()]);
  } else {
    const isFound = await printed(
      options.names.flatMap((name) => service.uris(name).map((uri) => `${uri}\n`)).join(''),
    );
    if (!isFound && options.nbd === undefined) throw new DmError(Errno.EPIPE, NOT_FOUND);
    await stopped;
  }
  return EXIT_SUCCESS;
}
