// The real clients and servers that tests run dmkit against, and what of the machine they need. What is missing is
// skipped and recorded for the closing table of `npm test`; in CI (CI=true) a missing program fails instead, because
// scripts/install-peers could have brought it, while the kernel's part (fuse, loop, name spaces) is only skipped.
import { spawnSync } from 'node:child_process';
import {
  accessSync,
  appendFileSync,
  closeSync,
  constants,
  existsSync,
  mkdtempSync,
  openSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { describe, it, type TestContext, TestRunner } from 'vitest';

export { run, type Started, start } from './process.ts';

/** Each program with the Debian package that has it. */
const PROGRAMS = {
  nbdinfo: 'libnbd-bin',
  nbdcopy: 'libnbd-bin',
  nbdfuse: 'libnbd-bin',
  nbddump: 'libnbd-bin',
  'python3-libnbd': 'python3-libnbd',
  'qemu-img': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  ddrescue: 'gddrescue',
  ddrescuelog: 'gddrescue',
  fio: 'fio',
  nbdkit: 'nbdkit',
  'nbd-client': 'nbd-client',
  'nbd-server': 'nbd-server',
  psktool: 'gnutls-bin',
  certtool: 'gnutls-bin',
  'mkfs.ext4': 'e2fsprogs',
  e2fsck: 'e2fsprogs',
  debugfs: 'e2fsprogs',
  fusermount3: 'fuse3',
  losetup: 'util-linux',
  unshare: 'util-linux',
  strace: 'strace',
} as const;

/** What the kernel must allow, with how to get it. */
const CAPABILITIES = {
  root: 'run as root',
  fuse: 'modprobe fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)',
  loop: 'run as root and modprobe loop (in a container: --privileged)',
  netns: 'run as root (in a container: --cap-add SYS_ADMIN)',
  nbd: 'run as root and modprobe nbd',
} as const;

export type Program = keyof typeof PROGRAMS;
export type Capability = keyof typeof CAPABILITIES;
export type Need = Program | Capability;

const isProgram = (need: Need): need is Program => need in PROGRAMS;

// Debian's Python, not another one that comes first in PATH: the module belongs to it.
const DEBIAN_PYTHON = '/usr/bin/python3';

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

const succeeds = (command: string, args: string[]): boolean =>
  spawnSync(command, args, { stdio: 'ignore', timeout: 10_000, killSignal: 'SIGKILL' }).status === 0;

function findProgram(name: Program): string | undefined {
  if (name === 'python3-libnbd') {
    return succeeds(DEBIAN_PYTHON, ['-c', 'import nbd']) ? DEBIAN_PYTHON : undefined;
  }
  // A user's PATH often lacks the sbin folders.
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/local/sbin', '/usr/sbin', '/sbin'];
  return folders.map((folder) => join(folder || '.', name)).find(isExecutable);
}

function canOpen(path: string): boolean {
  try {
    closeSync(openSync(path, 'r+'));
    return true;
  } catch {
    return false;
  }
}

/** Whether a file can really become a loop device: the node alone tells nothing in a container. */
function canLoop(): boolean {
  const losetup = findProgram('losetup');
  if (losetup === undefined) return false;
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-loop-'));
  const image = join(folder, 'image');
  try {
    writeFileSync(image, '');
    truncateSync(image, 1 << 20);
    const made = spawnSync(losetup, ['--find', '--show', image], { timeout: 10_000, encoding: 'utf8' });
    return made.status === 0 && succeeds(losetup, ['--detach', made.stdout.trim()]);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const PROBES: Record<Capability, () => boolean> = {
  root: () => process.getuid?.() === 0,
  fuse: () => findProgram('fusermount3') !== undefined && canOpen('/dev/fuse'),
  loop: canLoop,
  netns: () => succeeds(findProgram('unshare') ?? 'unshare', ['--net', 'true']),
  nbd: () => existsSync('/dev/nbd0') && canOpen('/dev/nbd0'),
};

const found = new Map<Need, string | undefined>();

/** The path of a program, or 'yes' for a capability; undefined where it is missing. Looked for once a process. */
export function find(need: Need): string | undefined {
  if (!found.has(need)) {
    found.set(need, isProgram(need) ? findProgram(need) : PROBES[need]() ? 'yes' : undefined);
  }
  return found.get(need);
}

const inCi = process.env.CI === 'true';

function howToGet(need: Need): string {
  return isProgram(need) ? `scripts/install-peers (Debian package ${PROGRAMS[need]})` : CAPABILITIES[need];
}

function record(need: Need, test: string): void {
  const file = process.env.DMKIT_SKIPS_FILE;
  const line = JSON.stringify({ what: need, how: howToGet(need), test });
  if (file === undefined) process.stderr.write(`dmkit: skipped for want of ${need}: ${test} - ${howToGet(need)}\n`);
  else appendFileSync(file, `${line}\n`);
}

function missingFrom(needs: readonly Need[]): Need[] {
  return needs.filter((need) => find(need) === undefined);
}

function failureInCi(missing: readonly Need[]): string | undefined {
  const programs = missing.filter(isProgram);
  if (!inCi || programs.length === 0) return undefined;
  return programs.map((need) => `${need} is missing: ${howToGet(need)}`).join('; ');
}

/** The absolute path of a program, inside a test. Where it is missing the test is skipped and that recorded. */
export function peer(name: Program): string {
  const path = find(name);
  if (path !== undefined) return path;
  const failure = failureInCi([name]);
  const test = TestRunner.getCurrentTest();
  if (failure !== undefined || test === undefined) throw new Error(failure ?? `${name} is missing: ${howToGet(name)}`);
  record(name, test.name);
  test.context.skip(`needs ${name}`);
  throw new Error('a skipped test goes no further');
}

/** `describe` for tests that need programs or capabilities: skipped as a whole, and recorded, where one is missing. */
export function describePeer(needs: readonly Need[], name: string, body: () => void): void {
  const missing = missingFrom(needs);
  const failure = failureInCi(missing);
  if (failure !== undefined) {
    describe(name, () => {
      it('has its programs', () => {
        throw new Error(failure);
      });
    });
    return;
  }
  for (const need of missing) record(need, name);
  (missing.length === 0 ? describe : describe.skip)(name, body);
}

/** `it` for one test that needs programs or capabilities. */
export function itPeer(
  needs: readonly Need[],
  name: string,
  body: (context: TestContext) => void | Promise<void>,
  timeoutMs?: number,
): void {
  const missing = missingFrom(needs);
  const failure = failureInCi(missing);
  if (failure !== undefined) {
    it(name, () => {
      throw new Error(failure);
    });
    return;
  }
  for (const need of missing) record(need, name);
  if (missing.length === 0) it(name, body, timeoutMs);
  else it.skip(name, body);
}
