// A disk that the kernel has mounted is not opened for writing, by whichever way a table reaches it.
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import { basename, join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { DeviceRegistry, type DeviceRegistryOptions } from '../../src/devices/index.ts';
import { clock } from '../engine/harness.ts';
import { describePeer, itPeer, peer } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';

const MIB = 1 << 20;
const runs = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();

/** The refusal of a writable open; null where it is opened. Reading must go in any case. */
function refusal(path: string, options: Partial<DeviceRegistryOptions> = {}): DmError | null {
  const registry = new DeviceRegistry({ reactor: clock, allowMounted: false, ...options });
  const reader = registry.open(path, true);
  let error: DmError | null = null;
  try {
    // As an upgrade of the reader; from a fresh registry below, as a first open.
    registry.openAgain(reader, false);
    registry.close(reader, false);
  } catch (thrown) {
    if (!(thrown instanceof DmError)) throw thrown;
    error = thrown;
  }
  registry.close(reader, true);
  let first: unknown = null;
  try {
    registry.close(registry.open(path, false), false);
  } catch (thrown) {
    first = thrown;
  }
  expect((first as DmError | null)?.message).toBe(error?.message);
  expect([...registry.list()]).toEqual([]);
  return error;
}

function imageOf(): string {
  const image = join(tempDir('mounted'), 'image');
  fs.writeFileSync(image, '');
  fs.truncateSync(image, 64 * MIB);
  return image;
}

function loopOver(image: string): string {
  const node = runs('losetup', '--find', '--show', image);
  onTestFinished(() => void runs('losetup', '--detach', node));
  return node;
}

/** Two partitions of 20 MiB, with nodes of their own. */
function partitionsOf(loop: string): string[] {
  const folder = tempDir('mounted');
  return [1, 2].map((part) => {
    runs('addpart', loop, String(part), String(part === 1 ? 2048 : 43008), '40960');
    onTestFinished(() => void runs('delpart', loop, String(part)));
    const name = `${basename(loop)}p${part}`;
    const [major, minor] = fs.readFileSync(`/sys/class/block/${name}/dev`, 'utf8').trim().split(':') as [
      string,
      string,
    ];
    const node = join(folder, name);
    runs('mknod', node, 'b', major, minor);
    return node;
  });
}

function mount(device: string, options = 'rw'): string {
  const folder = join(tempDir('mounted'), 'a mount');
  fs.mkdirSync(folder);
  runs('mkfs.ext4', '-q', '-F', device);
  runs('mount', '-o', options, device, folder);
  onTestFinished(() => void runs('umount', folder));
  return folder;
}

describePeer(['root', 'losetup', 'loop', 'mkfs.ext4'], 'a disk that is mounted', () => {
  it('as a loop device is not written to, nor the file behind it, and the mount is named', () => {
    const image = imageOf();
    const loop = loopOver(image);
    expect(refusal(image)).toBeNull();
    expect(refusal(loop)).toBeNull();
    const folder = mount(loop);
    const device = refusal(loop)!;
    expect([device.code, device.message]).toEqual(['EBUSY', expect.stringContaining(`mounted at ${folder}`)]);
    const file = refusal(image)!;
    expect(file.code).toBe('EBUSY');
    expect(file.message).toContain(
      `${image} is the file behind ${loop}, which is used by the file system mounted at ${folder}`,
    );
    expect(file.message).toContain('DMKIT_ALLOW_MOUNTED=1');
    fs.linkSync(image, `${image}.hard`);
    fs.symlinkSync(image, `${image}.soft`);
    for (const other of ['hard', 'soft']) expect(refusal(`${image}.${other}`)?.errno, other).toBe(Errno.EBUSY);
    fs.renameSync(image, `${image}.moved`);
    expect(refusal(`${image}.moved`)?.errno).toBe(Errno.EBUSY);
    // A copy is another file.
    fs.copyFileSync(`${image}.moved`, `${image}.copy`);
    expect(refusal(`${image}.copy`)).toBeNull();
  });

  it('read-only is not written to either', () => {
    const image = imageOf();
    mount(loopOver(image), 'ro');
    expect(refusal(image)?.errno).toBe(Errno.EBUSY);
  });

  itPeer(['root'], 'in part is not written to as a whole, and the other part is free', ({ skip }) => {
    const image = imageOf();
    const loop = loopOver(image);
    let parts: string[] = [];
    try {
      parts = partitionsOf(loop);
    } catch {
      skip('no addpart, or a kernel without partitions of loop devices');
    }
    const [first, second] = parts as [string, string];
    const folder = mount(first);
    for (const path of [loop, first, image]) {
      const error = refusal(path);
      expect([path, error?.code, error?.message]).toEqual([
        path,
        'EBUSY',
        expect.stringContaining(`mounted at ${folder}`),
      ]);
    }
    expect(refusal(second)).toBeNull();
  });

  itPeer(['root'], 'as a whole is not written to by its partitions', ({ skip }) => {
    const image = imageOf();
    const loop = loopOver(image);
    let parts: string[] = [];
    try {
      parts = partitionsOf(loop);
    } catch {
      skip('no addpart, or a kernel without partitions of loop devices');
    }
    const folder = mount(loop);
    expect(refusal(parts[0]!)?.message).toContain(`mounted at ${folder}`);
  });

  itPeer(['unshare'], 'in another mount name space is not written to', async () => {
    const image = imageOf();
    const loop = loopOver(image);
    runs('mkfs.ext4', '-q', '-F', loop);
    const folder = tempDir('mounted');
    // The mount ends with the shell, that is with its input.
    const child = spawn(peer('unshare'), ['-m', 'sh', '-c', `mount ${loop} ${folder} && echo mounted && cat`]);
    const exited = new Promise((resolve) => child.on('exit', resolve));
    await new Promise((resolve) => child.stdout.once('data', resolve));
    expect(fs.readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(folder);
    const error = refusal(image);
    child.stdin.end();
    await exited;
    expect(error?.message).toContain(`${image} is the file behind ${loop}, which is in use`);
  });

  it('is written to for those who insist', () => {
    const image = imageOf();
    mount(loopOver(image));
    expect(refusal(image, { allowMounted: true })).toBeNull();
    const before = process.env.DMKIT_ALLOW_MOUNTED;
    onTestFinished(() => {
      if (before === undefined) delete process.env.DMKIT_ALLOW_MOUNTED;
      else process.env.DMKIT_ALLOW_MOUNTED = before;
    });
    process.env.DMKIT_ALLOW_MOUNTED = '1';
    const registry = new DeviceRegistry({ reactor: clock });
    registry.close(registry.open(image, false), false);
  });

  it('once is free after that', () => {
    const image = imageOf();
    const loop = runs('losetup', '--find', '--show', image);
    const folder = tempDir('mounted');
    try {
      runs('mkfs.ext4', '-q', '-F', loop);
      runs('mount', loop, folder);
      expect(refusal(image)?.errno).toBe(Errno.EBUSY);
      runs('umount', folder);
      expect(refusal(image)).toBeNull();
      expect(refusal(loop)).toBeNull();
    } finally {
      runs('losetup', '--detach', loop);
    }
  });
});

describePeer(['root', 'losetup', 'loop'], 'a disk that is swap', () => {
  it('is not written to, nor the file behind it', ({ skip }) => {
    const image = imageOf();
    const loop = loopOver(image);
    try {
      runs('mkswap', loop);
      runs('swapon', loop);
    } catch {
      skip('no swap on a loop device here');
    }
    onTestFinished(() => void runs('swapoff', loop));
    expect(refusal(loop)?.message).toContain(`${loop} is in use by swap`);
    expect(refusal(image)?.message).toContain(`${loop}, which is used by swap`);
  });
});
