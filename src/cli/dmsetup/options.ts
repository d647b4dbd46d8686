// dmsetup's command line: getopt_long's rules (options anywhere, abbreviations, bundles), with its messages.
import type { DmsetupIo } from './io.ts';
import { UsageFailed } from './io.ts';

const PROCESSING_FAILED = "Couldn't process command line.\n";

/** What an option takes. */
type Kind = 'flag' | 'value';

/** Long options in the order in which getopt names those that an abbreviation could be; `x` stands for the short one. */
const LONG: readonly (readonly [name: string, kind: Kind, short?: string])[] = [
  ['readonly', 'flag', 'r'],
  ['checks', 'flag'],
  ['columns', 'flag', 'c'],
  ['concise', 'flag'],
  ['deferred', 'flag'],
  ['exec', 'value'],
  ['force', 'flag', 'f'],
  ['gid', 'value', 'G'],
  ['help', 'flag', 'h'],
  ['host', 'flag'],
  ['inactive', 'flag'],
  ['json', 'flag'],
  ['manglename', 'value'],
  ['major', 'value', 'j'],
  ['minor', 'value', 'm'],
  ['mode', 'value', 'M'],
  ['nameprefixes', 'flag'],
  ['noflush', 'flag'],
  ['noheadings', 'flag'],
  ['nolockfs', 'flag'],
  ['noopencount', 'flag'],
  ['notable', 'flag', 'n'],
  ['noudevrules', 'flag'],
  ['noudevsync', 'flag'],
  ['options', 'value', 'o'],
  ['readahead', 'value'],
  ['retry', 'flag'],
  ['rows', 'flag'],
  ['select', 'value', 'S'],
  ['separator', 'value'],
  ['setuuid', 'flag'],
  ['showkeys', 'flag'],
  ['sort', 'value', 'O'],
  ['table', 'value'],
  ['target', 'value'],
  ['tree', 'flag'],
  ['uid', 'value', 'U'],
  ['uuid', 'value', 'u'],
  ['udevcookie', 'value'],
  ['unquoted', 'flag'],
  // It takes a value by an old mistake of dmsetup's; -v does not.
  ['verbose', 'value'],
  ['verifyudev', 'flag'],
  ['version', 'flag'],
  ['yes', 'flag', 'y'],
  ['addnodeoncreate', 'flag'],
  ['addnodeonresume', 'flag'],
];

const SHORT = new Map<string, { name: string; kind: Kind }>([
  ['C', { name: 'columns', kind: 'flag' }],
  ['v', { name: 'verbose', kind: 'flag' }],
  ...LONG.flatMap(([name, kind, short]) => (short === undefined ? [] : [[short, { name, kind }] as const])),
]);

/** A command line taken apart. */
export interface ParsedLine {
  /** Each option by its long name; a flag's value is `''`. The last one of a name counts. */
  options: Map<string, string>;
  /** How often -v was given. */
  verbosity: number;
  /** Everything else, the command's name first. */
  words: string[];
}

class Parser {
  readonly line: ParsedLine = { options: new Map(), verbosity: 0, words: [] };
  readonly #io: DmsetupIo;
  readonly #argv: readonly string[];
  #at = 0;

  constructor(argv: readonly string[], io: DmsetupIo) {
    this.#argv = argv;
    this.#io = io;
  }

  parse(): ParsedLine {
    while (this.#at < this.#argv.length) {
      const word = this.#argv[this.#at++]!;
      if (word === '--') {
        this.line.words.push(...this.#argv.slice(this.#at));
        break;
      }
      if (word.startsWith('--')) this.#long(word.slice(2));
      else if (word.startsWith('-') && word !== '-') this.#bundle(word.slice(1));
      else this.line.words.push(word);
    }
    return this.line;
  }

  #fail(text: string): never {
    this.#io.stderr(`${this.#io.programName}: ${text}\n`);
    throw new UsageFailed(PROCESSING_FAILED);
  }

  #long(word: string): void {
    const equals = word.indexOf('=');
    const given = equals < 0 ? word : word.slice(0, equals);
    const [name, kind] = this.#findLong(given);
    if (kind === 'flag') {
      if (equals >= 0) this.#fail(`option '--${name}' doesn't allow an argument`);
      this.#set(name, '');
      return;
    }
    if (equals < 0 && this.#at >= this.#argv.length) this.#fail(`option '--${name}' requires an argument`);
    this.#set(name, equals < 0 ? this.#argv[this.#at++]! : word.slice(equals + 1));
  }

  #findLong(given: string): readonly [name: string, kind: Kind, short?: string] {
    const exact = LONG.find(([name]) => name === given);
    if (exact !== undefined) return exact;
    const possible = LONG.filter(([name]) => name.startsWith(given));
    if (possible.length === 1) return possible[0]!;
    if (possible.length === 0) this.#fail(`unrecognized option '--${given}'`);
    const names = possible.map(([name]) => `'--${name}'`).join(' ');
    return this.#fail(`option '--${given}' is ambiguous; possibilities: ${names}`);
  }

  #bundle(letters: string): void {
    for (let at = 0; at < letters.length; at++) {
      const option = SHORT.get(letters[at]!);
      if (option === undefined) this.#fail(`invalid option -- '${letters[at]}'`);
      if (option.kind === 'flag') {
        this.#set(option.name, '');
        continue;
      }
      const rest = letters.slice(at + 1);
      if (rest === '' && this.#at >= this.#argv.length) {
        this.#fail(`option requires an argument -- '${letters[at]}'`);
      }
      this.#set(option.name, rest === '' ? this.#argv[this.#at++]! : rest);
      return;
    }
  }

  #set(name: string, value: string): void {
    if (name === 'verbose') this.line.verbosity++;
    // -O and -o may be said twice; the last one counts, as for everything.
    this.line.options.set(name, value);
  }
}

const MANGLING_MODES = ['auto', 'hex', 'none'];

/** What must hold of options together. */
function check(line: ParsedLine, io: DmsetupIo): void {
  const { options } = line;
  const fail = (text: string): never => {
    io.stderr(`${text}\n`);
    throw new UsageFailed(PROCESSING_FAILED);
  };
  if (!MANGLING_MODES.includes(options.get('manglename') ?? 'auto')) fail('Unknown name mangling mode.');
  if (options.has('table') && options.has('notable')) fail('--table and --notable are incompatible.');
  if (options.has('major') !== options.has('minor')) fail('Please specify both major number and minor number.');
}

/**
 * Takes `argv` (without the program's name) apart.
 *
 * @throws UsageFailed after saying what is wrong
 */
export function parseLine(argv: readonly string[], io: DmsetupIo): ParsedLine {
  const line = new Parser(argv, io).parse();
  check(line, io);
  return line;
}

/** The command that `argv` names, however odd the rest is; undefined for none. For a first look only. */
export function commandOf(argv: readonly string[]): string | undefined {
  const silent = { programName: '', stderr: () => {} } as unknown as DmsetupIo;
  try {
    return new Parser(argv, silent).parse().words[0];
  } catch {
    return argv.find((word) => !word.startsWith('-'));
  }
}

/** A number as C's atoi reads it: blanks, a sign and digits; 0 where there are none. */
export function integerOf(text: string): number {
  const number = Number(/^\s*[+-]?\d+/.exec(text)?.[0] ?? 0);
  // Only the low 32 bits count, as with glibc's atoi.
  return Number(BigInt.asIntN(32, BigInt(Math.trunc(Math.max(-(2 ** 53), Math.min(number, 2 ** 53))))));
}
