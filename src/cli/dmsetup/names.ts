// Names as dmsetup mangles them: a character outside a small set becomes \xNN, on the way in, and back on the way out.
import { CommandFailed, type DmsetupIo } from './io.ts';

export type ManglingMode = 'auto' | 'hex' | 'none';

const MAX_NAME_LENGTH = 127;
const MAX_UUID_LENGTH = 128;
const ALLOWED = /[0-9A-Za-z#+\-.:=@_]/;
const SEQUENCE = /\\x[0-9a-fA-F]{2}/g;

/** Every byte that is not allowed as \xNN. */
function encode(text: string): string {
  let result = '';
  for (const byte of Buffer.from(text)) {
    const character = String.fromCharCode(byte);
    result += ALLOWED.test(character) ? character : `\\x${byte.toString(16).padStart(2, '0')}`;
  }
  return result;
}

function decode(text: string): string {
  const bytes: number[] = [];
  for (let at = 0; at < text.length; ) {
    const match = /^\\x([0-9a-fA-F]{2})/.exec(text.slice(at, at + 4));
    if (match !== null) bytes.push(Number.parseInt(match[1]!, 16));
    else bytes.push(...Buffer.from(text[at]!));
    at += match === null ? 1 : 4;
  }
  return Buffer.from(bytes).toString();
}

/** All that is not a \xNN is allowed, and there is one. */
function isMangled(text: string): boolean {
  const rest = text.replace(SEQUENCE, '');
  return rest !== text && [...rest].every((character) => ALLOWED.test(character));
}

function needsMangling(text: string): boolean {
  return [...text].some((character) => !ALLOWED.test(character));
}

/** Mangles and unmangles in one mode, and complains as dmsetup does. */
export class Names {
  readonly #mode: ManglingMode;
  readonly #io: DmsetupIo;

  constructor(mode: ManglingMode, io: DmsetupIo) {
    this.#mode = mode;
    this.#io = io;
  }

  /** A device's name as it is stored. @throws CommandFailed */
  mangle(name: string): string {
    const mangled = this.#mangle(name, 'name');
    if (mangled.length > MAX_NAME_LENGTH || Buffer.byteLength(mangled) > MAX_NAME_LENGTH) {
      this.#fail(`Name "${name}" too long.`);
    }
    return mangled;
  }

  /** The same for a name that is to be given: it has no slash. @throws CommandFailed */
  mangleNew(name: string): string {
    if (name.includes('/')) this.#fail(`Name "${name}" invalid. It contains "/".`);
    return this.mangle(name);
  }

  /** @throws CommandFailed */
  mangleUuid(uuid: string): string {
    const mangled = this.#mangle(uuid, 'uuid');
    if (Buffer.byteLength(mangled) > MAX_UUID_LENGTH) {
      this.#fail(`Mangled form of the UUID too long for "${uuid}".`, `Failed to mangle device uuid "${uuid}".`);
    }
    return mangled;
  }

  #mangle(text: string, what: 'name' | 'uuid'): string {
    if (this.#mode === 'none') return text;
    if (this.#mode === 'hex') return encode(text);
    const failed = `Failed to mangle device ${what} "${text}".`;
    if (/\\x5c/i.test(text) && isMangled(text)) {
      this.#fail(`The ${what} "${text}" seems to be mangled more than once. Manual intervention required.`, failed);
    }
    if (isMangled(text) || !needsMangling(text)) return text;
    if (new RegExp(SEQUENCE).test(text)) {
      this.#fail(
        `The ${what} "${text}" contains mixed mangled and unmangled characters or it's already mangled improperly.`,
        failed,
      );
    }
    return encode(text);
  }

  /** A stored name as people read it. @throws CommandFailed for one that should have been mangled */
  show(stored: string): string {
    if (this.#mode === 'none') return stored;
    if (needsMangling(stored.replace(SEQUENCE, ''))) {
      this.#fail(`The name "${stored}" should be mangled but it contains blacklisted characters.`);
    }
    return decode(stored);
  }

  /** In the stored form, whatever the mode: for the field `mangled_name`. */
  mangled(stored: string): string {
    return isMangled(stored) || !needsMangling(stored) ? stored : encode(stored);
  }

  unmangled(stored: string): string {
    return decode(stored);
  }

  #fail(...lines: string[]): never {
    for (const line of lines) this.#io.stderr(`${line}\n`);
    throw new CommandFailed();
  }
}
