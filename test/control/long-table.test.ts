// A long table keeps the event loop from nothing else: counted in turns of the loop, not in time.
import { describe, expect, test } from 'vitest';
import { entriesWith } from '../../src/control/core/long-table.ts';
import { LongText } from '../../src/table/long-text.ts';

const PIECE_COUNT = 256;
const LINES_IN_PIECE = 64;

function linesOf(piece: number, params: string): string {
  let text = '';
  for (let line = 0; line < LINES_IN_PIECE; line++) {
    text += `${(piece * LINES_IN_PIECE + line) * 8} 8 linear ${params} 0\n`;
  }
  return text;
}

/** Awaits a promise. @returns what it gives, and how often the loop went round meanwhile */
async function turnsDuring<Result>(work: Promise<Result>): Promise<{ result: Result; turnCount: number }> {
  let turnCount = 0;
  let isOver = false;
  const count = (): void => {
    if (isOver) return;
    turnCount++;
    setImmediate(count);
  };
  setImmediate(count);
  const result = await work.finally(() => {
    isOver = true;
  });
  return { result, turnCount };
}

describe('a question about a long table', () => {
  const pieces = Array.from({ length: PIECE_COUNT }, (_, piece) => linesOf(piece, 'a.img'));

  test('is answered in many turns of the loop where nothing is found', async () => {
    const { result, turnCount } = await turnsDuring(entriesWith(new LongText(pieces), '://'));
    expect(result).toEqual([]);
    expect(turnCount).toBeGreaterThanOrEqual(PIECE_COUNT / 8 - 1);
  });

  test('is answered in many turns of the loop with the lines that have the word, cut ones among them', async () => {
    const uri = 'nbd://host/disk';
    const text = `${pieces.join('')}${linesOf(PIECE_COUNT, uri)}`;
    // Every line of the word is cut inside it.
    const cut = text.split(/(?<=nbd:)/);
    const { result, turnCount } = await turnsDuring(entriesWith(new LongText(cut), '://'));
    expect(result).toHaveLength(LINES_IN_PIECE);
    for (const { params } of result) expect(params).toBe(`${uri} 0`);
    expect(turnCount).toBeGreaterThanOrEqual((PIECE_COUNT * LINES_IN_PIECE) / 1024 - 1);
  });

  test('is answered with nothing where a line can not be read: its load says why', async () => {
    expect(await entriesWith(new LongText(['0 8 linear nbd://x 0\n', 'no line\n']), '://')).toEqual([]);
  });
});
