// The bytes of a record file, and how they are read after damage. Knows no file descriptors.
//
//   file     header record, then records; each one is an atomic change of some keys
//
//   record   +----+-------+---+----------+---+----------+---+----------+---+----------+----+--- - - ---+
//            | FF | dmkit | _ | sequence | _ | length   | _ | CRC-32   | _ | CRC-32   | \n | body      |
//            |    |       |   | 12 hex   |   | of body, |   | of body, |   | of what  |    | length    |
//            |    |       |   | digits   |   | 8 hex    |   | 8 hex    |   | is before|    | bytes     |
//            +----+-------+---+----------+---+----------+---+----------+---+----------+----+--- - - ---+
//   body     of the header record:  {"format":2}\n
//            of the others:         ["key",value]\n for each key; the value null deletes the key
//
// A body is UTF-8, which never has the byte FF: so FF begins a record and nothing else, and after damage at any byte a
// reader finds the next record without knowing where the last one ended. Sequence numbers only grow, also from a file to
// the one that replaces it, and none is used twice: a copy of a record at a wrong place is known by it, and an old one
// can't undo a newer one. A record that the end of the file cuts off was never acknowledged; it is no damage.
import { crc32 } from 'node:zlib';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A part of a file that can't be read. */
export interface Damage {
  /** First byte in the file. */
  start: number;
  /** The byte after the last one. */
  end: number;
  /** Keys and names that can still be read in it, for messages. */
  names: string[];
}

export const FORMAT = 2;
const MAGIC = Buffer.from('\xffdmkit ', 'latin1');
/** Magic, sequence, length, CRC of the body and CRC of all this, each followed by one character. */
export const HEAD_BYTES = MAGIC.byteLength + 13 + 9 + 9 + 9;
const CHECKED_BYTES = HEAD_BYTES - 9;
const HEAD = /^\xffdmkit ([0-9a-f]{12}) ([0-9a-f]{8}) ([0-9a-f]{8}) ([0-9a-f]{8})\n$/;
/** Any beginning of a head, with the rest made up from this. */
const HEAD_SAMPLE = '\xffdmkit 000000000000 00000000 00000000 00000000\n';

const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');

/** The head of a record. */
export function makeHead(sequence: number, bodyBytes: number, bodyCrc: number): Buffer {
  const head = Buffer.from(`\xffdmkit ${hex(sequence, 12)} ${hex(bodyBytes, 8)} ${hex(bodyCrc, 8)} `, 'latin1');
  return Buffer.concat([head, Buffer.from(`${hex(crc32(head), 8)}\n`)]);
}

/** A whole record with a short body. */
export function makeRecord(sequence: number, body: string): Buffer {
  const bytes = Buffer.from(body);
  return Buffer.concat([makeHead(sequence, bytes.byteLength, crc32(bytes)), bytes]);
}

/** The record that every file begins with. */
export function makeHeader(sequence: number): Buffer {
  return makeRecord(sequence, `{"format":${FORMAT}}\n`);
}

interface Found {
  sequence: number;
  start: number;
  end: number;
  /** The first word of a body of another form. */
  format: number | null;
  changes: { key: string; value: Json; byteLength: number }[];
}

/** What a file holds. */
export interface Parsed {
  values: Map<string, Json>;
  damage: Damage[];
  /** A record at the end is cut off. */
  isTorn: boolean;
  /** The highest sequence number that was seen. */
  sequence: number;
  /** Of each key's value, as a line of a body. */
  sizes: Map<string, number>;
}

function parseBody(body: Buffer): Pick<Found, 'format' | 'changes'> | null {
  try {
    if (body[0] === 0x7b) return { format: (JSON.parse(body.toString()) as { format: number }).format, changes: [] };
    const changes: Found['changes'] = [];
    for (let start = 0; start < body.byteLength; ) {
      const end = body.indexOf(0x0a, start) + 1;
      if (end === 0) return null;
      const [key, value] = JSON.parse(body.toString('utf8', start, end)) as [string, Json];
      changes.push({ key, value, byteLength: end - start });
      start = end;
    }
    return { format: null, changes };
  } catch {
    return null;
  }
}

type Place = Found | 'torn' | 'damaged';

function parseAt(bytes: Buffer, start: number): Place {
  const head = bytes.toString('latin1', start, Math.min(start + HEAD_BYTES, bytes.byteLength));
  if (head.length < HEAD_BYTES) return HEAD.test(head + HEAD_SAMPLE.slice(head.length)) ? 'torn' : 'damaged';
  const parts = HEAD.exec(head);
  if (parts === null) return 'damaged';
  const [sequence, length, bodyCrc, headCrc] = parts.slice(1).map((digits) => Number.parseInt(digits, 16));
  if (crc32(bytes.subarray(start, start + CHECKED_BYTES)) !== headCrc) return 'damaged';
  const end = start + HEAD_BYTES + length!;
  // With a head that is right the end of the file has cut it off, unless more records follow.
  if (end > bytes.byteLength) return bytes.indexOf(MAGIC, start + 1) < 0 ? 'torn' : 'damaged';
  const body = bytes.subarray(start + HEAD_BYTES, end);
  const content = crc32(body) === bodyCrc ? parseBody(body) : null;
  return content === null ? 'damaged' : { sequence: sequence!, start, end, ...content };
}

const KEY = /(?:^|\n)\[("(?:[^"\\\n]|\\.)*"),/g;
const NAME = /"name":\s*("(?:[^"\\\n]|\\.)*")/g;

function namesIn(bytes: Buffer): string[] {
  const text = bytes.toString();
  const names = new Set<string>();
  for (const match of [...text.matchAll(KEY), ...text.matchAll(NAME)]) {
    try {
      names.add(JSON.parse(match[1]!) as string);
    } catch {
      // The damage is inside.
    }
  }
  return [...names];
}

/** Records that stand where another one stood: seen twice, and not between their neighbours. */
function misplaced(found: readonly Found[]): Set<Found> {
  const bySequence = new Map<number, { record: Found; fits: boolean }>();
  const result = new Set<Found>();
  for (const [index, record] of found.entries()) {
    const { sequence } = record;
    const fits = found[index - 1]?.sequence === sequence - 1 || found[index + 1]?.sequence === sequence + 1;
    const other = bySequence.get(sequence);
    if (other === undefined) bySequence.set(sequence, { record, fits });
    else if (other.fits || !fits) result.add(record);
    else {
      result.add(other.record);
      bySequence.set(sequence, { record, fits });
    }
  }
  // Older than the file: the file took over what they said.
  const header = found.find(({ format }) => format !== null);
  for (const record of found) if (header !== undefined && record.sequence < header.sequence) result.add(record);
  return result;
}

function scan(bytes: Buffer): { found: Found[]; bad: [number, number][]; isTorn: boolean } {
  const found: Found[] = [];
  const bad: [number, number][] = [];
  let isTorn = bytes.byteLength === 0;
  for (let start = 0; start < bytes.byteLength; ) {
    const place = parseAt(bytes, start);
    if (typeof place === 'object') {
      found.push(place);
      start = place.end;
      continue;
    }
    if (place === 'torn') {
      isTorn = true;
      break;
    }
    let next = bytes.indexOf(0xff, start + 1);
    while (next >= 0 && parseAt(bytes, next) === 'damaged') next = bytes.indexOf(0xff, next + 1);
    bad.push([start, next < 0 ? bytes.byteLength : next]);
    start = next < 0 ? bytes.byteLength : next;
  }
  return { found, bad, isTorn };
}

/**
 * Reads a file's bytes.
 *
 * @throws DmError EOPNOTSUPP for a newer format, EINVAL for bytes that are no record file's
 */
export function parseRecords(bytes: Buffer, path: string): Parsed {
  const { found, bad, isTorn } = scan(bytes);
  const format = found.find((record) => record.format !== null)?.format ?? FORMAT;
  if (format > FORMAT) {
    throw new DmError(
      Errno.EOPNOTSUPP,
      `${path} has format ${format}, which a newer dmkit wrote; this one reads format ${FORMAT}. ` +
        'Use the newer dmkit, or move the file away.',
    );
  }
  const isOurs = found.length > 0 || isTorn || bytes.includes(MAGIC) || bytes.includes(`{"format":${FORMAT}}\n`);
  if (!isOurs) throw new DmError(Errno.EINVAL, `${path} is not a record file of dmkit. Move it away.`);
  const strays = misplaced(found);
  for (const { start, end } of strays) bad.push([start, end]);
  const records = found.filter((record) => !strays.has(record)).sort((a, b) => a.sequence - b.sequence);
  const values = new Map<string, Json>();
  const sizes = new Map<string, number>();
  for (const { key, value, byteLength } of records.flatMap(({ changes }) => changes)) {
    if (value === null) values.delete(key);
    else values.set(key, value);
    if (value === null) sizes.delete(key);
    else sizes.set(key, byteLength);
  }
  // A file whose header is the damaged part is read as one of this format; it has to be written anew all the same.
  const damage = bad
    .sort(([a], [b]) => a - b)
    .map(([start, end]) => ({ start, end, names: namesIn(bytes.subarray(start, end)) }));
  const sequence = found.reduce((highest, record) => Math.max(highest, record.sequence), 0);
  return { values, damage, isTorn, sequence, sizes };
}
