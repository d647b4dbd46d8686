// An image or export whose length is no multiple of 512 has bytes that no sector of a device shows: each command that makes
// such a device says so, once for each file.
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { DeviceMapper } from '../../src/index.ts';
import { dmkit } from '../support/cli.ts';
import { type Home, home } from '../support/home.ts';
import { dmkitHere } from '../support/in-process.ts';
import { itPeer, peer, start } from '../support/peers.ts';
import { runs } from '../support/seed.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';

const patient = { timeout: 150_000 };

/** Odd images: 8 whole sectors and a rest. */
function odd(folder: string, name: string, rest = 100): string {
  const path = join(folder, name);
  writeFileSync(path, randomBytes(8 * 512 + rest, 1));
  return path;
}

const sentence = (path: string, rest = 100): string =>
  `${path} has ${8 * 512 + rest} bytes, no multiple of 512: ${rest === 1 ? 'its last byte' : `its last ${rest} bytes`} can not be reached`;

describe('a program', () => {
  function world(): { dm: DeviceMapper; folder: string } {
    const dm = new DeviceMapper();
    onTestFinished(() => dm.close());
    return { dm, folder: tempDir() };
  }

  test('hears of cut ends by onNotice and finds them at the disk', async () => {
    const { dm, folder } = world();
    const a = odd(folder, 'a.img');
    const b = odd(folder, 'b.img', 1);
    const notices: string[] = [];
    const onNotice = (text: string): void => void notices.push(text);
    const table = `0 8 linear ${a} 0\n8 8 linear ${b} 0\n16 8 linear ${a} 0`;
    const disk = await dm.create('d', table, { onNotice });
    expect(notices).toEqual([sentence(a), sentence(b, 1)]);
    const ends = [
      { name: a, byteLength: 4196, cutByteLength: 100 },
      { name: b, byteLength: 4097, cutByteLength: 1 },
    ];
    expect(disk.cutEnds).toEqual(ends);
    const image = await dm.open(a);
    expect(image.cutEnds).toEqual([ends[0]]);
    await dm.load('d', `0 8 linear ${b} 0`, { onNotice });
    expect(notices).toEqual([sentence(a), sentence(b, 1), sentence(b, 1)]);
    await dm.resume('d');
    expect(disk.cutEnds).toEqual([ends[1]]);
    truncateSync(b, 9 * 512);
    await dm.control.call('refresh', { device: { name: 'd' } });
    expect(disk.cutEnds).toEqual([]);
  });

  test('hears of exactly those files whose last whole sector a line uses', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(511), fc.nat(7), fc.integer({ min: 1, max: 8 }), async (rest, begin, count) => {
        const dm = new DeviceMapper();
        try {
          const path = odd(tempDir(), 'a.img', rest);
          const sectorCount = Math.min(count, 8 - begin);
          const notices: string[] = [];
          const table = `0 4 zero\n4 ${sectorCount} linear ${path} ${begin}`;
          await dm.create('d', table, { onNotice: (text) => void notices.push(text) });
          expect(notices).toEqual(rest > 0 && begin + sectorCount === 8 ? [sentence(path, rest)] : []);
        } finally {
          await dm.close();
        }
      }),
      { numRuns: runs(40) },
    );
  });

  test('hears of a stripe, of an origin and of a long table while the loop goes on', async () => {
    const { dm, folder } = world();
    const a = odd(folder, 'a.img');
    const b = odd(folder, 'b.img', 0);
    const notices: string[] = [];
    const onNotice = (text: string): void => void notices.push(text);
    await dm.create('s', `0 16 striped 2 8 ${b} 0 ${a} 0`, { onNotice });
    await dm.create('o', `0 8 snapshot-origin ${a}`, { onNotice });
    const lineCount = 5000;
    const lines = Array.from({ length: lineCount }, (_, index) => `${index} 1 linear ${a} ${index % 7}`);
    await dm.create('long', lines.join('\n'), { onNotice });
    expect(notices).toEqual([sentence(a), sentence(a)]);
    await dm.create('reaching', [...lines, `${lineCount} 1 linear ${a} 7`].join('\n'), { onNotice });
    expect(notices).toEqual([sentence(a), sentence(a), sentence(a)]);
  });

  itPeer(['nbdkit'], 'hears of an odd export of another server', async () => {
    const { dm, folder } = world();
    const path = odd(folder, 'a.img');
    const socket = join(folder, 's');
    const server = await start(peer('nbdkit'), ['-f', '-v', '-U', socket, 'file', path], {
      ready: /written pid|accepting|bound to/,
    });
    onTestFinished(async () => void (await server.stop()));
    const notices: string[] = [];
    const uri = `nbd+unix:///?socket=${socket}`;
    await dm.create('d', `0 8 linear ${uri} 0`, { onNotice: (text) => void notices.push(text) });
    expect(notices).toEqual([sentence(uri)]);
  });
});

describe('a command', () => {
  const lines = ({ stderr }: { stderr: string }): string[] => stderr.split('\n').slice(0, -1);

  function world(): Home & { a: string; b: string } {
    const at = home(dmkitHere);
    return { ...at, a: odd(at.folder, 'odd.img'), b: odd(at.folder, 'two.img', 1) };
  }

  test('serve says it once for each file', patient, async () => {
    const { folder, a, b } = world();
    const table = `0 8 linear ${a} 0\n8 8 linear ${b} 0`;
    const args = [
      'serve',
      'x',
      '--table',
      table,
      'y',
      '--table',
      `0 8 linear ${a} 0`,
      'z',
      '--table',
      `0 7 linear ${a} 0`,
    ];
    const served = await dmkit([...args, '--run', 'true'], { cwd: folder });
    expect([served.code, lines(served)]).toEqual([0, [`dmkit: ${sentence(a)}`, `dmkit: ${sentence(b, 1)}`]]);
    const short = await dmkit(['serve', 'x', '--table', `0 7 linear ${a} 0`, '--run', 'true'], { cwd: folder });
    expect([short.code, short.stderr]).toEqual([0, '']);
  });

  test('create, load and a script in exec say it on standard error, once for each file', patient, async () => {
    const { call, shell, a, b } = world();
    const created = await call(['create', 'x', '--table', `0 8 linear ${a} 0\n8 8 linear ${b} 0\n16 8 linear ${a} 0`]);
    expect([created.code, created.stdout, lines(created)]).toEqual([0, '', [sentence(a), sentence(b, 1)]]);
    const loaded = await call(['reload', 'x', '--table', `0 8 linear ${a} 0`]);
    expect([loaded.code, lines(loaded)]).toEqual([0, [sentence(a)]]);
    expect((await call(['resume', 'x'])).stderr).toBe('');
    expect((await call(['reload', 'x', '--table', `0 7 linear ${a} 0`])).stderr).toBe('');
    const concise = await call(['create', '--concise', `c1,,,rw,0 8 linear ${a} 0;c2,,,rw,0 8 linear ${a} 0`]);
    expect([concise.code, lines(concise)]).toEqual([0, [sentence(a)]]);
    const script = `dmsetup create e --table "0 $(blockdev --getsz ${a}) linear ${a} 0"`;
    const ran = await shell(`$dmkit exec -- sh -c '${script}'`);
    expect([ran.code, lines(ran)]).toEqual([0, [`blockdev: ${sentence(a)}`, sentence(a)]]);
  });

  test('batch and restore say it once for each file', patient, async () => {
    const { call, a, daemonPid } = world();
    const batch = ['x', 'y'].map((name) => `create ${name} --table '0 8 linear ${a} 0'\n`).join('');
    const made = await call(['batch'], batch);
    expect([made.code, lines(made)]).toEqual([0, [`dmkit: ${sentence(a)}`]]);
    process.kill(await daemonPid(), 'SIGKILL');
    let restored = await call(['restore']);
    // The kernel takes its time to give back what a ring of a killed process held.
    for (let attempt = 0; attempt < 100 && restored.code !== 0; attempt++) restored = await call(['restore']);
    expect([restored.code, restored.stdout, lines(restored)]).toEqual([0, 'x\ny\n', [`dmkit: x: ${sentence(a)}`]]);
  });

  test('blockdev says it where a size is asked for, once for each image', patient, async () => {
    const { call, a } = world();
    const size = await call(['blockdev', '--getsz', '--getsize64', a, a]);
    expect([size.code, size.stdout, lines(size)]).toEqual([0, '8\n4096\n8\n4096\n', [`blockdev: ${sentence(a)}`]]);
    expect((await call(['blockdev', '--getss', a])).stderr).toBe('');
  });

  test('snapshot create says it once', patient, async () => {
    const { call, a } = world();
    const made = await call(['snapshot', 'create', a, 'v', '--origin-name', 'o']);
    expect([made.code, lines(made)]).toEqual([0, [`dmkit: ${sentence(a)}`]]);
  });
});
