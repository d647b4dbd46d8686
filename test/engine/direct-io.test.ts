// O_DIRECT: what may go straight to the disk does, what can't is copied and counted, and what the kernel would refuse is
// refused with its errno, before any I/O.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import {
  type BioVec,
  REQ_FUA,
  REQ_OP_DISCARD,
  REQ_OP_READ,
  REQ_OP_WRITE,
  REQ_OP_WRITE_ZEROES,
} from '../../src/block/bio.ts';
import { MAX_BOUNCE_BUFFER_COUNT } from '../../src/block/bounds.ts';
import { Errno } from '../../src/block/errno.ts';
import { DeviceRegistry, type DirectIoChoice } from '../../src/devices/index.ts';
import { allocatePages } from '../../src/engine/bounce.ts';
import { directIoOf, EngineSet, type EngineSetOptions } from '../../src/engine/index.ts';
import { loadLibc } from '../../src/engine/libc.ts';
import { describePeer } from '../support/peers.ts';
import { runs } from '../support/seed.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';
import { clock, ENGINES, libcWith, request, start, type TestedEngine, vecOf } from './harness.ts';
import { libcWithFakeRing } from './ring-fake.ts';

const libc = loadLibc().libc!;

function takesDirectIo(): boolean {
  const path = join(tempDir('direct-io'), 'probe');
  fs.writeFileSync(path, '');
  try {
    fs.closeSync(fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_DIRECT));
    return true;
  } catch {
    return false;
  }
}

interface Opened {
  device: ReturnType<DeviceRegistry['open']>;
  engines: EngineSet;
  path: string;
}

function openDirect(
  engine: TestedEngine | 'auto',
  options: Partial<EngineSetOptions> & { byte?: number } = {},
): Opened {
  const { byte = 0, ...rest } = options;
  const path = join(tempDir('direct-io'), 'image');
  fs.writeFileSync(path, Buffer.alloc(1 << 20, byte));
  const engines = new EngineSet({ reactor: clock, engine, ...rest });
  const registry = new DeviceRegistry({ reactor: clock, engine: engines });
  const device = registry.open(path, false, { direct: true });
  onTestFinished(() => registry.close(device, false));
  return { device, engines, path };
}

const pages = (byteLength: number) => allocatePages(libc.addressOf, byteLength);

/** Memory that no device can take as it is: one byte behind a page. */
function unaligned(content: Uint8Array): BioVec[] {
  const page = pages(content.byteLength + 4096);
  page.set(content, 1);
  return [{ page, offset: 1, byteLength: content.byteLength }];
}

const contentOf = (vec: BioVec) => vec.page.subarray(vec.offset, vec.offset + vec.byteLength);
const WITH_ADDRESSES = ENGINES.filter((engine) => engine !== 'portable');

// Under an emulator of another processor /proc is the machine's own, with its numbers (scripts/test-arm64.mjs).
const O_DIRECT_IN_PROC = process.env.DMKIT_EMULATED === '1' ? 0o40000 : fs.constants.O_DIRECT;

describe.runIf(takesDirectIo())('O_DIRECT', () => {
  describe.each(WITH_ADDRESSES)('with the %s engine', (engine) => {
    it('is on the descriptor, and moves aligned memory without a copy', async () => {
      const { device, engines, path } = openDirect(engine);
      const vecs = vecOf(pages(8192));
      vecs[0]!.page.set(randomBytes(8192, 1));
      expect((await request(device, REQ_OP_WRITE, 16, 16, { vecs })).status).toBe(0);
      const back = vecOf(pages(8192));
      expect((await request(device, REQ_OP_READ, 16, 16, { vecs: back })).status).toBe(0);
      expect(Buffer.compare(back[0]!.page, vecs[0]!.page)).toBe(0);
      expect(engines.counters).toMatchObject({ bouncedRequestCount: 0, bouncedByteLength: 0 });
      const direct = fs.readdirSync('/proc/self/fd').filter((fd) => {
        try {
          const flags = /flags:\s+(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0';
          return fs.readlinkSync(`/proc/self/fd/${fd}`) === path && Number.parseInt(flags, 8) & O_DIRECT_IN_PROC;
        } catch {
          return false;
        }
      });
      expect(direct).toHaveLength(1);
    });

    it('copies for memory that is not aligned, a part at a time, and counts it', async () => {
      const { device, engines, path } = openDirect(engine);
      const content = randomBytes(300 * 512, 5);
      expect((await request(device, REQ_OP_WRITE, 8, 300, { vecs: unaligned(content) })).status).toBe(0);
      expect(Buffer.compare(fs.readFileSync(path).subarray(4096, 4096 + content.length), content)).toBe(0);
      const back = unaligned(new Uint8Array(300 * 512));
      expect((await request(device, REQ_OP_READ, 8, 300, { vecs: back })).status).toBe(0);
      expect(Buffer.compare(contentOf(back[0]!), content)).toBe(0);
      expect(back[0]!.page[0]).toBe(0);
      expect(engines.counters).toMatchObject({ bouncedRequestCount: 2, bouncedByteLength: 2 * content.length });
    });

    it('is as a byte array, whatever the layout of memory', async () => {
      const { device, path } = openDirect(engine);
      const model = new Uint8Array(1 << 20);
      const step = fc.record({
        write: fc.boolean(),
        sector: fc.nat(2047),
        sectorCount: fc.integer({ min: 1, max: 200 }),
        cuts: fc.array(fc.nat(200 * 512), { maxLength: 6 }),
        seed: fc.nat(),
      });
      await fc.assert(
        fc.asyncProperty(fc.array(step, { maxLength: 10 }), async (steps) => {
          for (const { write, sector, sectorCount, cuts, seed } of steps) {
            const count = Math.min(sectorCount, 2048 - sector);
            const content = randomBytes(count * 512, seed);
            const vecs = scatter(content, cuts);
            const bio = await request(device, write ? REQ_OP_WRITE : REQ_OP_READ, sector, count, { vecs });
            expect(bio.status).toBe(0);
            if (write) model.set(content, sector * 512);
            else expect(Buffer.compare(gather(vecs), model.subarray(sector * 512, (sector + count) * 512))).toBe(0);
          }
          expect(Buffer.compare(fs.readFileSync(path), model)).toBe(0);
        }),
        { numRuns: runs(15) },
      );
    });

    it('lets more requests than there are buffers wait for one', async () => {
      const { device, engines } = openDirect(engine, { byte: 4 });
      const all = Array.from({ length: MAX_BOUNCE_BUFFER_COUNT * 3 }, (_, i) => {
        const vecs = unaligned(new Uint8Array(512));
        return request(device, REQ_OP_READ, i, 1, { vecs });
      });
      for (const bio of await Promise.all(all)) {
        expect(bio.status).toBe(0);
        expect(contentOf(bio.vecs[0]!).every((byte) => byte === 4)).toBe(true);
      }
      expect(engines.counters.bouncedRequestCount).toBe(MAX_BOUNCE_BUFFER_COUNT * 3);
    });

    it('ends inside submit while it is blocking, though others have all the buffers', async () => {
      const { device, engines } = openDirect(engine, { byte: 4 });
      const all = Array.from({ length: MAX_BOUNCE_BUFFER_COUNT }, (_, i) => {
        const vecs = unaligned(new Uint8Array(512));
        return request(device, REQ_OP_READ, i, 1, { vecs });
      });
      engines.blocking = true;
      const ends: number[] = [];
      const vecs = unaligned(new Uint8Array(512).fill(8));
      start(device, REQ_OP_WRITE, 9, 1, (bio) => ends.push(bio.status), { vecs, flags: REQ_FUA });
      start(device, REQ_OP_READ, 9, 1, (bio) => ends.push(bio.status), { vecs });
      engines.blocking = false;
      expect(ends).toEqual([0, 0]);
      expect(contentOf(vecs[0]!).every((byte) => byte === 8)).toBe(true);
      for (const { status } of await Promise.all(all)) expect(status).toBe(0);
    });

    it('fails a read that ends early at the sector that is missing', async () => {
      const { device, path } = openDirect(engine, { byte: 4 });
      fs.truncateSync(path, 10 * 512);
      const bio = await request(device, REQ_OP_READ, 8, 8, { vecs: vecOf(pages(4096)) });
      expect([bio.status, bio.errorSector]).toEqual([Errno.EIO, 10]);
    });

    it('discards and writes zeroes', async () => {
      const { device, path } = openDirect(engine, { byte: 4 });
      expect((await request(device, REQ_OP_DISCARD, 8, 8)).status).toBe(0);
      expect((await request(device, REQ_OP_WRITE_ZEROES, 32, 8)).status).toBe(0);
      const bytes = fs.readFileSync(path);
      for (const first of [8, 32]) {
        expect(bytes.subarray(first * 512, (first + 8) * 512).every((byte) => byte === 0)).toBe(true);
      }
      expect(bytes[40 * 512]).toBe(4);
    });
  });

  it('goes through the ring by itself where there is one', () => {
    const expected = ENGINES.includes('ring') ? 'ring' : 'direct';
    const { device } = openDirect('auto');
    expect((device as unknown as { engineKind: string }).engineKind).toBe(expected);
    const refused = libcWith((real) => ({ uring: () => ({ ...real.uring()!, setup: () => -Errno.EPERM }) }));
    expect((openDirect('auto', { libc: refused }).device as unknown as { engineKind: string }).engineKind).toBe(
      'direct',
    );
  });

  it.runIf(ENGINES.includes('ring'))(
    'copies after all when a device refuses memory that it said it takes',
    async () => {
      let refusedCount = 0;
      const { libc: faked } = libcWithFakeRing({
        perform: ({ address }, make) => {
          if (address % 4096 === 0) return make();
          refusedCount++;
          return -Errno.EINVAL;
        },
      });
      const { device, engines } = openDirect('ring', { libc: faked, byte: 3 });
      const page = pages(8192);
      const vecs = [{ page, offset: 512, byteLength: 4096 }];
      for (let i = 0; i < 2; i++) expect((await request(device, REQ_OP_READ, 0, 8, { vecs })).status).toBe(0);
      expect(contentOf(vecs[0]!).every((byte) => byte === 3)).toBe(true);
      expect(refusedCount).toBe(1);
      expect(engines.counters.bouncedRequestCount).toBe(2);
    },
  );

  it('is a choice of the registry and of each open', () => {
    const path = join(tempDir('direct-io'), 'image');
    fs.writeFileSync(path, Buffer.alloc(4096));
    const opened = (directIo: DirectIoChoice | undefined, direct: boolean | undefined): boolean => {
      const registry = new DeviceRegistry({ reactor: clock, ...(directIo === undefined ? {} : { directIo }) });
      const device = registry.open(path, true, direct === undefined ? {} : { direct });
      const info = registry.info(device)!;
      registry.close(device, true);
      return info.direct;
    };
    expect([opened(undefined, undefined), opened(undefined, true)]).toEqual([false, true]);
    expect([opened('never', true), opened('always', undefined), opened('auto', false)]).toEqual([false, true, false]);
  });

  it('stays through a change from reading to writing, and is refused for what is open without it', async () => {
    const path = join(tempDir('direct-io'), 'image');
    fs.writeFileSync(path, Buffer.alloc(4096, 2));
    const registry = new DeviceRegistry({ reactor: clock });
    const device = registry.open(path, true, { direct: true });
    expect(registry.open(path, false)).toBe(device);
    expect(registry.info(device)).toMatchObject({ direct: true, readOnly: false });
    expect((await request(device, REQ_OP_WRITE, 0, 8, { vecs: vecOf(pages(4096)) })).status).toBe(0);
    registry.close(device, false);
    expect(registry.info(device)).toMatchObject({ direct: true, readOnly: true });
    registry.close(device, true);
    const cached = registry.open(path, true);
    expect(() => registry.open(path, true, { direct: true })).toThrow(/open through the page cache here/);
    registry.close(cached, true);
  });

  it('needs addresses', () => {
    const path = join(tempDir('direct-io'), 'image');
    fs.writeFileSync(path, Buffer.alloc(4096));
    const registry = new DeviceRegistry({ reactor: clock, engine: 'portable' });
    expect(() => registry.open(path, true, { direct: true })).toThrow(/direct I\/O needs to know where memory is/);
  });

  it('asks for whole pages where the system does not say', () => {
    const path = join(tempDir('direct-io'), 'image');
    fs.writeFileSync(path, Buffer.alloc(4096));
    const fd = fs.openSync(path, 'r');
    const stated = directIoOf(libc, fd);
    expect([512, 1024, 2048, 4096]).toContain(stated.blockByteLength);
    const unstated = directIoOf({ ...libc, statx: null }, fd);
    expect(unstated.memoryAlignment).toBe(unstated.blockByteLength);
    fs.closeSync(fd);
  });
});

describePeer(['root', 'losetup', 'loop'], 'O_DIRECT on blocks of 4,096 bytes', () => {
  function openLoop(engine: TestedEngine) {
    const image = join(tempDir('direct-io'), 'image');
    fs.writeFileSync(image, Buffer.alloc(1 << 20, 1));
    const args = ['--find', '--show', '--sector-size', '4096', image];
    const node = execFileSync('losetup', args, { encoding: 'utf8' }).trim();
    onTestFinished(() => {
      execFileSync('losetup', ['--detach', node]);
    });
    const registry = new DeviceRegistry({ reactor: clock, engine });
    const device = registry.open(node, false, { direct: true });
    onTestFinished(() => registry.close(device, false));
    return device;
  }

  it.each(WITH_ADDRESSES)('refuses a part of one with EINVAL, as the kernel does (%s)', async (engine) => {
    const device = openLoop(engine);
    expect(device.limits.logicalBlockSize).toBe(4096);
    const vecs = vecOf(pages(8192).fill(7));
    for (const [sector, sectorCount] of [
      [1, 8],
      [8, 4],
      [0, 9],
    ] as const) {
      const bio = await request(device, REQ_OP_WRITE, sector, sectorCount, { vecs });
      expect([bio.status, bio.errorSector]).toEqual([Errno.EINVAL, sector]);
    }
    expect((await request(device, REQ_OP_WRITE, 8, 8, { vecs })).status).toBe(0);
    expect((await request(device, REQ_OP_READ, 8, 8, { vecs: unaligned(new Uint8Array(4096)) })).status).toBe(0);
    const page = pages(4096);
    expect((await request(device, REQ_OP_READ, 0, 8, { vecs: vecOf(page) })).status).toBe(0);
    expect(page.every((byte) => byte === 1)).toBe(true);
  });
});

function scatter(content: Uint8Array, cuts: readonly number[]): BioVec[] {
  const ends = [...new Set(cuts.filter((cut) => cut > 0 && cut < content.byteLength))].sort((a, b) => a - b);
  let from = 0;
  return [...ends, content.byteLength].map((to) => {
    const page = new Uint8Array(to - from + 23);
    page.set(content.subarray(from, to), 11);
    const vec = { page, offset: 11, byteLength: to - from };
    from = to;
    return vec;
  });
}

function gather(vecs: readonly BioVec[]): Uint8Array {
  return Buffer.concat(vecs.map(contentOf));
}
