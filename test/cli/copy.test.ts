// The command dmkit copy as a user starts it: last lines, exit codes, events, signals; real servers and disks.
import { readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { formatNbdUri } from '../../src/nbd/index.ts';
import { dmkit, serve } from '../support/cli.ts';
import { itPeer, peer, run, start } from '../support/peers.ts';
import { makeImage, randomBytes, sha256, tempDir } from '../support/tmp.ts';

const MIB = 1 << 20;

/** 64 MiB of which a part is data. */
function sparseImage(folder: string): string {
  const path = join(folder, 'source.img');
  writeFileSync(path, randomBytes(9 * MIB + 512, 1));
  truncateSync(path, 64 * MIB);
  return path;
}

describe('dmkit copy', () => {
  it('says what became of each destination, and makes images that are not there', async () => {
    const folder = tempDir();
    const source = sparseImage(folder);
    const result = await dmkit(['copy', source, 'a.img', 'b.img', '--verify'], { cwd: folder });
    expect([result.code, result.stderr]).toEqual([0, '']);
    expect(result.stdout).toMatch(
      /^a\.img: 64\.0 MiB done.*, verified .*\nb\.img: 64\.0 MiB done.*, verified .*\n2 of 2 destinations are complete\n$/,
    );
    for (const name of ['a.img', 'b.img']) expect(sha256(join(folder, name))).toBe(sha256(source));
  });

  it('fills an empty file like one that is not there, and leaves it empty where the copy does not begin', async () => {
    const folder = tempDir();
    makeImage(join(folder, 's.img'), 2048);
    const length = (name: string): number => statSync(join(folder, name)).size;
    for (const name of ['a.img', 'b.img']) writeFileSync(join(folder, name), '');
    expect((await dmkit(['copy', 's.img', 'a.img', 'nosuch/c.img'], { cwd: folder })).code).toBe(1);
    expect(length('a.img')).toBe(0);
    expect((await dmkit(['copy', 's.img', 'a.img'], { cwd: folder })).code).toBe(0);
    const input = readFileSync(join(folder, 's.img'));
    expect((await dmkit(['copy', '-', 'b.img', 'nosuch/c.img'], { cwd: folder, input })).code).toBe(1);
    expect(length('b.img')).toBe(0);
    expect((await dmkit(['copy', '-', 'b.img'], { cwd: folder, input })).code).toBe(0);
    for (const name of ['a.img', 'b.img']) expect(readFileSync(join(folder, name)).equals(input)).toBe(true);
    // A few bytes are a file of somebody's.
    writeFileSync(join(folder, 'note'), 'x');
    expect((await dmkit(['copy', 's.img', 'note'], { cwd: folder })).stderr).toMatch(/note is too small/);
  });

  it('prints events with --json', async () => {
    const folder = tempDir();
    makeImage(join(folder, 's.img'), 2048);
    const result = await dmkit(['copy', 's.img', 'a.img', '--json', '--verify'], { cwd: folder });
    const events = result.stdout
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    expect(events.at(-2)).toMatchObject({ event: 'result', device: 'a.img', complete: true, doneByteLength: MIB });
    expect(events.at(-1)).toEqual({ event: 'end', completeCount: 1, destinationCount: 1, interrupted: false });
  });

  it('copies regions, and zeroes', async () => {
    const folder = tempDir();
    const bytes = makeImage(join(folder, 's.img'), 100);
    expect((await dmkit(['copy', 's.img:10+20', 's.img:50+20'], { cwd: folder })).code).toBe(0);
    expect((await dmkit(['copy', '--zero', 's.img:0+5'], { cwd: folder })).stdout).toMatch(
      /^s\.img:0\+5: 2\.5 KiB done/,
    );
    const expected = Buffer.from(bytes);
    expected.copy(expected, 50 * 512, 10 * 512, 30 * 512);
    expected.fill(0, 0, 5 * 512);
    expect(readFileSync(join(folder, 's.img')).equals(expected)).toBe(true);
  });

  it.each([
    [['s.img', 's.img'], /s\.img is the source/],
    [
      ['s.img', 'small.img'],
      /small\.img is too small: 100 sectors \(50\.0 KiB\) are wanted, and there are 10 sectors \(5\.0 KiB\)/,
    ],
    [['s.img'], /a source and one destination at least/],
    [['s.img', 'a.img', '--retry'], /--mapfile/],
    [['s.img', 'a.img', '--rate', 'fast'], /bytes a second/],
    [['s.img', 'a.img', '--rate', '5'], /--rate 5: bytes a second with their unit are needed, such as 50M/],
    [['s.img', 'a.img', '--rate', '0.5B'], /bytes a second/],
    [['s.img', 'a.img', '--force'], /--force has a meaning with --retry alone/],
    [['--zero', 'a.img', '--skip-holes'], /no holes to skip/],
    [['s.img', 'nbd+unix:///x?socket=none.sock'], /cannot connect/],
    [['none.img', 'a.img'], /does not exist/],
  ])('refuses %j', async (args, message) => {
    const folder = tempDir();
    makeImage(join(folder, 's.img'), 100);
    makeImage(join(folder, 'small.img'), 10);
    const result = await dmkit(['copy', ...args], { cwd: folder });
    expect([result.code, result.stdout]).toEqual([1, '']);
    expect(result.stderr).toMatch(message);
    expect(result.stderr.startsWith('dmkit: ')).toBe(true);
    expect(result.stderr).not.toContain('unexpected');
  });

  itPeer(['ddrescuelog'], 'stopped by ctrl-C leaves a map that is true, and --retry does the rest', async () => {
    const folder = tempDir();
    const source = join(folder, 's.img');
    writeFileSync(source, randomBytes(24 * MIB, 3));
    const map = join(folder, 'map');
    const running = start(process.execPath, [
      join(import.meta.dirname, '../../dist/cli/main.js'),
      ...['copy', source, join(folder, 'a.img'), '--mapfile', map, '--rate', '4M'],
    ]);
    const { pid, exited, output } = await running;
    const blockCount = (): number => statSync(join(folder, 'a.img'), { throwIfNoEntry: false })?.blocks ?? 0;
    await expect.poll(blockCount).toBeGreaterThan((3 * MIB) / 512);
    process.kill(pid, 'SIGINT');
    expect(await exited).toBe(130);
    expect(output()).toMatch(
      /^dmkit: stopping; ctrl-C again stops at once\n.*a\.img: INCOMPLETE, .* done.*, .* missing; stopped\n.*--retry\n$/,
    );
    const done = await run(peer('ddrescuelog'), ['-l', '+', '-b', '1Mi', map]);
    const blocks = done.stdout.trim().split('\n').map(Number);
    expect(blocks.length).toBeGreaterThan(0);
    const [from, to] = [readFileSync(source), readFileSync(join(folder, 'a.img'))];
    for (const block of blocks) {
      expect(to.subarray(block * MIB, (block + 1) * MIB).equals(from.subarray(block * MIB, (block + 1) * MIB))).toBe(
        true,
      );
    }
    const rest = await dmkit(['copy', source, join(folder, 'a.img'), '--mapfile', map, '--retry']);
    expect(rest.code).toBe(0);
    expect(sha256(join(folder, 'a.img'))).toBe(sha256(source));
    expect((await run(peer('ddrescuelog'), ['-D', map])).code).toBe(0);
  });

  it('names the sectors of a disk with an error line, as source and as destination', async () => {
    const folder = tempDir();
    makeImage(join(folder, 'low.img'), 4096);
    writeFileSync(join(folder, 'good.img'), Buffer.alloc(4096 * 512, 'x'));
    const table = '0 1000 linear low.img 0\n1000 3 error\n1003 3093 linear low.img 1003';
    const { uris, stop } = await serve(['bad', '--table', table, '--nbd', 'unix:bad.sock'], { cwd: folder });
    const uri = uris[0]!;
    const plain = await dmkit(['copy', 'good.img', uri, 'b.img'], { cwd: folder });
    expect(plain.code).toBe(1);
    expect(plain.stdout).toMatch(/INCOMPLETE, .*; given up: write on nbd.*sector 1000/);
    expect(plain.stdout).toMatch(/\nb\.img: 2\.0 MiB done.*\n1 of 2 destinations are complete\n$/);
    const going = await dmkit(['copy', 'good.img', uri, '--keep-going', '--mapfile', 'map'], { cwd: folder });
    expect(going.code).toBe(1);
    expect(going.stdout).toMatch(/sectors 1000-1002: write: Input\/output error\n$/);
    expect(readFileSync(join(folder, 'map'), 'utf8')).toContain('0x0007D000  0x00000600  -');
    const reading = await dmkit(['copy', uri, 'rescued.img', '--keep-going'], { cwd: folder });
    expect(reading.code).toBe(1);
    expect(reading.stdout).toMatch(/sectors 1000-1002: read: Input\/output error\n$/);
    const expected = Buffer.alloc(4096 * 512, 'x').fill(0, 1000 * 512, 1003 * 512);
    expect(readFileSync(join(folder, 'rescued.img')).equals(expected)).toBe(true);
    await stop();
    const retry = ['copy', 'good.img', 'low.img', '--mapfile', 'map', '--retry'];
    const refused = await dmkit(retry, { cwd: folder });
    expect([refused.code, refused.stdout]).toEqual([1, '']);
    expect(refused.stderr).toMatch(/map: .*low\.img .* is there, and nbd\+unix:.*bad.* was expected; .*--force/);
    const retried = await dmkit([...retry, '--force'], { cwd: folder });
    expect([retried.code, retried.stdout]).toEqual([0, expect.stringMatching(/^low\.img: 2\.0 MiB done/)]);
    expect(sha256(join(folder, 'low.img'))).toBe(sha256(join(folder, 'good.img')));
  });

  itPeer(['nbdkit'], 'reaches an image, a mapped stripe and an export of nbdkit, all the same', async () => {
    const folder = tempDir();
    const source = sparseImage(folder);
    for (const name of ['x.img', 'y.img', 'far.img']) writeFileSync(join(folder, name), '');
    for (const name of ['x.img', 'y.img']) truncateSync(join(folder, name), 32 * MIB);
    truncateSync(join(folder, 'far.img'), 64 * MIB);
    const table = `0 ${(64 * MIB) / 512} striped 2 128 x.img 0 y.img 0`;
    const { uris } = await serve(['stripe', '--table', table, '--nbd', 'unix:stripe.sock'], { cwd: folder });
    const socket = join(folder, 'k.sock');
    const server = await start(peer('nbdkit'), ['-f', '-U', socket, 'file', join(folder, 'far.img')]);
    onTestFinished(() => void server.stop());
    const far = formatNbdUri({ socket, exportName: '' });
    await expect
      .poll(async () => (await dmkit(['copy', source, 'a.img', uris[0]!, far, '--verify'], { cwd: folder })).stdout, {
        timeout: 240_000,
      })
      .toMatch(/3 of 3 destinations are complete/);
    for (const name of ['a.img', 'far.img']) expect(sha256(join(folder, name))).toBe(sha256(source));
    expect((await dmkit(['copy', uris[0]!, 'back.img'], { cwd: folder })).code).toBe(0);
    expect(sha256(join(folder, 'back.img'))).toBe(sha256(source));
  });

  itPeer(
    ['losetup', 'loop', 'mkfs.ext4', 'root'],
    'writes a loop device, and refuses it while it is mounted',
    async () => {
      const folder = tempDir();
      const source = sparseImage(folder);
      const image = join(folder, 'disk.img');
      writeFileSync(image, '');
      truncateSync(image, 64 * MIB);
      const loop = (await run(peer('losetup'), ['-f', '--show', image])).stdout.trim();
      onTestFinished(async () => void (await run(peer('losetup'), ['-d', loop])));
      const result = await dmkit(['copy', source, loop, 'a.img', '--verify'], { cwd: folder });
      expect(result.stdout).toMatch(/verified (with O_DIRECT|after dropping the page cache)\n[\s\S]*2 of 2/);
      expect(sha256(loop)).toBe(sha256(source));
      expect((await run(peer('mkfs.ext4'), ['-q', '-F', loop])).code).toBe(0);
      const place = join(folder, 'mnt');
      await run('mkdir', [place]);
      const mounted = await run('mount', [loop, place]);
      if (mounted.code !== 0) return;
      onTestFinished(async () => void (await run('umount', [place])));
      const refused = await dmkit(['copy', source, loop], { cwd: folder });
      expect([refused.code, refused.stderr.includes(`mounted at ${place}`)]).toEqual([1, true]);
      rmSync(join(folder, 'a.img'));
    },
  );
});
