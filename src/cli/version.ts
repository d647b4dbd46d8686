// dmkit version: the two lines of dmsetup version, then how bytes move on this machine.
import { version } from '../block/version.ts';
import { EngineSet } from '../engine/index.ts';
import { NodeLoop } from '../reactor/node-loop.ts';

/** The interface of the kernel that is followed: Linux 6.1. */
const DRIVER_VERSION = '4.47.0';

/** @throws DmError for a DMKIT_ENGINE that cannot be had */
function engineText(): string {
  const engines = new EngineSet({ reactor: new NodeLoop() });
  if (engines.libc !== null) return 'direct (system calls on this thread, slow ones on others)';
  return `portable (node:fs; ${engines.portableReason})`;
}

export function printVersion(): void {
  process.stdout.write(
    [
      `Library version:   ${version} (dmkit)`,
      `Driver version:    ${DRIVER_VERSION}`,
      `Engine:            ${engineText()}`,
      `Node.js:           ${process.versions.node}`,
      '',
    ].join('\n'),
  );
}
