// Whether this process was started to outlive its terminal. Node.js sets SIGHUP to its default when it starts, so that
// the signal's own state no longer tells: what nohup and shells leave behind does.
import { fstatSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { basename } from 'node:path';

const O_ACCMODE = 3;
const O_WRONLY = 1;
const { SIGHUP } = constants.signals;

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** nohup replaces a terminal as standard input by /dev/null that can't be read. */
function hasUnreadableInput(): boolean {
  try {
    const flags = /^flags:\s*([0-7]+)$/m.exec(read('/proc/self/fdinfo/0'))?.[1];
    return (
      flags !== undefined && (Number.parseInt(flags, 8) & O_ACCMODE) === O_WRONLY && fstatSync(0).isCharacterDevice()
    );
  } catch {
    return false;
  }
}

/** A script that ignores it (trap '' HUP, or under nohup itself) means it for what it starts. */
function isIgnoredByParent(): boolean {
  const mask = /^SigIgn:\s*([0-9a-f]+)$/m.exec(read(`/proc/${process.ppid}/status`))?.[1];
  return mask !== undefined && (BigInt(`0x${mask}`) & (1n << BigInt(SIGHUP - 1))) !== 0n;
}

/** SIGHUP was ignored when this process was started, as far as can be told. */
export function isHangUpIgnored(): boolean {
  // Shells name there the program that they started: nohup, which became this one.
  return basename(process.env._ ?? '') === 'nohup' || hasUnreadableInput() || isIgnoredByParent();
}
