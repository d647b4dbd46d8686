// Real clients on what `dmkit serve` exports: a stripe over three images and a join of two.
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { dmkit, serve } from '../support/cli.ts';
import { describePeer, peer, run } from '../support/peers.ts';
import { makeImage, randomBytes, sha256, tempDir } from '../support/tmp.ts';

const CHUNK = 128;
const LEG = 64 * CHUNK;
const STRIPE_BYTES = 3 * LEG * 512;

/** Runs a client that must succeed. */
async function ok(command: string, args: readonly string[], options: Parameters<typeof run>[2] = {}): Promise<string> {
  const result = await run(command, args, options);
  expect(`${result.code} ${result.stderr}${result.code === 0 ? '' : result.stdout}`).toMatch(/^0 /);
  return result.stdout;
}

/** Three images, and what their stripe must read as, put together here without any of dmkit. */
function stripeImages(folder: string) {
  const legs = [1, 2, 3].map((seed) => makeImage(join(folder, `s${seed}.img`), LEG, seed));
  const whole = Buffer.alloc(STRIPE_BYTES);
  const chunkBytes = CHUNK * 512;
  for (let chunk = 0; chunk < STRIPE_BYTES / chunkBytes; chunk++) {
    const row = Math.floor(chunk / 3) * chunkBytes;
    legs[chunk % 3]!.copy(whole, chunk * chunkBytes, row, row + chunkBytes);
  }
  writeFileSync(join(folder, 'expected.img'), whole);
  const table = `0 ${3 * LEG} striped 3 ${CHUNK} ${[1, 2, 3].map((i) => `${join(folder, `s${i}.img`)} 0`).join(' ')}`;
  return { table, expected: join(folder, 'expected.img'), whole };
}

/** Two images joined, a little of each cut off, and what the join must read as. */
function joinedImages(folder: string) {
  const a = makeImage(join(folder, 'a.img'), 5000, 11);
  const b = makeImage(join(folder, 'b.img'), 7000, 12);
  const table = `0 4990 linear ${join(folder, 'a.img')} 10\n4990 6990 linear ${join(folder, 'b.img')} 0`;
  const whole = Buffer.concat([a.subarray(10 * 512), b.subarray(0, 6990 * 512)]);
  writeFileSync(join(folder, 'joined-expected.img'), whole);
  return { table, expected: join(folder, 'joined-expected.img'), whole };
}

function unix(folder: string, name = 'nbd.sock'): string[] {
  return ['--nbd', `unix:${join(folder, name)}`];
}

describePeer(['nbdinfo'], 'nbdinfo', () => {
  test('sees size, flags and block sizes of each export, and both in the list', async () => {
    const folder = tempDir('nbdinfo');
    const { uris } = await serve(
      [
        'stripe',
        '--table',
        stripeImages(folder).table,
        'joined',
        '--table',
        joinedImages(folder).table,
        ...unix(folder),
      ],
      { exports: 2 },
    );
    expect(uris[0]).toBe(`nbd+unix:///stripe?socket=${join(folder, 'nbd.sock')}`);
    const info = JSON.parse(await ok(peer('nbdinfo'), ['--json', uris[0]!])).exports[0];
    expect(info).toMatchObject({
      'export-name': 'stripe',
      'export-size': STRIPE_BYTES,
      is_read_only: false,
      can_flush: true,
      can_fua: true,
      can_trim: true,
      can_zero: true,
      can_multi_conn: true,
      block_size_minimum: 1,
      block_size_preferred: 4096,
      block_size_maximum: 64 << 20,
    });
    expect((await ok(peer('nbdinfo'), ['--size', uris[1]!])).trim()).toBe(String(11980 * 512));
    const list = JSON.parse(await ok(peer('nbdinfo'), ['--list', '--json', uris[0]!]));
    expect(list.exports.map((entry: { 'export-name': string }) => entry['export-name'])).toEqual(['stripe', 'joined']);
  });

  test('an export over TCP, and one that is read-only', async () => {
    const folder = tempDir('nbdinfo');
    const args = ['d', '--table', joinedImages(folder).table, '--read-only', '--nbd', 'tcp:127.0.0.1:0'];
    const { uris } = await serve(args);
    expect(uris[0]).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+\/d$/);
    const info = JSON.parse(await ok(peer('nbdinfo'), ['--json', uris[0]!])).exports[0];
    expect(info).toMatchObject({ is_read_only: true, can_trim: false });
  });
});

describePeer(['nbdcopy', 'qemu-img'], 'nbdcopy and qemu-img', () => {
  test('copy out what was put together by other means, on several connections', async () => {
    const folder = tempDir('copy');
    const stripe = stripeImages(folder);
    const joined = joinedImages(folder);
    const { uris } = await serve(['s', '--table', stripe.table, 'j', '--table', joined.table, ...unix(folder)], {
      exports: 2,
    });
    await ok(peer('nbdcopy'), ['-C', '4', uris[0]!, join(folder, 'out.img')]);
    expect(sha256(join(folder, 'out.img'))).toBe(sha256(stripe.expected));
    await ok(peer('qemu-img'), ['compare', '-f', 'raw', '-F', 'raw', uris[0]!, stripe.expected]);
    await ok(peer('qemu-img'), ['compare', '-f', 'raw', '-F', 'raw', uris[1]!, joined.expected]);
  });

  test('copy in, flushed: every leg has its chunks', async () => {
    const folder = tempDir('copy');
    const { table } = stripeImages(folder);
    const server = await serve(['s', '--table', table, ...unix(folder)]);
    writeFileSync(join(folder, 'new.img'), randomBytes(STRIPE_BYTES, 99));
    await ok(peer('nbdcopy'), ['--flush', join(folder, 'new.img'), server.uris[0]!]);
    expect(await server.stop()).toBe(0);
    const again = await serve(['s', '--table', table, '--read-only', ...unix(folder)]);
    await ok(peer('nbdcopy'), [again.uris[0]!, join(folder, 'out.img')]);
    expect(sha256(join(folder, 'out.img'))).toBe(sha256(join(folder, 'new.img')));
  });

  test('copy between two of our exports, sparse and not', async () => {
    const folder = tempDir('copy');
    const stripe = stripeImages(folder);
    writeFileSync(join(folder, 'target.img'), randomBytes(STRIPE_BYTES, 5));
    const target = `0 ${3 * LEG} linear ${join(folder, 'target.img')} 0`;
    const { uris } = await serve(['s', '--table', stripe.table, 't', '--table', target, ...unix(folder)], {
      exports: 2,
    });
    await ok(peer('nbdcopy'), ['-C', '4', '--flush', uris[0]!, uris[1]!]);
    expect(sha256(join(folder, 'target.img'))).toBe(sha256(stripe.expected));
  });

  test('qemu-img convert in and to qcow2 and back', async () => {
    const folder = tempDir('copy');
    const joined = joinedImages(folder);
    const { uris } = await serve(['j', '--table', joined.table, ...unix(folder)]);
    const data = randomBytes(joined.whole.length, 21);
    writeFileSync(join(folder, 'in.img'), data);
    await ok(peer('qemu-img'), ['convert', '-n', '-f', 'raw', '-O', 'raw', join(folder, 'in.img'), uris[0]!]);
    await ok(peer('qemu-img'), ['convert', '-f', 'raw', '-O', 'qcow2', uris[0]!, join(folder, 'o.qcow2')]);
    const same = ['compare', '-f', 'qcow2', '-F', 'raw', join(folder, 'o.qcow2'), join(folder, 'in.img')];
    await ok(peer('qemu-img'), same);
  });
});

describePeer(['qemu-io'], 'qemu-io', () => {
  test('patterns over boundaries, zeroes, discards, FUA and requests side by side', async () => {
    const folder = tempDir('qemu-io');
    const { uris } = await serve(['s', '--table', stripeImages(folder).table, ...unix(folder)]);
    const commands = [
      'write -P 0xaa 0 1M',
      'read -P 0xaa 0 1M',
      'write -P 0xbb 60k 200k',
      'read -P 0xaa 0 60k',
      'read -P 0xbb 60k 200k',
      'write -z 100k 300k',
      'read -P 0 100k 300k',
      'read -P 0xaa 400k 624k',
      'discard 512k 512k',
      'write -f -P 3 8k 4k',
      'read -P 3 8k 4k',
      'aio_write -P 9 1M 64k',
      'aio_write -P 10 1088k 64k',
      'aio_flush',
      'read -P 9 1M 64k',
      'read -P 10 1088k 64k',
      'flush',
    ];
    const output = await ok(peer('qemu-io'), [
      '-f',
      'raw',
      ...commands.flatMap((command) => ['-c', command]),
      uris[0]!,
    ]);
    expect(output).not.toMatch(/failed|error/i);
  });

  test('a bad spot fails what touches it, and the connection goes on', async () => {
    const folder = tempDir('qemu-io');
    makeImage(join(folder, 'a.img'), 2048);
    const image = join(folder, 'a.img');
    const table = `0 1000 linear ${image} 0\n1000 8 error\n1008 1040 linear ${image} 1008`;
    const { uris } = await serve(['bad', '--table', table, ...unix(folder)]);
    const commands = ['write -P 1 496k 8k', 'write -P 2 500k 512', 'write -P 3 0 64k', 'read -P 3 0 64k'];
    const result = await run(peer('qemu-io'), ['-f', 'raw', ...commands.flatMap((c) => ['-c', c]), uris[0]!]);
    expect(result.stdout.match(/Input\/output error/g)?.length).toBe(2);
    expect(result.stdout.match(/65536\/65536 bytes/g)?.length).toBe(2);
  });
});

describePeer(['fio'], 'fio', () => {
  test('mixed sizes, 16 deep, 4 jobs, every block verified', async () => {
    const folder = tempDir('fio');
    const { table } = stripeImages(folder);
    const { uris } = await serve(['s', '--table', table, ...unix(folder)]);
    const args = [
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${uris[0]}`,
      '--rw=randrw',
      '--rwmixread=50',
      '--bsrange=512-64k',
      '--size=3M',
      '--offset_increment=3M',
      '--numjobs=4',
      '--iodepth=16',
      '--loops=3',
      '--fsync=32',
      '--verify=crc32c',
      '--verify_fatal=1',
      '--do_verify=1',
      '--verify_state_save=0',
      '--randrepeat=1',
    ];
    const output = await ok(peer('fio'), args, { timeoutSeconds: 240, cwd: folder });
    expect(output).toMatch(/err= 0/);
    expect(output).not.toMatch(/err=[^0]*[1-9]/);
  });
});

describePeer(
  ['nbdfuse', 'mkfs.ext4', 'e2fsck', 'debugfs', 'fusermount3', 'fuse'],
  'a file system through nbdfuse',
  () => {
    test('mkfs, files written and read back, e2fsck -f clean, also after a restart of the server', async () => {
      const folder = tempDir('fuse');
      for (const i of [1, 2, 3]) makeImage(join(folder, `s${i}.img`), 8192, i);
      const table = `0 24576 striped 3 64 ${[1, 2, 3].map((i) => `${join(folder, `s${i}.img`)} 0`).join(' ')}`;
      const files = Array.from({ length: 20 }, (_, i) => `file${i}`);
      for (const [i, name] of files.entries()) writeFileSync(join(folder, name), randomBytes(1000 + i * 9973, i));
      const mount = join(folder, 'mnt');
      mkdirSync(mount);

      const write = [
        `${peer('mkfs.ext4')} -q -F ${mount}/nbd`,
        ...files.map(
          (name) => `${peer('debugfs')} -w -R 'write ${join(folder, name)} ${name}' ${mount}/nbd 2>/dev/null`,
        ),
        `${peer('e2fsck')} -fn ${mount}/nbd`,
      ];
      await throughFuse(table, folder, mount, write);
      const read = [
        `${peer('e2fsck')} -fn ${mount}/nbd`,
        ...files.map(
          (name) => `${peer('debugfs')} -R 'dump ${name} ${join(folder, `back-${name}`)}' ${mount}/nbd 2>/dev/null`,
        ),
      ];
      await throughFuse(table, folder, mount, read);
      for (const name of files) {
        expect(readFileSync(join(folder, `back-${name}`)).equals(readFileSync(join(folder, name)))).toBe(true);
      }
    });
  },
);

/** Serves `table`, mounts it as a file, runs the commands in one shell, unmounts and stops the server. */
async function throughFuse(table: string, folder: string, mount: string, commands: string[]): Promise<void> {
  const script = [
    'set -e',
    `${peer('nbdfuse')} ${mount} "$uri" &`,
    `for i in $(seq 100); do [ -s ${mount}/nbd ] && break; sleep 0.1; done`,
    `trap 'sync; ${peer('fusermount3')} -u ${mount}; wait' EXIT`,
    ...commands,
  ].join('\n');
  const result = await dmkit(['serve', 'd', '--table', table, ...unix(folder), '--run', script], {
    timeoutSeconds: 240,
  });
  expect(`${result.code} ${result.stderr}`).toMatch(/^0 /);
}

describePeer(['losetup', 'loop', 'nbdcopy', 'qemu-io'], 'a loop device below', () => {
  test('half image, half block device: written over the boundary, flushed, on the disk below', async () => {
    const folder = tempDir('loop');
    const a = makeImage(join(folder, 'a.img'), 2048, 1);
    const b = makeImage(join(folder, 'b.img'), 2048, 2);
    const loop = (await ok(peer('losetup'), ['--find', '--show', join(folder, 'b.img')])).trim();
    try {
      const table = `0 2048 linear ${join(folder, 'a.img')} 0\n2048 2048 linear ${loop} 0`;
      const server = await serve(['d', '--table', table, ...unix(folder)]);
      await ok(peer('nbdcopy'), [server.uris[0]!, join(folder, 'out.img')]);
      expect(readFileSync(join(folder, 'out.img')).equals(Buffer.concat([a, b]))).toBe(true);
      const commands = ['write -P 7 1020k 8k', 'write -z 1100k 4k', 'discard 1200k 64k', 'flush', 'read -P 7 1020k 8k'];
      await ok(peer('qemu-io'), ['-f', 'raw', ...commands.flatMap((c) => ['-c', c]), server.uris[0]!]);
      expect(await server.stop()).toBe(0);
    } finally {
      await ok(peer('losetup'), ['--detach', loop]);
    }
    const lower = readFileSync(join(folder, 'b.img'));
    expect(lower.subarray(0, 4096).equals(Buffer.alloc(4096, 7))).toBe(true);
    expect(lower.subarray(76 * 1024, 80 * 1024).equals(Buffer.alloc(4096))).toBe(true);
    expect(lower.subarray(4096, 76 * 1024).equals(b.subarray(4096, 76 * 1024))).toBe(true);
  });
});

describePeer(['nbdcopy'], 'stopping', () => {
  test('SIGTERM in the middle of a copy ends with 0, and what was flushed is there', async () => {
    const folder = tempDir('stop');
    writeFileSync(join(folder, 'big.img'), randomBytes(64 << 20, 3));
    copyFileSync(join(folder, 'big.img'), join(folder, 'target.img'));
    const table = `0 131072 linear ${join(folder, 'target.img')} 0`;
    const server = await serve(['d', '--table', table, ...unix(folder)]);
    const copy = run(peer('nbdcopy'), [join(folder, 'big.img'), server.uris[0]!]);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(await server.stop()).toBe(0);
    await copy;
    expect(sha256(join(folder, 'target.img'))).toBe(sha256(join(folder, 'big.img')));
  });
});
