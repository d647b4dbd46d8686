// The tables of dmkit serve: read from its options, made into devices, and told in dmsetup's words where one is refused.
import { readFileSync } from 'node:fs';
import type { DeviceMapper } from '../api/device-mapper.ts';
import { Errno, errnoFromException, errnoMessage } from '../block/errno.ts';
import { DmError, TableError } from '../block/errors.ts';
import { decodeName, rawName } from '../block/file-name.ts';
import { parseTable, type TableEntry } from '../table/text.ts';
import { quoted } from './exec.ts';
import { say } from './say.ts';

/** A table as an option gives it: its text, or the file it is in. */
export interface TableOption {
  kind: 'text' | 'file';
  value: string;
}

export interface NamedTable {
  name: string;
  entries: TableEntry[];
}

/** @throws DmError for a count that does not match, a file that cannot be read, text that cannot be read as a table */
export function readTables(options: { names: readonly string[]; tables: readonly TableOption[] }): NamedTable[] {
  const { names, tables } = options;
  if (names.length !== tables.length) {
    throw new DmError(
      Errno.EINVAL,
      `${names.length} name${names.length === 1 ? '' : 's'} (${names.join(', ')}) but ${tables.length} of --table and --table-file: each device needs one`,
    );
  }
  return names.map((name, index) => {
    const table = tables[index]!;
    if (table.kind === 'text') return { name, entries: parseTable(table.value) };
    return { name, entries: parseTable(readTableFile(table.value), table.value === '-' ? 'on stdin' : table.value) };
  });
}

function readTableFile(file: string): string {
  try {
    return decodeName(readFileSync(file === '-' ? 0 : rawName(file)));
  } catch (error) {
    const errno = errnoFromException(error);
    throw new DmError(errno, `cannot read the table file ${file}: ${errnoMessage(errno)}`);
  }
}

/** A refused table in dmsetup's words, then what the kernel would have logged, then what we know of the cause. */
function reportRefusedTable({ name, entries }: NamedTable, major: number, minor: number, error: DmError): void {
  const device = `${major}:${minor}`;
  say(`device-mapper: reload ioctl on ${name} (${device}) failed: ${errnoMessage(error.errno)}\n`);
  if (error instanceof TableError) say(`device-mapper: table: ${device}: ${error.reason}\n`);
  else say(`${error.message}\n`);
  for (let cause = error.cause; cause instanceof Error; cause = cause.cause) say(`${cause.message}\n`);
  const own = /\/dev\/mapper\/((?:\\.|\S)+)/.exec(entries.map(({ params }) => params).join(' '))?.[1];
  if (own !== undefined && error.errno === Errno.ENODEV) {
    say(`A daemon's device has an NBD URI, which a table takes in its place: dmkit uri ${quoted(own)}\n`);
  }
  say('Command failed.\n');
}

/** @returns false where a table was refused, which has been told */
export async function createDevices(
  dm: DeviceMapper,
  tables: readonly NamedTable[],
  readOnly: boolean,
): Promise<boolean> {
  const told = new Set<string>();
  const onNotice = (text: string): void => {
    if (!told.has(text)) say(`dmkit: ${text}\n`);
    told.add(text);
  };
  for (const { name, entries } of tables) {
    const minor = dm.mapper.list().length;
    try {
      // The server opens the device for itself; a handle of ours would only keep it busy.
      (await dm.create(name, entries, { readOnly, onNotice })).close();
    } catch (error) {
      if (!(error instanceof DmError) || dm.mapper.has(name)) throw error;
      reportRefusedTable({ name, entries }, dm.mapper.major, minor, error);
      return false;
    }
  }
  return true;
}
