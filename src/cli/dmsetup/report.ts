// Reports in columns, with dmsetup's options: headings, separators, prefixes, rows, sorting.
import { CommandFailed, type DmsetupIo } from './io.ts';
import type { ParsedLine } from './options.ts';

/** A column of rows of type `Row`. */
export interface Field<Row> {
  id: string;
  heading: string;
  /** At least this wide; never narrower than the heading. */
  width: number;
  kind: 'text' | 'number';
  help: string;
  section: string;
  /** May be asked for the outside world. @throws CommandFailed when it has no value: the row is left out */
  value(row: Row): string | number;
}

interface SortKey<Row> {
  field: Field<Row>;
  descending: boolean;
}

/** Alignment's separator where none is given and there are headings. */
const ALIGNED = ' ';
const UNALIGNED = ':';

/** One report: rows are added, then it is printed. */
export class Report<Row> {
  readonly #io: DmsetupIo;
  readonly #line: ParsedLine;
  readonly #fields: Field<Row>[];
  readonly #sortKeys: SortKey<Row>[];
  readonly #rows: (string | number)[][] = [];
  readonly #keys: (string | number)[][] = [];

  /** @throws CommandFailed for a field that is not there, after the list of those that are */
  constructor(fields: readonly Field<Row>[], defaults: string, line: ParsedLine, io: DmsetupIo) {
    this.#io = io;
    this.#line = line;
    const given = line.options.get('options') ?? '';
    const wanted = given === '' ? defaults : given.startsWith('+') ? `${defaults},${given.slice(1)}` : given;
    if (wanted === 'help' || wanted === '?') {
      io.stderr(fieldHelp(fields));
      throw new HelpGiven();
    }
    this.#fields = wanted.split(',').flatMap((id) => this.#find(fields, id, 'field'));
    this.#sortKeys = (line.options.get('sort') ?? '')
      .split(',')
      .filter((key) => key !== '')
      .map((key) => {
        const field = this.#find(fields, key.replace(/^[+-]/, ''), 'sort field')[0]!;
        return { field, descending: key.startsWith('-') };
      });
  }

  #find(fields: readonly Field<Row>[], id: string, what: string): Field<Row>[] {
    const field = fields.find((candidate) => candidate.id === id);
    if (field !== undefined) return [field];
    const section = fields.filter((candidate) => `${candidate.section}_all` === id);
    if (section.length > 0) return section;
    this.#io.stderr(fieldHelp(fields));
    this.#io.stderr(`Unrecognised ${what}: ${id}\n`);
    throw new CommandFailed();
  }

  /** @throws CommandFailed when a field has no value; the row is not added then */
  add(row: Row): void {
    const values = this.#fields.map((field) => {
      try {
        return field.value(row);
      } catch (error) {
        if (error instanceof CommandFailed) {
          this.#io.stderr(`_do_report_object: report function failed for field ${field.id}\n`);
        }
        throw error;
      }
    });
    this.#rows.push(values);
    this.#keys.push(this.#sortKeys.map(({ field }) => field.value(row)));
  }

  /** Nothing at all for no rows, not even headings. */
  print(): void {
    if (this.#rows.length === 0) return;
    const rows = this.#sorted();
    const { options } = this.#line;
    if (options.has('rows')) this.#printTransposed(rows);
    else if (options.has('noheadings') || options.has('separator') || options.has('nameprefixes')) {
      this.#printUnaligned(rows);
    } else this.#printAligned(rows);
  }

  #sorted(): (string | number)[][] {
    const order = this.#rows.map((_, index) => index);
    order.sort((left, right) => {
      for (const [at, { descending }] of this.#sortKeys.entries()) {
        const a = this.#keys[left]![at]!;
        const b = this.#keys[right]![at]!;
        if (a !== b) return a < b === descending ? 1 : -1;
      }
      return left - right;
    });
    return order.map((index) => this.#rows[index]!);
  }

  #printAligned(rows: (string | number)[][]): void {
    const widths = this.#fields.map((field, at) =>
      Math.max(field.width, field.heading.length, ...rows.map((row) => String(row[at]).length)),
    );
    const headings = this.#fields.map((field, at) => field.heading.padEnd(widths[at]!));
    this.#io.stdout(`${headings.join(ALIGNED)}\n`);
    for (const row of rows) {
      const cells = row.map((value, at) => {
        const text = String(value);
        return this.#fields[at]!.kind === 'number' ? text.padStart(widths[at]!) : text.padEnd(widths[at]!);
      });
      this.#io.stdout(`${cells.join(ALIGNED)}\n`);
    }
  }

  #printUnaligned(rows: (string | number)[][]): void {
    const { options } = this.#line;
    const separator = options.get('separator') ?? (options.has('noheadings') ? UNALIGNED : ALIGNED);
    if (!options.has('noheadings')) {
      this.#io.stdout(`${this.#fields.map((field) => field.heading).join(separator)}\n`);
    }
    for (const row of rows) this.#io.stdout(`${row.map((value, at) => this.#cell(value, at)).join(separator)}\n`);
  }

  #printTransposed(rows: (string | number)[][]): void {
    const { options } = this.#line;
    const separator = options.get('separator') ?? (options.has('noheadings') ? UNALIGNED : ALIGNED);
    for (const [at, field] of this.#fields.entries()) {
      const cells = rows.map((row) => this.#cell(row[at]!, at));
      if (!options.has('noheadings')) cells.unshift(field.heading);
      this.#io.stdout(`${cells.join(separator)}\n`);
    }
  }

  #cell(value: string | number, at: number): string {
    const { options } = this.#line;
    if (!options.has('nameprefixes')) return String(value);
    const quote = options.has('unquoted') ? '' : "'";
    return `DM_${this.#fields[at]!.id.toUpperCase()}=${quote}${value}${quote}`;
  }
}

/** -o help: it was printed, and nothing failed. */
export class HelpGiven extends Error {}

/** The fields, a line each, by section. */
export function fieldHelp<Row>(fields: readonly Field<Row>[]): string {
  const lines: string[] = [];
  for (const section of new Set(fields.map((field) => field.section))) {
    lines.push(`Fields of ${section}_all`);
    for (const field of fields) if (field.section === section) lines.push(`  ${field.id.padEnd(22)}${field.help}`);
    lines.push('');
  }
  return `${lines.join('\n')}\n`;
}
