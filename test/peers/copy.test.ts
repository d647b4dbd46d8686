// dmkit copy between everything it can reach: files, loop devices, devices of the daemon and of dmkit serve, exports of
// nbdkit; compared by programs that are not ours.
import {
  closeSync,
  ftruncateSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { dmkit, serve } from '../support/cli.ts';
import { dmkitHere } from '../support/in-process.ts';
import { describePeer, peer, run, start } from '../support/peers.ts';
import type { RunResult } from '../support/process.ts';
import { makeImage, randomBytes, tempDir } from '../support/tmp.ts';

const MIB = 1 << 20;
/** Of the large image; 1024 copies a gibibyte. */
const IMAGE_MIB = Number(process.env.DMKIT_COPY_MIB ?? 64);
const COPY_SECONDS = 60 + IMAGE_MIB / 2;

vi.setConfig({ testTimeout: (COPY_SECONDS + 60) * 1000 });

interface Home {
  folder: string;
  /** Runs dmkit in the folder. */
  call(args: string[]): Promise<RunResult>;
  /** Runs dmkit, which must succeed. */
  done(...args: string[]): Promise<string>;
}

/** A folder with a place for a daemon, which ends with the test. */
function home(): Home {
  const folder = tempDir('copy');
  const env = { DMKIT_DIR: join(folder, 'd') };
  const call = (args: string[]): Promise<RunResult> =>
    dmkitHere(args, { env, cwd: folder, timeoutSeconds: COPY_SECONDS });
  onTestFinished(async () => void (await call(['shutdown', '--force'])));
  const done = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await call(args);
    expect([code, stderr.replace(/^.*% of .*\n/gm, '')]).toEqual([0, expect.any(String)]);
    return stdout;
  };
  return { folder, call, done };
}

function sparse(path: string, byteLength: number): string {
  writeFileSync(path, '');
  truncateSync(path, byteLength);
  return path;
}

describe('dmkit copy and devices that the daemon holds', () => {
  async function withDevices() {
    const { folder, call, done } = home();
    const low = makeImage(join(folder, 'low.img'), 4096, 1);
    makeImage(join(folder, 'other.img'), 2048, 2);
    await done('create', 'low', '--table', '0 4096 striped 2 8 low.img 0 low.img 2048');
    await done('create', 'far', '--table', '0 2048 linear other.img 0');
    // As the device has it: chunks of 8 sectors from either half, in turn.
    const chunks: Buffer[] = [];
    for (let at = 0; at < 2048; at += 8) {
      for (const half of [0, 2048]) chunks.push(low.subarray((half + at) * 512, (half + at + 8) * 512));
    }
    return { folder, call, done, content: Buffer.concat(chunks) };
  }

  test('as source: all of one, and sectors of it', async () => {
    const { folder, done, content } = await withDevices();
    expect(await done('copy', '/dev/mapper/low', 'all.img', '--verify')).toMatch(
      /^all\.img: 2\.0 MiB done.*, verified/,
    );
    expect(readFileSync(join(folder, 'all.img')).equals(content)).toBe(true);
    await done('copy', '/dev/mapper/low:1001+333', 'part.img');
    expect(readFileSync(join(folder, 'part.img')).equals(content.subarray(1001 * 512, 1334 * 512))).toBe(true);
    await done('copy', '/dev/mapper/low:7+9', 'part.img:100+9');
    expect(
      readFileSync(join(folder, 'part.img'))
        .subarray(100 * 512, 109 * 512)
        .equals(content.subarray(7 * 512, 16 * 512)),
    ).toBe(true);
  });

  test('as destination: all of one, and sectors of it; nothing beside them changes', async () => {
    const { folder, done, content } = await withDevices();
    const source = makeImage(join(folder, 's.img'), 4096, 7);
    await done('copy', 's.img:50+100', '/dev/mapper/low:3000+100', '--verify');
    const expected = Buffer.from(content);
    source.copy(expected, 3000 * 512, 50 * 512, 150 * 512);
    await done('copy', '/dev/mapper/low', 'back.img');
    expect(readFileSync(join(folder, 'back.img')).equals(expected)).toBe(true);
    await done('copy', 's.img', '/dev/mapper/low', '--verify');
    await done('copy', '/dev/mapper/low', 'back.img');
    expect(readFileSync(join(folder, 'back.img')).equals(source)).toBe(true);
    // A smaller source leaves the rest alone.
    await done('copy', 's.img:0+5', '/dev/mapper/far:2043+5');
    const other = randomBytes(2048 * 512, 2);
    source.copy(other, 2043 * 512, 0, 5 * 512);
    expect(readFileSync(join(folder, 'other.img')).equals(other)).toBe(true);
  });

  test('as both, and as several destinations at one time', async () => {
    const { folder, done, content } = await withDevices();
    await done('copy', '/dev/mapper/low:10+2000', '/dev/mapper/far:48+2000', 'also.img', '--verify');
    const expected = content.subarray(10 * 512, 2010 * 512);
    expect(
      readFileSync(join(folder, 'other.img'))
        .subarray(48 * 512)
        .equals(expected),
    ).toBe(true);
    expect(readFileSync(join(folder, 'also.img')).equals(expected)).toBe(true);
    // Within one device, apart from each other.
    await done('copy', '/dev/mapper/low:0+1000', '/dev/mapper/low:2000+1000');
    const back = Buffer.from(content);
    back.copyWithin(2000 * 512, 0, 1000 * 512);
    await done('copy', '/dev/mapper/low', 'back.img');
    expect(readFileSync(join(folder, 'back.img')).equals(back)).toBe(true);
  });

  test('refuses what cannot be, and leaves nothing open', async () => {
    const { call, done, folder } = await withDevices();
    await done('create', 'ro', '--readonly', '--table', '0 64 linear other.img 0');
    const before = readFileSync(join(folder, 'low.img'));
    for (const [args, message] of [
      [['/dev/mapper/none', 'a.img'], /none/],
      [['low.img', '/dev/mapper/none'], /none/],
      [
        ['/dev/mapper/low', '/dev/mapper/far'],
        /\/dev\/mapper\/far is too small: 4096 sectors .* are wanted, and there are 2048 sectors/,
      ],
      [['/dev/mapper/low:0+100', '/dev/mapper/low:50+100'], /is the source/],
      [['/dev/mapper/low:4000+100', 'a.img'], /too small/],
      [['other.img:0+64', '/dev/mapper/ro'], /\/dev\/mapper\/ro is read-only/],
    ] as const) {
      const result = await call(['copy', ...args]);
      expect([result.code, result.stdout]).toEqual([1, '']);
      expect(result.stderr).toMatch(message);
      expect(result.stderr).not.toContain('unexpected');
    }
    expect(readFileSync(join(folder, 'low.img')).equals(before)).toBe(true);
    await expect.poll(() => done('info', '-c', '--noheadings', '-o', 'open', 'low')).toBe('0\n');
    await done('remove_all');
    expect(await done('ls')).toBe('No devices found\n');
  });

  test('tells the sectors that fail below a device', async () => {
    const { folder, call, done } = home();
    makeImage(join(folder, 'a.img'), 4096, 3);
    await done('create', 'bad', '--table', '0 1000 linear a.img 0\n1000 3 error\n1003 3093 linear a.img 1003');
    const read = await call(['copy', '/dev/mapper/bad', 'out.img', '--keep-going']);
    expect([read.code, read.stdout]).toEqual([
      1,
      expect.stringMatching(/\n {2}\/dev\/mapper\/bad, sectors 1000-1002: read: Input\/output error\n$/),
    ]);
    const written = await call(['copy', 'a.img', '/dev/mapper/bad', '--keep-going']);
    expect(written.stdout).toMatch(/\/dev\/mapper\/bad, sectors 1000-1002: write: Input\/output error\n$/);
  });
});

/** A sparse image: data at the beginning, at the end and in every eighth part; about a tenth of it. */
function sparseImage(path: string): void {
  const fd = openSync(path, 'w');
  try {
    ftruncateSync(fd, IMAGE_MIB * MIB);
    const piece = (IMAGE_MIB * MIB) / 8;
    for (let i = 0; i < 8; i++)
      writeSync(fd, randomBytes(Math.floor(piece / 10), 100 + i), 0, undefined, i * piece + 512 * i);
    const tail = randomBytes(4096, 99);
    writeSync(fd, tail, 0, tail.byteLength, IMAGE_MIB * MIB - tail.byteLength);
  } finally {
    closeSync(fd);
  }
}

async function isSame(a: string, b: string): Promise<void> {
  const { code, stdout, stderr } = await run('cmp', [a, b], { timeoutSeconds: COPY_SECONDS });
  expect([code, stdout, stderr]).toEqual([0, '', '']);
}

describePeer(['nbdkit', 'nbdcopy', 'nbdinfo'], `a sparse image of ${IMAGE_MIB} MiB`, () => {
  test('is the same as a file, in a stripe of the daemon, in one of dmkit serve, and at nbdkit', async () => {
    const { folder, done } = home();
    const source = join(folder, 'source.img');
    sparseImage(source);
    const half = (IMAGE_MIB / 2) * MIB;
    // What was there before must not shine through: holes of the source are zeroes on what had data.
    for (const name of ['x', 'y', 'p', 'q'])
      writeFileSync(sparse(join(folder, `${name}.img`), half), 'old data', { flag: 'r+' });
    const far = sparse(join(folder, 'far.img'), IMAGE_MIB * MIB);
    writeFileSync(far, Buffer.alloc(3 * MIB, 'old'), { flag: 'r+' });
    const table = (a: string, b: string) => `0 ${(IMAGE_MIB * MIB) / 512} striped 2 128 ${a} 0 ${b} 0`;
    await done('create', 'stripe', '--table', table('x.img', 'y.img'));
    const serving = await serve(['s', '--table', table('p.img', 'q.img'), '--nbd', `unix:${join(folder, 's.sock')}`], {
      cwd: folder,
      timeoutSeconds: COPY_SECONDS + 60,
    });
    const socket = join(folder, 'k.sock');
    const server = await start(peer('nbdkit'), ['-f', '-v', '-U', socket, 'file', far], {
      ready: /bound to unix socket/,
      timeoutSeconds: COPY_SECONDS + 60,
    });
    onTestFinished(async () => void (await server.stop()));
    const remote = `nbd+unix:///?socket=${socket}`;
    const all = ['file.img', '/dev/mapper/stripe', serving.uris[0]!, remote];
    expect(await done('copy', source, ...all)).toMatch(/\n4 of 4 destinations are complete\n$/);
    await isSame(source, join(folder, 'file.img'));
    expect(statSync(join(folder, 'file.img')).blocks * 512).toBeLessThan((IMAGE_MIB * MIB) / 2);
    await isSame(source, far);
    const uris = { stripe: (await done('uri', 'stripe')).trim(), served: serving.uris[0]!, remote };
    for (const [name, uri] of Object.entries(uris)) {
      const back = join(folder, `${name}.back`);
      expect((await run(peer('nbdcopy'), [uri, back], { timeoutSeconds: COPY_SECONDS })).code).toBe(0);
      await isSame(source, back);
    }
    // And through a remote leg: the stripe of the daemon has nbdkit below it.
    await done('create', 'mixed', '--table', `0 ${(IMAGE_MIB * MIB) / 512} linear ${remote} 0`);
    await done('copy', '/dev/mapper/mixed', 'mixed.img');
    await isSame(source, join(folder, 'mixed.img'));
  });
});

describePeer(['losetup', 'loop', 'root'], `a sparse image of ${IMAGE_MIB} MiB on a loop device`, () => {
  test('is the same', async () => {
    const { folder, done } = home();
    const source = join(folder, 'source.img');
    sparseImage(source);
    const image = sparse(join(folder, 'disk.img'), IMAGE_MIB * MIB);
    writeFileSync(image, Buffer.alloc(3 * MIB, 'old'), { flag: 'r+' });
    const loop = (await run(peer('losetup'), ['-f', '--show', image])).stdout.trim();
    onTestFinished(async () => void (await run(peer('losetup'), ['-d', loop])));
    expect(await done('copy', source, loop, '--verify')).toMatch(/done, verified/);
    await isSame(source, loop);
  });
});

describePeer(['nbdkit'], 'short uses of a remote disk', () => {
  test('leave no broken connection in the log of the server', async () => {
    const folder = tempDir('copy');
    sparse(join(folder, 'far.img'), MIB);
    makeImage(join(folder, 's.img'), 2048);
    const socket = join(folder, 'k.sock');
    const server = await start(peer('nbdkit'), ['-f', '-U', socket, 'file', join(folder, 'far.img')]);
    onTestFinished(() => void server.stop());
    await expect.poll(() => statSync(socket, { throwIfNoEntry: false })).toBeDefined();
    const uri = `nbd+unix:///?socket=${socket}`;
    for (let count = 0; count < 6; count++) {
      expect((await dmkit(['copy', 's.img', uri], { cwd: folder })).code).toBe(0);
      expect((await dmkit(['copy', `${uri}:0+8`, 'b.img'], { cwd: folder })).code).toBe(0);
    }
    expect(server.output()).not.toMatch(/reset|error/i);
  });
});
