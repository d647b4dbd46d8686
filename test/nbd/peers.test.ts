// Real clients against our server, over a Unix socket.
import { createHash } from 'node:crypto';
import { closeSync, openSync, readFileSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished } from 'vitest';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { formatNbdUri, NbdServer, NodeLoop } from '../../src/nbd/index.ts';
import { itPeer, peer, run } from '../support/peers.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';

const MIB = 1 << 20;
/** A machine under load takes its time. */
const patient = { timeout: 150_000 };
const SIZE = 128 * MIB;

async function serve(device = new MemoryDevice('disk', SIZE / 512)) {
  const loop = new NodeLoop();
  const errors: Error[] = [];
  const exports = [
    { name: 'disk', description: 'a disk', device },
    { name: 'fixed', device, readOnly: true },
  ];
  const server = new NbdServer({ reactor: loop, exports, onError: (error) => errors.push(error) });
  const socket = join(tempDir(), 's.sock');
  await new Promise<void>((resolve, reject) => {
    loop.listen(
      { unix: socket },
      (transport) => server.accept(transport),
      (error, listener) => {
        if (listener === null) reject(error);
        else resolve();
        onTestFinished(() => listener?.close());
      },
    );
  });
  const uri = (exportName: string) => formatNbdUri({ socket, exportName });
  /** Nothing may be left once the clients have gone. */
  const expectQuiet = async () => {
    await expect
      .poll(() => server.statistics, patient)
      .toEqual({ connectionCount: 0, requestCount: 0, usedByteLength: 0 });
    expect(errors).toEqual([]);
  };
  return { device, server, uri, expectQuiet };
}

async function succeed(program: Parameters<typeof peer>[0], args: string[], timeoutSeconds = 60): Promise<string> {
  const result = await run(peer(program), args, { timeoutSeconds });
  expect(result.code, result.stdout + result.stderr).toBe(0);
  return result.stdout;
}

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

itPeer(['python3-libnbd'], 'libnbd gets the errors that the protocol asks for', async () => {
  const { uri, expectQuiet } = await serve();
  const script = fileURLToPath(new URL('probe.py', import.meta.url));
  const answers = JSON.parse(await succeed('python3-libnbd', [script, uri('disk'), String(SIZE), uri('fixed')]));
  expect(answers).toEqual({
    read: 'ok',
    'read past end': 'EINVAL',
    'read across end': 'EINVAL',
    'read of nothing': 'ok',
    'read unaligned': 'ok',
    'read with unknown flag': 'EINVAL',
    'read with DF': 'ok',
    'read of 64 MiB': 'ok',
    write: 'ok',
    'write with FUA': 'ok',
    'write past end': 'ENOSPC',
    'write of nothing': 'ok',
    'write unaligned': 'ok',
    'write of 40 MiB': 'ok',
    'write of 64 MiB': 'ok',
    'write read-only': 'EPERM',
    flush: 'ok',
    'flush with FUA': 'ok',
    trim: 'ok',
    'trim past end': 'EINVAL',
    'trim read-only': 'EPERM',
    zero: 'ok',
    'zero with FUA and NO_HOLE': 'ok',
    'zero with FAST_ZERO': 'ok',
    'zero past end': 'ENOSPC',
    'zero of 4 GiB': 'ENOSPC',
    'zero read-only': 'EPERM',
    cache: 'ok',
    'cache past end': 'EINVAL',
    'status past end': 'EINVAL',
    'status of nothing': 'EINVAL',
    'zero part of a block with FAST_ZERO': 'ENOTSUP',
    map: [MIB, 3, 65_536, 0, 3 * MIB - 65_536, 3],
    'map, one': [MIB, 3],
    'map, bytes': [1, 0, 2, 3],
    hole: true,
    'any bytes': true,
    'any bytes, a part': true,
    list: [
      ['disk', 'a disk'],
      ['fixed', ''],
    ],
    'info for nothing there': 'ENOENT',
    'size by info': SIZE,
    'block sizes': [1, 4096, 64 * MIB],
    pattern: 'ok',
  });
  await expectQuiet();
});

itPeer(['nbdinfo'], 'nbdinfo reads what is offered', async () => {
  const { uri, expectQuiet } = await serve();
  const [disk] = JSON.parse(await succeed('nbdinfo', ['--json', uri('disk')])).exports;
  expect(disk).toMatchObject({
    'export-size': SIZE,
    description: 'a disk',
    is_read_only: false,
    can_flush: true,
    can_fua: true,
    can_multi_conn: true,
    can_trim: true,
    can_zero: true,
    block_size_minimum: 1,
    block_size_preferred: 4096,
    block_size_maximum: 64 * MIB,
  });
  expect(JSON.parse(await succeed('nbdinfo', ['--list', '--json', uri('')])).exports).toHaveLength(2);
  expect((await run(peer('nbdinfo'), ['--can', 'write', uri('fixed')])).code).not.toBe(0);
  await expectQuiet();
});

itPeer(['nbdcopy'], 'nbdcopy copies in over four connections and out again', async () => {
  const { device, uri, expectQuiet } = await serve();
  const image = join(tempDir(), 'image');
  const bytes = Buffer.concat([randomBytes(20 * MIB, 1), Buffer.alloc(30 * MIB), randomBytes(78 * MIB, 2)]);
  writeFileSync(image, bytes);
  await succeed('nbdcopy', ['-C', '4', '--flush', image, uri('disk')]);
  expect(sha256(device.peek(0, SIZE / 512))).toBe(sha256(bytes));
  const back = join(tempDir(), 'back');
  writeFileSync(back, '');
  await succeed('nbdcopy', ['-C', '4', uri('fixed'), back]);
  expect(sha256(readFileSync(back))).toBe(sha256(bytes));
  await expectQuiet();
});

itPeer(['nbdinfo', 'nbdcopy', 'qemu-img'], 'holes stay holes, in and out', async () => {
  const { device, uri, expectQuiet } = await serve();
  const folder = tempDir();
  const sparse = join(folder, 'sparse');
  writeFileSync(sparse, '');
  truncateSync(sparse, SIZE);
  const file = openSync(sparse, 'r+');
  writeSync(file, randomBytes(MIB, 7), 0, MIB, 10 * MIB);
  writeSync(file, randomBytes(MIB, 8), 0, MIB, 100 * MIB);
  closeSync(file);
  await succeed('nbdcopy', [sparse, uri('disk')]);
  expect(device.allocatedByteLength).toBe(2 * MIB);
  const map = JSON.parse(await succeed('nbdinfo', ['--map', '--json', uri('disk')]));
  expect(map.map(({ offset, length, type }: Record<string, number>) => [offset, length, type])).toEqual([
    [0, 10 * MIB, 3],
    [10 * MIB, MIB, 0],
    [11 * MIB, 89 * MIB, 3],
    [100 * MIB, MIB, 0],
    [101 * MIB, 27 * MIB, 3],
  ]);
  expect(await succeed('nbdinfo', ['--map', '--totals', uri('disk')])).toMatch(/^\s*2097152 +1\.6% +0 data$/m);
  const qemu = JSON.parse(await succeed('qemu-img', ['map', '--output=json', '-f', 'raw', uri('disk')]));
  expect(qemu.map(({ length, zero, data }: Record<string, unknown>) => [length, zero, data])).toEqual([
    [10 * MIB, true, false],
    [MIB, false, true],
    [89 * MIB, true, false],
    [MIB, false, true],
    [27 * MIB, true, false],
  ]);
  for (const [i, copy] of (['nbdcopy', 'qemu-img'] as const).entries()) {
    const back = join(folder, `back${i}`);
    writeFileSync(back, '');
    if (copy === 'nbdcopy') await succeed(copy, [uri('fixed'), back]);
    else await succeed(copy, ['convert', '-f', 'raw', '-O', 'raw', uri('fixed'), back]);
    expect(sha256(readFileSync(back))).toBe(sha256(readFileSync(sparse)));
    expect(statSync(back).blocks * 512).toBeLessThan(3 * MIB);
  }
  await succeed('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', sparse, uri('fixed')]);
  await expectQuiet();
});

itPeer(['qemu-io', 'qemu-img'], 'qemu-io and qemu-img find what they wrote', async () => {
  const { uri, expectQuiet } = await serve();
  const commands = [
    'write -P 0xaa 0 1M',
    'read -P 0xaa 0 1M',
    'write -z 0 512k',
    'read -P 0 0 512k',
    'write -z -u 512k 64k',
    'read -P 0 512k 64k',
    'discard 576k 64k',
    'flush',
    'write -f -P 3 8k 4k',
    'read -P 3 8k 4k',
    'aio_write -P 9 1M 64k',
    'aio_write -P 8 2M 4M',
    'aio_flush',
    'read -P 8 2M 4M',
    'read -P 9 1M 64k',
  ];
  const output = await succeed('qemu-io', [
    '-f',
    'raw',
    ...commands.flatMap((command) => ['-c', command]),
    uri('disk'),
  ]);
  expect(output).not.toMatch(/fail|error/i);
  const image = join(tempDir(), 'image');
  writeFileSync(image, randomBytes(SIZE, 3));
  await succeed('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', image, uri('disk')]);
  await succeed('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', image, uri('fixed')]);
  await expectQuiet();
});

itPeer(['fio'], 'fio verifies writes of any size, at depth, with flushes and trims', async () => {
  const { uri, expectQuiet } = await serve();
  const common = [
    '--name=v',
    '--ioengine=nbd',
    `--uri=${uri('disk')}`,
    '--size=32M',
    '--iodepth=32',
    '--verify_fatal=1',
  ];
  const verify = ['--verify=crc32c', '--do_verify=1', '--verify_state_save=0', '--allow_file_create=0'];
  await succeed('fio', [...common, ...verify, '--rw=randrw', '--rwmixread=50', '--bsrange=512-64k']);
  await succeed('fio', [...common, ...verify, '--rw=randwrite', '--bs=4k', '--fsync=32', '--verify_backlog=64']);
  await succeed('fio', [...common, '--rw=trimwrite', '--bs=64k']);
  // Any bytes: blocks of 512 to 70,000 bytes that begin anywhere, 32 at a time.
  const any = ['--bsrange=513-70001', '--bs_unaligned=1', '--norandommap', '--size=8M'];
  await succeed('fio', [...common, ...verify, '--rw=randwrite', ...any, '--serialize_overlap=1']);
  await expectQuiet();
});
