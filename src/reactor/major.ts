// The major number of our devices.
import { readFileSync } from 'node:fs';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

/** The kernel's own list of block majors, empty where there is none. */
function takenMajors(): Set<number> {
  try {
    const text = readFileSync('/proc/devices', 'utf8').split('Block devices:')[1] ?? '';
    return new Set(Array.from(text.matchAll(/^ *([0-9]+) /gm), (match) => Number(match[1])));
  } catch {
    return new Set();
  }
}

/** A major number for our devices that no driver of this machine has, so that `major:minor` names one thing. */
export function chooseMajor(taken: ReadonlySet<number> = takenMajors()): number {
  for (let major = 253; major > 239; major--) if (!taken.has(major)) return major;
  for (let major = 511; major > 383; major--) if (!taken.has(major)) return major;
  throw new DmError(Errno.EBUSY, 'every dynamic block major number is taken: see /proc/devices');
}
