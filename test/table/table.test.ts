import { describe, expect, test } from 'vitest';
import { TableError } from '../../src/block/errors.ts';
import { buildTable } from '../../src/table/builder.ts';
import { calculateLimits } from '../../src/table/limits.ts';
import { type Table, tablePieces } from '../../src/table/table.ts';
import { parseTable } from '../../src/table/text.ts';
import { Targets } from '../../src/targets/index.ts';
import { CountingResolver, RecordingDevice } from '../support/stack.ts';

const a = new RecordingDevice('a', 100);
const b = new RecordingDevice('b', 64);
const big = new RecordingDevice('big', 800, { logicalBlockSize: 4096 });
const empty = new RecordingDevice('empty', 0);

function build(text: string, options: { readOnly?: boolean; resolver?: CountingResolver } = {}): Table {
  return buildTable(parseTable(text), {
    registry: new Targets(),
    resolver: options.resolver ?? new CountingResolver(a, b, big, empty),
    readOnly: options.readOnly ?? false,
  });
}

function refusal(text: string): string {
  const resolver = new CountingResolver(a, b, big, empty);
  try {
    calculateLimits(build(text, { resolver }));
  } catch (error) {
    if (!(error instanceof TableError)) throw error;
    return `${error.code} line ${error.lineIndex}: ${error.reason}`;
  }
  return 'accepted';
}

describe('what the kernel refuses, with its words, in its order', () => {
  test.each([
    ['0 0 nosuch', 'EINVAL line 0: zero-length target'],
    ['0 18446744073709551615 nosuch', 'EINVAL line 0: too large device'],
    ['9007199254740991 1 zero', 'EINVAL line 0: too large device'],
    ['-8 8 zero', 'EINVAL line 0: too large device'],
    ['1 8 nosuch', 'EINVAL line 0: nosuch: unknown target type'],
    ['0 8 LINEAR a 0', 'EINVAL line 0: LINEAR: unknown target type'],
    ['1 8 zero', 'EINVAL line 0: zero: Gap in table (-EINVAL)'],
    ['0 8 zero\n9 8 zero', 'EINVAL line 1: zero: Gap in table (-EINVAL)'],
    ['0 8 zero\n7 8 linear nosuch x', 'EINVAL line 1: linear: Gap in table (-EINVAL)'],
    ['0 8 linear a', 'EINVAL line 0: linear: Invalid argument count (-EINVAL)'],
    ['0 8 linear a 0 0', 'EINVAL line 0: linear: Invalid argument count (-EINVAL)'],
    ['0 8 linear nosuch x', 'EINVAL line 0: linear: Invalid device sector (-EINVAL)'],
    ['0 8 linear a -1', 'EINVAL line 0: linear: Invalid device sector (-EINVAL)'],
    ['0 8 linear a 0x10', 'EINVAL line 0: linear: Invalid device sector (-EINVAL)'],
    ['0 8 linear a 1z', 'EINVAL line 0: linear: Invalid device sector (-EINVAL)'],
    ['0 8 linear nosuch 0', 'ENODEV line 0: linear: Device lookup failed (-ENODEV)'],
    ['0 8 zero 1', 'EINVAL line 0: zero: No arguments required (-EINVAL)'],
    ['0 8 striped', 'EINVAL line 0: striped: Not enough arguments (-EINVAL)'],
    ['0 8 striped 0 4 a 0', 'EINVAL line 0: striped: Invalid stripe count (-EINVAL)'],
    ['0 8 striped -1 4 a 0', 'EINVAL line 0: striped: Invalid stripe count (-EINVAL)'],
    ['0 8 striped 4294967297 4 a 0', 'EINVAL line 0: striped: Invalid stripe count (-EINVAL)'],
    ['0 8 striped 2 0 a 0', 'EINVAL line 0: striped: Invalid chunk_size (-EINVAL)'],
    ['0 8 striped 2 0x4 a 0', 'EINVAL line 0: striped: Invalid chunk_size (-EINVAL)'],
    ['0 9 striped 2 4', 'EINVAL line 0: striped: Target length not divisible by number of stripes (-EINVAL)'],
    ['0 10 striped 2 4', 'EINVAL line 0: striped: Target length not divisible by chunk size (-EINVAL)'],
    ['0 8 striped 2 4 a 0 b', 'EINVAL line 0: striped: Not enough destinations specified (-EINVAL)'],
    ['0 8 striped 2 4 a 0 b 0 c 0', 'EINVAL line 0: striped: Not enough destinations specified (-EINVAL)'],
    ['0 8 striped 2 4 a 0 b x', "EINVAL line 0: striped: Couldn't parse stripe destination (-EINVAL)"],
    ['0 8 striped 2 4 a 0 nosuch 0', "ENODEV line 0: striped: Couldn't parse stripe destination (-ENODEV)"],
    ['0 101 linear a 0', 'EINVAL line 0: a too small for target: start=0, len=101, dev_size=100'],
    ['0 1 linear a 100', 'EINVAL line 0: a too small for target: start=100, len=1, dev_size=100'],
    ['0 8 zero\n8 130 striped 2 1 b 0 a 0', 'EINVAL line 1: b too small for target: start=0, len=65, dev_size=64'],
    ['0 8 linear big 1', 'EINVAL line 0: start=1 not aligned to h/w logical block size 4096 of big'],
    ['0 7 linear big 0', 'EINVAL line 0: len=7 not aligned to h/w logical block size 4096 of big'],
    [
      '0 7 zero\n7 8 linear big 0',
      'EINVAL line 1: table line 1 (start sect 7 len 8) not aligned to h/w logical block size 4096',
    ],
    [
      '0 8 linear big 0\n8 7 zero',
      'EINVAL line 2: table line 2 (start sect 8 len 7) not aligned to h/w logical block size 4096',
    ],
  ])('%j', (text, expected) => {
    expect(refusal(text)).toBe(expected);
  });

  test.each([
    ['0 8 striped +2 4 a 0 b 0'],
    ['0 8 linear a 18446744073709551621'],
    ['0 8 linear a 0000'],
    ['0 8 error any thing at all'],
    ['0 999 linear empty 0'],
    ['0 12 striped 4 3 a 0 a 3 a 6 a 9'],
    ['0 7 zero\n7 1 zero\n8 8 linear big 0'],
    ['0 9007199254740991 zero'],
  ])('%j is accepted', (text) => {
    expect(refusal(text)).toBe('accepted');
  });

  test('no line at all', () => {
    expect(() => build('')).toThrow('no targets specified');
  });
});

test('an offset past 2^64 wraps, as in the kernel', () => {
  expect(build('0 8 linear a 18446744073709551621').lines('table')).toEqual(['0 8 linear a 5']);
});

test('a refused line closes every device that earlier lines opened', () => {
  const resolver = new CountingResolver(a, b);
  expect(() => build('0 8 linear a 0\n8 8 striped 2 4 a 8 b 0\n16 8 nosuch', { resolver })).toThrow(TableError);
  expect(() => build('0 8 striped 2 4 a 0 nosuch 0', { resolver })).toThrow(TableError);
  expect(resolver.totalOpenCount).toBe(0);
});

test('a device is opened once, however many lines use it, and closed with the table', () => {
  const resolver = new CountingResolver(a, b);
  const table = build('0 8 linear a 0\n8 8 linear a 20\n16 8 striped 2 4 a 40 b 0', { resolver });
  expect([resolver.openCount(a), resolver.openCount(b)]).toEqual([1, 1]);
  table.destroy();
  expect(resolver.totalOpenCount).toBe(0);
});

test('table and status lines are what dmsetup prints', () => {
  const table = build('0 8 linear a 5\n8 24 zero\n32 16 striped 2 4 a 0 b 8\n48 8 error x');
  expect(table.lines('table')).toEqual(['0 8 linear a 5', '8 24 zero ', '32 16 striped 2 4 a 0 b 8', '48 8 error ']);
  expect(table.lines('info')).toEqual(['0 8 linear ', '8 24 zero ', '32 16 striped 2 a b 1 AA', '48 8 error ']);
});

describe('a table in pieces', () => {
  /** Lines on a device with a name that is hard to cut. */
  function named(name: string, lineCount: number): Table {
    const resolver = new CountingResolver(new RecordingDevice(name, 100));
    const entries = Array.from({ length: lineCount }, (_, sector) => ({
      sector,
      sectorCount: 1,
      type: 'linear',
      params: `${name} 0`,
    }));
    return buildTable(entries, { registry: new Targets(), resolver });
  }

  test.each([
    ['one line', 'a', 1],
    ['many lines', 'a', 20_000],
    ['characters of two units, at every offset', 'x😀😀😀', 30_000],
    ['lines that are longer than a piece', '😀'.repeat(100_000), 3],
    ['such lines, with the characters shifted by one', `x${'😀'.repeat(100_000)}`, 3],
  ])('is the same text: %s', (_, name, lineCount) => {
    const table = named(name, lineCount);
    for (const type of ['table', 'info'] as const) {
      const pieces = [...tablePieces(table, type)];
      expect(pieces.join('')).toBe(table.lines(type).join('\n'));
      for (const piece of pieces) {
        expect(piece.length).toBeLessThanOrEqual(65_536);
        expect(piece.length).toBeGreaterThan(0);
        // Half a character would come back as another one.
        expect(Buffer.from(piece).toString()).toBe(piece);
      }
      expect(pieces.slice(0, -1).every((piece) => piece.length >= 65_535)).toBe(true);
    }
  });
});

describe('limits', () => {
  test('io_min and io_opt of a stripe, largest logical block of all', () => {
    const limits = calculateLimits(build('0 32 striped 2 8 big 0 a 0\n32 8 zero'));
    expect(limits).toMatchObject({ logicalBlockSize: 4096, ioMin: 4096, ioOpt: 8192 });
  });

  test('discard and write-zeroes need every line and every device', () => {
    const noDiscard = new RecordingDevice('n', 100, { maxDiscardSectorCount: 0, maxWriteZeroesSectorCount: 0 });
    const resolver = new CountingResolver(a, noDiscard);
    const supports = (text: string) => {
      const limits = calculateLimits(build(text, { resolver }));
      return [limits.maxDiscardSectorCount > 0, limits.maxWriteZeroesSectorCount > 0];
    };
    expect(supports('0 8 linear a 0\n8 8 linear a 8')).toEqual([true, true]);
    expect(supports('0 8 linear a 0\n8 8 linear n 8')).toEqual([false, false]);
    expect(supports('0 8 linear a 0\n8 8 zero')).toEqual([false, false]);
    expect(supports('0 8 linear a 0\n8 8 error')).toEqual([false, false]);
  });

  test('zero and error alone have no cache to flush, linear has its device’s', () => {
    expect(calculateLimits(build('0 8 zero\n8 8 error')).hasWriteCache).toBe(false);
    expect(calculateLimits(build('0 8 zero\n8 8 linear a 0')).hasWriteCache).toBe(true);
  });
});

test('find gives the target of every sector, also out of order, and none past the end', () => {
  const table = build('0 1 zero\n1 7 error\n8 1 zero\n9 91 error');
  const begins = [99, 0, 8, 1, 7, 9, 0, 50].map((sector) => table.find(sector)?.begin);
  expect(begins).toEqual([9, 0, 8, 1, 1, 9, 0, 9]);
  expect(table.find(100)).toBeUndefined();
});
