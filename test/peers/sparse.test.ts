// The sparse device of the kernel's documentation on dm-zero: ten terabytes of zeroes with a snapshot on top, made by a
// shell script that knows nothing of dmkit, and used by real clients. The store has the size of what is written.
import { closeSync, mkdirSync, openSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { dmkit } from '../support/cli.ts';
import { describePeer, itPeer, peer, run } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';

const TERABYTE = 2 ** 40;

// As somebody has it in a file who made it for dmsetup: a device's node, arithmetic by expr, tables on standard input.
const SCRIPT = `SECTORS=\`expr 10 \\* 1024 \\* 1024 \\* 1024 \\* 2\`   # ten terabytes
echo "0 $SECTORS zero" | dmsetup create zero1
echo "0 $SECTORS snapshot /dev/mapper/zero1 /dev/sdb1 p 128" | \\
    dmsetup create sparse1
`;
const ROOM_LINE = /^0 21474836480 snapshot (\d+)\/(\d+) 256\n$/;

/** A folder with the script and a store for it, and a daemon of its own. */
function sparseHome(storeByteLength: number) {
  const folder = tempDir('sparse');
  const store = join(folder, 'cow.img');
  closeSync(openSync(store, 'w'));
  truncateSync(store, storeByteLength);
  writeFileSync(join(folder, 'sparse.sh'), SCRIPT);
  const env = { DMKIT_DIR: join(folder, 'd'), LC_ALL: 'C' };
  const call = (args: string[]) => dmkit(args, { env, cwd: folder, timeoutSeconds: 240 });
  const ok = async (args: string[]): Promise<string> => {
    const result = await call(args);
    expect([args, result.code, result.stderr]).toEqual([args, 0, '']);
    return result.stdout;
  };
  onTestFinished(async () => void (await call(['shutdown', '--force'])));
  return {
    folder,
    store,
    ok,
    /** Runs the script. @returns the URI of what it made */
    async make(): Promise<string> {
      expect(await ok(['exec', '--map', '/dev/sdb1=cow.img', '--', 'sh', 'sparse.sh'])).toBe('');
      return (await ok(['uri', 'sparse1'])).trim();
    },
    status: () => ok(['status', 'sparse1']),
    daemonPid(): number {
      const log = readFileSync(join(env.DMKIT_DIR, 'daemon.log'), 'utf8').trim().split('\n');
      return Number(JSON.parse(log.findLast((line) => line.includes('"listening"'))!).pid);
    },
  };
}

async function qemuIo(uri: string, ...commands: string[]): Promise<{ code: number | null; text: string }> {
  const args = ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri];
  const result = await run(peer('qemu-io'), args, { timeoutSeconds: 240 });
  return { code: result.code, text: result.stdout + result.stderr };
}

async function qemuIoOk(uri: string, ...commands: string[]): Promise<void> {
  const { code, text } = await qemuIo(uri, ...commands);
  expect([code, text]).toEqual([0, expect.not.stringMatching(/failed|error/i)]);
}

async function gone(pid: number): Promise<void> {
  for (let attempt = 0; attempt < 400; attempt++) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`process ${pid} is still there`);
}

describePeer(['qemu-io', 'nbdinfo'], 'ten terabytes on sixty-four megabytes', () => {
  const places = [0, 5 * TERABYTE - 4096, 9 * TERABYTE + 65536 * 7 + 512, 10 * TERABYTE - 8192];
  const writes = places.map((at, index) => `write -P ${0x11 + index} ${at} 8k`);
  const reads = places.map((at, index) => `read -P ${0x11 + index} ${at} 8k`);
  const zeroes = [`read -P 0 1T 2M`, `read -P 0 ${places[1]! - 65536} 64k`, `read -P 0 ${places[3]! - 512} 512`];

  test('writes anywhere read back and the rest is zero, also after a restart and after a kill', async () => {
    const home = sparseHome(64 << 20);
    let uri = await home.make();
    expect(await home.ok(['table'])).toBe(
      `sparse1: 0 21474836480 snapshot 252:0 ${home.store} P 128\nzero1: 0 21474836480 zero \n`,
    );
    expect(await home.status()).toBe('0 21474836480 snapshot 256/131072 256\n');
    const size = await run(peer('nbdinfo'), ['--size', uri]);
    expect(size.stdout).toBe(`${10 * TERABYTE}\n`);
    await qemuIoOk(uri, ...writes, 'flush', ...reads, ...zeroes);
    // Five chunks: one of the writes crosses into a second one.
    expect(await home.status()).toBe('0 21474836480 snapshot 896/131072 256\n');
    const map = await run(peer('nbdinfo'), ['--map', '--totals', uri]);
    expect(map.stdout).toMatch(/^ +327680 +0\.0% +0 +data$/m);

    await home.ok(['shutdown']);
    uri = await home.make();
    await qemuIoOk(uri, ...reads, ...zeroes, 'write -P 0x77 3T 64k');

    const pid = home.daemonPid();
    process.kill(pid, 'SIGKILL');
    await gone(pid);
    await home.ok(['restore']);
    uri = (await home.ok(['uri', 'sparse1'])).trim();
    await qemuIoOk(uri, ...reads, ...zeroes, 'read -P 0x77 3T 64k');
    expect(await home.status()).toBe('0 21474836480 snapshot 1024/131072 256\n');
    expect(statSync(home.store).size).toBe(64 << 20);
  });

  test('a full store: the write fails with EIO, and everything after it, and the status says Invalid', async () => {
    // Header, records and four chunks of data.
    const home = sparseHome(6 * 65536);
    const uri = await home.make();
    const four = [0, 1, 2, 3].map((index) => `write -P ${1 + index} ${index}T 4k`);
    await qemuIoOk(uri, ...four, 'flush', 'read -P 4 3T 4k', 'write -P 9 4k 4k');
    expect(await home.status()).toMatch(ROOM_LINE);
    const full = await qemuIo(uri, 'write -P 5 4T 4k', 'read 0 4k');
    expect(full.text).toMatch(/write failed: Input\/output error\n.*read failed: Input\/output error/);
    expect(await home.status()).toBe('0 21474836480 snapshot Invalid\n');
    await home.ok(['shutdown']);
    await home.make();
    expect(await home.status()).toBe('0 21474836480 snapshot Invalid\n');
  });
});

const FILE_SYSTEM = ['nbdfuse', 'mkfs.ext4', 'e2fsck', 'debugfs', 'fusermount3', 'fuse'] as const;

/** Runs shell commands with the device as the file $disk. */
async function throughFuse(folder: string, uri: string, commands: readonly string[]): Promise<string> {
  const mount = join(folder, 'mnt');
  mkdirSync(mount, { recursive: true });
  const script = [
    'set -e',
    `${peer('nbdfuse')} ${mount} "$uri" &`,
    `disk=${mount}/nbd`,
    `for i in $(seq 100); do [ -s $disk ] && break; sleep 0.1; done`,
    `trap '${peer('fusermount3')} -u ${mount}; wait' EXIT`,
    ...commands,
  ];
  const env = { uri, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };
  const result = await run('sh', ['-c', script.join('\n')], { env, cwd: folder, timeoutSeconds: 240 });
  expect([result.code, result.code === 0 ? '' : result.stdout + result.stderr]).toEqual([0, '']);
  return result.stdout;
}

// All ten terabytes. The kernel would write inode tables and journal in the background after the first mount: lazily made
// and one inode for 64 MiB, they are 128 MiB in the store.
const MKFS =
  'mkfs.ext4 -q -F -m 0 -i 67108864 -G 4096 -J size=4 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard "$disk"';
const FILES = 'mkdir -p files; for i in 1 2 3 4 5; do head -c "$((i * 123457))" /dev/urandom >files/f$i; done';

describePeer(FILE_SYSTEM, 'a file system of ten terabytes', () => {
  test('is made, filled and checked through nbdfuse, and is there after a restart', async () => {
    const home = sparseHome(2 ** 30);
    const uri = await home.make();
    const copies = [1, 2, 3, 4, 5].map((i) => `debugfs -w -R "write files/f${i} f${i}" "$disk" 2>/dev/null`);
    await throughFuse(home.folder, uri, [MKFS, FILES, ...copies, 'e2fsck -fn "$disk"']);
    const [, allocated] = ROOM_LINE.exec(await home.status())!;
    expect(Number(allocated) * 512).toBeLessThan(2 ** 28);
    await home.ok(['shutdown']);
    const again = await home.make();
    const compares = [1, 2, 3, 4, 5].map(
      (i) => `debugfs -R "dump f${i} back${i}" "$disk" 2>/dev/null; cmp files/f${i} back${i}`,
    );
    const said = await throughFuse(home.folder, again, ['e2fsck -fn "$disk"', ...compares]);
    expect(said).toMatch(/16\/1310720 files .*2684354560 blocks/);
  });

  itPeer(
    ['loop', 'root', 'losetup'],
    'is mounted by a loop device on top, and its files are there after a restart',
    async () => {
      const home = sparseHome(2 ** 30);
      const uri = await home.make();
      mkdirSync(join(home.folder, 'fs'));
      const mounted = (options: string, commands: string) => [
        'loop=$(losetup --find --show "$disk")',
        `mount -o ${options} "$loop" fs || { losetup -d "$loop"; exit 1; }`,
        `code=0; { ${commands}; } || code=$?`,
        'umount fs; losetup -d "$loop"',
        '[ $code = 0 ]',
      ];
      await throughFuse(home.folder, uri, [MKFS, FILES, ...mounted('noinit_itable', 'cp -r files fs/ && sync')]);
      await home.ok(['shutdown']);
      const again = await home.make();
      const compare = mounted('ro', 'diff -r files fs/files && df --output=size -BT fs | tail -n 1');
      expect(await throughFuse(home.folder, again, ['e2fsck -fn "$disk"', ...compare])).toMatch(/^ *10T$/m);
    },
  );
});
