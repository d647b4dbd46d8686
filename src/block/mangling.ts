// How dmsetup writes names that have characters outside a small set: each byte of such a character as \xNN.
import { decodeName, encodeName } from './file-name.ts';

const ALLOWED = /[0-9A-Za-z#+\-.:=@_]/;
/** One mangled byte. */
export const SEQUENCE = /\\x[0-9a-fA-F]{2}/g;

/** Every byte that is not allowed as \xNN. */
export function mangled(text: string): string {
  let result = '';
  for (const byte of encodeName(text)) {
    const character = String.fromCharCode(byte);
    result += ALLOWED.test(character) ? character : `\\x${byte.toString(16).padStart(2, '0')}`;
  }
  return result;
}

/** The characters that \xNN stand for. */
export function unmangled(text: string): string {
  const bytes: number[] = [];
  for (let at = 0; at < text.length; ) {
    const match = /^\\x([0-9a-fA-F]{2})/.exec(text.slice(at, at + 4));
    if (match !== null) bytes.push(Number.parseInt(match[1]!, 16));
    const character = String.fromCodePoint(text.codePointAt(at)!);
    if (match === null) bytes.push(...encodeName(character));
    at += match === null ? character.length : 4;
  }
  return decodeName(Buffer.from(bytes));
}

/** Everything outside its \xNN is allowed, and there is one. */
export function isMangled(text: string): boolean {
  const rest = text.replace(SEQUENCE, '');
  return rest !== text && [...rest].every((character) => ALLOWED.test(character));
}

/** Some character of it is outside dmsetup's small set. */
export function needsMangling(text: string): boolean {
  return [...text].some((character) => !ALLOWED.test(character));
}
