// Table text as dmsetup reads and prints it: one line a target, `START LENGTH TYPE [PARAMS]`.
// The rules are libdevmapper 1.02.185's; what is ours is that a blank, a backslash or a # in a device's path can be
// written with a backslash before it (through dmsetup such a path cannot be written at all).
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { LongText, type TableText } from './long-text.ts';
import { beginsStep, type Steps } from './steps.ts';

/** One line of a table as text gives it: nothing is checked but the form. */
export interface TableEntry {
  /** First sector on the mapped device. Past 2^53 it is rounded: the table refuses it. */
  sector: number;
  sectorCount: number;
  type: string;
  /** What follows the type, unsplit. */
  params: string;
}

/** A table as text, or as its lines. */
export type TableInput = TableText | readonly TableEntry[];

// sscanf("%llu %llu %s %n"): the two numbers may be signed, a sign may even stand where a blank would, and the type may
// follow the length without one.
const LINE =
  /^[ \t\v\f\r]*([+-]?[0-9]+)(?:[ \t\v\f\r]+|(?=[+-]))([+-]?[0-9]+)(?![0-9])[ \t\v\f\r]*([^ \t\v\f\r]+)[ \t\v\f\r]*/;
const BLANK_OR_COMMENT = /^[ \t\v\f\r]*(?:#|$)/;
const TRAILING_BLANKS = /[ \t\v\f\r]+$/;
const NEEDS_ESCAPE = /[\s#\\]/;
const WHITESPACE = /[ \t\n\v\f\r]/;
const WORDS = /[^ \t\n\v\f\r]+/g;

const UINT64_MAX = 0xffff_ffff_ffff_ffffn;

/** strtoull: a minus wraps, a value past 2^64 - 1 stays there. */
function scanTableNumber(text: string): number {
  if (text.length < 16 && text[0] !== '-') return Number(text);
  const magnitude = BigInt(text.replace(/^[+-]/, ''));
  if (magnitude > UINT64_MAX) return Number(UINT64_MAX);
  return Number(text[0] === '-' ? BigInt.asUintN(64, -magnitude) : magnitude);
}

/** How many backslashes end `text`. */
function trailingBackslashCount(text: string): number {
  let count = 0;
  while (text[text.length - 1 - count] === '\\') count++;
  return count;
}

/** Where the comment in `params` starts: the first # that no backslash protects; -1 for none. */
function commentStart(params: string): number {
  let at = params.indexOf('#');
  while (at > 0 && trailingBackslashCount(params.slice(0, at)) % 2 === 1) at = params.indexOf('#', at + 1);
  return at;
}

/** One physical line; undefined for a blank or comment line, null for a malformed one. */
function parseLine(line: string): TableEntry | undefined | null {
  if (BLANK_OR_COMMENT.test(line)) return undefined;
  const match = LINE.exec(line);
  if (match === null) return null;
  let params = line.slice(match[0].length);
  const comment = commentStart(params);
  if (comment >= 0) params = params.slice(0, comment);
  return {
    sector: scanTableNumber(match[1]!),
    sectorCount: scanTableNumber(match[2]!),
    type: match[3]!,
    params: trimEnd(params),
  };
}

/** Without trailing blanks, but for one that a backslash protects. */
function trimEnd(params: string): string {
  const trimmed = params.replace(TRAILING_BLANKS, '');
  return trailingBackslashCount(trimmed) % 2 === 1 ? params.slice(0, trimmed.length + 1) : trimmed;
}

/** Reads table text a line at a time. */
export class TableReader {
  /** The piece that is read. */
  #text = '';
  readonly #pieces: readonly string[];
  #nextPiece = 0;
  readonly #source: string | undefined;
  #start = 0;
  #lineNumber = 0;

  /** @param source as {@link parseTable} takes it */
  constructor(text: TableText, source?: string) {
    this.#pieces = text instanceof LongText ? text.pieces : [text];
    this.#source = source;
    this.#toNextPiece();
  }

  get isAtEnd(): boolean {
    return this.#start >= this.#text.length;
  }

  /** To the next piece with text in it. False where the last one is read. */
  #toNextPiece(): boolean {
    while (this.#nextPiece < this.#pieces.length) {
      this.#text = this.#pieces[this.#nextPiece++]!;
      this.#start = 0;
      if (this.#text !== '') return true;
    }
    return false;
  }

  /** The next line, without its newline. */
  #take(): string {
    let line = '';
    for (;;) {
      const text = this.#text;
      const newline = text.indexOf('\n', this.#start);
      const end = newline < 0 ? text.length : newline;
      const part = text.slice(this.#start, end);
      line = line === '' ? part : line + part;
      this.#start = end + 1;
      if (this.#start >= text.length && !this.#toNextPiece()) return line;
      if (newline >= 0) return line;
    }
  }

  /**
   * The next line; undefined for one that is blank or a comment.
   *
   * @throws DmError EINVAL for a line that it cannot read
   */
  next(): TableEntry | undefined {
    const line = this.#take();
    this.#lineNumber++;
    const entry = parseLine(line);
    if (entry !== null) return entry;
    const where = this.#source === undefined ? '' : ` of table ${this.#source}`;
    throw new DmError(
      Errno.EINVAL,
      `Invalid format on line ${this.#lineNumber}${where}: expected START LENGTH TYPE [PARAMS], got "${line.slice(0, 80)}"`,
    );
  }
}

/**
 * Reads all of `text`, and keeps nothing: what it refuses is refused before the first target is made.
 *
 * @returns how many entries there are
 * @throws what {@link parseTable} throws
 */
export function* checkTextSteps(text: TableText): Steps<number> {
  const reader = new TableReader(text);
  let entryCount = 0;
  for (let index = 0; !reader.isAtEnd; index++) {
    if (beginsStep(index)) yield;
    if (reader.next() !== undefined) entryCount++;
  }
  return entryCount;
}

/**
 * Reads table text. Blank lines and lines that start with # are skipped; a # in the parameters starts a comment.
 *
 * @param source how messages name the text: a file's path, or `on stdin` as dmsetup says
 * @throws DmError EINVAL with dmsetup's own message for a line it cannot read; nothing is half read
 * @example
 * ```ts
 * const entries = parseTable('0 2048 linear a.img 0\n2048 8 error');
 * entries[1].type; // 'error'
 * ```
 */
export function parseTable(text: string, source?: string): TableEntry[] {
  const entries: TableEntry[] = [];
  for (const reader = new TableReader(text, source); !reader.isAtEnd; ) {
    const entry = reader.next();
    if (entry !== undefined) entries.push(entry);
  }
  return entries;
}

/** One line as dmsetup prints it: a type without parameters is followed by one blank. */
export function formatTableLine(sector: number, sectorCount: number, type: string, params: string): string {
  return `${sector} ${sectorCount} ${type} ${params}`;
}

/** Table text for entries, one line each, with a newline after the last. `parseTable` reads it back. */
export function formatTable(entries: readonly TableEntry[]): string {
  return entries.map((e) => `${formatTableLine(e.sector, e.sectorCount, e.type, e.params)}\n`).join('');
}

/**
 * Splits parameters at white space as the kernel does (dm_split_args). A backslash before a blank, a # or another
 * backslash makes that character literal; before anything else it is itself literal, as it is through dmsetup.
 */
export function splitArguments(params: string): string[] {
  if (!params.includes('\\')) return params.match(WORDS) ?? [];
  const args: string[] = [];
  let current = '';
  let inside = false;
  for (let i = 0; i < params.length; i++) {
    const character = params[i]!;
    if (character === '\\' && i + 1 < params.length && NEEDS_ESCAPE.test(params[i + 1]!)) {
      current += params[++i]!;
      inside = true;
    } else if (WHITESPACE.test(character)) {
      if (inside) args.push(current);
      current = '';
      inside = false;
    } else {
      current += character;
      inside = true;
    }
  }
  if (inside) args.push(current);
  return args;
}
