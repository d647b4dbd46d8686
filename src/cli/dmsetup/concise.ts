// Several devices in one line: NAME,UUID,MINOR,FLAGS,LINE[,LINE]...[;next device]. A backslash protects the character after it.
import { CommandFailed, type DmsetupIo } from './io.ts';

export interface ConciseDevice {
  name: string;
  uuid: string;
  minor: number | undefined;
  readOnly: boolean;
  table: string;
}

/** Splits at `;` and at the first four commas; a further comma begins another line of the table. */
function splitDevices(text: string): string[][] {
  const devices: string[][] = [];
  let fields = [''];
  let skipBlanks = true;
  const end = (): void => {
    if (fields.length > 1 || fields[0] !== '') devices.push(fields);
    fields = [''];
    skipBlanks = true;
  };
  for (let at = 0; at < text.length; at++) {
    const character = text[at]!;
    if (skipBlanks && /\s/.test(character)) continue;
    skipBlanks = false;
    if (character === ';') end();
    else if (character === ',' && fields.length < 5) {
      fields.push('');
      skipBlanks = true;
    } else if (character === ',') fields[4] += '\n';
    else fields[fields.length - 1] += character === '\\' && at + 1 < text.length ? text[++at] : character;
  }
  // The newline that ends standard input is none of the table's.
  fields[fields.length - 1] = fields.at(-1)!.replace(/\n$/, '');
  end();
  return devices;
}

/** @throws CommandFailed after saying what is wrong: which devices came before it is `onDevice`'s to know */
export async function eachConcise(
  text: string,
  io: DmsetupIo,
  onDevice: (device: ConciseDevice) => Promise<void>,
): Promise<void> {
  for (const fields of splitDevices(text)) await onDevice(readDevice(fields, io));
}

function readDevice(fields: readonly string[], io: DmsetupIo): ConciseDevice {
  const [name = '', uuid = '', minor = '', flags = '', table = ''] = fields;
  if (fields.length < 5 || (fields.length === 5 && table === '' && name === '')) {
    const told = [name, fields[1], fields[2], fields[3]].map((field) => field ?? '(null)');
    const reason = fields.length < 4 ? 'Five comma-separated' : 'Incomplete entry: five comma-separated';
    io.stderr(`${reason} fields are required for each device\n`);
    io.stderr(
      `Parsed ${fields.length} fields: name: ${told[0]} uuid: ${told[1]} minor: ${told[2]} flags: ${told[3]} table: (null)\n`,
    );
    throw new CommandFailed();
  }
  if (!['', 'rw', 'ro'].includes(flags)) {
    io.stderr(`Invalid flags parameter '${flags}' must be 'ro' or 'rw' or empty.\n`);
    throw new CommandFailed();
  }
  return { name, uuid, minor: minor === '' ? undefined : Number(minor), readOnly: flags === 'ro', table };
}

/** A field of the concise form. */
export function escapeConcise(text: string): string {
  return text.replace(/[,;\\]/g, '\\$&');
}
