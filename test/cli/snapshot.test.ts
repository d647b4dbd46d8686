// dmkit snapshot, with a real daemon behind it.
import { closeSync, existsSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { connectNbd } from '../../src/nbd/index.ts';
import { dmkitHere } from '../support/in-process.ts';
import { type RunResult, run, start } from '../support/process.ts';
import { makeImage, tempDir } from '../support/tmp.ts';

const main = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const SECTOR_COUNT = 2048;

function home() {
  const folder = tempDir('s');
  const golden = makeImage(join(folder, 'golden.img'), SECTOR_COUNT);
  const env = { DMKIT_DIR: join(folder, 'd'), LC_ALL: 'C' };
  const call = (args: readonly string[], input?: string | Uint8Array): Promise<RunResult> =>
    dmkitHere(args, { env, cwd: folder, timeoutSeconds: 240, ...(input === undefined ? {} : { input }) });
  const ok = async (args: readonly string[], input?: string | Uint8Array): Promise<string> => {
    const result = await call(args, input);
    expect(`${result.code} ${result.stderr}`).toMatch(/^0 /);
    return result.stdout;
  };
  /** What it says when it refuses. */
  const refused = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await call(['snapshot', ...args]);
    expect([code, stdout]).toEqual([1, '']);
    return stderr;
  };
  onTestFinished(async () => void (await call(['shutdown', '--force'])));
  return {
    folder,
    env,
    golden,
    path: (name: string) => join(folder, name),
    call,
    ok,
    refused,
    snapshot: (...args: string[]) => ok(['snapshot', ...args]),
    fill: (name: string, sector: number, count: number, value: number) =>
      ok(['write', name, '--sector', String(sector)], Buffer.alloc(count * 512, value)),
    read: async (name: string) => (await call(['read', name])).stdoutBytes,
    daemonPid: () => {
      const log = readFileSync(join(env.DMKIT_DIR, 'daemon.log'), 'utf8').trim().split('\n');
      return Number(JSON.parse(log.findLast((line) => line.includes('"listening"'))!).pid);
    },
  };
}

const clean = (text: string, folder: string) => text.replaceAll(folder, '.');

describe('create', () => {
  test('makes a sparse store beside the image, with room for everything, and the overlay', async () => {
    const { folder, path, snapshot, golden, fill, read, call } = home();
    expect(clean(await snapshot('create', 'golden.img', 'vm1'), folder)).toBe(
      './vm1.cow: made, sparse, 1.0 MiB\nvm1: 0 2048 snapshot ./golden.img ./vm1.cow P 32\n',
    );
    expect(statSync(path('vm1.cow')).mode & 0o777).toBe(0o600);
    expect(statSync(path('vm1.cow')).blocks * 512).toBeLessThan(65_536);
    // All of it is written: the store has room.
    await fill('vm1', 0, SECTOR_COUNT, 7);
    expect((await call(['status', 'vm1'])).stdout).toMatch(/^0 2048 snapshot \d+\/\d+ \d+\n$/);
    expect((await read('vm1')).equals(Buffer.alloc(SECTOR_COUNT * 512, 7))).toBe(true);
    expect(readFileSync(path('golden.img')).equals(golden)).toBe(true);
  });

  test('prints the commands that do it by hand, and they do', async () => {
    const { folder, path, env, snapshot, call } = home();
    const args = ['create', 'golden.img', 'vm 1', '--chunk', '4K', '--store', 'overflow', '--size', '1M'];
    const commands = await snapshot(...args, '--lazy-commit', '--origin-name', 'gold', '--dry-run');
    expect(existsSync(path('vm 1.cow'))).toBe(false);
    expect(existsSync(env.DMKIT_DIR)).toBe(false);
    expect(clean(commands, folder)).toBe(
      [
        "truncate -s 1048576 './vm 1.cow'",
        "dmkit create 'gold' --table '0 2048 snapshot-origin ./golden.img'",
        "dmkit create 'vm 1' --table '0 2048 snapshot ./golden.img ./vm\\ 1.cow PO 8 1 lazy_commit'\n",
      ].join('\n'),
    );
    const script = commands.replaceAll(/^dmkit/gm, `'${process.execPath}' '${main}'`);
    expect((await run('sh', ['-ec', script], { env, cwd: folder })).code).toBe(0);
    expect((await call(['snapshot', 'list'])).stdout).toMatch(/^vm 1 .*Active$|^vm\\x201 .*Active$/m);
    const again = JSON.parse(await snapshot('create', 'golden.img', 'vm2', '--json', '--store', 'transient'));
    expect(again).toMatchObject({ done: true, suspends: ['gold'], originDevice: null, chunkSectorCount: 32 });
    expect(again.overlay.table).toMatch(/ N 32$/);
  });

  test('begins with one moment of an origin that is written through its device', async () => {
    const { snapshot, fill, read, golden, call, ok } = home();
    await snapshot('create', 'golden.img', 'first', '--origin-name', 'disk');
    await fill('disk', 8, 8, 1);
    // By the device's name, whose origin is what is below it.
    expect(await snapshot('create', 'disk', 'second')).toMatch(/disk: suspended/);
    await fill('disk', 8, 8, 2);
    expect((await read('first')).equals(golden)).toBe(true);
    expect((await read('second')).subarray(8 * 512, 16 * 512).equals(Buffer.alloc(4096, 1))).toBe(true);
    // One that was suspended before stays so.
    await ok(['suspend', 'disk']);
    await snapshot('create', '/dev/mapper/disk', 'third');
    expect((await call(['info', 'disk'])).stdout).toMatch(/State: +SUSPENDED/);
    await ok(['resume', 'disk']);
  });

  test('stands on an overlay as on an image', async () => {
    const { snapshot, fill, read, path } = home();
    await snapshot('create', 'golden.img', 'low');
    await fill('low', 0, 8, 3);
    await snapshot('create', 'low', 'top', '--cow-folder', path('.'));
    expect((await read('top')).subarray(0, 4096).equals(Buffer.alloc(4096, 3))).toBe(true);
    expect(await snapshot('list')).toMatch(/^top +\/dev\/mapper\/low /m);
  });

  test('refuses with a reason, and leaves nothing behind', async () => {
    const { path, snapshot, refused, golden, call } = home();
    const create = (...args: string[]) => refused('create', ...args);
    expect(await create('nosuch.img', 'vm')).toMatch(
      /the origin is missing: \S+nosuch.img does not exist, and no device/,
    );
    expect(await create('/dev/mapper/nosuch', 'vm')).toMatch(/the origin is missing: no device is named nosuch/);
    writeFileSync(path('empty.img'), '');
    expect(await create('empty.img', 'vm')).toMatch(/empty.img has no whole sector/);
    writeFileSync(path('odd.img'), 'x');
    expect(await create('odd.img', 'vm')).toMatch(/odd.img has no whole sector/);
    expect(await create('.', 'vm')).toMatch(/is no image and no block device/);
    expect(await create('golden.img', 'vm', '--size', '32K')).toMatch(/too small with 32768 bytes: .* take 49152/);
    expect(await create('golden.img', 'vm', '--size', '100')).toMatch(/--size 100: a size with its unit/);
    expect(await create('golden.img', 'vm', '--chunk', '3s')).toMatch(
      /chunk of 3 sectors: Chunk size is not a power of 2/,
    );
    expect(await create('golden.img', 'vm', '--store', 'transient', '--lazy-commit')).toMatch(/commits nothing/);
    expect(await create('golden.img', 'a/b')).toMatch(/the name "a\/b" has a slash/);
    expect(await create('golden.img', 'vm', '--cow', 'golden.img')).toMatch(/holds something that is no store/);
    expect(await create('golden.img', 'vm', '--cow-folder', 'nosuch')).toMatch(/nosuch\/vm.cow: No such file/);
    expect(await create('golden.img', 'x', '--origin-name', 'x')).toMatch(/overlay and its origin at once/);
    expect(existsSync(path('vm.cow'))).toBe(false);

    await snapshot('create', 'golden.img', 'vm');
    expect(await create('golden.img', 'vm')).toMatch(/a device named vm exists already/);
    expect(await create('golden.img', 'vm2', '--cow', 'vm.cow')).toMatch(/vm.cow is the store of vm already/);
    expect(await create('golden.img', 'vm2', '--origin-name', 'vm')).toMatch(/vm is there, and is no snapshot-origin/);
    expect(await create('vm', 'top')).toMatch(/the origin is no image: say where the store goes/);
    expect(existsSync(path('vm2.cow'))).toBe(false);

    await snapshot('drop', 'vm');
    expect(await create('golden.img', 'vm')).toMatch(/vm.cow is there already: name it as the store/);
    const wrong = await create('golden.img', 'vm', '--cow', 'vm.cow', '--chunk', '64K');
    expect(wrong).toMatch(/made with chunks of 32 sectors, not 128/);
    expect(await create('golden.img', 'vm', '--cow', 'vm.cow', '--size', '64K')).toMatch(/can't become smaller/);
    expect(await create('golden.img', 'vm', '--cow', 'vm.cow', '--store', 'transient')).toMatch(/persistent store/);
    const fd = openSync(path('vm.cow'), 'r+');
    writeSync(fd, Buffer.from([0]), 0, 1, 4);
    closeSync(fd);
    expect(await create('golden.img', 'vm', '--cow', 'vm.cow')).toMatch(/invalid for ever/);
    expect((await call(['snapshot', 'list'])).stdout).toBe('No overlays found\n');
    expect(readFileSync(path('golden.img')).equals(golden)).toBe(true);
  });

  test('takes back what it made when the table is refused', async () => {
    const { path, refused, call } = home();
    // A store of its size, but whose records nobody can read: they name metadata.
    const store = Buffer.alloc(1 << 20);
    store.write('SnAp', 0, 'latin1');
    for (const [at, value] of [
      [4, 1],
      [8, 1],
      [12, 8],
    ] as const)
      store.writeUInt32LE(value, at);
    store.writeUInt32LE(1, 4096 + 8);
    writeFileSync(path('bad.cow'), store);
    expect(await refused('create', 'golden.img', 'vm', '--cow', 'bad.cow', '--origin-name', 'gold')).toMatch(
      /Failed to read snapshot metadata[\s\S]*which is metadata/,
    );
    expect((await call(['ls'])).stdout).toBe('No devices found\n');
    expect(existsSync(path('bad.cow'))).toBe(true);
  });

  test('goes on with a store that is there, and makes it larger', async () => {
    const { path, snapshot, fill, read, golden } = home();
    await snapshot('create', 'golden.img', 'vm', '--size', '64K');
    await fill('vm', 64, 32, 9);
    await snapshot('drop', 'vm');
    expect(await snapshot('create', 'golden.img', 'again', '--cow', 'vm.cow', '--size', '2M')).toMatch(
      /goes on, with 2.0 MiB now/,
    );
    const expected = Buffer.from(golden);
    expected.fill(9, 64 * 512, 96 * 512);
    expect((await read('again')).equals(expected)).toBe(true);
    expect(statSync(path('vm.cow')).size).toBe(2 << 20);
  });
});

describe('list', () => {
  test('shows each overlay as it is, and its counters', async () => {
    const { snapshot, fill, call, folder } = home();
    expect(await snapshot('list')).toBe('No overlays found\n');
    expect(await snapshot('list', '--json')).toBe('[]\n');
    await snapshot('create', 'golden.img', 'good', '--chunk', '4K');
    await snapshot('create', 'golden.img', 'full', '--chunk', '4K', '--size', '12K');
    await snapshot('create', 'golden.img', 'over', '--chunk', '4K', '--size', '12K', '--store', 'overflow');
    await fill('good', 100, 20, 1);
    for (const name of ['full', 'over']) expect((await call(['write', name], Buffer.alloc(16384))).code).toBe(1);
    const rows = clean(await snapshot('list'), folder)
      .trim()
      .split('\n');
    expect(rows.map((row) => row.split(/ +/))).toEqual([
      ['NAME', 'ORIGIN', 'CHUNK', 'USED', 'TOTAL', 'USED%', 'STATE'],
      ['full', './golden.img', '4.0KiB', '3', '3', '100.0', 'Invalid'],
      ['good', './golden.img', '4.0KiB', '5', '259', '1.9', 'Active'],
      ['over', './golden.img', '4.0KiB', '3', '3', '100.0', 'Overflow'],
    ]);
    const [, good] = JSON.parse(await snapshot('list', '--json'));
    expect(good).toMatchObject({ name: 'good', condition: 'Active', usedChunkCount: 5, percent: 1.931, store: 'P' });
    // Sectors 100 to 119: chunks 12 to 14, of which the first was written in part.
    expect(good.counters).toMatchObject({ exceptionCount: 3, exceptionsInMemoryCount: 3, memoryByteLength: 512 });
    expect(good.counters.copyCount).toBe(1);
    expect(good.counters.copiedByteLength).toBe(4 * 512);
    expect(good.counters.commitCount).toBeGreaterThan(0);
  });
});

describe('diff', () => {
  test('tells the same of a device and of its store alone', async () => {
    const { snapshot, fill } = home();
    await snapshot('create', 'golden.img', 'vm', '--chunk', '4K');
    expect(await snapshot('diff', 'vm')).toBe('# nothing differs\n');
    await fill('vm', 8, 16, 1);
    await fill('vm', 2047, 1, 1);
    const text = '# sector count\n8 16\n2040 8\n# 2 extents, 24 sectors, 12.0 KiB\n';
    expect(await snapshot('diff', 'vm')).toBe(text);
    const json = JSON.parse(await snapshot('diff', 'vm', '--json'));
    const extents = [
      { sector: 8, sectorCount: 16 },
      { sector: 2040, sectorCount: 8 },
    ];
    expect(json).toEqual({ extents, extentCount: 2, changedSectorCount: 24 });
    await snapshot('drop', 'vm');
    expect(await snapshot('diff', '--cow', 'vm.cow')).toBe(text);
    expect(JSON.parse(await snapshot('diff', '--cow', 'vm.cow', '--json'))).toEqual(json);
  });

  test('refuses what it can not compare', async () => {
    const { path, snapshot, refused, ok, call } = home();
    expect(await refused('diff')).toMatch(/an overlay is needed/);
    expect(await refused('diff', 'nosuch')).toMatch(/no daemon is running/);
    expect(await refused('diff', '--cow', 'nosuch.cow')).toMatch(/nosuch.cow does not exist/);
    expect(await refused('diff', '--cow', 'golden.img')).toMatch(/holds no store of a snapshot/);
    await ok(['create', 'lin', '--table', '0 8 linear golden.img 0']);
    expect(await refused('diff', 'lin')).toMatch(/lin is no overlay/);
    await snapshot('create', 'golden.img', 'full', '--chunk', '4K', '--size', '12K');
    expect((await call(['write', 'full'], Buffer.alloc(16384))).code).toBe(1);
    expect(await refused('diff', 'full')).toMatch(/it is invalid/);
    await snapshot('drop', 'full');
    expect(await refused('diff', '--cow', 'full.cow')).toMatch(/says that its snapshot is invalid/);
    // A blank one is left blank.
    writeFileSync(path('blank.cow'), Buffer.alloc(65_536));
    expect(await refused('diff', '--cow', 'blank.cow')).toMatch(/holds no store/);
    expect(readFileSync(path('blank.cow')).equals(Buffer.alloc(65_536))).toBe(true);
  });
});

describe('merge', () => {
  test('leaves the origin whole, and other overlays as they were', async () => {
    const { folder, path, snapshot, fill, read, golden, call } = home();
    for (const name of ['one', 'two']) await snapshot('create', 'golden.img', name);
    await fill('one', 100, 50, 1);
    const expected = await read('one');
    const { stdout, stderr } = await call(['snapshot', 'merge', 'one']);
    expect(clean(stdout, folder)).toBe('one: merged into its origin\n./one.cow: kept, and empty\n');
    expect(stderr).toBe('');
    expect(readFileSync(path('golden.img')).equals(expected)).toBe(true);
    expect((await read('two')).equals(golden)).toBe(true);
    expect(await snapshot('diff', '--cow', 'one.cow')).toBe('# nothing differs\n');
    expect(await snapshot('list')).not.toMatch(/^one/m);
  });

  test('goes through the device that maps the origin, which may be in use', async () => {
    const { path, snapshot, fill, read, ok, call } = home();
    await snapshot('create', 'golden.img', 'vm', '--origin-name', 'disk');
    await fill('vm', 0, 64, 1);
    const expected = await read('vm');
    const user = await connectNbd((await ok(['uri', 'disk'])).trim());
    const events = (await snapshot('merge', 'vm', '--json', '--delete-cow'))
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));
    expect(events.at(-1)).toEqual({ event: 'merged', name: 'vm', cow: path('vm.cow'), deleted: true, stale: [] });
    expect(events[0]).toMatchObject({ event: 'progress', name: 'vm', chunkSectorCount: 32 });
    expect(Buffer.from(await user.read(0, SECTOR_COUNT * 512)).equals(expected)).toBe(true);
    await user.close();
    expect((await call(['table', 'disk'])).stdout).toMatch(/^0 2048 snapshot-origin \S+golden.img\n$/);
    expect(existsSync(path('vm.cow'))).toBe(false);
    expect((await call(['ls'])).stdout).toMatch(/^disk\t\S+\n$/);
  });

  test('refuses what can not be merged, and changes nothing', async () => {
    const { path, snapshot, refused, fill, ok, call, golden } = home();
    expect(await refused('merge', 'nosuch')).toMatch(/no daemon is running/);
    await snapshot('create', 'golden.img', 'gone', '--store', 'transient');
    expect(await refused('merge', 'gone')).toMatch(/a transient store, which can't be merged/);
    await snapshot('create', 'golden.img', 'full', '--chunk', '4K', '--size', '12K');
    expect((await call(['write', 'full'], Buffer.alloc(16384))).code).toBe(1);
    expect(await refused('merge', 'full')).toMatch(/full is invalid/);
    await snapshot('create', 'golden.img', 'vm');
    await fill('vm', 0, 8, 5);
    const user = await connectNbd((await ok(['uri', 'vm'])).trim());
    expect(await refused('merge', 'vm')).toMatch(/vm is in use by 1/);
    expect(await refused('drop', 'vm')).toMatch(/vm is in use by 1/);
    await user.close();
    await ok(['create', 'lin', '--table', '0 8 linear golden.img 0\n8 8 snapshot golden.img x.cow N 8']).catch(
      () => '',
    );
    expect(await refused('merge', 'nosuch')).toMatch(/there is no|no mapped device is named nosuch/);
    expect(readFileSync(path('golden.img')).equals(golden)).toBe(true);
  });

  test('goes on after the command was killed, and after the daemon was', async () => {
    const { folder, env, path, snapshot, ok, call, daemonPid } = home();
    const byHome = (args: string[]) =>
      start(process.execPath, [main, ...args], { env, cwd: folder, ready: /progress/ });
    for (const [name, extra] of [
      ['vm', []],
      ['vn', ['--origin-name', 'disk']],
    ] as const) {
      await snapshot('create', 'golden.img', name, '--chunk', '1s', ...extra);
      // Every second sector: as many runs, each with a flush of its own.
      const client = await connectNbd((await ok(['uri', name])).trim());
      const data = Buffer.alloc(512, name);
      for (let sector = 0; sector < SECTOR_COUNT / 2; sector += 2) await client.write(sector * 512, data);
      const expected = Buffer.from(await client.read(0, SECTOR_COUNT * 512));
      await client.close();

      const first = await byHome(['snapshot', 'merge', name, '--json']);
      process.kill(first.pid, 'SIGKILL');
      await first.exited;
      const second = await byHome(['snapshot', 'merge', name, '--json']);
      process.kill(second.pid, 'SIGINT');
      // A fast disk may be done before the signal arrives.
      const code = await second.exited;
      expect([0, 130]).toContain(code);
      if (code === 130) {
        expect(second.output()).toMatch(/goes on; merge it again/);
        const pid = daemonPid();
        process.kill(pid, 'SIGKILL');
        await vi.waitFor(() => expect(() => process.kill(pid, 0)).toThrow(), { timeout: 150_000 });
        await call(['restore']);
        const left = await call(['snapshot', 'merge', name]);
        // What could not be restored, because the merge has its store, is the overlay: the device that merges is named then.
        if (left.code !== 0) await snapshot('merge', 'disk');
      }
      expect(readFileSync(path('golden.img')).equals(expected)).toBe(true);
      expect(await snapshot('list')).toBe('No overlays found\n');
      if (name === 'vn') expect((await call(['table', 'disk'])).stdout).toMatch(/snapshot-origin/);
    }
  });
});

describe('drop', () => {
  test('keeps the store unless it is told otherwise', async () => {
    const { folder, path, snapshot, refused, ok } = home();
    await snapshot('create', 'golden.img', 'one');
    await snapshot('create', 'golden.img', 'two');
    expect(clean(await snapshot('drop', 'one'), folder)).toBe('one: gone\n./one.cow: kept\n');
    expect(clean(await snapshot('drop', 'two', '--delete-cow'), folder)).toBe('two: gone\n./two.cow: deleted\n');
    expect([existsSync(path('one.cow')), existsSync(path('two.cow')), existsSync(path('golden.img'))]).toEqual([
      true,
      false,
      true,
    ]);
    expect(await refused('drop', 'one')).toMatch(/no mapped device is named one/);
    await ok(['create', 'lin', '--table', '0 8 linear golden.img 0']);
    expect(await refused('drop', 'lin')).toMatch(/lin is no overlay/);
  });
});
