// dmkit copy from standard input and to standard output.
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { dmkit } from '../support/cli.ts';
import { itPeer, peer, start } from '../support/peers.ts';
import { run } from '../support/process.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';

const MAIN = join(import.meta.dirname, '../../dist/cli/main.js');
const MIB = 1 << 20;

/** A shell's pipe around dmkit, which is "$@" there. */
function shell(folder: string, script: string) {
  return run('bash', ['-o', 'pipefail', '-c', script, 'bash', process.execPath, MAIN], { cwd: folder });
}

/** 5 MiB and some bytes; two of the blocks are zeroes. */
function streamed(folder: string): Buffer {
  const bytes = Buffer.concat([
    Buffer.from(randomBytes(MIB + 7, 1)),
    Buffer.alloc(3 * MIB),
    Buffer.from(randomBytes(MIB + 100, 2)),
  ]);
  writeFileSync(join(folder, 's.img'), bytes);
  return bytes;
}

describe('a stream', () => {
  it('is copied to the byte, to new images with holes and to longer ones, and verified', async () => {
    const folder = tempDir();
    const bytes = streamed(folder);
    const old = Buffer.from(randomBytes(6 * MIB, 3));
    writeFileSync(join(folder, 'old.img'), old);
    const { code, stdout } = await shell(folder, 'cat s.img | "$@" copy - new.img old.img new2.img:3+20000 --verify');
    expect([code, stdout]).toEqual([0, expect.stringMatching(/^new\.img: 5\.0 MiB done, verified by its checksum\n/)]);
    expect(readFileSync(join(folder, 'new.img')).equals(bytes)).toBe(true);
    expect(statSync(join(folder, 'new.img')).blocks * 512).toBeLessThan(4 * MIB);
    expect(readFileSync(join(folder, 'old.img')).equals(Buffer.concat([bytes, old.subarray(bytes.length)]))).toBe(true);
    expect(readFileSync(join(folder, 'new2.img')).equals(Buffer.concat([Buffer.alloc(3 * 512), bytes]))).toBe(true);
  });

  it('that is longer than one of the destinations fills the others', async () => {
    const folder = tempDir();
    const bytes = streamed(folder);
    writeFileSync(join(folder, 'small.img'), Buffer.alloc(2 * MIB, 1));
    const { code, stdout } = await shell(folder, 'cat s.img | "$@" copy - small.img new.img');
    expect(code).toBe(1);
    expect(stdout).toMatch(
      /^small\.img: INCOMPLETE, 2\.0 MiB done; given up: small\.img is too small: more than 4096 sectors/,
    );
    expect(stdout).toMatch(/new\.img: 5\.0 MiB done\n1 of 2 destinations are complete\n$/);
    expect(readFileSync(join(folder, 'new.img')).equals(bytes)).toBe(true);
  });

  it('goes out through standard output, to the byte', async () => {
    const folder = tempDir();
    streamed(folder);
    const { code, stderr } = await shell(folder, '"$@" copy s.img - | cmp - s.img');
    expect([code, stderr]).toEqual([0, 's.img: 5.0 MiB written to standard output\n']);
    const cut = await shell(folder, '"$@" copy s.img - | head -c 10 > first');
    expect([cut.code, cut.stderr]).toEqual([1, expect.stringMatching(/standard output: Broken pipe/)]);
  });

  itPeer(['nbdkit'], 'reaches an export, whose old bytes go where it has zeroes', async () => {
    const folder = tempDir();
    const bytes = streamed(folder);
    writeFileSync(join(folder, 'far.img'), randomBytes(bytes.length, 4));
    const server = await start(peer('nbdkit'), ['-f', '-U', join(folder, 'k'), 'file', join(folder, 'far.img')]);
    onTestFinished(() => void server.stop());
    await expect.poll(() => existsSync(join(folder, 'k'))).toBe(true);
    const { code } = await shell(folder, `cat s.img | "$@" copy - 'nbd+unix:///?socket=k' --verify`);
    expect([code, readFileSync(join(folder, 'far.img')).equals(bytes)]).toEqual([0, true]);
  });

  it('that is empty, or can not be read, is an error', async () => {
    const folder = tempDir();
    const empty = await shell(folder, '"$@" copy - a.img < /dev/null');
    expect([empty.code, empty.stderr]).toEqual([1, 'dmkit: standard input is empty: nothing was copied\n']);
    const unreadable = await shell(folder, '"$@" copy - b.img < /');
    expect([unreadable.code, unreadable.stderr]).toEqual([1, expect.stringContaining('standard input')]);
  });

  it.each([
    [['-', '-'], /not both/],
    [['s.img', '-', 'a.img'], /only one/],
    [['s.img', '-', '--verify'], /can not be read back/],
    [['-', 'a.img', '--mapfile', 'm'], /--mapfile needs a source and destinations other than -/],
    [['-', 'a.img', '--keep-going'], /--keep-going needs/],
    [['--zero', '-'], /can not be zeroed/],
    [['-', 'a.img', 'no/folder/b.img'], /can't be made/],
    [['-', 's.img', 's.img'], /s\.img is the destination s\.img/],
  ])('of %j is refused, and nothing is made', async (args, message) => {
    const folder = tempDir();
    const bytes = streamed(folder);
    const { code, stdout, stderr } = await dmkit(['copy', ...args], { cwd: folder });
    expect([code, stdout, stderr]).toEqual([1, '', expect.stringMatching(message)]);
    expect([existsSync(join(folder, 'a.img')), readFileSync(join(folder, 's.img')).equals(bytes)]).toEqual([
      false,
      true,
    ]);
  });
});
