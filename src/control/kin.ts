// Tables that have to do with one origin: overlays of it, and the devices through which it is written.
import type { Table } from '../table/table.ts';
import { parseTable, splitArguments } from '../table/text.ts';
import { entriesOf } from './core/live-table.ts';
import type { TableRecord } from './core/records.ts';

export interface Kin {
  /** Origins whose overlays stand in the table, as the table prints them. */
  readonly origins: readonly string[];
  /** Origins that the table writes while their overlays keep what they had: snapshot-origin, snapshot-merge. */
  readonly writes: readonly string[];
  /** A store goes with its device. */
  readonly isTransient: boolean;
}

const NONE: Kin = { origins: [], writes: [], isTransient: false };

export function kinOf(table: Table | TableRecord): Kin {
  const isRecord = 'text' in table;
  // Long tables of other types are passed over at once.
  if (isRecord && !table.text.some((piece) => piece.includes('snapshot'))) return NONE;
  if (!isRecord && !table.targets.some(({ type }) => type.name.startsWith('snapshot'))) return NONE;
  const origins: string[] = [];
  const writes: string[] = [];
  let isTransient = false;
  for (const { type, params } of isRecord ? parseTable(table.text.join('')) : entriesOf(table)) {
    if (!type.startsWith('snapshot')) continue;
    const [origin, , store] = splitArguments(params);
    if (origin === undefined) continue;
    if (type === 'snapshot') {
      origins.push(origin);
      isTransient ||= store?.toUpperCase() === 'N';
    } else writes.push(origin);
  }
  return { origins, writes, isTransient };
}
