// A live device goes on with the file that it has open: a rename over its path, its deletion or another folder in the
// place of its own neither stops it from becoming writable nor leads it to another file.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { REQ_OP_READ, REQ_OP_WRITE } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { DeviceRegistry, type FileDevice, MemoryDevice } from '../../src/devices/index.ts';
import { clock, ENGINES, request, vecOf } from '../engine/harness.ts';
import { errorOf } from '../support/errors.ts';
import { describePeer } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';

/** The image, in a folder of its own. */
function imageOf(byte: number): string {
  const folder = join(tempDir('reopen'), 'folder');
  fs.mkdirSync(folder);
  const path = join(folder, 'image');
  fs.writeFileSync(path, Buffer.alloc(8192, byte));
  return path;
}

async function write(device: BlockDevice, byte: number): Promise<number> {
  return (await request(device, REQ_OP_WRITE, 0, 1, { vecs: vecOf(new Uint8Array(512).fill(byte)) })).status;
}

async function read(device: BlockDevice): Promise<number> {
  const page = new Uint8Array(512);
  expect((await request(device, REQ_OP_READ, 0, 1, { vecs: vecOf(page) })).status).toBe(0);
  return page[0]!;
}

const inodeOf = (device: BlockDevice): number => fs.fstatSync((device as FileDevice).descriptor).ino;

/** Takes the image's path away from it. @returns what is at the path now; null: nothing */
const LOSSES: [string, (path: string) => string | null][] = [
  [
    'another file was renamed over it',
    (path) => {
      fs.writeFileSync(`${path}.next`, Buffer.alloc(8192, 9));
      fs.renameSync(`${path}.next`, path);
      return path;
    },
  ],
  [
    'it was deleted',
    (path) => {
      fs.rmSync(path);
      return null;
    },
  ],
  [
    'its folder was moved, and another one made in its place',
    (path) => {
      fs.renameSync(dirname(path), `${dirname(path)}.old`);
      fs.mkdirSync(dirname(path));
      fs.writeFileSync(path, Buffer.alloc(8192, 9));
      return path;
    },
  ],
  [
    'its path became a folder',
    (path) => {
      fs.rmSync(path);
      fs.mkdirSync(path);
      return null;
    },
  ],
];

for (const engine of ENGINES) {
  describe.each(LOSSES)(`an open image, after %s (${engine})`, (_name, lose) => {
    it('is opened again, becomes writable, and read-only, and stays the file that it is', async () => {
      const path = imageOf(1);
      const registry = new DeviceRegistry({ reactor: clock, engine });
      const device = registry.open(path, true);
      const inode = inodeOf(device);
      const other = lose(path);
      expect(registry.openAgain(device, false)).toBe(device);
      expect(registry.info(device)).toMatchObject({ readerCount: 1, writerCount: 1, readOnly: false });
      expect([await write(device, 2), await read(device), inodeOf(device)]).toEqual([0, 2, inode]);
      registry.close(device, false);
      expect(registry.info(device)).toMatchObject({ readerCount: 1, writerCount: 0, readOnly: true, locked: false });
      expect([await write(device, 3), await read(device), inodeOf(device)]).toEqual([Errno.EPERM, 2, inode]);
      // And once more, from the descriptor that was opened again.
      registry.openAgain(device, false);
      expect([await write(device, 4), await read(device)]).toEqual([0, 4]);
      if (other !== null) expect(fs.readFileSync(other).every((byte) => byte === 9)).toBe(true);
      registry.close(device, false);
      registry.close(device, true);
      expect(errorOf(() => registry.openAgain(device, true)).code).toBe('EINVAL');
      expect([...registry.list()]).toEqual([]);
    });

    it('is another device than the one that the path leads to', async () => {
      const path = imageOf(1);
      const registry = new DeviceRegistry({ reactor: clock, engine });
      const device = registry.open(path, false);
      if (lose(path) === null) {
        expect(errorOf(() => registry.open(path, true)).code).toBe('ENODEV');
      } else {
        const other = registry.open(path, false);
        expect(other).not.toBe(device);
        expect([await write(other, 5), await read(device), await read(other)]).toEqual([0, 1, 5]);
        registry.close(other, false);
      }
      registry.close(device, false);
    });
  });
}

describe('opening a device again', () => {
  it('counts users of a device that the program registered, and refuses a device of no registry', () => {
    const registry = new DeviceRegistry({ reactor: clock });
    const memory = new MemoryDevice('scratch', 8);
    expect(errorOf(() => registry.openAgain(memory, true)).code).toBe('EINVAL');
    registry.register('scratch', memory);
    expect(registry.openAgain(memory, false)).toBe(memory);
    expect(registry.info(memory)).toMatchObject({ readerCount: 0, writerCount: 1 });
    registry.close(memory, false);
  });

  it('takes no lock where another thread has it, also when the path is gone', async () => {
    const path = imageOf(1);
    const first = new DeviceRegistry({ reactor: clock, engine: 'direct' });
    const held = first.heldFile(first.open(path, false))!;
    const second = new DeviceRegistry({ reactor: clock, engine: 'direct', heldFiles: [held] });
    const device = second.open(path, true);
    fs.rmSync(path);
    second.openAgain(device, false);
    expect([await write(device, 2), inodeOf(device)]).toEqual([0, fs.fstatSync(held.heldFd).ino]);
    expect(second.info(device)).toMatchObject({ locked: true });
  });

  it('goes by the path where there is no /proc, and then refuses another file', async () => {
    const path = imageOf(1);
    const registry = new DeviceRegistry({ reactor: clock, engine: 'direct' });
    const device = registry.open(path, true);
    const { openSync } = fs;
    const spy = vi.spyOn(fs, 'openSync').mockImplementation((name, flags, mode) => {
      if (!String(name).startsWith('/proc/')) return openSync(name, flags, mode);
      throw Object.assign(new Error('no /proc'), { code: 'ENOENT', errno: -Errno.ENOENT });
    });
    onTestFinished(() => spy.mockRestore());
    registry.openAgain(device, false);
    expect(await write(device, 2)).toBe(0);
    registry.close(device, false);
    fs.writeFileSync(`${path}.next`, Buffer.alloc(8192, 9));
    fs.renameSync(`${path}.next`, path);
    const error = errorOf(() => registry.openAgain(device, false));
    expect([error.code, error.message]).toEqual(['ENODEV', expect.stringContaining('was replaced')]);
    expect(registry.info(device)).toMatchObject({ readerCount: 1, writerCount: 0, readOnly: true });
    expect(fs.readFileSync(path).every((byte) => byte === 9)).toBe(true);
  });
});

// A program of its own, not ours: it tries to take the lock as any other would, and keeps it until its input ends.
const LOCKER = `
  import fs from 'node:fs';
  import koffi from 'koffi';
  const fcntl = koffi.load(null).func('int fcntl(int fd, int command, void *flock)');
  const flock = new Int16Array(16);
  flock[0] = 1;
  console.log(fcntl(fs.openSync(process.argv[1], 'r+'), 37, flock) === 0 ? 'locked' : 'refused');
  process.stdin.resume();
`;

describe('the lock of an image whose path has gone to another file', () => {
  /** What another process gets that wants the lock, and how to end it. */
  async function lockElsewhere(path: string): Promise<{ answer: string; end: () => Promise<unknown> }> {
    const child = spawn(process.execPath, ['--input-type=module', '-e', LOCKER, path], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const exited = once(child, 'exit');
    const end = () => {
      child.stdin.end();
      return exited;
    };
    onTestFinished(async () => void (await end()));
    const [answer] = (await once(child.stdout, 'data')) as [Buffer];
    return { answer: answer.toString().trim(), end };
  }

  it('is taken when the device becomes writable, held against others, and given back', async () => {
    const path = imageOf(1);
    const kept = `${path}.kept`;
    fs.linkSync(path, kept);
    const registry = new DeviceRegistry({ reactor: clock, engine: 'direct' });
    const device = registry.open(path, true);
    LOSSES[0]![1](path);
    registry.openAgain(device, false);
    expect(registry.info(device)).toMatchObject({ locked: true });
    const refused = await lockElsewhere(kept);
    expect(refused.answer).toBe('refused');
    // The other file's is free.
    const free = await lockElsewhere(path);
    expect(free.answer).toBe('locked');
    registry.close(device, false);
    const now = await lockElsewhere(kept);
    expect(now.answer).toBe('locked');
    const error = errorOf(() => registry.openAgain(device, false));
    expect([error.code, error.message]).toEqual(['EBUSY', expect.stringContaining('open it read-only')]);
    expect(registry.info(device)).toMatchObject({ readerCount: 1, writerCount: 0, readOnly: true });
    await now.end();
    registry.openAgain(device, false);
    expect([registry.info(device)?.locked, await write(device, 2)]).toEqual([true, 0]);
  });
});

describePeer(['root', 'losetup', 'loop'], 'an open block device whose node has gone', () => {
  it.each(ENGINES)('becomes writable exclusively, and gives that back (%s)', async (engine) => {
    const image = imageOf(1);
    const loop = execFileSync('losetup', ['--find', '--show', image], { encoding: 'utf8' }).trim();
    onTestFinished(() => void execFileSync('losetup', ['--detach', loop]));
    const node = join(dirname(image), 'node');
    const { rdev } = fs.statSync(loop);
    execFileSync('mknod', [node, 'b', String(rdev >> 8), String(rdev & 0xff)]);
    const registry = new DeviceRegistry({ reactor: clock, engine });
    const device = registry.open(node, true);
    onTestFinished(() => registry.close(device, true));
    fs.rmSync(node);
    registry.openAgain(device, false);
    expect(registry.info(device)).toMatchObject({ locked: true, readOnly: false });
    expect([await write(device, 7), await read(device)]).toEqual([0, 7]);
    const others = new DeviceRegistry({ reactor: clock, engine });
    expect(errorOf(() => others.open(loop, false)).code).toBe('EBUSY');
    registry.close(device, false);
    expect(registry.info(device)).toMatchObject({ locked: false, readOnly: true });
    others.close(others.open(loop, false), false);
  });
});
