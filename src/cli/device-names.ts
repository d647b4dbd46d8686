// Names of devices as people give them to dmkit's own commands: NAME, /dev/mapper/NAME, dm:NAME or /dev/dm-N, where NAME is
// the one that `create` took. Devices keep names as dmsetup mangles them (`my disk` is kept as `my\x20disk`).
import { existsSync } from 'node:fs';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { isMangled, mangled, needsMangling, unmangled } from '../block/mangling.ts';
import type { DaemonClient } from '../client/index.ts';
import type { DeviceStatus } from '../control/types.ts';
import { isHostDevice } from './process-io.ts';

const MAX_NAME_LENGTH = 127;
const MAPPER_FOLDER = '/dev/mapper/';
const OWN = 'dm:';
const NODE = /^\/dev\/dm-(\d+)$/;

/** The name in a word; the word itself where it has none of the prefixes. */
export function bareName(word: string): string {
  for (const prefix of [MAPPER_FOLDER, OWN]) if (word.startsWith(prefix)) return word.slice(prefix.length);
  return word;
}

/** A name as it is kept, for a device that is to be made. @throws DmError EINVAL for a name that no device can have */
export function newName(word: string): string {
  const name = bareName(word);
  if (name.includes('/'))
    throw new DmError(Errno.EINVAL, `the name "${name}" has a slash, which no device's name may have`);
  const kept = isMangled(name) || !needsMangling(name) ? name : mangled(name);
  if (kept.length <= MAX_NAME_LENGTH) return kept;
  const how = kept === name ? '' : `, with \\xNN for each byte that dmsetup mangles`;
  throw new DmError(
    Errno.EINVAL,
    `the name "${name}" is too long: ${kept.length} bytes${how}; ${MAX_NAME_LENGTH} are allowed`,
  );
}

/** The one of `names` that a word means: as it is, or mangled; the bare name where neither is there. */
export function chooseName(word: string, names: readonly string[]): string {
  const name = bareName(word);
  if (names.includes(name) || !needsMangling(name)) return name;
  return names.includes(mangled(name)) ? mangled(name) : name;
}

/** The name in which a device is kept. @throws DmError EINVAL where this host has a device of that name as well */
export async function keptName(client: Pick<DaemonClient, 'list'>, word: string): Promise<string> {
  const minor = NODE.exec(word)?.[1];
  const name = bareName(word);
  // Most names mean themselves.
  if (name === word && minor === undefined && !needsMangling(name)) return name;
  const all = await client.list();
  const found = all.find((status) => isMeant(status, word, minor, all));
  if (found !== undefined && word.startsWith('/') && isHostDevice(word)) {
    const text = `${word} is a device of this host, and dmkit has one of that name: say ${OWN}${shownName(found.name)} for dmkit's`;
    throw new DmError(Errno.EINVAL, text);
  }
  return found?.name ?? name;
}

function isMeant(status: DeviceStatus, word: string, minor: string | undefined, all: readonly DeviceStatus[]): boolean {
  if (minor !== undefined) return status.minor === Number(minor);
  return (
    status.name ===
    chooseName(
      word,
      all.map(({ name }) => name),
    )
  );
}

export function keptNames(client: Pick<DaemonClient, 'list'>, words: readonly string[]): Promise<string[]> {
  return Promise.all(words.map((word) => keptName(client, word)));
}

/** An origin: a path that is there means itself, everything else a device. */
export async function keptOrigin(client: Pick<DaemonClient, 'list'>, word: string): Promise<string> {
  const isNamed = word.startsWith(OWN) || word.startsWith(MAPPER_FOLDER) || NODE.test(word);
  if (!isNamed && (existsSync(rawName(word)) || word.includes('/'))) return word;
  const name = await keptName(client, word);
  return name === word ? word : `${OWN}${name}`;
}

/** A kept name as people read it. */
export function shownName(name: string): string {
  return isMangled(name) ? unmangled(name) : name;
}

/** An origin in a batch, whose devices may not be there yet. */
export function originInBatch(word: string): string {
  return bareName(word) === word ? word : `${OWN}${newName(word)}`;
}
