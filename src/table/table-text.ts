// A table's text in pieces, for callers that must not print a long table in one go.
import type { StatusType } from '../block/target.ts';
import type { Table } from './table.ts';
import { formatTableLine } from './text.ts';

const PIECE_LENGTH = 65_536;

/** The lines of `table`, each with a newline, in pieces of about 64 KiB. */
export function* tablePieces(table: Table, type: StatusType): Generator<string> {
  let piece = '';
  for (const target of table.targets) {
    const params = target.type.status?.(target, type) ?? '';
    piece += `${formatTableLine(target.begin, target.sectorCount, target.type.name, params)}\n`;
    if (piece.length >= PIECE_LENGTH) {
      yield piece;
      piece = '';
    }
  }
  if (piece !== '') yield piece;
}
