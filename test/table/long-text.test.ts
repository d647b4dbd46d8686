// Text in pieces reads as the same text in one.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { LongText } from '../../src/table/long-text.ts';
import { runSteps } from '../../src/table/steps.ts';
import { checkTextSteps, parseTable, type TableEntry, TableReader } from '../../src/table/text.ts';

/** Cuts a text at some places, also at the same one twice. */
function cut(text: string, places: readonly number[]): LongText {
  const ends = [...places.map((place) => place % (text.length + 1)), text.length].sort((a, b) => a - b);
  let start = 0;
  return new LongText(
    ends.map((end) => {
      const piece = text.slice(start, end);
      start = end;
      return piece;
    }),
  );
}

function readAll(text: LongText): TableEntry[] {
  const entries: TableEntry[] = [];
  for (const reader = new TableReader(text); !reader.isAtEnd; ) {
    const entry = reader.next();
    if (entry !== undefined) entries.push(entry);
  }
  return entries;
}

function outcome<Result>(work: () => Result): Result | string {
  try {
    return work();
  } catch (error) {
    return (error as Error).message;
  }
}

const LINE = fc.constantFrom('0 8 linear a.img 0', '8 8 zero', '', '# a comment', ' 16 8 error  ', 'no line', '1 2');
const PLACES = fc.array(fc.nat(400), { maxLength: 12 });

describe('a long text in pieces', () => {
  test('has the entries, or the refusal, of the same text in one', () => {
    fc.assert(
      fc.property(fc.array(LINE, { maxLength: 12 }), fc.boolean(), PLACES, (lines, endsWithNewline, places) => {
        const text = lines.join('\n') + (endsWithNewline ? '\n' : '');
        const long = cut(text, places);
        expect(outcome(() => readAll(long))).toEqual(outcome(() => parseTable(text)));
        expect(outcome(() => runSteps(checkTextSteps(long)))).toEqual(outcome(() => parseTable(text).length));
        expect(String(long)).toBe(text);
      }),
    );
  });

  test('mentions a word that the same text in one has, wherever it is cut', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[ab]{0,24}$/), fc.stringMatching(/^[ab]{1,5}$/), PLACES, (text, word, places) => {
        const long = cut(text, places);
        expect(long.pieces.some((_, index) => long.pieceMentions(index, word))).toBe(text.includes(word));
      }),
    );
  });
});
