// Names of files are bytes on Linux, and need not be UTF-8; text here is strings. A byte that belongs to no UTF-8 character is
// kept as half a surrogate pair, U+DC80 to U+DCFF, which no real text has (Python does the same). Such strings pass through
// tables, JSON and threads unharmed; the system gets their bytes back. Knows no file.
import { isUtf8 } from 'node:buffer';

/** Node.js puts this character in the place of bytes that are not UTF-8. */
export const REPLACEMENT = '\uFFFD';

const FIRST_ESCAPE = 0xdc00;
const NEWLINE = 0x0a;
const MAX_CHARACTER_BYTE_LENGTH = 4;
/** With the flag u: halves alone, not pairs. */
const ESCAPED_BYTE = /[\udc80-\udcff]/u;

/** How many bytes the UTF-8 character at `at` has; 0 where there is none. */
function characterByteLength(bytes: Buffer, at: number): number {
  for (let byteLength = 1; byteLength <= MAX_CHARACTER_BYTE_LENGTH; byteLength++) {
    const end = at + byteLength;
    if (end <= bytes.byteLength && isUtf8(bytes.subarray(at, end))) return byteLength;
  }
  return 0;
}

function decodeLine(bytes: Buffer): string {
  let text = '';
  for (let at = 0; at < bytes.byteLength; ) {
    const byteLength = characterByteLength(bytes, at);
    text +=
      byteLength === 0 ? String.fromCharCode(FIRST_ESCAPE + bytes[at]!) : bytes.toString('utf8', at, at + byteLength);
    at += byteLength || 1;
  }
  return text;
}

/** Bytes as a string that {@link encodeName} turns back into the same bytes. */
export function decodeName(bytes: Uint8Array): string {
  const all = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (isUtf8(all)) return all.toString();
  // A long table may have one odd name: the other lines cost no more than they must.
  const pieces: string[] = [];
  for (let at = 0; at < all.byteLength; ) {
    const newline = all.indexOf(NEWLINE, at);
    const end = newline < 0 ? all.byteLength : newline + 1;
    const line = all.subarray(at, end);
    pieces.push(isUtf8(line) ? line.toString() : decodeLine(line));
    at = end;
  }
  return pieces.join('');
}

/** {@link decodeName} of bytes that come in chunks, cut anywhere. */
export class NameDecoder {
  /** The beginning of a character whose rest has not come. */
  #pending: Buffer = Buffer.alloc(0);

  write(chunk: Uint8Array): string {
    const all = this.#pending.byteLength === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    const end = all.byteLength - cutByteLength(all);
    this.#pending = Buffer.from(all.subarray(end));
    return decodeName(all.subarray(0, end));
  }

  end(): string {
    const rest = decodeName(this.#pending);
    this.#pending = Buffer.alloc(0);
    return rest;
  }
}

/** How many bytes at the end may begin a character that goes on. */
function cutByteLength(bytes: Uint8Array): number {
  for (let count = 1; count < MAX_CHARACTER_BYTE_LENGTH && count <= bytes.byteLength; count++) {
    const byte = bytes[bytes.byteLength - count]!;
    if (byte >= 0xc0) {
      const byteLength = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
      return byteLength > count ? count : 0;
    }
    // A plain character ends all that came before it.
    if (byte < 0x80) return 0;
  }
  return 0;
}

/** The bytes of a name or of text with names in it. */
export function encodeName(text: string): Buffer {
  if (!isOddName(text)) return Buffer.from(text);
  const pieces: Buffer[] = [];
  for (let rest = text; rest !== ''; ) {
    const at = rest.search(ESCAPED_BYTE);
    pieces.push(Buffer.from(at < 0 ? rest : rest.slice(0, at)));
    if (at < 0) break;
    pieces.push(Buffer.of(rest.charCodeAt(at) - FIRST_ESCAPE));
    rest = rest.slice(at + 1);
  }
  return Buffer.concat(pieces);
}

/** The argument of a call to the system: the string as it is, or its bytes where it is not UTF-8. */
export function rawName(text: string): string | Buffer {
  return isOddName(text) ? encodeName(text) : text;
}

/** True for a name that has bytes of no UTF-8 character. */
export function isOddName(text: string): boolean {
  return !(text as unknown as { isWellFormed(): boolean }).isWellFormed();
}
