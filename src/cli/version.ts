// dmkit version: the two lines of dmsetup version, then how bytes move on this machine.
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { version } from '../block/version.ts';
import { EngineSet } from '../engine/index.ts';
import { NodeLoop } from '../reactor/node-loop.ts';

/** The interface of the kernel that is followed: Linux 6.1. */
const DRIVER_VERSION = '4.47.0';

/** @throws DmError for a DMKIT_ENGINE that cannot be had */
function engineText(engines: EngineSet): string {
  if (engines.libc === null) return `portable (node:fs; ${engines.portableReason})`;
  const { ringReason } = engines;
  if (engines.choice === 'ring') {
    if (ringReason !== null) throw new DmError(Errno.EOPNOTSUPP, `the ring engine can't be used here: ${ringReason}`);
    return 'ring (io_uring for everything)';
  }
  return 'direct (system calls on this thread) for files in the page cache';
}

/** Where requests go that direct calls can't answer at once. */
function ringText({ ringReason }: EngineSet): string {
  if (ringReason === null) return 'io_uring, for block devices, direct I/O, reads that miss the cache and slow files';
  return `none, threads instead (${ringReason})`;
}

/** @throws DmError for a DMKIT_ENGINE that cannot be had */
export function versionLines(): string[] {
  const engines = new EngineSet({ reactor: new NodeLoop() });
  return [
    `Library version:   ${version} (dmkit)`,
    `Driver version:    ${DRIVER_VERSION}`,
    `Engine:            ${engineText(engines)}`,
    ...(engines.libc === null || engines.choice === 'ring' ? [] : [`Ring:              ${ringText(engines)}`]),
    `Node.js:           ${process.versions.node}`,
  ];
}
