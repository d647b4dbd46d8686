import { describe, expect, test } from 'vitest';
import { Errno } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { chooseMajor } from '../../src/reactor/major.ts';
import { activate, mapperOver, RecordingDevice, resume } from '../support/stack.ts';

function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return (error as DmError).code;
  }
  return 'none';
}

describe('names', () => {
  test.each([
    ['', 'EINVAL'],
    ['x'.repeat(128), 'EINVAL'],
    ['ö'.repeat(64), 'EINVAL'],
    ['a/b', 'EINVAL'],
    ['a\0b', 'EINVAL'],
    ['x'.repeat(127), 'none'],
    ['control', 'none'],
    ['a b', 'none'],
  ])('%j: %s', (name, code) => {
    expect(codeOf(() => mapperOver().mapper.create(name))).toBe(code);
  });

  test('a name or uuid that is taken is busy', () => {
    const { mapper } = mapperOver();
    mapper.create('a', { uuid: 'U' });
    expect(codeOf(() => mapper.create('a'))).toBe('EBUSY');
    expect(codeOf(() => mapper.create('b', { uuid: 'U' }))).toBe('EBUSY');
    expect(codeOf(() => mapper.create('b', { uuid: 'x'.repeat(129) }))).toBe('EINVAL');
    expect(codeOf(() => mapper.get('nosuch'))).toBe('ENXIO');
  });

  test('minors: the lowest free one, or the one asked for if it can be had', () => {
    const { mapper } = mapperOver();
    mapper.create('a');
    mapper.create('b');
    mapper.remove(mapper.get('a'));
    expect(mapper.create('c').name).toBe('253:0');
    expect(mapper.create('d', { minor: 9 }).name).toBe('253:9');
    expect(codeOf(() => mapper.create('e', { minor: 9 }))).toBe('ENXIO');
    expect(codeOf(() => mapper.create('e', { minor: 2 ** 20 }))).toBe('ENXIO');
    expect(mapper.list().map((d) => d.dmName)).toEqual(['b', 'c', 'd']);
  });

  test('the major number is one that no driver has', () => {
    expect(chooseMajor(new Set())).toBe(253);
    expect(chooseMajor(new Set([253, 252]))).toBe(251);
    expect(() => chooseMajor(new Set(Array.from({ length: 512 }, (_, i) => i)))).toThrow(DmError);
  });
});

describe('stacks', () => {
  test('nothing is put on a device that never had a table: it has no node yet', () => {
    const { mapper } = mapperOver(new RecordingDevice('a', 100));
    const low = mapper.create('low');
    const top = mapper.create('top');
    const onPath = () => mapper.load(top, '0 8 linear /dev/mapper/low 0');
    expect(onPath).toThrow('linear: Device lookup failed (-ENODEV)');
    expect(() => mapper.load(top, '0 8 linear 253:0 0')).toThrow('linear: Device lookup failed (-ENXIO)');
    expect(() => mapper.load(low, '0 101 linear a 0')).toThrow('too small');
    expect(onPath).toThrow('-ENODEV');
    mapper.load(low, '0 8 linear a 0');
    expect(onPath).not.toThrow();
    expect(low.openCount).toBe(1);
  });

  test('a mapped device is named by path or number, and printed by number', () => {
    const a = new RecordingDevice('a', 100);
    const { mapper } = mapperOver(a);
    activate(mapper, 'low', '0 64 linear a 0');
    const top = activate(mapper, 'top', '0 8 linear /dev/mapper/low 0\n8 8 linear 253:0 8');
    expect(top.lines('table')).toEqual(['0 8 linear 253:0 0', '8 8 linear 253:0 8']);
    expect(mapper.get('low').openCount).toBe(1);
    expect(codeOf(() => mapper.load(top, '0 8 linear 253:77 0'))).toBe('ENXIO');
    expect(codeOf(() => mapper.load(top, '0 8 linear /dev/mapper/nosuch 0'))).toBe('ENODEV');
  });

  test('one that is in use cannot be removed; removing all unwinds from the top', () => {
    const a = new RecordingDevice('a', 100);
    const { mapper, resolver } = mapperOver(a);
    activate(mapper, 'low', '0 64 linear a 0');
    activate(mapper, 'mid', '0 64 linear /dev/mapper/low 0');
    activate(mapper, 'top', '0 64 linear /dev/mapper/mid 0');
    expect(codeOf(() => mapper.remove(mapper.get('low')))).toBe('EBUSY');
    expect(mapper.removeAll()).toEqual([]);
    expect([mapper.list(), resolver.totalOpenCount]).toEqual([[], 0]);
  });

  test('a device cannot be mapped to itself, neither directly nor around, nor through a table that waits', () => {
    const a = new RecordingDevice('a', 100);
    const { mapper } = mapperOver(a);
    const low = activate(mapper, 'low', '0 64 linear a 0');
    const mid = activate(mapper, 'mid', '0 64 linear /dev/mapper/low 0');
    activate(mapper, 'top', '0 64 linear /dev/mapper/mid 0');
    for (const name of ['low', 'mid', 'top']) {
      expect(() => mapper.load(low, `0 64 linear /dev/mapper/${name} 0`)).toThrow(
        'linear: Device lookup failed (-EINVAL)',
      );
    }
    const other = activate(mapper, 'other', '0 64 linear a 0');
    mapper.load(other, '0 64 linear /dev/mapper/top 0');
    expect(codeOf(() => mapper.load(mid, '0 64 linear /dev/mapper/other 0'))).toBe('EINVAL');
    expect(other.openCount).toBe(0);
    other.clear();
    mapper.load(mid, '0 64 linear /dev/mapper/other 0');
    resume(mid);
    expect(mid.lines('table')).toEqual([`0 64 linear ${other.name} 0`]);
  });
});

test('errors carry a Linux number', () => {
  expect(new DmError(Errno.EBUSY, 'x')).toMatchObject({ code: 'EBUSY', errno: 16 });
});
