// Questions about a table before it is loaded, which a long one answers in turns of the event loop.
import { DmError } from '../../block/errors.ts';
import { LongText } from '../../table/long-text.ts';
import { parseTable, type TableEntry, type TableInput, TableReader } from '../../table/text.ts';

/** Pieces of text that are searched in one turn, and lines that are read in one. */
const TURN_PIECE_COUNT = 8;
const TURN_LINE_COUNT = 1024;

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/**
 * The entries of a table in whose type or parameters `word` stands; others may be among them. Of a text that can't be read
 * none: its load says why.
 */
export async function entriesWith(table: TableInput, word: string): Promise<readonly TableEntry[]> {
  if (!(table instanceof LongText)) {
    if (typeof table !== 'string') return table;
    return table.includes(word) ? parseTable(table) : [];
  }
  return (await mentions(table, word)) ? readWith(table, word) : [];
}

async function mentions(text: LongText, word: string): Promise<boolean> {
  for (let index = 0; index < text.pieces.length; index++) {
    if (text.pieceMentions(index, word)) return true;
    if (index % TURN_PIECE_COUNT === TURN_PIECE_COUNT - 1) await turn();
  }
  return false;
}

async function readWith(text: LongText, word: string): Promise<TableEntry[]> {
  const found: TableEntry[] = [];
  const reader = new TableReader(text);
  try {
    for (let lineCount = 1; !reader.isAtEnd; lineCount++) {
      const entry = reader.next();
      if (entry !== undefined && (entry.type.includes(word) || entry.params.includes(word))) found.push(entry);
      if (lineCount % TURN_LINE_COUNT === 0) await turn();
    }
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    return [];
  }
  return found;
}
