// What a figure is worth nothing without: the machine, the versions, the file system.
import { readFileSync, statfsSync } from 'node:fs';
import { arch, availableParallelism, cpus, homedir, release, tmpdir, totalmem } from 'node:os';
import { versionOf } from './process.mjs';

const MAGIC = new Map([
  [0x01021994, 'tmpfs'],
  [0xef53, 'ext4'],
  [0x58465342, 'xfs'],
  [0x9123683e, 'btrfs'],
  [0x794c7630, 'overlayfs'],
  [0x2fc12fc1, 'zfs'],
  [0xf2f52010, 'f2fs'],
  [0x6969, 'nfs'],
]);

/** The name of the file system that holds `path`. */
export function fileSystemOf(path) {
  const { type } = statfsSync(path);
  return MAGIC.get(type >>> 0) ?? `0x${(type >>> 0).toString(16)}`;
}

function isOn(path, wanted) {
  try {
    return wanted(fileSystemOf(path));
  } catch {
    return false;
  }
}

/** A folder in memory and one on a disk, each undefined where the machine has none. */
export function findFolders() {
  return {
    memory: ['/dev/shm', tmpdir()].find((path) => isOn(path, (name) => name === 'tmpfs')),
    disk: [process.cwd(), homedir(), tmpdir()].find((path) => isOn(path, (name) => name !== 'tmpfs')),
  };
}

/** The number alone: programs say it with a name, a path or a packager's words around it. */
function numberOf(program, args) {
  const said = versionOf(program, args);
  return said === undefined ? 'missing' : (/\d+(\.\d+)+/.exec(said)?.[0] ?? said);
}

export function describeMachine() {
  const manifest = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return {
    date: new Date().toISOString(),
    cpu: cpus()[0]?.model,
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    platform: `${process.platform} ${arch()}`,
    kernel: release(),
    versions: {
      dmkit: manifest.version,
      node: process.version,
      fio: numberOf('fio'),
      nbdkit: numberOf('nbdkit'),
      'qemu-nbd': numberOf('qemu-nbd'),
      'nbd-server': numberOf('nbd-server', ['-V']),
      nbdcopy: numberOf('nbdcopy'),
    },
  };
}
