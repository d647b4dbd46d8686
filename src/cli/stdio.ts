// dmkit serve --stdio: one client on standard input and output, as inetd, ssh and libnbd's connect_command hand it over.
// Standard output is the client's alone: nothing may print there, and nothing may touch process.stdout.
import { closeSync, fstatSync, openSync, readFileSync, readlinkSync, type Stats } from 'node:fs';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { socketCalls } from '../engine/socket-calls.ts';
import type { ConnectedStreams } from '../reactor/node-loop.ts';

const STANDARD_INPUT = 0;
const STANDARD_OUTPUT = 1;
/** In /proc/net: flags of a Unix socket that listens, the type of one that is a stream, the state of a TCP socket. */
const UNIX_LISTENS = 0x10000;
const UNIX_STREAM = 1;
const TCP_LISTENS = '0A';

function refuse(reason: string): never {
  const advice = 'a program that talks NBD starts this one, with a socket or two pipes, such as nbdsh, ssh or inetd';
  throw new DmError(Errno.EINVAL, `--stdio: ${reason}; ${advice}`);
}

function kindOf(stat: Stats): string {
  if (stat.isFile()) return 'a plain file';
  if (stat.isDirectory()) return 'a folder';
  if (stat.isBlockDevice()) return 'a block device';
  return 'a terminal or another device';
}

function statOf(fd: number, name: string): Stats {
  let stat: Stats;
  try {
    stat = fstatSync(fd);
  } catch {
    return refuse(`${name} is closed`);
  }
  if (!stat.isSocket() && !stat.isFIFO()) refuse(`${name} is ${kindOf(stat)}`);
  return stat;
}

/** The columns of each line of a table in /proc/net; an empty list where the kernel lacks that table. */
function rows(path: string): string[][] {
  try {
    const lines = readFileSync(path, 'utf8').trim().split('\n').slice(1);
    return lines.map((line) => line.trim().split(/\s+/));
  } catch {
    return [];
  }
}

/** Why a socket has no client on it; null where it may have one. */
function objectionTo(fd: number): string | null {
  let inode: string | undefined;
  try {
    inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
  } catch {
    // A system without /proc: the first call that reads tells.
  }
  if (inode === undefined) return null;
  const listens = 'is a socket that listens: give it as a listening socket (LISTEN_FDS), or one connection of it';
  const unix = rows('/proc/net/unix').find((columns) => columns[6] === inode);
  if (unix !== undefined) {
    if ((Number.parseInt(unix[3]!, 16) & UNIX_LISTENS) !== 0) return listens;
    return Number.parseInt(unix[4]!, 16) === UNIX_STREAM ? null : 'is a socket for messages, and a stream is needed';
  }
  const tcp = [...rows('/proc/net/tcp'), ...rows('/proc/net/tcp6')].find((columns) => columns[9] === inode);
  return tcp?.[3] === TCP_LISTENS ? listens : null;
}

function check(fd: number, name: string): Stats {
  const stat = statOf(fd, name);
  const objection = stat.isSocket() ? objectionTo(fd) : null;
  if (objection !== null) refuse(`${name} ${objection}`);
  return stat;
}

/**
 * The client's descriptors. Standard input and output are /dev/null from now on, where that can be done: a word that is
 * printed by accident would end in the client's data, and a descriptor that is left would keep the connection open.
 *
 * @throws DmError EINVAL where no client is connected
 */
export function takeStandardStreams(): ConnectedStreams {
  const input = check(STANDARD_INPUT, 'standard input');
  const output = check(STANDARD_OUTPUT, 'standard output');
  const isOne = input.isSocket() && input.dev === output.dev && input.ino === output.ino;
  const calls = socketCalls();
  if (calls === null) return { input: STANDARD_INPUT, output: isOne ? STANDARD_INPUT : STANDARD_OUTPUT };
  const inputCopy = calls.duplicate(STANDARD_INPUT);
  const outputCopy = isOne ? inputCopy : calls.duplicate(STANDARD_OUTPUT);
  if (inputCopy < 0 || outputCopy < 0) throw new DmError(Errno.EMFILE, '--stdio: no file descriptor is left');
  for (const fd of [STANDARD_INPUT, STANDARD_OUTPUT]) closeSync(fd);
  // Each open takes the lowest descriptor that is free.
  for (const flags of ['r', 'w']) openSync('/dev/null', flags);
  return { input: inputCopy, output: outputCopy };
}
