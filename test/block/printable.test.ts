// Text from a peer on its way to a terminal.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { printable, printableLines } from '../../src/block/printable.ts';

test('escape sequences, line ends, unseen characters and marks of direction come out as letters and digits', () => {
  expect(printable('a\u001b[31mb\r\nc')).toBe('a\\u001b[31mb\\u000d\\u000ac');
  expect(printable('\u009b2J \u202egnp.exe \u2066x \u200b \u2028 \ufeff')).toBe(
    '\\u009b2J \\u202egnp.exe \\u2066x \\u200b \\u2028 \\ufeff',
  );
  expect(printable('\ud800x \udc00')).toBe('\\ud800x \\udc00');
});

test('what people write stays as it is', () => {
  for (const text of ['grün 日本語 😀 עברית', 'C:\\path "quoted"', '']) expect(printable(text)).toBe(text);
});

test('JSON stays the same JSON, and lines stay lines', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), (text) => {
      const json = printable(JSON.stringify({ text }));
      expect(JSON.parse(json)).toEqual({ text });
      expect(/[\p{Cc}\p{Bidi_Control}]/u.test(printable(text))).toBe(false);
      expect(printableLines(`${printable(text)}\nx`)).toBe(`${printable(text)}\nx`);
    }),
  );
});
