import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { escapeArgument } from '../../src/block/escape.ts';
import { formatTable, parseTable, splitArguments } from '../../src/table/text.ts';

const LINE = { sector: 0, sectorCount: 8, type: 'zero', params: '' };

describe('parseTable', () => {
  test.each([
    ['plain', '0 8 zero', [LINE]],
    ['blank lines and comments are skipped', '\n  # 0 9 error\n\t\n0 8 zero\n#', [LINE]],
    ['CRLF, tabs and blanks in front', '\t 0\t8 \tzero \r\n', [LINE]],
    ['no newline at the end', '0 8 zero\n8 1 error', [LINE, { sector: 8, sectorCount: 1, type: 'error', params: '' }]],
    ['signs are read', '+0 +8 zero', [LINE]],
    ['a type may follow its length at once', '0 8zero', [LINE]],
    ['a # ends parameters even inside a word', '0 8 linear a 0#1', [{ ...LINE, type: 'linear', params: 'a 0' }]],
    ['a # glued to the type is part of it', '0 8 zero#c', [{ ...LINE, type: 'zero#c' }]],
    ['a protected # is kept', '0 8 linear a\\#1 0 # c', [{ ...LINE, type: 'linear', params: 'a\\#1 0' }]],
    ['nothing', '', []],
  ])('%s', (_name, text, entries) => {
    expect(parseTable(text)).toEqual(entries);
  });

  test('a negative number wraps as in C, and stays too large for any table', () => {
    expect(parseTable('-8 8 zero')[0]!.sector).toBe(2 ** 64 - 8);
    expect(parseTable('99999999999999999999999 8 zero')[0]!.sector).toBe(2 ** 64);
  });

  test.each([
    ['0x0 8 zero', 1],
    ['0 8', 1],
    ['0 8 zero\n\n# c\nzero 0 8', 4],
    ['8', 1],
    ['0 0x8 zero', 1],
  ])('%j is refused with its line', (text, line) => {
    // "0 0x8 zero" reads as 0, 0 and type "x8": it is the table that refuses it, as a zero-length line.
    if (text.includes('0 0x8')) expect(parseTable(text)[0]!.sectorCount).toBe(0);
    else expect(() => parseTable(text, 'on stdin')).toThrow(`Invalid format on line ${line} of table on stdin`);
  });

  test('a million lines are read', () => {
    const text = Array.from({ length: 1_000_000 }, (_, i) => `${i * 8} 8 zero`).join('\n');
    const entries = parseTable(text);
    expect(entries.length).toBe(1_000_000);
    expect(entries[999_999]).toEqual({ sector: 7_999_992, sectorCount: 8, type: 'zero', params: '' });
  });
});

describe('splitArguments', () => {
  test.each([
    ['a 0', ['a', '0']],
    ['  a \t 0  ', ['a', '0']],
    ['a\\ b 0', ['a b', '0']],
    ['a\\\\ 0', ['a\\', '0']],
    ['q\\x20r 0', ['q\\x20r', '0']],
    ['', []],
  ])('%j', (params, args) => {
    expect(splitArguments(params)).toEqual(args);
  });
});

test('every name that is escaped into a line is read back', () => {
  const name = fc.string({ minLength: 1, unit: fc.constantFrom('a', '/', ' ', '\\', '#', '\t', 'x', 'ö', '\v') });
  fc.assert(
    fc.property(fc.array(name, { minLength: 1, maxLength: 5 }), (names) => {
      const params = names.map(escapeArgument).join(' ');
      const [entry] = parseTable(formatTable([{ ...LINE, params }]));
      expect(splitArguments(entry!.params)).toEqual(names);
    }),
  );
});
