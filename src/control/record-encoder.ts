// Changes to the bytes of a record, in pieces: a value may have 10 MiB, and the thread that encodes it serves other
// devices' I/O. Whoever runs the generators decides after each piece whether the event loop gets a turn.
import { crc32 } from 'node:zlib';
import { HEAD_BYTES, type Json, makeHead } from './record-format.ts';

/** A piece has about so many bytes, or stands for as much work. */
const PIECE_BYTES = 32_768;
/** The work for one value beside its characters, in the same measure. */
const VALUE_COST = 16;

/** Text that is gathered to pieces. */
class Text {
  text = '';
  cost = 0;

  add(part: string): void {
    this.text += part;
    this.cost += part.length + VALUE_COST;
  }

  take(): Buffer {
    const bytes = Buffer.from(this.text);
    this.text = '';
    this.cost = 0;
    return bytes;
  }
}

function* encodeString(value: string, out: Text): Generator<Buffer> {
  if (value.length <= PIECE_BYTES) {
    out.add(JSON.stringify(value));
    return;
  }
  out.add('"');
  for (let start = 0; start < value.length; ) {
    let end = Math.min(value.length, start + PIECE_BYTES);
    // Halves of one character stay together.
    if (end < value.length && (value.charCodeAt(end - 1) & 0xfc00) === 0xd800) end++;
    out.add(JSON.stringify(value.slice(start, end)).slice(1, -1));
    yield out.take();
    start = end;
  }
  out.add('"');
}

function* encodeValue(value: Json, out: Text): Generator<Buffer> {
  if (out.cost >= PIECE_BYTES) yield out.take();
  if (typeof value === 'string') yield* encodeString(value, out);
  else if (value === null || typeof value !== 'object') {
    const text = JSON.stringify(value) as string | undefined;
    if (text === undefined) throw new TypeError(`a value of type ${typeof value} can't be written to a record file`);
    out.add(text);
  } else if (Array.isArray(value)) {
    for (const [index, item] of value.entries()) {
      out.add(index === 0 ? '[' : ',');
      yield* encodeValue(item, out);
    }
    out.add(value.length === 0 ? '[]' : ']');
  } else {
    let separator = '{';
    for (const [name, item] of Object.entries(value)) {
      if (item === undefined) continue;
      out.add(`${separator}${JSON.stringify(name)}:`);
      separator = ',';
      yield* encodeValue(item, out);
    }
    out.add(separator === '{' ? '{}' : '}');
  }
}

/** A record that is ready to be written. */
export interface EncodedRecord {
  /** Head and body. */
  pieces: Buffer[];
  byteLength: number;
  /** Of each key's line; 0 for a key that is deleted. */
  sizes: Map<string, number>;
}

/** Encodes one atomic change. Yields after each piece of work; returns the record. @throws TypeError for no JSON */
export function* encodeRecord(
  sequence: number,
  changes: ReadonlyMap<string, Json>,
): Generator<number, EncodedRecord, void> {
  const pieces: Buffer[] = [];
  const sizes = new Map<string, number>();
  const out = new Text();
  let bodyBytes = 0;
  let crc = 0;
  const add = (piece: Buffer): number => {
    pieces.push(piece);
    bodyBytes += piece.byteLength;
    crc = crc32(piece, crc);
    return piece.byteLength;
  };
  for (const [key, value] of changes) {
    const start = bodyBytes;
    out.add(`[${JSON.stringify(key)},`);
    for (const piece of encodeValue(value, out)) yield add(piece);
    out.add(']\n');
    yield add(out.take());
    sizes.set(key, value === null ? 0 : bodyBytes - start);
  }
  pieces.unshift(makeHead(sequence, bodyBytes, crc));
  return { pieces, byteLength: HEAD_BYTES + bodyBytes, sizes };
}

/** The same at once. */
export function encodeNow(sequence: number, changes: ReadonlyMap<string, Json>): EncodedRecord {
  const steps = encodeRecord(sequence, changes);
  for (;;) {
    const step = steps.next();
    if (step.done === true) return step.value;
  }
}
