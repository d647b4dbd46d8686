// A file is replaced whole or not at all, whichever call fails.

import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { Errno, type ErrnoName } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { removeLeftovers, replaceFile } from '../../src/files/replace-file.ts';
import { errorOf } from '../support/errors.ts';
import { itPeer } from '../support/peers.ts';
import { tempDir } from '../support/tmp.ts';
import { injectFailure, shortWrites } from './failing-calls.ts';

function old(content = 'old content') {
  const folder = tempDir('replace');
  const path = join(folder, 'file');
  writeFileSync(path, content);
  return { folder, path, text: () => readFileSync(path, 'utf8'), names: () => readdirSync(folder).sort() };
}

describe('replaceFile', () => {
  test('writes strings and bytes in their order, also many small and some large ones', () => {
    const { path, names } = old();
    const large = 'ü'.repeat(100_000);
    const small = Array.from({ length: 30_000 }, (_, index) => `${index}\n`);
    replaceFile(path, [...small, Buffer.from(large), large, 'end']);
    expect(readFileSync(path, 'utf8') === `${small.join('')}${large}${large}end`).toBe(true);
    replaceFile(path, []);
    expect(statSync(path).size).toBe(0);
    expect(names()).toEqual(['file']);
  });

  test('takes a buffer that its caller uses again for the next piece', () => {
    const { path, text } = old();
    const buffer = Buffer.alloc(3);
    const pieces = function* () {
      for (const word of ['one', 'two', 'six']) {
        buffer.write(word);
        yield buffer;
      }
    };
    replaceFile(path, pieces());
    expect(text()).toBe('onetwosix');
  });

  test('is whole with writes that take a few bytes at a time', () => {
    const { path, text } = old();
    shortWrites(7);
    replaceFile(path, ['x'.repeat(1000), 'y'.repeat(70_000)]);
    expect(text() === 'x'.repeat(1000) + 'y'.repeat(70_000)).toBe(true);
  });

  const failures = (['ENOSPC', 'EDQUOT', 'EIO', 'EROFS'] as ErrnoName[]).flatMap((code) =>
    (['open', 'write', 'fsync', 'rename'] as const).map((call) => [code, call] as const),
  );
  test.each(failures)('leaves the old file as it was and nothing beside it after %s at %s', (code, call) => {
    for (let nth = 1; ; nth++) {
      const { path, text, names } = old();
      const failure = injectFailure([call], nth, code);
      const pieces = ['a'.repeat(70_000), 'b'.repeat(70_000)];
      // The folder's open and sync come after the rename: no file can be taken back then.
      const isFolder = nth === 2 && (call === 'open' || call === 'fsync');
      let error: DmError | null = null;
      try {
        replaceFile(path, pieces);
      } catch (thrown) {
        error = thrown as DmError;
      }
      failure.restore();
      expect(names()).toEqual(['file']);
      if (!failure.happened()) {
        expect(error).toBe(null);
        expect(nth).toBeGreaterThan(1);
        return;
      }
      expect(error).toBeInstanceOf(DmError);
      expect([error?.errno, error?.message.startsWith(`${path}: `)]).toEqual([Errno[code], true]);
      if (isFolder) expect(error?.message).toContain('the new content is there');
      expect(text()).toBe(isFolder ? pieces.join('') : 'old content');
    }
  });

  test('a write that takes nothing and says nothing is an error, and does not go on for ever', () => {
    const { path, text, names } = old();
    shortWrites(0);
    expect(errorOf(() => replaceFile(path, ['new'])).errno).toBe(Errno.EIO);
    expect([text(), names()]).toEqual(['old content', ['file']]);
  });

  test('throws what the pieces throw, and leaves the old file', () => {
    const { path, text, names } = old();
    const pieces = function* () {
      yield 'begin';
      throw new RangeError('mine');
    };
    expect(() => replaceFile(path, pieces())).toThrow(new RangeError('mine'));
    expect([text(), names()]).toEqual(['old content', ['file']]);
  });

  test('keeps the permissions of the old file, or sets those asked for', () => {
    const { path, folder } = old();
    chmodSync(path, 0o640);
    replaceFile(path, ['new']);
    expect(statSync(path).mode & 0o777).toBe(0o640);
    replaceFile(path, ['new'], { mode: 0o600 });
    expect(statSync(path).mode & 0o777).toBe(0o600);
    replaceFile(join(folder, 'other'), ['new'], { durable: false });
    expect(statSync(join(folder, 'other')).mode & 0o777).toBe(0o666 & ~process.umask());
  });

  test('replaces the file behind a symbolic link, not the link', () => {
    const { path, folder, text } = old();
    const link = join(folder, 'link');
    symlinkSync(path, link);
    replaceFile(link, ['new']);
    expect([text(), readFileSync(link, 'utf8'), readdirSync(folder).sort()]).toEqual(['new', 'new', ['file', 'link']]);
    replaceFile(path, ['newer']);
    expect(readFileSync(link, 'utf8')).toBe('newer');
  });

  test('refuses to put a file in the place of a folder, a pipe or a device', () => {
    const { folder } = old();
    const pipe = join(folder, 'pipe');
    mkdirSync(join(folder, 'sub'));
    expect(errorOf(() => replaceFile(join(folder, 'sub'), ['x'])).errno).toBe(Errno.EISDIR);
    expect(spawnSync('mkfifo', [pipe]).status).toBe(0);
    expect(errorOf(() => replaceFile(pipe, ['x'])).message).toBe(
      `${pipe}: not a regular file, so it can't be replaced by one`,
    );
    expect(statSync(pipe).isFIFO()).toBe(true);
  });

  test('names the file where its folder is not there', () => {
    const path = join(tempDir(), 'none', 'file');
    const error = errorOf(() => replaceFile(path, ['x']));
    expect([error.errno, error.message]).toEqual([Errno.ENOENT, `${path}: No such file or directory`]);
  });

  test('removeLeftovers takes what killed replacements left, and nothing else', () => {
    const { path, folder, names } = old();
    for (const name of ['file.new-12-0123abcd', 'file.new', 'file.new-mine', 'file2.new-12-0123abcd']) {
      writeFileSync(join(folder, name), '');
    }
    removeLeftovers(path);
    expect(names()).toEqual(['file', 'file.new', 'file.new-mine', 'file2.new-12-0123abcd']);
  });

  itPeer(['root'], 'on a file system that is full the old file stays, and nothing beside it', () => {
    const folder = mkdtempSync(join(tempDir('full'), 'small-'));
    expect(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'none', folder]).status).toBe(0);
    onTestFinished(() => void spawnSync('umount', ['-l', folder], { timeout: 240_000 }));
    const path = join(folder, 'file');
    replaceFile(path, ['old content']);
    const error = errorOf(() => replaceFile(path, ['x'.repeat(100_000)]));
    expect([error.errno, error.message]).toEqual([Errno.ENOSPC, `${path}: No space left on device`]);
    expect([readFileSync(path, 'utf8'), readdirSync(folder)]).toEqual(['old content', ['file']]);
    expect(existsSync(path)).toBe(true);
  });
});
