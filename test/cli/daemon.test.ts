// dmsetup's words and dmkit's own on the command line, with a real daemon behind them.
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { version } from '../../src/index.ts';
import { dmkit } from '../support/cli.ts';
import { type Home, home as homeOf, main } from '../support/home.ts';
import { dmkitHere } from '../support/in-process.ts';
import { start } from '../support/process.ts';
import { makeImage } from '../support/tmp.ts';

/** Commands run in this process: the daemons are real ones. */
const home = (): Home => homeOf(dmkitHere);

async function gone(pid: number): Promise<void> {
  for (let attempt = 0; attempt < 500; attempt++) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  throw new Error(`process ${pid} is still there`);
}

describe('the daemon', () => {
  test.each([['ls'], ['table'], ['version'], ['remove_all'], ['info'], ['targets'], ['status'], ['deps'], ['mknodes']])(
    '%s starts none',
    async (...args) => {
      const { call, env } = home();
      expect((await call(args)).code).toBe(0);
      expect(existsSync(env.DMKIT_DIR)).toBe(false);
    },
  );

  test('is started by the first create, and does not keep a command substitution waiting', async () => {
    const { shell, call } = home();
    // One that waited for the daemon's end would wait until it is killed.
    const result = await shell('x=$($dmkit create d --table "0 64 linear a.img 0" 2>&1); echo "[$x]"');
    expect([result.code, result.stdout]).toEqual([0, '[]\n']);
    expect((await call(['info', '-c', '--noheadings', '-o', 'name,attr', 'd'])).stdout).toBe('d:L--w\n');
  });

  test('holds a device between two commands: what one writes the other reads', async () => {
    const { call, folder } = home();
    await call(['create', 'd', '--table', '0 64 linear a.img 2']);
    const data = Buffer.alloc(1024, 'x');
    expect(await call(['write', 'd', '--sector', '3'], data)).toMatchObject({ code: 0, stderr: '' });
    const result = await call(['read', 'd', '--sector', '3', '--count', '2']);
    expect(result.stdoutBytes.equals(data)).toBe(true);
    expect(
      readFileSync(join(folder, 'a.img'))
        .subarray(5 * 512, 7 * 512)
        .equals(data),
    ).toBe(true);
    const whole = await call(['read', 'd']);
    expect(whole.stdoutBytes.equals(readFileSync(join(folder, 'a.img')).subarray(1024, 66 * 512))).toBe(true);
  });

  test('is one, whoever starts first', async () => {
    const { call, env, folder } = home();
    const create = (index: number) =>
      dmkit(['create', `d${index}`, '--table', '0 8 zero'], { env, cwd: folder, timeoutSeconds: 240 });
    const results = await Promise.all(Array.from({ length: 6 }, (_, index) => create(index)));
    expect(results.map(({ code, stderr }) => [code, stderr])).toEqual(results.map(() => [0, '']));
    expect((await call(['ls'])).stdout.trim().split('\n')).toHaveLength(6);
    const log = readFileSync(join(env.DMKIT_DIR, 'daemon.log'), 'utf8');
    expect(log.match(/"listening"/g)).toHaveLength(1);
  });

  test('that could not start says why to the command that wanted it', async () => {
    const { call, env } = home();
    writeFileSync(env.DMKIT_DIR, 'a file');
    const result = await call(['create', 'd', '--table', '0 8 zero']);
    expect([result.code, result.stderr]).toEqual([1, expect.stringMatching(/is no folder|cannot make the folder/)]);
  });

  test('in the foreground says where it listens; SIGTERM ends it, and leaves nothing but log, lock and journal', async () => {
    const { call, env } = home();
    const daemon = await start(process.execPath, [main, 'daemon'], { env, ready: /listening in/ });
    await call(['create', 'd', '--table', '0 8 zero']);
    process.kill(daemon.pid, 'SIGTERM');
    expect(await daemon.exited).toBe(0);
    expect(readdirSync(env.DMKIT_DIR).sort()).toEqual(['daemon.lock', 'daemon.log', 'journal.json']);
    const again = await call(['daemon', '--idle-exit', 'x']);
    expect([again.code, again.stderr]).toEqual([1, expect.stringMatching(/no number of seconds/)]);
  });

  test('a second one in the same folder is refused', async () => {
    const { call } = home();
    await call(['create', 'd', '--table', '0 8 zero']);
    const second = await call(['daemon']);
    expect([second.code, second.stderr]).toEqual([1, expect.stringMatching(/another daemon/)]);
    expect((await call(['ls'])).stdout).toMatch(/^d\t/);
  });

  test('has no work when it has nothing to do', async () => {
    const { call, daemonPid } = home();
    await call(['create', 'd', '--table', '0 8 zero']);
    const pid = await daemonPid();
    const ticks = (): number => {
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
      return Number(fields[11]) + Number(fields[12]);
    };
    await new Promise((resolve) => setTimeout(resolve, 1500));
    const before = ticks();
    await new Promise((resolve) => setTimeout(resolve, 2000));
    expect(ticks() - before).toBeLessThanOrEqual(2);
  });

  test('logs and shutdown', async () => {
    const { call, daemonPid } = home();
    expect(await call(['logs'])).toMatchObject({ code: 1, stderr: expect.stringMatching(/no log yet/) });
    await call(['create', 'd', '--table', '0 8 zero']);
    const pid = await daemonPid();
    expect((await call(['logs'])).stdout).toMatch(/"msg":"listening"/);
    expect(await call(['shutdown'])).toMatchObject({ code: 0, stderr: '' });
    await gone(pid);
    expect((await call(['ls'])).stdout).toBe('No devices found\n');
    expect(await call(['shutdown'])).toMatchObject({ code: 0, stderr: 'dmkit: no daemon is running\n' });
  });
});

describe('after a crash', () => {
  async function crashed(): Promise<Home> {
    const place = home();
    await place.call(['create', 'low', '--table', '0 64 linear a.img 0']);
    await place.call(['create', 'top', '-u', 'U', '--table', '0 32 linear /dev/mapper/low 0']);
    const pid = await place.daemonPid();
    process.kill(pid, 'SIGKILL');
    await gone(pid);
    return place;
  }

  test('the next command says what is gone and how to get it back; restore does', async () => {
    const { call } = await crashed();
    const listing = await call(['ls']);
    expect(listing.stdout).toBe('No devices found\n');
    expect(listing.stderr).toMatch(/low, top are gone.*dmkit restore/);
    const restored = await call(['restore']);
    expect([restored.code, restored.stdout]).toEqual([0, 'low\ntop\n']);
    const after = await call(['info', '-c', '--noheadings', '-o', 'name,minor,uuid']);
    expect([after.stdout, after.stderr]).toEqual(['low:0:\ntop:1:U\n', '']);
  });

  test('a create says so too, and the old devices can still be restored', async () => {
    const { call } = await crashed();
    expect((await call(['create', 'new', '-j', '252', '-m', '9', '-n'])).stderr).toMatch(/gone/);
    await call(['create', 'other', '-n']);
    await call(['remove', 'other']);
    expect((await call(['restore'])).code).toBe(0);
  });

  test('they stay listed until they are restored or forgotten by name', async () => {
    const { call } = await crashed();
    await call(['remove_all']);
    expect((await call(['ls'])).stderr).toMatch(/low, top are gone/);
    const lost = await call(['lost']);
    expect([lost.code, lost.stdout]).toEqual([
      0,
      expect.stringMatching(/^low: 0 64 linear \S+a\.img 0\ntop: 0 32 linear 252:0 0\n$/),
    ]);
    expect(await call(['forget', 'nosuch'])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/no lost device/),
    });
    expect(await call(['forget', 'top'])).toMatchObject({ code: 0, stderr: '' });
    expect((await call(['restore'])).stdout).toBe('low\n');
    expect(await call(['restore'])).toMatchObject({ code: 1, stderr: expect.stringMatching(/no lost devices/) });
    expect((await call(['lost'])).stdout).toBe('No lost devices\n');
  });
});

describe('commands', () => {
  test('a refused table: dmsetup’s line, the kernel’s, the cause, and nothing is left', async () => {
    const { call, folder } = home();
    const result = await call(['create', 'd', '--table', '0 8 linear nosuch.img 0']);
    expect(result.code).toBe(1);
    expect(result.stderr.replaceAll(/\d+:0/g, 'N')).toBe(
      [
        'device-mapper: reload ioctl on d (N) failed: No such device',
        'device-mapper: table: N: linear: Device lookup failed (-ENODEV)',
        `${folder}/nosuch.img does not exist; a device is an image file, a block device, or one of dmkit's own`,
        'Command failed.',
        '',
      ].join('\n'),
    );
    expect((await call(['ls'])).stdout).toBe('No devices found\n');
  });

  test('tables from standard input and from a file', async () => {
    const { call, folder } = home();
    writeFileSync(join(folder, 't'), '0 8 linear a.img 1\n');
    expect((await call(['create', 'one'], '0 8 zero\n8 8 error\n')).code).toBe(0);
    expect((await call(['create', 'two', 't'])).code).toBe(0);
    expect((await call(['table'])).stdout).toBe(`one: 0 8 zero \none: 8 8 error \ntwo: 0 8 linear ${folder}/a.img 1\n`);
  });

  test('listings as JSON', async () => {
    const { call, folder } = home();
    await call(['create', 'd', '--table', '0 8 linear a.img 1']);
    const parse = async (args: string[]): Promise<unknown> => JSON.parse((await call([...args, '--json'])).stdout);
    expect(await parse(['ls'])).toMatchObject([{ name: 'd', minor: 0, sectorCount: 8 }]);
    expect(await parse(['info', 'd'])).toMatchObject([{ name: 'd', live: true, openCount: 0 }]);
    const line = { sector: 0, sectorCount: 8, type: 'linear', params: `${folder}/a.img 1` };
    expect(await parse(['table'])).toEqual([{ name: 'd', lines: [line] }]);
    expect(await parse(['deps'])).toEqual([{ name: 'd', deps: [{ name: `${folder}/a.img` }] }]);
    expect(await parse(['targets'])).toContainEqual({ name: 'zero', version: [1, 1, 0] });
  });

  test('an unknown word and none are refused; dmsetup’s own program name is taken on', async () => {
    const { call } = home();
    expect(await call(['dmsetup', 'bogus'])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^Unknown command\./),
    });
    expect(await call(['dmsetup', 'info', '-u'])).toMatchObject({
      code: 1,
      stderr: "dmsetup: option requires an argument -- 'u'\nCouldn't process command line.\n",
    });
    expect((await call(['dmsetup', '--version'])).stdout).toMatch(new RegExp(`^Library version: +${version}`));
    expect((await call(['--version'])).stdout).toBe(`dmkit ${version}\n`);
    expect((await call(['--help'])).stdout).toMatch(/create load\|reload/);
  });

  test('read and write refuse what does not fit', async () => {
    const { call } = home();
    await call(['create', 'd', '--table', '0 8 zero']);
    for (const [args, input, message] of [
      [['read', 'd', '--count', '9'], undefined, /the device has 8/],
      [['read', 'd', '--sector', 'x'], undefined, /a number of sectors/],
      [['read', 'nosuch'], undefined, /nosuch/],
      [['write', 'd'], Buffer.alloc(100), /no whole number/],
      [['write', 'd', '--sector', '7'], Buffer.alloc(1024), /longer than the 1 sectors/],
    ] as const) {
      const result = await call([...args], input);
      expect([result.code, result.stderr]).toEqual([1, expect.stringMatching(message)]);
    }
  });

  test('a suspend that is interrupted is undone', async () => {
    const { call, env, folder } = home();
    await call(['create', 'low', '--table', '0 64 zero']);
    await call(['create', 'top', '--table', '0 64 linear dm:low 0']);
    await call(['suspend', 'low']);
    const reading = dmkit(['read', 'top', '--count', '1'], { env, cwd: folder, timeoutSeconds: 240 });
    const inFlight = async (): Promise<number> => {
      return JSON.parse((await call(['info', 'top', '--json'])).stdout)[0].inFlightCount;
    };
    while ((await inFlight()) === 0);
    const suspending = await start(process.execPath, [main, 'suspend', 'top'], { env, cwd: folder });
    await new Promise((resolve) => setTimeout(resolve, 500));
    process.kill(suspending.pid, 'SIGINT');
    await suspending.exited;
    await call(['resume', 'low']);
    expect((await reading).stdoutBytes.byteLength).toBe(512);
    expect((await call(['info', '-c', '--noheadings', '-o', 'suspended', 'top'])).stdout).toBe('Active\n');
  });
});

describe('exec', () => {
  // The scripts that people know from the device mapper's documentation, in their own words: they use dmsetup and
  // blockdev alone.
  const IDENTITY = 'echo "0 `blockdev --getsz $1` linear $1 0" | dmsetup create identity';
  const JOIN = `first=\`blockdev --getsz $1\`
second=\`blockdev --getsz $2\`
dmsetup create joined <<TABLE
0 $first linear $1 0
$first $second linear $2 0
TABLE`;
  const REVERSE = `my ($device) = @ARGV;
my $piece = 8192;
my $pieces = int(\`blockdev --getsz $device\` / $piece);
my @lines = map { $_ * $piece . " $piece linear $device " . ($pieces - 1 - $_) * $piece . "\\n" } 0 .. $pieces - 1;
open(my $pipe, '|-', 'dmsetup', 'create', 'reverse') or die; print $pipe @lines; close($pipe) or die;`;
  const STRIPE = `my $chunk = 256; my @devices = @ARGV;
my ($least) = sort { $a <=> $b } map { int(\`blockdev --getsz $_\`) } @devices;
my $size = ($least - $least % $chunk) * @devices;
my $table = join(' ', 0, $size, 'striped', scalar(@devices), $chunk, map { "$_ 0" } @devices);
system("echo $table | dmsetup create striped") == 0 or die;`;

  function scripts() {
    const place = home();
    const contents = ['b.img', 'c.img'].map((name, index) => makeImage(join(place.folder, name), 16384, index + 2));
    for (const [name, text] of Object.entries({ identity: IDENTITY, join: JOIN, reverse: REVERSE, stripe: STRIPE })) {
      writeFileSync(join(place.folder, name), `${text}\n`);
    }
    return { ...place, b: contents[0]!, c: contents[1]! };
  }

  test('runs scripts that know only dmsetup and blockdev', async () => {
    const { call, b, c } = scripts();
    for (const args of [
      ['sh', 'identity', 'b.img'],
      ['sh', 'join', 'b.img', 'c.img'],
      ['perl', 'reverse', 'b.img'],
      ['perl', 'stripe', 'b.img', 'c.img'],
    ]) {
      expect(await call(['exec', '--', ...args])).toMatchObject({ code: 0, stderr: '' });
    }
    const read = async (name: string): Promise<Buffer> => (await call(['read', name])).stdoutBytes;
    expect((await read('identity')).equals(b)).toBe(true);
    expect((await read('joined')).equals(Buffer.concat([b, c]))).toBe(true);
    const half = b.byteLength / 2;
    expect((await read('reverse')).equals(Buffer.concat([b.subarray(half), b.subarray(0, half)]))).toBe(true);
    const striped = await read('striped');
    const chunk = 256 * 512;
    for (let at = 0; at < b.byteLength; at += chunk) {
      expect(striped.subarray(2 * at, 2 * at + chunk).equals(b.subarray(at, at + chunk))).toBe(true);
      expect(striped.subarray(2 * at + chunk, 2 * at + 2 * chunk).equals(c.subarray(at, at + chunk))).toBe(true);
    }
  });

  test('--map puts images in the place of devices that a script names; the exit code is the command’s', async () => {
    const { call, folder } = scripts();
    const script =
      'set -e; size=$(blockdev --getsz /dev/sdb1); echo "0 $size linear /dev/sdb1 0" | dmsetup create m; exit 3';
    expect((await call(['exec', '--map', '/dev/sdb1=b.img', '--', 'sh', '-c', script])).code).toBe(3);
    expect((await call(['table', 'm'])).stdout).toBe(`0 16384 linear ${folder}/b.img 0\n`);
    expect(await call(['exec', '--map', 'x', 'true'])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/--map x/),
    });
    expect((await call(['exec', 'nosuch-program'])).stderr).toMatch(/cannot run nosuch-program/);
  });

  test('blockdev answers for images, mapped devices, and asks back where it cannot', async () => {
    const { call } = scripts();
    await call(['create', 'd', '-r', '--table', '0 12 linear b.img 0']);
    const all = [
      '--getsize',
      '--getsz',
      '--getsize64',
      '--getss',
      '--getpbsz',
      '--getbsz',
      '--getro',
      '--getra',
      '--flushbufs',
    ];
    expect((await call(['blockdev', ...all, 'b.img'])).stdout).toBe('16384\n16384\n8388608\n512\n512\n4096\n0\n256\n');
    expect((await call(['blockdev', ...all, '/dev/mapper/d'])).stdout).toBe('12\n12\n6144\n512\n512\n2048\n1\n256\n');
    expect((await call(['blockdev', '--getsz', 'dm:d'])).stdout).toBe('12\n');
    expect(await call(['blockdev', '--rereadpt', 'b.img'])).toMatchObject({ code: 1 });
    expect(await call(['blockdev', '--getsz', 'nosuch'])).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/nosuch/),
    });
  });

  test('leaves no folder behind', async () => {
    const { call } = scripts();
    const result = await call(['exec', 'sh', '-c', 'dirname $(command -v dmsetup)']);
    expect(existsSync(result.stdout.trim())).toBe(false);
  });
});

test('the folder of the daemon is its user’s alone', async () => {
  const { call, env } = home();
  await call(['create', 'd', '-n']);
  expect(statSync(env.DMKIT_DIR).mode & 0o777).toBe(0o700);
});
