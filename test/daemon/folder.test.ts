// Where a daemon lives, and what it leaves there.
import { chmodSync, mkdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { translator } from '../../src/control/host-paths.ts';
import { DaemonFolder, daemonFolder } from '../../src/daemon/folder.ts';
import { takeLock } from '../../src/daemon/lock.ts';
import { activate, mapperOver } from '../support/stack.ts';
import { tempDir } from '../support/tmp.ts';

describe('the folder', () => {
  test('is DMKIT_DIR, else below XDG_RUNTIME_DIR, else this user’s among the temporary ones', () => {
    expect(daemonFolder({ DMKIT_DIR: 'here', XDG_RUNTIME_DIR: '/run/user/1' }).path).toBe(join(process.cwd(), 'here'));
    expect(daemonFolder({ XDG_RUNTIME_DIR: '/run/user/1' }).path).toBe('/run/user/1/dmkit');
    expect(daemonFolder({}).path).toMatch(/dmkit-\d+$/);
  });

  test('is made for its user alone', () => {
    const folder = new DaemonFolder(join(tempDir(), 'a', 'b'));
    folder.make();
    expect(statSync(folder.path).mode & 0o777).toBe(0o700);
    folder.make();
  });

  test.each([
    ['open to others', (path: string) => chmodSync(path, 0o755)],
    ['open to the group', (path: string) => chmodSync(path, 0o710)],
  ])('is refused when it is %s', (_what, change) => {
    const path = join(tempDir(), 'd');
    mkdirSync(path, { mode: 0o700 });
    change(path);
    expect(() => new DaemonFolder(path).make()).toThrow(/must be yours alone/);
  });

  test('is refused when it is a file or a symlink', () => {
    const base = tempDir();
    writeFileSync(join(base, 'file'), '');
    mkdirSync(join(base, 'real'), { mode: 0o700 });
    symlinkSync(join(base, 'real'), join(base, 'link'));
    for (const name of ['file', 'link']) expect(() => new DaemonFolder(join(base, name)).check()).toThrow(/no folder/);
  });

  test('must leave room for its sockets: the 107 bytes of a socket path are counted', () => {
    const fits = new DaemonFolder(`/${'x'.repeat(107 - 1 - '/control.sock'.length)}`);
    expect(() => fits.checkSocketPaths()).not.toThrow();
    expect(() => new DaemonFolder(`${fits.path}x`).checkSocketPaths()).toThrow(/108 bytes.*at most 107.*DMKIT_DIR/s);
    expect(() => new DaemonFolder(`/${'ö'.repeat(60)}`).checkSocketPaths()).toThrow(/at most/);
  });
});

describe('the lock', () => {
  test('is one daemon’s', () => {
    const path = join(tempDir(), 'daemon.lock');
    const lock = takeLock(path);
    expect(() => takeLock(path)).toThrow(/another daemon/);
    lock.release();
    takeLock(path).release();
  });
});

describe('a device argument from somewhere else', () => {
  const { mapper } = mapperOver();
  activate(mapper, 'both', '0 8 zero');
  const translate = translator(mapper, (path) => ['/dev/mapper/both', '/dev/mapper/host', '/dev/dm-0'].includes(path));

  test.each([
    ['a.img', '/home/me/a.img'],
    ['../a.img', '/home/a.img'],
    ['/abs/a.img', '/abs/a.img'],
    ['253:0', '253:0'],
    ['dm:both', 'dm:both'],
    ['/dev/mapper/host', '/dev/mapper/host'],
    ['/dev/mapper/neither', '/dev/mapper/neither'],
    ['/dev/dm-7', '/dev/dm-7'],
  ])('%s is %s', (argument, result) => {
    expect(translate('/home/me', false)(argument)).toBe(result);
  });

  test.each(['/dev/mapper/both', '/dev/dm-0'])('%s is the host’s and ours: refused, with the way out', (argument) => {
    expect(() => translate('/', false)(argument)).toThrow(/dm:.*--host/);
  });

  test('/dev/dm-N of ours alone is ours', () => {
    expect(translator(mapper, () => false)('/', false)('/dev/dm-0')).toBe('253:0');
  });

  test('--host means the host’s, and says where there is none', () => {
    expect(() => translate('/', true)('/dev/mapper/both')).toThrow(/this host has no/);
    expect(translate('/x', true)('a.img')).toBe('/x/a.img');
  });
});
