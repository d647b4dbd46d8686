// The little of a shell that the recorded sessions use: lists, pipes, subshells, background jobs, quotes, and a few programs.
// dmsetup runs in this process, on devices in memory.

import type { BlockDevice } from '../../src/block/block-device.ts';
import type { DeviceResolver } from '../../src/block/device-resolver.ts';
import { Errno } from '../../src/block/errno.ts';
import { DmError } from '../../src/block/errors.ts';
import { runDmsetup } from '../../src/cli/dmsetup/interpreter.ts';
import type { DmsetupIo } from '../../src/cli/dmsetup/io.ts';
import { LocalControl } from '../../src/control/local-control.ts';
import { MemoryDevice } from '../../src/devices/memory.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { Targets } from '../../src/targets/index.ts';

const MAJOR = 253;
const DISKS = [
  ['vdb', '254:16', {}],
  ['vdc', '254:32', {}],
  ['vdd', '254:48', { limits: { logicalBlockSize: 4096, physicalBlockSize: 4096 } }],
] as const;

/** The recorded machine's disks, by path and number. */
class Disks implements DeviceResolver {
  readonly #byName = new Map<string, BlockDevice>();

  constructor() {
    for (const [name, number, options] of DISKS) {
      const device = new MemoryDevice(number, 16384, options);
      this.#byName.set(`/dev/${name}`, device);
      this.#byName.set(number, device);
    }
  }

  open(argument: string): BlockDevice {
    const path = argument.replace('/dev/../', '/').replace(/^0*(\d+):0*(\d+)$/, '$1:$2');
    const device = this.#byName.get(path);
    if (device !== undefined) return device;
    throw new DmError(/^\d+:\d+$/.test(path) ? Errno.ENXIO : Errno.ENODEV, `${argument}: no such device here`);
  }

  close(): void {}
}

/** One line that a program printed. */
export interface Printed {
  stream: 'stdout' | 'stderr' | 'note';
  text: string;
}

type Token = { operator: string } | { word: string };

const OPERATORS = ['&&', ';', '|', '&', '(', ')', '<', '>'];

function tokenize(line: string): Token[] {
  const tokens: Token[] = [];
  let word: string | null = null;
  const flush = (): void => {
    if (word !== null) tokens.push({ word });
    word = null;
  };
  for (let at = 0; at < line.length; ) {
    const operator = OPERATORS.find((text) => line.startsWith(text, at));
    const character = line[at]!;
    if (/\s/.test(character)) flush();
    else if (operator !== undefined) {
      flush();
      tokens.push({ operator });
      at += operator.length;
      continue;
    } else if (character === "'" || character === '"') {
      const end = line.indexOf(character, at + 1);
      word = (word ?? '') + line.slice(at + 1, end).replaceAll('$', character === "'" ? '\0' : '$');
      at = end + 1;
      continue;
    } else word = (word ?? '') + character;
    at++;
  }
  flush();
  return tokens;
}

interface Run {
  args: string[];
  stdin: string;
  print: (stream: Printed['stream'], text: string) => void;
}

/** A shell on a machine of its own. */
export class MiniShell {
  readonly files = new Map<string, string>();
  readonly mapper = new Mapper(new Targets(), new Disks(), MAJOR);
  readonly #control = new LocalControl({ mapper: this.mapper, targets: new Targets() });
  readonly #printed: Printed[] = [];
  readonly #variables = new Map<string, string>();
  readonly #jobs: (() => void)[] = [];
  #background: Promise<unknown>[] = [];
  #status = 0;
  #tokens: Token[] = [];

  /** Runs a line to its end, and whatever it left running that ends by itself. */
  async run(line: string): Promise<{ printed: Printed[]; code: number }> {
    this.#printed.length = 0;
    this.#tokens = tokenize(line);
    await this.#list((stream, text) => this.#printed.push({ stream, text }), '');
    const code = this.#status;
    await Promise.all(this.#background);
    this.#background = [];
    return { printed: joined(this.#printed), code };
  }

  #operator(): string | undefined {
    const token = this.#tokens[0];
    return token !== undefined && 'operator' in token ? token.operator : undefined;
  }

  #take(operator: string): boolean {
    if (this.#operator() !== operator) return false;
    this.#tokens.shift();
    return true;
  }

  async #list(print: Run['print'], stdin: string): Promise<void> {
    let skip = false;
    while (this.#tokens.length > 0 && this.#operator() !== ')') {
      const tokens = this.#pipelineTokens();
      const background = this.#take('&');
      if (!skip) await this.#start(tokens, background, print, stdin);
      skip = this.#take('&&') && (skip || this.#status !== 0);
      this.#take(';');
    }
  }

  /** The tokens of the next pipeline, subshells included. */
  #pipelineTokens(): Token[] {
    const tokens: Token[] = [];
    let depth = 0;
    for (let token = this.#tokens[0]; token !== undefined; token = this.#tokens[0]) {
      if ('operator' in token) {
        if (depth === 0 && [';', '&&', '&', ')'].includes(token.operator)) break;
        if (token.operator === '(') depth++;
        if (token.operator === ')') depth--;
      }
      tokens.push(this.#tokens.shift()!);
    }
    return tokens;
  }

  async #start(tokens: Token[], background: boolean, print: Run['print'], stdin: string): Promise<void> {
    if (!background) {
      this.#status = await this.#pipeline(tokens, print, stdin);
      return;
    }
    const device = tokens.findIndex((token) => 'operator' in token && token.operator === '<');
    if (device >= 0) this.#holdOpen((tokens[device + 1] as { word: string }).word);
    else this.#background.push(this.#pipeline(tokens, print, stdin));
  }

  /** A program that sleeps with a device open. */
  #holdOpen(path: string): void {
    const device = this.mapper.getByNumber(MAJOR, Number(path.replace('/dev/dm-', '')));
    this.mapper.acquire(device);
    this.#jobs.push(() => this.mapper.release(device));
    this.#variables.set('!', String(this.#jobs.length));
  }

  async #pipeline(tokens: Token[], print: Run['print'], stdin: string): Promise<number> {
    const commands: Token[][] = [[]];
    let depth = 0;
    for (const token of tokens) {
      const operator = 'operator' in token ? token.operator : '';
      depth += operator === '(' ? 1 : operator === ')' ? -1 : 0;
      if (operator === '|' && depth === 0) commands.push([]);
      else commands.at(-1)!.push(token);
    }
    let input = stdin;
    let status = 0;
    for (const [index, command] of commands.entries()) {
      let output = '';
      const toPipe: Run['print'] = (stream, text) => {
        if (stream === 'stdout') output += text;
        else print(stream, text);
      };
      status = await this.#command(command, index === commands.length - 1 ? print : toPipe, input);
      input = output;
    }
    return status;
  }

  async #command(tokens: Token[], print: Run['print'], stdin: string): Promise<number> {
    const first = tokens[0]!;
    if ('operator' in first) {
      await this.#subshell(tokens.slice(1, -1), print, stdin);
      return 0;
    }
    const words: string[] = [];
    let file: string | null = null;
    for (let at = 0; at < tokens.length; at++) {
      const token = tokens[at]!;
      if ('word' in token) words.push(this.#expand(token.word));
      else if (token.operator === '<') at++;
      else if (token.operator === '>') file = (tokens[++at] as { word: string }).word;
    }
    if (file === null) return this.#program(words, print, stdin);
    let text = '';
    const status = await this.#program(
      words,
      (_stream, piece) => {
        text += piece;
      },
      stdin,
    );
    this.files.set(file, text);
    return status;
  }

  #expand(word: string): string {
    return word
      .replace(/\$([?!]|\w+)/g, (_all, name: string) => {
        return name === '?' ? String(this.#status) : (this.#variables.get(name) ?? '');
      })
      .replaceAll('\0', '$');
  }

  async #program([name = '', ...args]: string[], print: Run['print'], stdin: string): Promise<number> {
    const assignment = /^(\w+)=(.*)$/.exec(name);
    if (assignment !== null) this.#variables.set(assignment[1]!, assignment[2]!);
    else if (name === 'dmsetup') return runDmsetup(args, this.#io(print, stdin), this.#control);
    else if (name === 'echo') print('stdout', `${args.join(' ')}\n`);
    else if (name === 'printf') print('stdout', args[0]!.replaceAll('\\n', '\n').replaceAll('\\r', '\r'));
    else if (name === 'sleep') await quiet();
    else if (name === 'kill') this.#jobs[Number(args[0]) - 1]!();
    else if (name === 'blockdev') return this.#blockdev(args, print);
    else if (name === 'grep') {
      for (const line of stdin.split('\n')) if (line.includes(args[0]!)) print('stdout', `${line}\n`);
    } else throw new Error(`the shell of the sessions has no program ${name}`);
    return 0;
  }

  #blockdev([option, path = '']: string[], print: Run['print']): number {
    const device = DISKS.some(([name]) => path === `/dev/${name}`)
      ? null
      : this.mapper.getByNumber(MAJOR, Number(path.replace('/dev/dm-', '')));
    if (option === '--getsz') print('stdout', `${device!.sectorCount}\n`);
    if (option === '--getro') print('stdout', `${Number(device!.readOnly)}\n`);
    return 0;
  }

  #io(print: Run['print'], stdin: string): DmsetupIo {
    return {
      programName: 'dmsetup',
      stdout: (text) => print('stdout', text),
      stderr: (text) => print('stderr', text),
      note: (text) => print('note', text),
      readStdin: () => stdin,
      readFile: (path) => {
        const text = this.files.get(path);
        if (text === undefined) throw new Error(`no file ${path}`);
        return text;
      },
      folder: '/',
      utf8: false,
      sleep: quiet,
      run: (command) => print('stdout', `${command.slice(1).join(' ')}\n`),
      blockDeviceName: (major, minor) => DISKS.find(([, number]) => number === `${major}:${minor}`)?.[0] ?? null,
      isHostDevice: () => false,
      mapDevice: (argument) => argument,
      versionLines: () => ['Library version:   1.02.185 (2022-05-18)', 'Driver version:    4.47.0'],
    };
  }

  /** A list with an exit code of its own. */
  async #subshell(tokens: Token[], print: Run['print'], stdin: string): Promise<void> {
    let rest = tokens;
    let status = 0;
    while (rest.length > 0) {
      const end = rest.findIndex((token) => 'operator' in token && token.operator === ';');
      const part = end < 0 ? rest : rest.slice(0, end);
      rest = end < 0 ? [] : rest.slice(end + 1);
      const expanded = part.map((token) =>
        'word' in token ? { word: token.word.replace('$?', String(status)) } : token,
      );
      status = await this.#pipeline(expanded, print, stdin);
    }
  }
}

/** Everything that can go on by itself has gone on. */
async function quiet(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Pieces put together to lines. */
function joined(pieces: readonly Printed[]): Printed[] {
  const lines: Printed[] = [];
  for (const { stream, text } of pieces) {
    for (const line of text.replace(/\n$/, '').split('\n')) lines.push({ stream, text: line });
  }
  return lines;
}
