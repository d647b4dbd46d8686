// Real clients on a snapshot that `dmkit serve` exports: what they write is verified, the golden image never changes.
import { closeSync, mkdirSync, openSync, statSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { dmkit, serve } from '../support/cli.ts';
import { describePeer, peer, run } from '../support/peers.ts';
import { makeImage, sha256, tempDir } from '../support/tmp.ts';

const SECTOR_COUNT = 32_768;

function overlay(words: string) {
  const folder = tempDir('snap');
  const [golden, store] = [join(folder, 'golden.img'), join(folder, 'overlay.cow')];
  makeImage(golden, SECTOR_COUNT, 5);
  closeSync(openSync(store, 'w'));
  truncateSync(store, 2 * SECTOR_COUNT * 512);
  const table = `0 ${SECTOR_COUNT} snapshot ${golden} ${store} ${words}`;
  const nbd = ['--nbd', `unix:${join(folder, 'nbd.sock')}`];
  return { folder, golden, store, table, nbd, sum: sha256(golden) };
}

async function ok(command: string, args: readonly string[], options: Parameters<typeof run>[2] = {}): Promise<string> {
  const result = await run(command, args, options);
  expect(`${result.code} ${result.stderr}${result.code === 0 ? '' : result.stdout}`).toMatch(/^0 /);
  return result.stdout;
}

describePeer(['qemu-io'], 'qemu-io', () => {
  test('writes, flushes, discards; the same after a restart, and the golden image as it was', async () => {
    const made = overlay('P 8 1 discard_zeroes_cow');
    const qemuIo = async (commands: readonly string[]): Promise<void> => {
      const server = await serve(['s', '--table', made.table, ...made.nbd]);
      await ok(peer('qemu-io'), ['-f', 'raw', ...commands.flatMap((c) => ['-c', c]), server.uris[0]!]);
      expect(await server.stop()).toBe(0);
    };
    await qemuIo(['write -P 7 1000k 80k', 'write -f -P 8 3k 1k', 'write -z 2M 64k', 'flush', 'read -P 7 1000k 80k']);
    await qemuIo(['read -P 7 1000k 80k', 'read -P 8 3k 1k', 'read -P 0 2M 64k', 'discard 1000k 80k']);
    expect(sha256(made.golden)).toBe(made.sum);
    expect(statSync(made.store).blocks * 512).toBeLessThan(1 << 20);
  });
});

describePeer(['fio'], 'fio', () => {
  test.each(['P 8', 'P 128', 'PO 1 1 lazy_commit'])('every block verified on %s', async (words) => {
    const made = overlay(words);
    const { uris } = await serve(['s', '--table', made.table, ...made.nbd]);
    const args = [
      ...['--name=verify', '--ioengine=nbd', `--uri=${uris[0]}`, '--rw=randrw', '--rwmixread=40', '--bsrange=512-64k'],
      ...['--size=4M', '--offset_increment=4M', '--numjobs=3', '--iodepth=16', '--fsync=32', '--verify=crc32c'],
      ...['--verify_fatal=1', '--do_verify=1', '--verify_state_save=0', '--randrepeat=1'],
    ];
    const output = await ok(peer('fio'), args, { timeoutSeconds: 240, cwd: made.folder });
    expect(output).toMatch(/err= 0/);
    expect(output).not.toMatch(/err=[^0]*[1-9]/);
    expect(sha256(made.golden)).toBe(made.sum);
  });
});

describePeer(['nbdfuse', 'mkfs.ext4', 'e2fsck', 'fusermount3', 'fuse'], 'a file system through nbdfuse', () => {
  test('is made on a snapshot and merged into its origin, clean both times', async () => {
    const made = overlay('P 16');
    const mount = join(made.folder, 'mnt');
    mkdirSync(mount);
    const throughFuse = async (table: string, command: string): Promise<void> => {
      const script = [
        'set -e',
        `${peer('nbdfuse')} ${mount} "$uri" &`,
        `for i in $(seq 100); do [ -s ${mount}/nbd ] && break; sleep 0.1; done`,
        `trap 'sync; ${peer('fusermount3')} -u ${mount}; wait' EXIT`,
        command,
      ].join('\n');
      const result = await dmkit(['serve', 'd', '--table', table, ...made.nbd, '--run', script], {
        timeoutSeconds: 240,
      });
      expect(`${result.code} ${result.stderr}`).toMatch(/^0 /);
    };
    await throughFuse(made.table, `${peer('mkfs.ext4')} -q -F ${mount}/nbd; ${peer('e2fsck')} -fn ${mount}/nbd`);
    expect(sha256(made.golden)).toBe(made.sum);
    await throughFuse(made.table.replace('snapshot', 'snapshot-merge'), `${peer('e2fsck')} -fn ${mount}/nbd; sleep 3`);
    await ok(peer('e2fsck'), ['-fn', made.golden]);
  });
});
