// What real clients make of qemu:allocation-depth.
import { closeSync, openSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { serve } from '../support/cli.ts';
import { describePeer, peer, run } from '../support/peers.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';

const KIB = 1024;
const SECTOR_COUNT = 2048;

function sparse(path: string, byteLength: number): string {
  closeSync(openSync(path, 'a'));
  truncateSync(path, byteLength);
  return path;
}

/** Golden: 256 KiB of data and 768 KiB of nothing; an overlay, and an overlay on that. */
async function stack() {
  const folder = tempDir('depth');
  const golden = join(folder, 'golden.img');
  writeFileSync(golden, randomBytes(256 * KIB, 3));
  truncateSync(golden, SECTOR_COUNT * 512);
  const [low, top] = ['low.cow', 'top.cow'].map((name) => sparse(join(folder, name), 2 * SECTOR_COUNT * 512));
  const table = (origin: string, cow: string) => ['--table', `0 ${SECTOR_COUNT} snapshot ${origin} ${cow} P 32`];
  const socket = join(folder, 'nbd.sock');
  const args = ['low', 'top', ...table(golden, low!), ...table('/dev/mapper/low', top!)];
  const server = await serve([...args, '--nbd', `unix:${socket}`], { exports: 2 });
  return { low: server.uris[0]!, top: server.uris[1]!, socket };
}

async function output(command: string, args: readonly string[]): Promise<string> {
  const result = await run(command, args, { timeoutSeconds: 240 });
  expect(`${result.code} ${result.stderr}`).toMatch(/^0 /);
  return result.stdout;
}

const rows = (text: string) =>
  text
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/).slice(0, 3).map(Number));

describePeer(['nbdinfo', 'qemu-io', 'qemu-img'], 'allocation depth', () => {
  test('is what nbdinfo and qemu-img show of a stack of overlays', async () => {
    const { low, top, socket } = await stack();
    const write = (uri: string, at: string) => output(peer('qemu-io'), ['-f', 'raw', '-c', `write ${at}`, uri]);
    await write(low, '0 16k');
    await write(low, '512k 16k');
    await write(top, '32k 16k');
    await write(top, '768k 32k');

    const map = (uri: string) => output(peer('nbdinfo'), ['--map=qemu:allocation-depth', uri]).then(rows);
    expect(await map(low)).toEqual([
      [0, 16 * KIB, 1],
      [16 * KIB, 240 * KIB, 2],
      [256 * KIB, 256 * KIB, 0],
      [512 * KIB, 16 * KIB, 1],
      [528 * KIB, 496 * KIB, 0],
    ]);
    expect(await map(top)).toEqual([
      [0, 16 * KIB, 2],
      [16 * KIB, 16 * KIB, 3],
      [32 * KIB, 16 * KIB, 1],
      [48 * KIB, 208 * KIB, 3],
      [256 * KIB, 256 * KIB, 0],
      [512 * KIB, 16 * KIB, 2],
      [528 * KIB, 240 * KIB, 0],
      [768 * KIB, 32 * KIB, 1],
      [800 * KIB, 224 * KIB, 0],
    ]);
    expect(await output(peer('nbdinfo'), [top])).toMatch(/qemu:allocation-depth/);

    const plain = JSON.parse(await output(peer('qemu-img'), ['map', '--output=json', '-f', 'raw', top]));
    const data = plain.filter((extent: { data: boolean }) => extent.data);
    expect(data.map(({ start, length }: { start: number; length: number }) => [start, length])).toEqual([
      [0, 256 * KIB],
      [512 * KIB, 16 * KIB],
      [768 * KIB, 32 * KIB],
    ]);

    // With the context in the place of its own, QEMU reads a depth of 1 as "not present here", 2 and more as zeroes.
    const options = `driver=nbd,export=top,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:allocation-depth`;
    const deep = JSON.parse(await output(peer('qemu-img'), ['map', '--output=json', '--image-opts', options]));
    const shown = (wanted: (extent: { present: boolean; zero: boolean }) => boolean) =>
      deep.filter(wanted).map(({ start, length }: { start: number; length: number }) => [start, length]);
    expect(shown(({ present }) => !present)).toEqual([
      [32 * KIB, 16 * KIB],
      [768 * KIB, 32 * KIB],
    ]);
    expect(shown(({ zero }) => zero)).toEqual([
      [0, 32 * KIB],
      [48 * KIB, 208 * KIB],
      [512 * KIB, 16 * KIB],
    ]);
  });
});
