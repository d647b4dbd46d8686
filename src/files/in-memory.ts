// File systems that keep everything in memory: a sync on them has nothing to write, and a lost machine loses them anyway.
import fs from 'node:fs';

// Types as statfs tells them: tmpfs, ramfs.
const FILE_SYSTEMS_IN_MEMORY = new Set([0x01021994, 0x858458f6]);

/** True for an open file without a disk below; false where that can't be told. */
export function isInMemory(fd: number): boolean {
  try {
    return FILE_SYSTEMS_IN_MEMORY.has(fs.statfsSync(`/proc/self/fd/${fd}`).type);
  } catch {
    return false;
  }
}
