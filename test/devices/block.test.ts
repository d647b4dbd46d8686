// Real block devices: loop devices over images.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { expect, it, onTestFinished } from 'vitest';
import {
  REQ_NOFALLBACK,
  REQ_NOUNMAP,
  REQ_OP_DISCARD,
  REQ_OP_FLUSH,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
} from '../../src/block/bio.ts';
import { EXTENT_DATA, queryExtent } from '../../src/block/block-device.ts';
import { Errno } from '../../src/block/errno.ts';
import { DeviceRegistry, HostBlockDevice } from '../../src/devices/index.ts';
import { EngineSet } from '../../src/engine/index.ts';
import { clock, ENGINES, libcWith, request, start, vecOf } from '../engine/harness.ts';
import { errorOf } from '../support/errors.ts';
import { describePeer, itPeer } from '../support/peers.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';

const MIB = 1 << 20;

interface Loop {
  node: string;
  number: string;
  image: string;
}

function loopOf(...options: string[]): Loop {
  const image = join(tempDir('loop'), 'image');
  fs.writeFileSync(image, Buffer.alloc(4 * MIB, 1));
  const node = execFileSync('losetup', ['--find', '--show', ...options, image], { encoding: 'utf8' }).trim();
  onTestFinished(() => {
    execFileSync('losetup', ['--detach', node]);
  });
  const { rdev } = fs.statSync(node);
  return { node, image, number: `${rdev >> 8}:${rdev & 0xff}` };
}

describePeer(['root', 'losetup', 'loop'], 'a block device', () => {
  for (const engine of ENGINES) {
    const registry = () => {
      const made = new DeviceRegistry({ reactor: clock, engine });
      onTestFinished(() => {
        for (const info of made.list()) throw new Error(`${info.name} is still open`);
      });
      return made;
    };

    it(`has the kernel's name and size, and moves data (${engine})`, async () => {
      const loop = loopOf();
      const devices = registry();
      const device = devices.open(loop.node, false);
      expect(device).toBeInstanceOf(HostBlockDevice);
      expect([device.name, device.sectorCount, device.readOnly]).toEqual([loop.number, 8192, false]);
      expect(device.limits).toMatchObject({ logicalBlockSize: 512, physicalBlockSize: 512, hasWriteCache: true });
      const content = randomBytes(8192, 6);
      const write = await request(device, REQ_OP_WRITE, 100, 16, { vecs: vecOf(content) });
      const flush = await request(device, REQ_OP_FLUSH, 0, 0);
      expect([write.status, flush.status]).toEqual([0, 0]);
      const page = new Uint8Array(8192);
      expect((await request(device, REQ_OP_READ, 100, 16, { vecs: vecOf(page) })).status).toBe(0);
      expect(Buffer.compare(page, content)).toBe(0);
      expect(Buffer.compare(fs.readFileSync(loop.image).subarray(51200, 51200 + 8192), content)).toBe(0);
      devices.close(device, false);
    });

    it(`is one object by number, node and link (${engine})`, () => {
      const loop = loopOf();
      const devices = registry();
      const device = devices.open(loop.number, true);
      const link = join(tempDir('loop'), 'link');
      fs.symlinkSync(loop.node, link);
      expect(devices.open(link, true)).toBe(device);
      expect(devices.open(loop.number.replace(':', ':000'), true)).toBe(device);
      expect(devices.info(device)).toMatchObject({ kind: 'block', path: loop.node, readerCount: 3 });
      for (let user = 0; user < 3; user++) devices.close(device, true);
    });

    it(`tells its block sizes (${engine})`, () => {
      const loop = loopOf('--sector-size', '4096');
      const devices = registry();
      const device = devices.open(loop.node, true);
      expect(device.limits).toMatchObject({ logicalBlockSize: 4096, physicalBlockSize: 4096, ioMin: 4096 });
      devices.close(device, true);
    });

    it(`is accepted in a writable table though the kernel protects it (${engine})`, async () => {
      const loop = loopOf('--read-only');
      const devices = registry();
      const device = devices.open(loop.node, false);
      expect(device.readOnly).toBe(true);
      const write = await request(device, REQ_OP_WRITE, 0, 1, { vecs: vecOf(new Uint8Array(512)) });
      expect(write.status).toBe(Errno.EPERM);
      expect(devices.open(loop.node, true)).toBe(device);
      devices.close(device, true);
      expect(device.readOnly).toBe(true);
      devices.close(device, false);
      const reader = devices.open(loop.node, true);
      expect(devices.open(loop.node, false)).toBe(reader);
      devices.close(reader, false);
      devices.close(reader, true);
    });

    it(`is opened for writing once in the machine, and the holder is named (${engine})`, () => {
      const loop = loopOf();
      const devices = registry();
      const device = devices.open(loop.node, true);
      devices.open(loop.node, false);
      expect(devices.info(device)).toMatchObject({ locked: true });
      const error = errorOf(() => registry().open(loop.number, false));
      expect(error.code).toBe('EBUSY');
      expect(error.message).toContain(`process ${process.pid}`);
      devices.close(device, false);
      expect(devices.info(device)).toMatchObject({ locked: false, readerCount: 1 });
      const others = registry();
      others.close(others.open(loop.node, false), false);
      devices.close(device, true);
    });

    it(`fails requests past its end, and follows its size (${engine})`, async () => {
      const loop = loopOf();
      const devices = registry();
      const device = devices.open(loop.node, true) as HostBlockDevice;
      const vecs = vecOf(new Uint8Array(1024));
      const bio = await request(device, REQ_OP_READ, 8191, 2, { vecs });
      expect([bio.status, bio.errorSector]).toEqual([Errno.EIO, 8192]);
      fs.truncateSync(loop.image, 2 * MIB);
      execFileSync('losetup', ['--set-capacity', loop.node]);
      const cut = await request(device, REQ_OP_READ, 8000, 2, { vecs });
      expect([cut.status, cut.errorSector]).toEqual([Errno.EIO, 8000]);
      expect(device.refreshSize()).toBe(4096);
      devices.close(device, true);
    });
  }

  const direct = (overrides: Parameters<typeof libcWith>[0] = () => ({})) => {
    const engines = new EngineSet({ reactor: clock, engine: 'direct', libc: libcWith(overrides) });
    return new DeviceRegistry({ reactor: clock, engine: engines });
  };

  it('discards and zeroes, down to the image', async () => {
    const loop = loopOf();
    const devices = direct();
    const device = devices.open(loop.node, false);
    onTestFinished(() => devices.close(device, false));
    expect(device.limits.maxDiscardSectorCount).toBeGreaterThan(0);
    expect(device.limits.maxWriteZeroesSectorCount).toBeGreaterThan(0);
    const before = fs.statSync(loop.image).blocks;
    const discard = await request(device, REQ_OP_DISCARD, 0, 64);
    const zero = await request(device, REQ_OP_WRITE_ZEROES, 128, 64);
    const keep = await request(device, REQ_OP_WRITE_ZEROES, 256, 64, { flags: REQ_NOUNMAP });
    const fast = await request(device, REQ_OP_WRITE_ZEROES, 512, 64, { flags: REQ_NOFALLBACK });
    await request(device, REQ_OP_FLUSH, 0, 0);
    expect([discard.status, zero.status, keep.status, fast.status]).toEqual([0, 0, 0, 0]);
    const content = fs.readFileSync(loop.image);
    for (const sector of [0, 128, 256, 512]) {
      expect(content.subarray(sector * 512, (sector + 64) * 512).every((byte) => byte === 0)).toBe(true);
    }
    expect(content.filter((byte) => byte === 0)).toHaveLength(4 * 64 * 512);
    expect(fs.statSync(loop.image).blocks).toBeLessThanOrEqual(before - 64);
    queryExtent(device, 0, 8192, (...answer) => expect(answer).toEqual([0, 8192, EXTENT_DATA]));
    const ends: number[] = [];
    (devices.engines as EngineSet).blocking = true;
    start(device, REQ_OP_DISCARD, 1024, 64, (bio) => ends.push(bio.status));
    start(device, REQ_OP_WRITE_ZEROES, 1024, 64, (bio) => ends.push(bio.status), { flags: REQ_NOUNMAP });
    devices.engines.blocking = false;
    expect(ends).toEqual([0, 0]);
  });

  it('that takes no discard says so once, and then by its limits', async () => {
    const loop = loopOf();
    const devices = direct((real) => {
      let errno = 0;
      return {
        ioctlOnThread: (_fd, _request, _address, done) => setImmediate(() => done(-1, Errno.EOPNOTSUPP)),
        fallocateOnThread: (_fd, _mode, _offset, _length, done) => setImmediate(() => done(-1, Errno.EOPNOTSUPP)),
        fallocate: () => {
          errno = Errno.EOPNOTSUPP;
          return -1;
        },
        errno: () => errno || real.errno(),
      };
    });
    const device = devices.open(loop.node, false);
    onTestFinished(() => devices.close(device, false));
    expect((await request(device, REQ_OP_DISCARD, 0, 8)).status).toBe(Errno.EOPNOTSUPP);
    expect(device.limits.maxDiscardSectorCount).toBe(0);
    const fast = await request(device, REQ_OP_WRITE_ZEROES, 0, 8, { flags: REQ_NOFALLBACK });
    expect(fast.status).toBe(Errno.EOPNOTSUPP);
  });

  it('whose size can not be asked for is not opened, and leaves no descriptor', () => {
    const loop = loopOf();
    const devices = direct(() => ({ ioctl: () => -1, errno: () => Errno.EIO }));
    expect(errorOf(() => devices.open(loop.node, true)).message).toMatch(/ioctl 80081272 failed: Input\/output error/);
    expect([...devices.list()]).toEqual([]);
    const open = fs.readdirSync('/proc/self/fd').map((fd) => {
      try {
        return fs.readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        return '';
      }
    });
    expect(open).not.toContain(loop.node);
  });

  itPeer(['mkfs.ext4'], 'that is mounted is busy, by the name of the mount', () => {
    const loop = loopOf();
    execFileSync('mkfs.ext4', ['-q', '-F', loop.node], { stdio: 'ignore' });
    const folder = tempDir('mount');
    execFileSync('mount', [loop.node, folder]);
    onTestFinished(() => {
      execFileSync('umount', [folder]);
    });
    const error = errorOf(() => direct().open(loop.node, false));
    expect([error.code, error.message]).toEqual(['EBUSY', expect.stringContaining(`mounted at ${folder}`)]);
  });
});
