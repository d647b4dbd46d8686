// The bytes of the control socket. A message is a length in four bytes, big-endian, then JSON of that length. Where the JSON
// has `texts`, a list of lengths, so many bytes follow it: tables, which may be long, and which nothing has to take apart
// before their length is known.
//
//   server, once   { "dmkit": { "protocol": 2, "version": "0.2.0" } }
//   client, once   { "hello": { "protocol": 2, "version": "0.2.0", "pid": 77, "command": "dmkit ls" } }
//   client         { "id": 1, "name": "info", "args": { "device": { "name": "disk" } } }   or   { "cancel": 1 }
//                  { "id": 2, "name": "load", "args": { …, "table": { "text": 0 } }, "texts": [ 4096 ] } and 4096 bytes
//   server         { "id": 1, "reply": … }   or   { "id": 1, "error": { … } }
//                  { "id": 3, "progress": … }   or   { "id": 3, "notice": "…" }   before the answer of request 3
import { Errno } from '../block/errno.ts';
import { DmError, TableError } from '../block/errors.ts';
import { decodeName, encodeName, NameDecoder } from '../block/file-name.ts';
import { LongText, type TableText } from '../table/long-text.ts';
import { formatTable, type TableEntry } from '../table/text.ts';
import { MAX_REPLY_BYTE_LENGTH, MAX_TEXT_BYTE_LENGTH } from './bounds.ts';
import { type Fields, isCount, isFields } from './schema.ts';
import type { StatusLine } from './types.ts';

/** Goes up when a client and a daemon of different versions would not understand each other. */
export const PROTOCOL_VERSION = 2;

const LENGTH_BYTE_LENGTH = 4;
/** Texts of a message that are longer together are not gathered first: see {@link LongText}. */
const LONG_TEXT_BYTE_LENGTH = 256 * 1024;
/** Lines of an answer that are printed before others get their turn. */
const LINE_COUNT = 2048;

export interface Greeting {
  protocol: number;
  version: string;
}

export interface Hello extends Greeting {
  pid: number;
  command: string;
}

/** The peer sent bytes that are no message. */
export class ProtocolError extends Error {}

/** A message, and the texts behind it. */
export interface Message {
  readonly json: unknown;
  readonly texts: readonly TableText[];
}

/** One message as bytes. `texts` are lists of pieces, each list one text. */
export function encodeMessage(message: object, texts: readonly (readonly Uint8Array[])[] = []): Uint8Array[] {
  const lengths = texts.map((pieces) => pieces.reduce((sum, { byteLength }) => sum + byteLength, 0));
  const body = Buffer.from(JSON.stringify(texts.length === 0 ? message : { ...message, texts: lengths }));
  const length = Buffer.alloc(LENGTH_BYTE_LENGTH);
  length.writeUInt32BE(body.byteLength);
  return [length, body, ...texts.flat()];
}

export interface DecoderBounds {
  /** Bytes of JSON in one message. */
  readonly maxByteLength: number;
  /** Braces inside braces; not looked at unless given. */
  readonly maxDepth?: number;
  /** Texts that are longer together are taken in pieces as they come; {@link LONG_TEXT_BYTE_LENGTH} unless given. */
  readonly longTextByteLength?: number;
}

/** The texts of one message, decoded as they come. */
class LongTexts {
  readonly #lengths: readonly number[];
  readonly #texts: TableText[] = [];
  #pieces: string[] = [];
  #decoder = new NameDecoder();
  /** Bytes of the text at hand that have not come. */
  #missing: number;

  constructor(lengths: readonly number[]) {
    this.#lengths = lengths;
    this.#missing = lengths[0]!;
    this.#endTexts();
  }

  get isWhole(): boolean {
    return this.#texts.length === this.#lengths.length;
  }

  get texts(): readonly TableText[] {
    return this.#texts;
  }

  /** Takes what belongs to the texts. @returns how many bytes that is */
  take(chunk: Uint8Array): number {
    let at = 0;
    while (at < chunk.byteLength && !this.isWhole) {
      const count = Math.min(this.#missing, chunk.byteLength - at);
      this.#add(this.#decoder.write(Buffer.from(chunk.buffer, chunk.byteOffset + at, count)));
      at += count;
      this.#missing -= count;
      this.#endTexts();
    }
    return at;
  }

  #add(piece: string): void {
    if (piece !== '') this.#pieces.push(piece);
  }

  /** Ends each text that is whole; one may have no bytes at all. */
  #endTexts(): void {
    while (!this.isWhole && this.#missing === 0) {
      this.#add(this.#decoder.end());
      const pieces = this.#pieces;
      this.#texts.push(pieces.length > 1 ? new LongText(pieces) : (pieces[0] ?? ''));
      this.#pieces = [];
      this.#decoder = new NameDecoder();
      this.#missing = this.#lengths[this.#texts.length] ?? 0;
    }
  }
}

/** Bytes to messages, however they were cut on their way. */
export class MessageDecoder {
  readonly #bounds: DecoderBounds;
  #chunks: Uint8Array[] = [];
  #byteLength = 0;
  #needed = LENGTH_BYTE_LENGTH;
  /** The message whose texts are coming in pieces. */
  #long: { json: unknown; texts: LongTexts } | null = null;
  #next: (bytes: Buffer) => Message | null = (bytes) => this.#onLength(bytes);

  constructor(bounds: DecoderBounds = { maxByteLength: MAX_REPLY_BYTE_LENGTH }) {
    this.#bounds = bounds;
  }

  /** The rest of a long text is expected. */
  get isInLongText(): boolean {
    return this.#long !== null;
  }

  /** @throws ProtocolError as {@link next} does */
  *push(chunk: Uint8Array): Generator<Message> {
    this.add(chunk);
    for (let message = this.next(); message !== null; message = this.next()) yield message;
  }

  /** Takes bytes that came; nothing is looked at yet. */
  add(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#byteLength += chunk.byteLength;
  }

  /**
   * The next message that is there as a whole; null where none is.
   *
   * @throws ProtocolError for a message that is too long or no JSON: the connection is of no use any more
   */
  next(): Message | null {
    if (this.#long !== null) return this.#takeLong(this.#long);
    while (this.#byteLength >= this.#needed) {
      const message = this.#next(this.#take(this.#needed));
      if (message !== null) return message;
      if (this.#long !== null) return this.#takeLong(this.#long);
    }
    return null;
  }

  #takeLong({ json, texts }: { json: unknown; texts: LongTexts }): Message | null {
    let count = 0;
    while (count < this.#chunks.length && !texts.isWhole) {
      const chunk = this.#chunks[count]!;
      const taken = texts.take(chunk);
      this.#byteLength -= taken;
      if (taken < chunk.byteLength) this.#chunks[count] = chunk.subarray(taken);
      else count++;
    }
    this.#chunks.splice(0, count);
    if (!texts.isWhole) return null;
    this.#long = null;
    return this.#done({ json, texts: texts.texts });
  }

  #expect(byteLength: number, next: (bytes: Buffer) => Message | null): null {
    this.#needed = byteLength;
    this.#next = next;
    return null;
  }

  #onLength(bytes: Buffer): null {
    const byteLength = bytes.readUInt32BE();
    const { maxByteLength } = this.#bounds;
    if (byteLength > maxByteLength) {
      throw new ProtocolError(`a message of ${byteLength} bytes; at most ${maxByteLength} are taken`);
    }
    return this.#expect(byteLength, (body) => this.#onBody(body));
  }

  #onBody(body: Buffer): Message | null {
    const { maxDepth } = this.#bounds;
    if (maxDepth !== undefined) checkDepth(body, maxDepth);
    const json = parse(body);
    const lengths = isFields(json) && json.texts !== undefined ? checkedLengths(json.texts) : [];
    const total = lengths.reduce((sum, length) => sum + length, 0);
    if (total > MAX_TEXT_BYTE_LENGTH) {
      throw new ProtocolError(`texts of ${total} bytes; at most ${MAX_TEXT_BYTE_LENGTH} are taken`);
    }
    if (lengths.length === 0) return this.#done({ json, texts: [] });
    if (total > (this.#bounds.longTextByteLength ?? LONG_TEXT_BYTE_LENGTH)) {
      this.#long = { json, texts: new LongTexts(lengths) };
      return null;
    }
    return this.#expect(total, (bytes) => {
      let at = 0;
      const texts = lengths.map((length) => {
        at += length;
        return decodeName(bytes.subarray(at - length, at));
      });
      return this.#done({ json, texts });
    });
  }

  #done(message: Message): Message {
    this.#expect(LENGTH_BYTE_LENGTH, (bytes) => this.#onLength(bytes));
    return message;
  }

  #take(byteLength: number): Buffer {
    // Put together once, when all of it is there.
    const [first] = this.#chunks;
    const all =
      first === undefined || this.#chunks.length > 1
        ? Buffer.concat(this.#chunks)
        : Buffer.from(first.buffer, first.byteOffset, first.byteLength);
    const rest = all.subarray(byteLength);
    this.#chunks = rest.byteLength === 0 ? [] : [rest];
    this.#byteLength = rest.byteLength;
    return all.subarray(0, byteLength);
  }
}

function checkedLengths(value: unknown): number[] {
  const isRight =
    Array.isArray(value) && value.length <= 4096 && value.every((one) => Number.isSafeInteger(one) && one >= 0);
  if (!isRight) throw new ProtocolError('texts is no list of lengths');
  return value as number[];
}

/** Before it is parsed: a megabyte of braces takes the parser half a second. */
function checkDepth(bytes: Buffer, maxDepth: number): void {
  let depth = 0;
  let inString = false;
  for (let at = 0; at < bytes.byteLength; at++) {
    const byte = bytes[at]!;
    if (inString) {
      if (byte === 0x5c) at++;
      else if (byte === 0x22) inString = false;
    } else if (byte === 0x22) inString = true;
    else if (byte === 0x5b || byte === 0x7b) {
      if (++depth > maxDepth) throw new ProtocolError(`a message with more than ${maxDepth} braces inside each other`);
    } else if (byte === 0x5d || byte === 0x7d) depth--;
  }
}

function parse(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString());
  } catch (error) {
    throw new ProtocolError(`a message that is no JSON: ${(error as Error).message}`);
  }
}

// Tables in requests

/** A table in the place of which the JSON says which text it is. */
interface TextReference {
  text: number;
}

const LINE_BREAK = /[\n\r]/;

/** @throws DmError EINVAL for lines that text can't hold */
function textOf(table: string | readonly TableEntry[]): string {
  if (typeof table === 'string') return table;
  for (const { type, params } of table) {
    if (/\s/.test(type) || type === '' || (LINE_BREAK.test(params) && !/\\[\n\r]/.test(params))) {
      throw new DmError(Errno.EINVAL, `"${type} ${params}" is no line of a table`);
    }
  }
  return formatTable(table);
}

/** Takes the tables out of a request's arguments. */
export function detachTables(args: object): { args: object; texts: Uint8Array[][] } {
  const texts: Uint8Array[][] = [];
  const detach = (value: object): object => {
    const { table, steps } = value as {
      table?: string | LongText | TableEntry[];
      steps?: { name: string; args: object }[];
    };
    let result = value;
    if (typeof table === 'string' || Array.isArray(table)) {
      result = { ...result, table: { text: texts.length } satisfies TextReference };
      texts.push([encodeName(textOf(table))]);
    } else if (table instanceof LongText) {
      result = { ...result, table: { text: texts.length } satisfies TextReference };
      texts.push(table.pieces.map(encodeName));
    }
    if (Array.isArray(steps))
      result = { ...result, steps: steps.map((step) => ({ ...step, args: detach(step.args) })) };
    return result;
  };
  return { args: detach(args), texts };
}

/** Puts them back. @throws ProtocolError for a text that is not there */
export function attachTables(args: Fields, texts: readonly TableText[]): Fields {
  const { table, steps } = args;
  let result = args;
  if (isFields(table)) {
    const text = isCount(table.text) ? texts[table.text] : undefined;
    if (text === undefined) throw new ProtocolError('a table that did not come');
    result = { ...result, table: text };
  }
  if (Array.isArray(steps)) {
    const attached = steps.map((step: unknown) =>
      isFields(step) && isFields(step.args) ? { ...step, args: attachTables(step.args, texts) } : step,
    );
    result = { ...result, steps: attached };
  }
  return result;
}

// Lines in answers

/** The lines of an answer as text, made in slices; null where they are few, or one of them has a line break. */
export async function encodeLines(lines: readonly StatusLine[]): Promise<Uint8Array[] | null> {
  if (lines.length <= LINE_COUNT) return null;
  const pieces: Uint8Array[] = [];
  for (let from = 0; from < lines.length; from += LINE_COUNT) {
    let text = '';
    for (const { sector, sectorCount, type, params } of lines.slice(from, from + LINE_COUNT)) {
      if (LINE_BREAK.test(params)) return null;
      text += `${sector} ${sectorCount} ${type} ${params}\n`;
    }
    pieces.push(encodeName(text));
    await new Promise((resolve) => setImmediate(resolve));
  }
  return pieces;
}

export function decodeLines(text: string): StatusLine[] {
  const lines: StatusLine[] = [];
  for (let start = 0; start < text.length; ) {
    const end = text.indexOf('\n', start);
    const [, sector, sectorCount, type, params] = /^(\d+) (\d+) (\S+) (.*)$/.exec(text.slice(start, end))!;
    lines.push({ sector: Number(sector), sectorCount: Number(sectorCount), type: type!, params: params! });
    start = end + 1;
  }
  return lines;
}

// Errors

/** An exception on its way. */
export interface WireError {
  kind: 'DmError' | 'TableError' | 'Error';
  errno: number;
  code: string;
  message: string;
  reason?: string;
  lineIndex?: number;
  step?: { request: string; major: number; minor: number };
  stepIndex?: number;
  causes: string[];
}

export function encodeError(error: unknown): WireError {
  const causes: string[] = [];
  for (let cause = (error as Error).cause; cause instanceof Error; cause = cause.cause) causes.push(cause.message);
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof DmError)) return { kind: 'Error', errno: 0, code: '', message, causes };
  const { errno, code, step, stepIndex } = error;
  const common = {
    errno,
    code,
    message,
    causes,
    ...(step === undefined ? {} : { step }),
    ...(stepIndex === undefined ? {} : { stepIndex }),
  };
  if (!(error instanceof TableError)) return { kind: 'DmError', ...common };
  return { kind: 'TableError', ...common, reason: error.reason, lineIndex: error.lineIndex };
}

/** The same exception again, causes and all. */
export function decodeError(wire: WireError): Error {
  const error = decodedError(wire);
  if (error instanceof DmError) {
    if (wire.step !== undefined) error.step = wire.step;
    if (wire.stepIndex !== undefined) error.stepIndex = wire.stepIndex;
  }
  let at = error;
  for (const text of wire.causes) {
    at.cause = new Error(text);
    at = at.cause as Error;
  }
  return error;
}

function decodedError({ kind, errno, message, code, reason, lineIndex }: WireError): Error {
  if (kind === 'TableError') return new TableError(errno, reason ?? message, lineIndex ?? -1);
  if (kind === 'DmError') return new DmError(errno, message, code);
  return new Error(`the daemon failed: ${message}`);
}
