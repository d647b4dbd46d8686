// A map belongs to one source and one destination: it is found by them, and none is believed that tells of other disks.
import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Copy, type CopyOptions } from '../../src/copy/copy.ts';
import { parseMapfile } from '../../src/copy/mapfile.ts';
import { ownersOf } from '../../src/copy/owners.ts';
import { MemoryDevice } from '../../src/devices/index.ts';
import { dmkit } from '../support/cli.ts';
import { itPeer, peer, run } from '../support/peers.ts';
import { randomBytes, tempDir } from '../support/tmp.ts';
import { copied, mapperWith } from './support.ts';

const SECTORS = 100;

interface Place {
  path(name: string): string;
  bytes: Buffer;
  /** A copy from `source` that goes on with maps. */
  again(source: string, destinations: string[], options?: CopyOptions): Promise<Copy>;
}

/** Copies s.img to the named files, with maps; what is then overwritten with `stale` stays so unless it is copied again. */
async function copiedOnce(destinations: string[]): Promise<Place> {
  const folder = tempDir();
  const path = (name: string): string => join(folder, name);
  const bytes = Buffer.from(randomBytes(SECTORS * 512, 1));
  writeFileSync(path('s.img'), bytes);
  const paths = destinations.map(path);
  expect((await copied(mapperWith([]), path('s.img'), paths, { mapfile: path('map') })).complete).toBe(true);
  return {
    path,
    bytes,
    again: (source, names, options = {}) =>
      copied(mapperWith([]), path(source), names.map(path), { mapfile: path('map'), retry: true, ...options }),
  };
}

function markNotTried(path: string): void {
  writeFileSync(
    path,
    readFileSync(path, 'utf8').replace(/^0x00000000 {2}0x0000C800 {2}\+$/m, '0x0 0x200 ?\n0x200 0xC600 +'),
  );
}

describe('maps of several destinations', () => {
  it('are found whatever the order on the command line', async () => {
    const { path, again } = await copiedOnce(['a.img', 'b.img', 'c.img']);
    markNotTried(path('map.2'));
    writeFileSync(path('b.img'), Buffer.alloc(SECTORS * 512), { flag: 'r+' });
    const copy = await again('s.img', ['c.img', 'b.img', 'a.img']);
    expect(copy.complete).toBe(true);
    expect(copy.destinations.map(({ totalSectorCount }) => totalSectorCount)).toEqual([0, 1, 0]);
  });

  it('leave a destination that is new among them to be copied whole, under a number that is free', async () => {
    const { path, bytes, again } = await copiedOnce(['a.img', 'b.img', 'c.img']);
    const copy = await again('s.img', ['a.img', 'NEW.img', 'c.img']);
    expect(copy.complete).toBe(true);
    expect(copy.destinations.map(({ totalSectorCount }) => totalSectorCount)).toEqual([0, SECTORS, 0]);
    expect(readFileSync(path('NEW.img')).equals(bytes)).toBe(true);
    expect(ownersOf(readFileSync(path('map.2'), 'utf8'))?.destination.disk).toMatchObject({ path: path('b.img') });
    expect(ownersOf(readFileSync(path('map.4'), 'utf8'))?.destination.disk).toMatchObject({ path: path('NEW.img') });
  });

  it('are found for one of the destinations alone, and after a rename of its image', async () => {
    const { path, again } = await copiedOnce(['a.img', 'b.img']);
    renameSync(path('b.img'), path('renamed.img'));
    const copy = await again('s.img', ['renamed.img']);
    expect(copy.destinations[0]!.totalSectorCount).toBe(0);
    expect(existsSync(path('map'))).toBe(false);
  });
});

describe('a map of other disks is refused, naming both', () => {
  it('where the destination was deleted; the image is not made, and the map stays', async () => {
    const { path, bytes, again } = await copiedOnce(['a.img']);
    const map = readFileSync(path('map'), 'utf8');
    rmSync(path('a.img'));
    await expect(again('s.img', ['a.img'])).rejects.toMatchObject({ code: 'ESTALE' });
    expect([existsSync(path('a.img')), readFileSync(path('map'), 'utf8')]).toEqual([false, map]);
    // Insisted on: nothing is done of what was just made.
    const copy = await again('s.img', ['a.img'], { force: true });
    expect(copy.destinations[0]!.totalSectorCount).toBe(SECTORS);
    expect(readFileSync(path('a.img')).equals(bytes)).toBe(true);
  });

  it('where the destination was replaced, one of several as well', async () => {
    for (const names of [['a.img'], ['a.img', 'b.img']]) {
      const { path, again } = await copiedOnce(names);
      // Made before the old one is gone: an inode may be used again at once.
      writeFileSync(path('other'), Buffer.alloc(SECTORS * 512));
      renameSync(path('other'), path('a.img'));
      await expect(again('s.img', names)).rejects.toThrow(/a\.img is another file now: inode .*--force/);
      expect((await again('s.img', names, { force: true })).destinations[0]!.totalSectorCount).toBe(0);
    }
  });

  it('where the destination is another one', async () => {
    const { path, again } = await copiedOnce(['a.img']);
    writeFileSync(path('b.img'), Buffer.alloc(SECTORS * 512));
    await expect(again('s.img', ['b.img'])).rejects.toThrow(/b\.img is another file now.*\(it was .*a\.img\)/);
  });

  it('where the source is another one, longer, or shorter than the map', async () => {
    const { path, again } = await copiedOnce(['a.img']);
    writeFileSync(path('t.img'), randomBytes(SECTORS * 512, 2));
    await expect(again('t.img', ['a.img'])).rejects.toThrow(/t\.img is another file now.*\(it was .*s\.img\)/);
    writeFileSync(path('a.img'), Buffer.alloc(512), { flag: 'a' });
    writeFileSync(path('s.img'), Buffer.alloc(512), { flag: 'a' });
    await expect(again('s.img', ['a.img'])).rejects.toThrow(/51712 bytes\) is there, and .*51200 bytes\) was expected/);
    writeFileSync(path('s.img'), Buffer.alloc(512));
    await expect(again('s.img', ['a.img'])).rejects.toThrow(
      /s\.img is shorter now: 512 bytes, and 51200 were expected/,
    );
    // Not even when it is insisted on.
    await expect(again('s.img', ['a.img'], { force: true })).rejects.toThrow(/byte 51199, and the source ends at 512/);
  });

  it('where it is of another part of the same disks, or of zeroes', async () => {
    const [source, disk] = [new MemoryDevice('source', 200), new MemoryDevice('disk', 200)];
    const dm = mapperWith([source, disk]);
    const mapfile = join(tempDir(), 'map');
    await copied(dm, 'source:10+20', ['disk:30+20'], { mapfile });
    const again = (from: string | null, to: string) => Copy.open(dm, from, [to], { mapfile, retry: true });
    await expect(again('source:10+20', 'disk:31+20')).rejects.toThrow(/from byte 15360 on .* not from byte 15872 on/);
    await expect(again('source:11+20', 'disk:30+20')).rejects.toThrow(/from byte 5120 on/);
    await expect(again('source:10+21', 'disk:30+21')).rejects.toThrow(/of 10240 bytes, and not of 10752/);
    await expect(again(null, 'disk:30+20')).rejects.toThrow(/copy of .*source .*and not of zeroes/);
    await (await again('source:10+20', 'disk:30+20')).close();
  });

  it('where it does not say to which disks it belongs, and where two say the same', async () => {
    const { path, again } = await copiedOnce(['a.img']);
    const map = readFileSync(path('map'), 'utf8');
    writeFileSync(path('map.7'), map);
    await expect(again('s.img', ['a.img'])).rejects.toThrow(/map and .*map\.7 are maps of .*a\.img/);
    rmSync(path('map.7'));
    for (const damage of [
      '',
      '# dmkit copies: {"source":',
      '# dmkit copies: {"source":null,"destination":{},"byteLength":1}',
    ]) {
      writeFileSync(path('map'), map.replace(/^# dmkit copies.*$/m, damage));
      await expect(again('s.img', ['a.img'])).rejects.toThrow(/does not say which disks it belongs to/);
    }
    expect((await again('s.img', ['a.img'], { force: true })).destinations[0]!.totalSectorCount).toBe(0);
    // From now on it says so.
    expect((await again('s.img', ['a.img'])).complete).toBe(true);
  });
});

const HEAD = '0x0 ? 1\n';
/** Whatever a person, a full disk or another program may make of a map. */
const MAPS = [
  ...['0', '-1'].map((pass) => `0x0 ? ${pass}\n0x0 0x200 +\n`),
  ...[...'?*/-FG+x'].flatMap((status) => [`0x0 ${status} 1\n0x0 0x200 +\n`, `${HEAD}0x0 0x200 ${status}\n`]),
  ...['00', '01000', '0777', '08', '09', '1k', '-512', '512.0', '5e2', '1_000', '0x2zz', '0x', '0X200', '512'].flatMap(
    (number) => [`${HEAD}0x0 ${number} +\n`, `${HEAD}${number} 0x200 +\n`, `${number} ? 1\n0x0 0x200 +\n`],
  ),
  `${HEAD}0 0777 +\n511 0x200 ?\n`,
  `${HEAD}0 01000 +\n01000 0x200 ?\n`,
  `${HEAD}0 01000 +\n1000 0x200 ?\n`,
  `${HEAD}0 512 +\n1024 512 +\n`,
  `${HEAD}0 1024 +\n512 512 +\n`,
  `${HEAD}512 512 +\n0 512 +\n`,
  `${HEAD}0x0 0x200\n`,
  `${HEAD}0x0 0x200 +\n0x200 0x1\n`,
  `${HEAD}0x0 0x200 +\n0x20`,
  `${HEAD}0x0 0x200 +\n\0`,
  `${HEAD}0x0 0x8000000000000000 +\n`,
  `${HEAD}0x0 0x200 +\n0x200 0x7FFFFFFFFFFFFFFF ?\n`,
  '0x0 0x200 +\n',
  '\x7fELF\x02',
  `${HEAD}\n\n  0x0\t0x200   +  \n`,
  `0x0 ? 1\r\n0x0 0x200 +\r\n`,
];

describe('a damaged map', () => {
  itPeer(['ddrescue'], 'is refused where ddrescue refuses it, and read as ddrescue reads it', async () => {
    const folder = tempDir();
    const map = join(folder, 'map');
    writeFileSync(join(folder, 's.img'), Buffer.alloc(4096));
    let refusedCount = 0;
    for (const text of MAPS) {
      writeFileSync(map, text);
      rmSync(join(folder, 'd.img'), { force: true });
      const theirs = await run(peer('ddrescue'), ['-q', 's.img', 'd.img', 'map'], { cwd: folder });
      let ours = true;
      try {
        parseMapfile(text, 'map', 0, 4096);
      } catch {
        ours = false;
      }
      if (theirs.code !== 0) refusedCount++;
      if (theirs.code !== 0) expect([text, ours]).toEqual([text, false]);
    }
    expect(refusedCount).toBeGreaterThan(20);
    expect(parseMapfile(`${HEAD}0 01000 +\n512 512 ?\n`, 'map', 0, 4096).entries[0]).toMatchObject({
      start: 0,
      end: 1,
    });
  });

  itPeer(['ddrescue'], 'is none of ours: ddrescue goes on with it, and so does dmkit after it, when told', async () => {
    const { path, bytes, again } = await copiedOnce(['a.img']);
    markNotTried(path('map'));
    writeFileSync(path('a.img'), Buffer.alloc(512), { flag: 'r+' });
    const theirs = await run(peer('ddrescue'), ['-q', path('s.img'), path('a.img'), path('map')]);
    expect([theirs.code, readFileSync(path('a.img')).equals(bytes)]).toEqual([0, true]);
    await expect(again('s.img', ['a.img'])).rejects.toThrow(/GNU ddrescue/);
    expect((await again('s.img', ['a.img'], { force: true })).destinations[0]!.totalSectorCount).toBe(0);
  });
});

describe('a map on a disk that is full', () => {
  itPeer(['root'], 'never replaces the good one, and the exit code says so', async () => {
    const folder = tempDir();
    const place = join(folder, 'small');
    await run('mkdir', [place]);
    if ((await run('mount', ['-t', 'tmpfs', '-o', 'size=16k', 'tmpfs', place])).code !== 0) return;
    try {
      writeFileSync(join(folder, 's.img'), randomBytes(SECTORS * 512, 1));
      const args = ['copy', 's.img', 'a.img', '--mapfile', join(place, 'map')];
      expect((await dmkit(args, { cwd: folder })).code).toBe(0);
      const good = readFileSync(join(place, 'map'), 'utf8');
      // Not a page is left for the next one.
      for (let size = 4096; size > 0; size >>= 1) {
        try {
          for (;;) writeFileSync(join(place, 'rest'), Buffer.alloc(size), { flag: 'a' });
        } catch {}
      }
      const result = await dmkit([...args, '--retry'], { cwd: folder });
      expect([result.code, result.stderr]).toEqual([1, expect.stringMatching(/cannot write the mapfile .*No space/)]);
      expect(readFileSync(join(place, 'map'), 'utf8')).toBe(good);
      expect(existsSync(join(place, 'map.new'))).toBe(false);
    } finally {
      await run('umount', ['-l', place]);
    }
  });
});
