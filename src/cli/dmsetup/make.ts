// The commands that make, load and end devices.
import { Errno } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import { parseTable, type TableEntry } from '../../table/text.ts';
import { eachConcise } from './concise.ts';
import { CommandFailed, UsageFailed } from './io.ts';
import { integerOf } from './options.ts';
import type { DeviceRef, Session } from './session.ts';
import { printInfo } from './show.ts';

const MAX_TYPE_NAME_LENGTH = 15;
const RETRY_COUNT = 25;
const RETRY_MILLISECONDS = 200;

interface TableSource {
  text: string;
  /** As messages name it. */
  name: string;
}

/** --table, a file, or standard input. */
function readTableSource(session: Session, file: string | undefined): TableSource {
  const text = session.option('table');
  if (text !== undefined) return { text, name: '' };
  if (file === undefined) return { text: session.io.readStdin(), name: 'on stdin' };
  try {
    return { text: session.io.readFile(file), name: file };
  } catch {
    return session.fail(`Couldn't open '${file}' for reading.`);
  }
}

function parseSource(session: Session, source: TableSource): TableEntry[] {
  let entries: TableEntry[];
  try {
    entries = parseTable(source.text, source.name);
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    const [form, reason] = error.message.split(': ', 2);
    session.io.stderr(`${form}.\n`);
    if (reason !== undefined) session.io.note(`${error.message.slice(form!.length + 2)}\n`);
    throw new CommandFailed();
  }
  for (const { type } of entries) {
    if (type.length > MAX_TYPE_NAME_LENGTH) session.fail(`Target type name ${type} is too long.`);
  }
  return entries.map((entry) => mapped(session, entry));
}

/** With the devices of --map in the place of the paths they stand for. */
function mapped(session: Session, entry: TableEntry): TableEntry {
  return { ...entry, params: entry.params.replace(/\S+/g, (word) => session.io.mapDevice(word)) };
}

/** What a load takes beside the table. */
function loadArgs(session: Session): { folder: string; host: boolean; force: boolean } {
  return { folder: session.io.folder, host: session.has('host'), force: session.has('force') };
}

/** The read-ahead that --readahead asks for; undefined without it. */
function readAheadOption(session: Session): { sectorCount: number | null; atLeast: boolean } | undefined {
  const text = session.option('readahead');
  if (text === undefined) return undefined;
  const number = /^(\+?)(\d+)$/.exec(text);
  if (number === null && text !== 'auto' && text !== 'none') {
    session.io.stderr(`Bad ${session.io.programName} readahead value: ${text}\n`);
    throw new UsageFailed("Couldn't process command line.\n");
  }
  return { sectorCount: text === 'auto' ? null : Number(number?.[2] ?? 0), atLeast: number?.[1] === '+' };
}

interface NewDevice {
  name: string;
  uuid: string;
  major: number | undefined;
  minor: number | undefined;
  readOnly: boolean;
  /** Null: no table. */
  entries: TableEntry[] | null;
}

/** create, load and resume, as one request: where one of them fails nothing is left behind. */
async function makeDevice(session: Session, device: NewDevice): Promise<void> {
  const { major, minor, uuid, entries, readOnly } = device;
  const name = session.names.mangleNew(device.name);
  const wanted: DeviceRef = {
    address: { name },
    name: device.name,
    uuid,
    number: major === undefined ? '' : `(${major}:${minor})`,
  };
  const readAhead = readAheadOption(session);
  const hasTable = entries !== null && entries.length > 0;
  await session.ask('create', wanted, {
    name,
    ...(uuid === '' ? {} : { uuid: session.names.mangleUuid(uuid) }),
    ...(major === undefined ? {} : { major }),
    ...(minor === undefined ? {} : { minor }),
    ...(hasTable ? { table: entries, readOnly, ...loadArgs(session) } : {}),
    ...(hasTable && readAhead !== undefined ? { readAhead } : {}),
  });
}

export async function create(session: Session): Promise<void> {
  if (session.has('concise')) return createConcise(session);
  const [name, file] = session.args;
  if (name === undefined) session.fail('Please provide a name for the new device.');
  session.names.mangleNew(name);
  const uuid = session.option('uuid') ?? '';
  if (uuid !== '') session.names.mangleUuid(uuid);
  await makeDevice(session, {
    name,
    uuid,
    major: numberOption(session, 'major'),
    minor: numberOption(session, 'minor'),
    readOnly: session.has('readonly'),
    entries: session.has('notable') ? null : parseSource(session, readTableSource(session, file)),
  });
  if (session.line.verbosity > 0) await printInfo(session, session.byName(name));
}

function numberOption(session: Session, name: string): number | undefined {
  const text = session.option(name);
  return text === undefined ? undefined : integerOf(text);
}

async function createConcise(session: Session): Promise<void> {
  if (['table', 'notable', 'minor', 'uuid', 'inactive'].some((option) => session.has(option))) {
    session.fail('--concise is incompatible with --[no]table, --minor, --uuid and --inactive.');
  }
  if (session.args.length > 1) session.fail(`${session.io.programName} create --concise takes at most one argument`);
  const text = session.args[0] ?? session.io.readStdin();
  await eachConcise(text, session.io, async ({ name, uuid, minor, readOnly, table }) => {
    const entries = parseSource(session, { text: table, name: '' });
    await makeDevice(session, { name, uuid, major: undefined, minor, readOnly, entries });
  });
}

export async function load(session: Session): Promise<void> {
  if (session.has('notable')) session.fail('--notable only available when creating new device.');
  const byOption = session.isAddressedByOption;
  const [first, second] = session.args;
  if (!byOption && first === undefined) session.fail('Please specify device.');
  const [ref] = await session.devices(byOption ? [] : [first!]);
  const entries = parseSource(session, readTableSource(session, byOption ? first : second));
  const { address: device } = ref!;
  const readOnly = session.has('readonly');
  const { notices } = await session.ask('load', ref!, { device, table: entries, readOnly, ...loadArgs(session) });
  for (const text of notices) session.io.note(`${text}\n`);
  if (session.line.verbosity > 0) await printInfo(session, ref!);
}

/** For each device named, in order, up to the first failure. */
async function forEach(session: Session, work: (ref: DeviceRef) => Promise<void>): Promise<void> {
  for (const ref of await session.named()) {
    await work(ref);
    if (session.line.verbosity > 0 && session.command !== 'remove') await printInfo(session, ref);
  }
}

export function clear(session: Session): Promise<void> {
  return forEach(session, async (ref) => void (await session.ask('clear', ref, { device: ref.address })));
}

export function suspend(session: Session): Promise<void> {
  const noflush = session.has('noflush');
  return forEach(session, async (ref) => {
    if (session.has('checks')) await checkLowerDevices(session, ref);
    await session.ask('suspend', ref, { device: ref.address, noflush });
  });
}

/** --checks: a device below that is suspended already would keep this one's suspend waiting. It is only told. */
async function checkLowerDevices(session: Session, ref: DeviceRef): Promise<void> {
  const all = await session.all();
  for (const { major, minor } of await session.ask('deps', ref, { device: ref.address })) {
    if (!all.some((status) => status.major === major && status.minor === minor && status.suspended)) continue;
    // The words run together in dmsetup, too.
    session.io.stderr(
      `Internal error: Attempt to suspend device ${ref.name}that uses already-suspended device (${major}:${minor})\n`,
    );
  }
}

export function resume(session: Session): Promise<void> {
  const noflush = session.has('noflush');
  return forEach(session, async (ref) => {
    await session.ask('resume', ref, { device: ref.address, noflush });
    const readAhead = readAheadOption(session);
    if (readAhead !== undefined) await session.ask('setReadAhead', ref, { device: ref.address, ...readAhead });
  });
}

/** Puts an error table of the same size in the place of the live one, at once. */
async function wipe(session: Session, ref: DeviceRef): Promise<void> {
  let sectorCount = 0;
  let readOnly = false;
  try {
    const { status, lines } = await session.ask('table', ref, { device: ref.address, type: 'table' });
    const last = lines.at(-1);
    if (last !== undefined) sectorCount = last.sector + last.sectorCount;
    readOnly = status.readOnly;
  } catch (error) {
    // Told; the load below fails for the same reason, and says so, too.
    if (!(error instanceof CommandFailed)) throw error;
  }
  const table = [{ sector: 0, sectorCount, type: 'error', params: '' }];
  await session.ask('load', ref, { device: ref.address, table, readOnly });
  await session.ask('resume', ref, { device: ref.address, noflush: true });
}

export function wipeTable(session: Session): Promise<void> {
  return forEach(session, (ref) => wipe(session, ref));
}

export function remove(session: Session): Promise<void> {
  const deferred = session.has('deferred');
  return forEach(session, async (ref) => {
    // Whatever comes of it, the removal is tried.
    if (session.has('force')) await wipe(session, ref).catch(ignoreFailure);
    await removeOne(session, ref, deferred);
  });
}

function ignoreFailure(error: unknown): void {
  if (!(error instanceof CommandFailed)) throw error;
}

async function removeOne(session: Session, ref: DeviceRef, deferred: boolean): Promise<void> {
  const attempts = session.has('retry') ? RETRY_COUNT : 1;
  for (let attempt = 1; ; attempt++) {
    try {
      await session.ask('remove', ref, { device: ref.address, deferred });
      return;
    } catch (error) {
      if (attempt >= attempts || !(await isThere(session, ref))) throw error;
      await session.io.sleep(RETRY_MILLISECONDS);
    }
  }
}

/** It could not be removed because it is busy, and not because it is gone. */
async function isThere(session: Session, ref: DeviceRef): Promise<boolean> {
  try {
    await session.control.call('info', { device: ref.address });
    return true;
  } catch (error) {
    if (error instanceof DmError && error.errno === Errno.ENXIO) return false;
    throw error;
  }
}

export async function removeAll(session: Session): Promise<void> {
  const deferred = session.has('deferred');
  const left = await session.ask('removeAll', null, { deferred });
  if (!session.has('force') || left.length === 0) return;
  for (const status of await session.all()) await wipe(session, session.refOf(status)).catch(ignoreFailure);
  const stillThere = await session.ask('removeAll', null, { deferred });
  if (stillThere.length > 0) session.io.stderr(`Unable to remove ${stillThere.length} device(s).\n`);
}

export async function rename(session: Session): Promise<void> {
  const setUuid = session.has('setuuid');
  const byOption = !setUuid && session.isAddressedByOption;
  const words = byOption ? session.args : session.args.slice(1);
  if (!byOption && session.args.length < 2) session.fail('No device specified.');
  const [ref] = await session.devices(byOption ? [] : [session.args[0]!]);
  const text = words[0];
  if (text === undefined || text === '') {
    session.fail(setUuid ? 'Non empty new uuid is required.' : 'Non empty new name is required.');
  }
  // The kernel looks a device up by its name alone here; any other address finds nothing.
  const name = 'name' in ref!.address ? ref!.address.name : '';
  if (setUuid) await session.ask('setUuid', ref!, { name, uuid: session.names.mangleUuid(text) });
  else await session.ask('rename', ref!, { name, newName: session.names.mangleNew(text) });
}

export async function message(session: Session): Promise<void> {
  const byOption = session.isAddressedByOption;
  const [ref] = await session.devices(byOption ? [] : [session.args[0]!]);
  const [sectorText = '', ...words] = byOption ? session.args : session.args.slice(1);
  if (!/^\d+$/.test(sectorText)) session.fail('Invalid sector.');
  if (words.length === 0) session.io.stderr('No message supplied.\n');
  const sector = Number(sectorText);
  const reply = await session.ask('message', ref!, { device: ref!.address, sector, text: words.join(' ') });
  if (reply !== null) session.print(reply.endsWith('\n') ? reply : `${reply}\n`);
}

export async function wait(session: Session): Promise<void> {
  const byOption = session.isAddressedByOption;
  const [ref] = await session.devices(byOption ? [] : session.args.slice(0, 1));
  if (ref === undefined) session.fail('No device specified.');
  // As an unsigned number of 32 bits, like dmsetup's.
  const eventNumber = integerOf(session.args[byOption ? 0 : 1] ?? '0') >>> 0;
  const status = await session.ask('wait', ref, { device: ref.address, eventNumber });
  if (session.line.verbosity > 0) await printInfo(session, ref, status);
}

/** Stores names that were given unmangled in their mangled form. */
export async function mangle(session: Session): Promise<void> {
  const refs = session.args.length > 0 ? await session.devices() : null;
  const all = await session.all();
  const statuses = refs === null ? all : all.filter((status) => refs.some(({ name }) => name === status.name));
  if (statuses.length === 0) {
    session.noDevices();
    return;
  }
  for (const { name, uuid } of statuses) {
    const better = session.names.mangled(name);
    const uuidText = uuid === '' ? '[no UUID]' : uuid;
    const correct = uuid === '' ? 'name already in correct form' : 'name and UUID already in correct form';
    if (better === name) session.print(`${name}: ${uuidText}: ${correct}\n`);
    else {
      session.print(`${name}: renaming to ${better}\n`);
      await session.ask('rename', { address: { name }, name, uuid: '', number: '' }, { name, newName: better });
    }
  }
}
