// Names as dmsetup mangles them: a character outside a small set becomes \xNN, on the way in, and back on the way out.
import { isMangled, mangled, needsMangling, SEQUENCE, unmangled } from '../../block/mangling.ts';
import { CommandFailed, type DmsetupIo } from './io.ts';

export type ManglingMode = 'auto' | 'hex' | 'none';

const MAX_NAME_LENGTH = 127;
const MAX_UUID_LENGTH = 128;

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
    const kept = this.#mangle(name, 'name');
    if (kept.length > MAX_NAME_LENGTH || Buffer.byteLength(kept) > MAX_NAME_LENGTH) {
      this.#fail(`Name "${name}" too long.`);
    }
    return kept;
  }

  /** The same for a name that is to be given: it has no slash. @throws CommandFailed */
  mangleNew(name: string): string {
    if (name.includes('/')) this.#fail(`Name "${name}" invalid. It contains "/".`);
    return this.mangle(name);
  }

  /** @throws CommandFailed */
  mangleUuid(uuid: string): string {
    const kept = this.#mangle(uuid, 'uuid');
    if (Buffer.byteLength(kept) > MAX_UUID_LENGTH) {
      this.#fail(`Mangled form of the UUID too long for "${uuid}".`, `Failed to mangle device uuid "${uuid}".`);
    }
    return kept;
  }

  #mangle(text: string, what: 'name' | 'uuid'): string {
    if (this.#mode === 'none') return text;
    if (this.#mode === 'hex') return mangled(text);
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
    return mangled(text);
  }

  /** A stored name as people read it. @throws CommandFailed for one that should have been mangled */
  show(stored: string): string {
    if (this.#mode === 'none') return stored;
    if (needsMangling(stored.replace(SEQUENCE, ''))) {
      this.#fail(`The name "${stored}" should be mangled but it contains blacklisted characters.`);
    }
    return unmangled(stored);
  }

  /** In the stored form, whatever the mode: for the field `mangled_name`. */
  mangled(stored: string): string {
    return isMangled(stored) || !needsMangling(stored) ? stored : mangled(stored);
  }

  unmangled(stored: string): string {
    return unmangled(stored);
  }

  #fail(...lines: string[]): never {
    for (const line of lines) this.#io.stderr(`${line}\n`);
    throw new CommandFailed();
  }
}
