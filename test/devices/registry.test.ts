// One device is one object: by every path, for every user, with one writer in the whole machine.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import { afterEach, describe, expect, it, onTestFinished } from 'vitest';
import { REQ_OP_DISCARD, REQ_OP_FLUSH, REQ_OP_READ, REQ_OP_WRITE, REQ_OP_WRITE_ZEROES } from '../../src/block/bio.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { DeviceRegistry, type DeviceRegistryOptions, FileDevice, MemoryDevice } from '../../src/devices/index.ts';
import { EngineSet } from '../../src/engine/index.ts';
import { IORING_OP_FSYNC } from '../../src/engine/uring.ts';
import { callsWith, clock, ENGINES, libcWith, request, type TestedEngine, vecOf } from '../engine/harness.ts';
import { type FakeOptions, libcWithFakeRing } from '../engine/ring-fake.ts';
import { errorOf } from '../support/errors.ts';
import { itPeer } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';

function registryOf(engine: TestedEngine, options: Partial<DeviceRegistryOptions> = {}): DeviceRegistry {
  return new DeviceRegistry({ reactor: clock, engine, ...options });
}

function imageIn(folder: string, name = 'image', byteLength = 1 << 20): string {
  const path = join(folder, name);
  fs.writeFileSync(path, Buffer.alloc(byteLength, 1));
  return path;
}

const openDescriptors = (path: string): number =>
  fs.readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return fs.readlinkSync(`/proc/self/fd/${fd}`) === path;
    } catch {
      return false;
    }
  }).length;

const status = async (device: BlockDevice, op: number, sector = 0, data = new Uint8Array(512)): Promise<number> =>
  (await request(device, op, sector, op === REQ_OP_FLUSH ? 0 : 1, { vecs: vecOf(data) })).status;

describe.each(ENGINES)('the registry, with the %s engine,', (engine) => {
  it('gives one object for a path, a relative one, a symlink and a hard link', () => {
    const folder = tempDir('registry');
    const path = imageIn(folder);
    fs.symlinkSync('image', join(folder, 'symlink'));
    fs.linkSync(path, join(folder, 'hard'));
    const registry = registryOf(engine, { baseFolder: folder });
    const device = registry.open(path, false);
    for (const other of ['image', './x/../image', 'symlink', 'hard', join(folder, '.', 'hard')]) {
      expect(registry.open(other, false), other).toBe(device);
    }
    expect(device.name).toBe(path);
    expect(registry.info(device)).toMatchObject({ kind: 'file', path, engine, writerCount: 6, readerCount: 0 });
    expect(openDescriptors(path)).toBe(1);
    for (let round = 0; round < 6; round++) registry.close(device, false);
    expect(openDescriptors(path)).toBe(0);
    expect(registry.info(device)).toBeUndefined();
    expect([...registry.list()]).toEqual([]);
    expect(errorOf(() => registry.close(device, false)).code).toBe('EINVAL');
  });

  it('takes the working directory of the moment for relative paths', () => {
    const folder = tempDir('registry');
    const path = imageIn(folder);
    const registry = registryOf(engine);
    const before = process.cwd();
    onTestFinished(() => process.chdir(before));
    process.chdir(folder);
    const device = registry.open('image', true);
    expect(fs.realpathSync(device.name)).toBe(fs.realpathSync(path));
    process.chdir(dirname(folder));
    expect(registry.open(join(basename(folder), 'image'), true)).toBe(device);
    expect(errorOf(() => registry.open('image', true)).code).toBe('ENODEV');
    expect(registry.open(relative(dirname(folder), path), true)).toBe(device);
  });

  it('opens another object after the last user closed, and after the file was replaced', async () => {
    const path = imageIn(tempDir('registry'));
    const registry = registryOf(engine);
    const first = registry.open(path, false);
    registry.close(first, false);
    const second = registry.open(path, false);
    expect(second).not.toBe(first);
    fs.renameSync(path, `${path}.old`);
    fs.writeFileSync(path, Buffer.alloc(512, 9));
    const third = registry.open(path, false);
    expect(third).not.toBe(second);
    expect([second.sectorCount, third.sectorCount]).toEqual([2048, 1]);
    const page = new Uint8Array(512);
    expect(await status(second, REQ_OP_READ, 0, page)).toBe(0);
    expect(page[0]).toBe(1);
  });

  it('makes a device writable for a second user that writes, and read-only when that one leaves', async () => {
    const path = imageIn(tempDir('registry'));
    const registry = registryOf(engine);
    const device = registry.open(path, true);
    expect([device.readOnly, await status(device, REQ_OP_WRITE)]).toEqual([true, Errno.EPERM]);
    const inFlight = Array.from({ length: 20 }, () => status(device, REQ_OP_READ));
    expect(registry.open(path, false)).toBe(device);
    expect([device.readOnly, await status(device, REQ_OP_WRITE)]).toEqual([false, 0]);
    registry.close(device, false);
    expect([device.readOnly, await status(device, REQ_OP_WRITE)]).toEqual([true, Errno.EPERM]);
    expect(await status(device, REQ_OP_READ)).toBe(0);
    for (const answer of inFlight) expect(await answer).toBe(0);
    expect(openDescriptors(path)).toBe(1);
    // Somebody else can write now.
    const other = registryOf(engine);
    const theirs = other.open(path, false);
    if (engine === 'direct') expect(errorOf(() => registry.open(path, false)).code).toBe('EBUSY');
    expect(registry.info(device)).toMatchObject({ readerCount: 1, writerCount: 0 });
    other.close(theirs, false);
    registry.close(device, true);
    expect(openDescriptors(path)).toBe(0);
  });

  it('keeps the device when the last writer leaves and the path is gone', async () => {
    const path = imageIn(tempDir('registry'));
    const registry = registryOf(engine);
    const device = registry.open(path, true);
    registry.open(path, false);
    fs.rmSync(path);
    registry.close(device, false);
    expect(await status(device, REQ_OP_READ)).toBe(0);
  });

  it.each([
    ['a path that leads nowhere', 'missing', 'ENODEV', /missing does not exist/],
    ['a path through a file', 'image/x', 'ENODEV', /does not exist/],
    ['a directory', '.', 'ENODEV', /is a directory/],
    ['a character device', '/dev/null', 'ENODEV', /\/dev\/null is a character device/],
    ['a pipe', 'pipe', 'ENODEV', /is a pipe/],
    ['a loop of links', 'loop', 'ENODEV', /Too many levels/],
    ['nothing', '', 'ENODEV', /is empty/],
    ['a number without a device', '4000:77', 'ENXIO', /4000:77: there is no such block device/],
    ['a number that no device can have', '4096:1', 'EOVERFLOW', /4096:1: a device has at most the number 4095:1048575/],
    ['a number that is one in 32 bits', '4294971296:77', 'ENXIO', /4294971296:77: there is no such block device/],
    ['a mapped device of somebody else', '/dev/mapper/nobody', 'ENODEV', /does not exist/],
  ])('refuses %s', async (_name, argument, code, message) => {
    const folder = tempDir('registry');
    imageIn(folder);
    fs.symlinkSync('loop', join(folder, 'loop'));
    const child = spawn('mkfifo', [join(folder, 'pipe')]);
    await once(child, 'close');
    const registry = registryOf(engine, { baseFolder: folder });
    for (const readOnly of [true, false]) {
      const error = errorOf(() => registry.open(argument, readOnly));
      expect(error.code).toBe(code);
      expect(error.message).toMatch(message);
    }
    expect([...registry.list()]).toEqual([]);
  });

  it('floors the size to sectors and grows with refreshSize', async () => {
    const path = imageIn(tempDir('registry'), 'odd', 3 * 512 + 511);
    const registry = registryOf(engine);
    const device = registry.open(path, false) as FileDevice;
    expect(device).toBeInstanceOf(FileDevice);
    expect(device.sectorCount).toBe(3);
    expect(await status(device, REQ_OP_READ, 3)).toBe(Errno.EIO);
    fs.truncateSync(path, 10 * 512);
    expect([device.sectorCount, device.refreshSize(), device.sectorCount]).toEqual([3, 10, 10]);
    expect(await status(device, REQ_OP_READ, 9)).toBe(0);
    fs.truncateSync(path, 100);
    expect(await status(device, REQ_OP_READ, 9)).toBe(Errno.EIO);
    expect(device.refreshSize()).toBe(0);
  });

  it('opens an empty file', () => {
    const device = registryOf(engine).open(imageIn(tempDir('registry'), 'empty', 0), false);
    expect(device.sectorCount).toBe(0);
  });

  it('keeps a device failed after a flush that failed, through an upgrade, until it is opened again', async () => {
    const path = imageIn(tempDir('registry'));
    let fails = true;
    const threads = callsWith({ dataSync: (_fd, done) => done(fails ? Errno.EIO : 0, 0) });
    const perform: FakeOptions['perform'] = ({ opcode }, make) =>
      opcode === IORING_OP_FSYNC && fails ? -Errno.EIO : make();
    const rings = engine === 'ring' ? { libc: libcWithFakeRing({ perform }).libc } : {};
    const engines = new EngineSet({ reactor: clock, engine, threads, ...rings });
    const registry = new DeviceRegistry({ reactor: clock, engine: engines });
    const device = registry.open(path, true) as FileDevice;
    expect(device.failure).toBeNull();
    expect(await status(device, REQ_OP_FLUSH)).toBe(Errno.EIO);
    fails = false;
    expect(await status(device, REQ_OP_READ)).toBe(Errno.EIO);
    expect(device.failure?.message).toContain(path);
    registry.open(path, false);
    expect(await status(device, REQ_OP_WRITE)).toBe(Errno.EIO);
    registry.close(device, false);
    registry.close(device, true);
    const again = registry.open(path, false);
    expect([await status(again, REQ_OP_WRITE), await status(again, REQ_OP_FLUSH)]).toEqual([0, 0]);
  });

  it('knows the devices that the program registers', () => {
    const folder = tempDir('registry');
    imageIn(folder, 'scratch');
    const registry = registryOf(engine, { baseFolder: folder });
    const memory = new MemoryDevice('scratch', 100);
    registry.register('scratch', memory);
    expect(registry.open('scratch', false)).toBe(memory);
    expect(registry.open('./scratch', true)).not.toBe(memory);
    expect(registry.info(memory)).toMatchObject({ kind: 'registered', path: null, engine: null, writerCount: 1 });
    expect(errorOf(() => registry.register('scratch', new MemoryDevice('b', 1))).code).toBe('EEXIST');
    expect(errorOf(() => registry.register('other', memory)).code).toBe('EBUSY');
    expect(errorOf(() => registry.unregister('scratch')).code).toBe('EBUSY');
    registry.close(memory, false);
    expect(errorOf(() => registry.close(memory, false)).code).toBe('EINVAL');
    registry.unregister('scratch');
    expect(errorOf(() => registry.unregister('scratch')).code).toBe('ENODEV');
    expect(registry.open('scratch', true)).not.toBe(memory);
  });

  it('leaves no descriptor behind when an open fails', () => {
    const path = imageIn(tempDir('registry'));
    const libc = libcWith(() => ({ fcntl: () => -1, errno: () => Errno.EAGAIN }));
    const engines = new EngineSet({ reactor: clock, engine: 'direct', libc });
    const registry = new DeviceRegistry({ reactor: clock, engine: engines });
    expect(errorOf(() => registry.open(path, false)).code).toBe('EBUSY');
    expect(openDescriptors(path)).toBe(0);
    expect([...registry.list()]).toEqual([]);
    const without = new EngineSet({ reactor: clock, engine: 'ring', libc: libcWith(() => ({ uring: () => null })) });
    const ring = new DeviceRegistry({ reactor: clock, engine: without });
    expect(errorOf(() => ring.open(path, true)).message).toContain('ring');
    expect(openDescriptors(path)).toBe(0);
  });
});

describe('limits of an image file', () => {
  const limitsWith = (overrides: Parameters<typeof libcWith>[0], readOnly: boolean) => {
    const engines = new EngineSet({ reactor: clock, engine: 'direct', libc: libcWith(overrides) });
    const registry = new DeviceRegistry({ reactor: clock, engine: engines });
    const path = imageIn(tempDir('registry'));
    return { registry, path, device: registry.open(path, readOnly) };
  };

  it('offer discard and write-zeroes, asked of a nameless file beside the image', () => {
    const asked: [number, number][] = [];
    const { device } = limitsWith(
      (real) => ({
        fallocate: (fd, mode, offset, length) => {
          asked.push([mode, fs.fstatSync(fd).nlink]);
          return real.fallocate(fd, mode, offset, length);
        },
      }),
      false,
    );
    expect(asked).toEqual([[3, 0]]);
    expect(device.limits).toMatchObject({ discardGranularity: 4096, hasWriteCache: true, logicalBlockSize: 512 });
    expect(device.limits.maxDiscardSectorCount).toBeGreaterThan(0);
    expect(fs.statSync(device.name).size).toBe(1 << 20);
    expect(fs.readFileSync(device.name).every((byte) => byte === 1)).toBe(true);
  });

  it('leave discard out where the file system makes no holes, from the start or from the upgrade on', () => {
    const refuse = () => ({ fallocate: () => -1, errno: () => Errno.EOPNOTSUPP });
    expect(limitsWith(refuse, false).device.limits.maxDiscardSectorCount).toBe(0);
    const { registry, path, device } = limitsWith(refuse, true);
    expect(device.limits.maxDiscardSectorCount).toBeGreaterThan(0);
    registry.open(path, false);
    expect(device.limits.maxDiscardSectorCount).toBe(0);
  });

  it('learn from the first request that is refused, which is answered', async () => {
    let refuses = false;
    const { device } = limitsWith(
      (real) => ({
        fallocate: (fd, mode, offset, length) => (refuses ? -1 : real.fallocate(fd, mode, offset, length)),
        errno: () => (refuses ? Errno.EOPNOTSUPP : real.errno()),
      }),
      false,
    );
    refuses = true;
    expect(await status(device, REQ_OP_WRITE_ZEROES, 5)).toBe(0);
    expect(
      fs
        .readFileSync(device.name)
        .subarray(5 * 512, 6 * 512)
        .every((byte) => byte === 0),
    ).toBe(true);
    expect(device.limits.maxWriteZeroesSectorCount).toBe(0);
    expect(await status(device, REQ_OP_DISCARD)).toBe(Errno.EOPNOTSUPP);
    expect(device.limits.maxDiscardSectorCount).toBe(0);
  });

  it('are bare with the portable engine', () => {
    const device = registryOf('portable').open(imageIn(tempDir('registry')), false);
    expect(device.limits).toMatchObject({
      maxDiscardSectorCount: 0,
      maxWriteZeroesSectorCount: 0,
      hasWriteCache: true,
    });
  });
});

// A program of its own, not ours: it takes the lock as any other would.
const LOCKER = `
  import fs from 'node:fs';
  import koffi from 'koffi';
  const fcntl = koffi.load(null).func('int fcntl(int fd, int command, void *flock)');
  const flock = new Int16Array(16);
  flock[0] = Number(process.argv[2]);
  if (fcntl(fs.openSync(process.argv[1], 'r+'), 37, flock) !== 0) throw new Error('no lock: ' + koffi.errno());
  console.log('locked');
  process.stdin.resume();
`;

describe('the lock of a writable open', () => {
  const children: (() => void)[] = [];
  afterEach(() => {
    for (const end of children.splice(0)) end();
  });

  /** Another process that holds a lock of `type` (0 read, 1 write). */
  async function lockElsewhere(path: string, type: number): Promise<number> {
    const options = ['--input-type=module', '-e', LOCKER, path, String(type)];
    const child = spawn(process.execPath, options, { stdio: ['pipe', 'pipe', 'inherit'] });
    children.push(() => child.stdin.end());
    await once(child.stdout, 'data');
    return child.pid!;
  }

  it('is held against other processes by their name, and reading goes on', async () => {
    const path = imageIn(tempDir('registry'));
    const pid = await lockElsewhere(path, 1);
    const registry = registryOf('direct');
    const error = errorOf(() => registry.open(path, false));
    expect(error.code).toBe('EBUSY');
    expect(error.message).toContain(`process ${pid} (node`);
    expect(error.message).toContain('open it read-only');
    const device = registry.open(path, true);
    expect(await status(device, REQ_OP_READ)).toBe(0);
    expect(errorOf(() => registry.open(path, false)).code).toBe('EBUSY');
    expect(registry.info(device)).toMatchObject({ readOnly: true, locked: false, writerCount: 0 });
    children.splice(0).forEach((end) => void end());
    await expect.poll(() => fs.existsSync(`/proc/${pid}`)).toBe(false);
    registry.open(path, false);
    expect(registry.info(device)).toMatchObject({ readOnly: false, locked: true, writerCount: 1 });
  });

  describe('passes on, where requests in flight keep a file open that nobody uses any more,', () => {
    /** Discards are on a thread until they are let go. */
    const slowRegistry = () => {
      const waiting: (() => void)[] = [];
      const libc = libcWith((real) => ({
        fallocateOnThread: (...args) => void waiting.push(() => real.fallocateOnThread(...args)),
      }));
      const engines = new EngineSet({ reactor: clock, engine: 'direct', libc });
      const path = imageIn(tempDir('registry'));
      const registry = new DeviceRegistry({ reactor: clock, engine: engines });
      const discard = (device: BlockDevice) => request(device, REQ_OP_DISCARD, 0, 2048);
      return { registry, path, waiting, discard };
    };

    it('to a new user', async () => {
      const { registry, path, waiting, discard } = slowRegistry();
      const first = registry.open(path, false);
      const discarded = discard(first);
      registry.close(first, false);
      expect([waiting.length, openDescriptors(path)]).toEqual([1, 1]);
      fs.linkSync(path, `${path}.other`);
      const second = registry.open(`${path}.other`, false);
      expect([await status(first, REQ_OP_READ), await status(first, REQ_OP_WRITE)]).toEqual([Errno.EIO, Errno.EIO]);
      expect(second.name).toBe(`${path}.other`);
      expect([...registry.list()]).toMatchObject([{ locked: true, readOnly: false, writerCount: 1 }]);
      expect(await status(second, REQ_OP_WRITE, 0)).toBe(0);
      waiting[0]!();
      expect((await discarded).status).toBe(0);
      expect(await status(second, REQ_OP_WRITE, 7)).toBe(0);
      expect(openDescriptors(path)).toBe(1);
      expect(errorOf(() => registryOf('direct').open(path, false)).code).toBe('EBUSY');
      registry.close(second, false);
      expect(openDescriptors(path)).toBe(0);
      registryOf('direct').open(path, false);
    });

    it('to a writer, while others read', async () => {
      const { registry, path, waiting, discard } = slowRegistry();
      const device = registry.open(path, true);
      registry.open(path, false);
      const discarded = discard(device);
      registry.close(device, false);
      expect(registry.info(device)).toMatchObject({ locked: false, readOnly: true });
      expect(registry.open(path, false)).toBe(device);
      expect(registry.info(device)).toMatchObject({ locked: true, readOnly: false });
      waiting[0]!();
      expect((await discarded).status).toBe(0);
      expect(await status(device, REQ_OP_WRITE)).toBe(0);
      expect(openDescriptors(path)).toBe(1);
      registry.close(device, false);
      registry.close(device, true);
      expect(openDescriptors(path)).toBe(0);
    });

    it('to nobody, where those who come read, or come late', async () => {
      const { registry, path, waiting, discard } = slowRegistry();
      const first = registry.open(path, false);
      const discarded = discard(first);
      registry.close(first, false);
      const reader = registry.open(path, true);
      expect([await status(reader, REQ_OP_WRITE), openDescriptors(path)]).toEqual([Errno.EPERM, 2]);
      waiting[0]!();
      expect((await discarded).status).toBe(0);
      expect(openDescriptors(path)).toBe(1);
      expect(registry.open(path, false)).toBe(reader);
      expect([await status(reader, REQ_OP_WRITE), openDescriptors(path)]).toEqual([0, 1]);
    });
  });

  it('respects the read locks of programs that use them', async () => {
    const path = imageIn(tempDir('registry'));
    await lockElsewhere(path, 0);
    expect(errorOf(() => registryOf('direct').open(path, false)).code).toBe('EBUSY');
  });

  it('holds between two registries of one process, which it names', () => {
    const path = imageIn(tempDir('registry'));
    const first = registryOf('direct');
    const device = first.open(path, false);
    const error = errorOf(() => registryOf('direct').open(path, false));
    expect(error.message).toContain(`process ${process.pid}`);
    expect(error.message).toContain('which is this one');
    first.close(device, false);
    registryOf('direct').open(path, false);
  });

  it.each([
    ['is done without where the file system has none', Errno.EINVAL, null],
    ['says EBUSY though nobody can be found', Errno.EAGAIN, 'EBUSY'],
  ])('%s', (_name, errno, code) => {
    const path = imageIn(tempDir('registry'));
    const libc = libcWith((real) => {
      let failed = false;
      return {
        fcntl: () => {
          failed = true;
          return -1;
        },
        errno: () => {
          const answer = failed ? errno : real.errno();
          failed = false;
          return answer;
        },
      };
    });
    const engines = new EngineSet({ reactor: clock, engine: 'direct', libc });
    const registry = new DeviceRegistry({ reactor: clock, engine: engines });
    if (code === null) {
      expect(registry.info(registry.open(path, false))).toMatchObject({ locked: false });
    } else {
      const error = errorOf(() => registry.open(path, false));
      expect([error.code, error.message]).toEqual([code, expect.stringContaining('can not be seen from here')]);
    }
  });

  it('is not there with the portable engine, which says so', () => {
    const path = imageIn(tempDir('registry'));
    const registry = registryOf('portable');
    expect(registry.info(registry.open(path, false))).toMatchObject({ locked: false });
    registryOf('portable').open(path, false);
  });
});

describe('a registry of files that another thread has open', () => {
  it('finds them by their names, whatever the paths lead to by now', () => {
    const folder = tempDir('registry');
    const [a, b] = [imageIn(folder, 'a'), imageIn(folder, 'b')];
    const first = registryOf('direct');
    const [heldA, heldB] = [a, b].map((path) => first.heldFile(first.open(path, false))!);
    expect(heldA).toMatchObject({ name: a, kind: 'file', direct: false });
    fs.renameSync(a, join(folder, 'c'));
    fs.renameSync(b, a);
    fs.renameSync(join(folder, 'c'), b);
    const second = registryOf('direct', { heldFiles: [heldA!, heldB!] });
    for (const [path, held] of [[a, heldA!] as const, [b, heldB!] as const]) {
      const device = second.open(path, false) as FileDevice;
      expect(second.heldFile(device)).toMatchObject({ name: path, key: held.key });
      const inode = (fd: number) => fs.fstatSync(fd).ino;
      expect(inode(device.descriptor)).toBe(inode(held.heldFd));
      expect(second.info(device)).toMatchObject({ path, locked: true });
    }
    expect(errorOf(() => second.open(imageIn(folder, 'd'), false)).errno).toBe(Errno.ENODEV);
  });

  it('opens one that was moved or deleted, and checks that the descriptor is still of it', () => {
    const folder = tempDir('registry');
    const [a, b] = [imageIn(folder, 'a'), imageIn(folder, 'b')];
    const first = registryOf('direct');
    const [heldA, heldB] = [a, b].map((path) => first.heldFile(first.open(path, false))!);
    fs.rmSync(a);
    const second = registryOf('direct', { heldFiles: [heldA!] });
    expect(second.open(a, false)).toMatchObject({ name: a, sectorCount: 2048 });
    const third = registryOf('direct', { heldFiles: [{ ...heldA!, heldFd: heldB!.heldFd }] });
    expect(errorOf(() => third.open(a, false)).errno).toBe(Errno.ENODEV);
  });

  it('goes around the page cache where the other thread does', ({ skip }) => {
    const path = imageIn(tempDir('registry'));
    try {
      fs.closeSync(fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_DIRECT));
    } catch {
      skip('no direct I/O on this file system');
    }
    for (const directIo of ['always', 'never'] as const) {
      const first = registryOf('direct', { directIo });
      const device = first.open(path, false);
      const second = registryOf('direct', { heldFiles: [first.heldFile(device)!] });
      const again = second.open(path, false) as FileDevice;
      expect(again.direct).toBe(directIo === 'always');
      second.close(again, false);
      first.close(device, false);
    }
  });
});

describe('permissions', () => {
  const NOBODY = 65534;
  const asNobody = <Result>(call: () => Result): Result => {
    process.seteuid!(NOBODY);
    try {
      return call();
    } finally {
      process.seteuid!(0);
    }
  };

  itPeer(['root'], 'are told from missing files', () => {
    const folder = tempDir('registry');
    fs.chmodSync(folder, 0o755);
    const path = imageIn(folder);
    fs.chmodSync(path, 0o444);
    const hidden = join(folder, 'hidden');
    fs.mkdirSync(hidden, { mode: 0o700 });
    imageIn(hidden);
    asNobody(() => {
      const registry = registryOf('direct');
      const write = errorOf(() => registry.open(path, false));
      expect([write.code, write.message]).toEqual(['EACCES', expect.stringContaining('for writing')]);
      const look = errorOf(() => registry.open(join(hidden, 'image'), true));
      expect([look.code, look.message]).toEqual(['EACCES', expect.stringContaining('folder')]);
      // What may be read can be read, and a writer that is refused changes nothing for the reader.
      const device = registry.open(path, true);
      expect(errorOf(() => registry.open(path, false)).code).toBe('EACCES');
      expect(registry.info(device)).toMatchObject({ readerCount: 1, writerCount: 0, readOnly: true });
    });
  });
});
