// The commands that look.
import { errnoMessage } from '../../block/errno.ts';
import { DmError } from '../../block/errors.ts';
import type { DeviceStatus, StatusLine } from '../../control/types.ts';
import { escapeConcise } from './concise.ts';
import { blockName, DEFAULT_INFO_FIELDS, INFO_FIELDS, type InfoRow, SPLIT_FIELDS, splitLvmName } from './fields.ts';
import { CommandFailed, UsageFailed } from './io.ts';
import { HelpGiven, Report } from './report.ts';
import type { DeviceRef, Session } from './session.ts';
import { ASCII, drawTrees, type TreeNode, type TreeStyle, UTF8, VT100 } from './tree.ts';

const ENXIO = 6;
/** Columns of a terminal that cannot be asked, and what dmsetup leaves free of any. */
const DEFAULT_COLUMNS = 80;
const FREE_COLUMNS = 3;

// info

/** The status of a device; null where it is not there, which is a success to the kernel's call. */
async function statusOf(session: Session, ref: DeviceRef): Promise<DeviceStatus | null> {
  try {
    return await session.control.call('info', { device: ref.address, inactive: session.has('inactive') });
  } catch (error) {
    if (!(error instanceof DmError) || error.errno === 0) throw error;
    if (error.errno === ENXIO) return null;
    session.fail(`device-mapper: info ioctl on ${ref.name}  failed: ${errnoMessage(error.errno)}`);
  }
}

async function existing(session: Session, ref: DeviceRef): Promise<DeviceStatus> {
  return (await statusOf(session, ref)) ?? session.fail('Device does not exist.');
}

function stateText(status: DeviceStatus): string {
  const state = status.suspended ? 'SUSPENDED' : 'ACTIVE';
  return `${state}${status.readOnly ? ' (READ-ONLY)' : ''}${status.deferredRemove ? ' (DEFERRED REMOVE)' : ''}`;
}

function tablesText({ live, inactive }: DeviceStatus): string {
  if (live) return inactive ? 'LIVE & INACTIVE' : 'LIVE';
  return inactive ? 'INACTIVE' : 'None';
}

/** By which client, since when, and why; beside dmsetup's own lines, which scripts read. */
function suspensionText({ suspendedBy }: DeviceStatus): string | null {
  if (suspendedBy === null) return null;
  const { pid, command, since, reason } = suspendedBy;
  const client = pid === undefined ? 'suspended' : `suspended by process ${pid} (${command})`;
  return `${reason === null ? client : `it stays suspended: ${reason};`} since ${new Date(since).toISOString()}`;
}

function printLong(session: Session, status: DeviceStatus): void {
  const name = session.names.show(status.name);
  session.print(`Name:              ${name}\nState:             ${stateText(status)}\n`);
  if (status.readAhead === null) {
    session.io.stderr(`/dev/mapper/${name}: open failed: No such file or directory\n`);
  } else session.print(`Read Ahead:        ${status.readAhead}\n`);
  session.print(
    [
      `Tables present:    ${tablesText(status)}`,
      `Open count:        ${status.openCount}`,
      `Event number:      ${status.eventNumber}`,
      `Major, minor:      ${status.major}, ${status.minor}`,
      `Number of targets: ${status.targetCount}`,
      ...(status.uuid === '' ? [] : [`UUID: ${session.names.show(status.uuid)}`]),
      '',
      '',
    ].join('\n'),
  );
  const suspension = suspensionText(status);
  if (suspension !== null) session.io.note(`${name}: ${suspension}\n`);
}

/** The long form, as -v adds it to other commands. @throws CommandFailed */
export async function printInfo(session: Session, ref: DeviceRef, known?: DeviceStatus): Promise<void> {
  printLong(session, known ?? (await existing(session, ref)));
}

async function statusesNamed(session: Session): Promise<DeviceStatus[] | null> {
  const refs = await session.devices();
  if (refs.length > 0) {
    const statuses: DeviceStatus[] = [];
    for (const ref of refs) statuses.push(await existing(session, ref));
    return statuses;
  }
  const all = await session.all();
  if (all.length === 0) return null;
  if (!session.has('inactive')) return all;
  const statuses: DeviceStatus[] = [];
  for (const status of all) statuses.push(await existing(session, session.refOf(status)));
  return statuses;
}

export async function info(session: Session): Promise<void> {
  if (session.has('json')) {
    session.json((await statusesNamed(session)) ?? []);
  } else if (session.has('columns')) {
    await infoColumns(session);
  } else {
    const refs = await session.devices();
    if (refs.length > 0) {
      for (const ref of refs) await printInfo(session, ref);
      return;
    }
    const all = await statusesNamed(session);
    if (all === null) session.noDevices();
    else for (const status of all) printLong(session, status);
  }
}

async function infoColumns(session: Session): Promise<void> {
  const report = makeReport(session, INFO_FIELDS, DEFAULT_INFO_FIELDS);
  if (report === null) return;
  const statuses = await statusesNamed(session);
  if (statuses === null) {
    session.noDevices();
    return;
  }
  session.atEnd.push(() => report.print());
  const rows = await infoRows(session, statuses);
  let failed = false;
  for (const row of rows) {
    try {
      report.add(row);
    } catch (error) {
      if (!(error instanceof CommandFailed)) throw error;
      failed = true;
    }
  }
  if (failed) throw new CommandFailed();
}

async function infoRows(session: Session, statuses: readonly DeviceStatus[]): Promise<InfoRow[]> {
  const fields = `${session.option('options') ?? ''},${session.option('sort') ?? ''}`;
  // Only these need to know who is built on whom.
  const related = /dev(?:s|nos|ice_|s_)|names_using|deps_all/.test(fields.replace(/blkdevname|devno(?!s)/g, ''));
  const all = await session.all();
  const deps = new Map<string, InfoRow['deps']>();
  if (related) {
    const inactive = session.has('inactive');
    for (const { name } of all) deps.set(name, await session.control.call('deps', { device: { name }, inactive }));
  }
  return statuses.map((status) => ({
    session,
    status,
    all,
    deps: deps.get(status.name) ?? [],
    users: all.filter((other) =>
      deps.get(other.name)?.some(({ major, minor }) => major === status.major && minor === status.minor),
    ),
  }));
}

/** Null: help was asked for and given. */
function makeReport<Row>(
  session: Session,
  fields: ConstructorParameters<typeof Report<Row>>[0],
  defaults: string,
): Report<Row> | null {
  try {
    return new Report<Row>(fields, defaults, session.line, session.io);
  } catch (error) {
    if (error instanceof HelpGiven) return null;
    throw error;
  }
}

export async function splitname(session: Session): Promise<void> {
  const [name = '', subsystem = 'LVM'] = session.args;
  const report = makeReport(session, SPLIT_FIELDS, 'vg_name,lv_name,lv_layer');
  report?.add({ subsystem, parts: subsystem.toUpperCase() === 'LVM' ? splitLvmName(name) : [] });
  report?.print();
}

// table, status

function formatLine({ sector, sectorCount, type, params }: StatusLine): string {
  return `${sector} ${sectorCount} ${type} ${params}`;
}

async function printTable(session: Session, ref: DeviceRef, prefix: string): Promise<void> {
  const isTable = session.command === 'table';
  const wanted = session.option('target');
  // `status` looks for the device first, and says so in other words.
  if (!isTable && (await statusOf(session, ref)) === null) session.fail('Device does not exist.');
  const inactive = session.has('inactive');
  const type = isTable ? 'table' : 'info';
  const { status, lines } = await session.ask('table', ref, { device: ref.address, type, inactive });
  const chosen = wanted === undefined ? lines : lines.filter((line) => line.type === wanted);
  if (wanted !== undefined && chosen.length === 0) return;
  if (session.line.verbosity > 0) printLong(session, status);
  if (chosen.length === 0) session.print(`${prefix}\n`);
  for (const line of chosen) session.print(`${prefix}${formatLine(line)}\n`);
}

async function printConcise(session: Session, refs: readonly DeviceRef[]): Promise<void> {
  const texts: string[] = [];
  for (const ref of refs) {
    const { status, lines } = await session.ask('table', ref, { device: ref.address, type: 'table' });
    const head = [
      escapeConcise(session.names.show(status.name)),
      escapeConcise(session.names.show(status.uuid)),
      status.minor,
      status.readOnly ? 'ro' : 'rw',
    ];
    const tail = lines.map(({ params, ...line }) => formatLine({ ...line, params: escapeConcise(params) }));
    texts.push([...head, ...tail].join(','));
  }
  session.print(`${texts.join(';')}\n`);
}

/** Both `table` and `status`. */
export async function table(session: Session): Promise<void> {
  const named = await session.devices();
  const refs = named.length > 0 ? named : await session.allRefs();
  if (session.has('json')) {
    await tableJson(session, refs);
  } else if (refs.length === 0) {
    session.noDevices();
  } else if (session.has('concise') && session.command === 'table') {
    await printConcise(session, refs);
  } else {
    const bare = (named.length === 1 && session.args.length < 2) || session.line.verbosity > 0;
    await eachDevice(refs, named.length === 0, (ref) => printTable(session, ref, bare ? '' : `${ref.name}: `));
  }
}

async function tableJson(session: Session, refs: readonly DeviceRef[]): Promise<void> {
  const result: unknown[] = [];
  const inactive = session.has('inactive');
  const type = session.command === 'table' ? 'table' : 'info';
  for (const ref of refs) {
    const { status, lines } = await session.ask('table', ref, { device: ref.address, type, inactive });
    result.push({ name: session.names.show(status.name), lines });
  }
  session.json(result);
}

/** Devices that were named: up to the first failure. All there are: each, and then the failure. */
async function eachDevice(
  refs: readonly DeviceRef[],
  goOn: boolean,
  work: (ref: DeviceRef) => Promise<void>,
): Promise<void> {
  let failure: unknown = null;
  for (const ref of refs) {
    try {
      await work(ref);
    } catch (error) {
      if (!goOn || !(error instanceof CommandFailed)) throw error;
      failure = error;
    }
  }
  if (failure !== null) throw failure;
}

// deps, ls

type NameStyle = 'devno' | 'devname' | 'blkdevname';

function nameStyle(session: Session): NameStyle {
  const given = session.option('options') ?? 'devno';
  if (given === 'devno' || given === 'devname' || given === 'blkdevname') return given;
  session.io.stderr(`Option not recognised: ${given}.\n`);
  throw new UsageFailed("Couldn't process command line.\n");
}

export async function deps(session: Session): Promise<void> {
  const style = nameStyle(session);
  const named = await session.devices();
  const refs = named.length > 0 ? named : await session.allRefs();
  if (refs.length === 0 && !session.has('json')) {
    session.noDevices();
    return;
  }
  const all = await session.all();
  const result: unknown[] = [];
  await eachDevice(refs, named.length === 0, async (ref) => {
    const found = await session.ask('deps', ref, { device: ref.address, inactive: session.has('inactive') });
    result.push({ name: ref.name, deps: found });
    if (session.has('json')) return;
    if (session.line.verbosity > 0) await printInfo(session, ref);
    const texts = found.map(({ name, major, minor }) => {
      const own = all.find((status) => status.major === major && status.minor === minor);
      if (style === 'devname' && own !== undefined) return session.names.show(own.name);
      if (style !== 'devno') return blockName(session, all, major, minor) ?? name;
      return major === undefined ? name : `${major}, ${minor}`;
    });
    const prefix = named.length === 1 && session.args.length < 2 ? '' : `${ref.name}: `;
    session.print(`${prefix}${found.length} dependencies\t:${texts.map((text) => ` (${text})`).join('')}\n`);
    if (session.line.verbosity > 0) session.print('\n');
  });
  if (session.has('json')) session.json(result);
}

export async function ls(session: Session): Promise<void> {
  if (session.has('tree')) {
    await lsTree(session);
    return;
  }
  const style = nameStyle(session);
  const all = await session.all();
  const target = session.option('target');
  const chosen = target === undefined ? all : await withTarget(session, all, target);
  if (session.has('json')) {
    session.json(chosen);
    return;
  }
  const names = chosen.map((status) => session.names.show(status.name));
  if (all.length === 0) session.noDevices();
  const command = session.option('exec');
  for (const [index, status] of chosen.entries()) {
    const name = names[index]!;
    if (command !== undefined)
      session.io.run([...command.split(/\s+/).filter((word) => word !== ''), `/dev/mapper/${name}`]);
    else session.print(`${name}\t(${nameText(status, name, style, target !== undefined)})\n`);
  }
}

function nameText({ major, minor, readAhead }: DeviceStatus, name: string, style: NameStyle, wide: boolean): string {
  if (style === 'devno' || readAhead === null) return wide ? `${major}, ${minor}` : `${major}:${minor}`;
  return style === 'devname' ? name : `dm-${minor}`;
}

async function withTarget(session: Session, all: readonly DeviceStatus[], target: string): Promise<DeviceStatus[]> {
  const chosen: DeviceStatus[] = [];
  for (const status of all) {
    const { lines } = await session.control.call('table', { device: { name: status.name }, type: 'info' });
    if (lines.some((line) => line.type === target)) chosen.push(status);
  }
  return chosen;
}

const TREE_OPTIONS = [
  'device',
  'nodevice',
  'blkdevname',
  'active',
  'open',
  'rw',
  'uuid',
  'ascii',
  'utf',
  'vt100',
  'compact',
  'inverted',
  'notrunc',
];

/** Words by any beginning of theirs, the first that fits. */
function treeOptions(session: Session): Set<string> {
  const text = session.option('options');
  const chosen = new Set<string>();
  for (const word of text?.split(',') ?? []) {
    const found = TREE_OPTIONS.find((option) => word !== '' && option.startsWith(word));
    const exact = word === 'utf8' ? 'utf' : found;
    if (exact === undefined) {
      session.io.stderr(`Tree options not recognised: ${text}.\n`);
      throw new UsageFailed("Couldn't process command line.\n");
    }
    chosen.add(exact);
  }
  return chosen;
}

function treeStyle(session: Session, options: ReadonlySet<string>): TreeStyle {
  const utf8 = options.has('utf') || (session.io.utf8 && !options.has('ascii') && !options.has('vt100'));
  return {
    inverted: options.has('inverted'),
    compact: options.has('compact'),
    symbols: options.has('vt100') ? VT100 : utf8 ? UTF8 : ASCII,
    width: options.has('notrunc') ? undefined : (session.io.columns ?? DEFAULT_COLUMNS) - FREE_COLUMNS,
  };
}

async function lsTree(session: Session): Promise<void> {
  const options = treeOptions(session);
  const all = await session.all();
  if (all.length === 0) {
    session.noDevices();
    return;
  }
  const nodes = await new TreeBuilder(session, options, all).build();
  for (const line of drawTrees(nodes, treeStyle(session, options))) session.print(`${line}\n`);
}

/** Devices and those below as nodes, in the order in which they are met. */
class TreeBuilder {
  readonly #session: Session;
  readonly #options: ReadonlySet<string>;
  readonly #all: readonly DeviceStatus[];
  readonly #nodes = new Map<string, TreeNode>();

  constructor(session: Session, options: ReadonlySet<string>, all: readonly DeviceStatus[]) {
    this.#session = session;
    this.#options = options;
    this.#all = all;
  }

  async build(): Promise<TreeNode[]> {
    for (const status of this.#all) await this.#add(`${status.major}:${status.minor}`);
    return [...this.#nodes.values()];
  }

  async #add(name: string): Promise<TreeNode> {
    const known = this.#nodes.get(name);
    if (known !== undefined) return known;
    const status = this.#all.find(({ major, minor }) => `${major}:${minor}` === name);
    const node: TreeNode = { text: this.#text(name, status), lower: [], upper: [] };
    this.#nodes.set(name, node);
    if (status === undefined) return node;
    for (const dep of await this.#session.control.call('deps', { device: { name: status.name } })) {
      const lower = await this.#add(dep.name);
      node.lower.push(lower);
      lower.upper.push(node);
    }
    return node;
  }

  #text(name: string, status: DeviceStatus | undefined): string {
    const parts = [status === undefined ? '' : this.#session.names.show(status.name)];
    if (this.#options.has('blkdevname')) {
      const [major, minor] = name.split(':').map(Number);
      const kernelName = blockName(this.#session, this.#all, major, minor);
      if (kernelName !== null) parts.push(` <${kernelName}>`);
    }
    if (!this.#options.has('nodevice')) parts.push(` (${name})`);
    if (status !== undefined) parts.push(this.#details(status));
    return parts.join('');
  }

  #details(status: DeviceStatus): string {
    const words: string[] = [];
    if (this.#options.has('active')) words.push(status.suspended ? 'SUSPENDED' : 'ACTIVE');
    if (this.#options.has('rw')) words.push(status.readOnly ? 'RO' : 'RW');
    if (this.#options.has('open')) words.push(String(status.openCount));
    if (this.#options.has('uuid')) words.push(this.#session.names.show(status.uuid));
    return words.length === 0 ? '' : ` [${words.join(', ')}]`;
  }
}

// targets, version

function printTarget(session: Session, name: string, version: readonly number[]): void {
  session.print(`${name.padEnd(16)} v${version.join('.')}\n`);
}

/** Newest registered first. */
export async function targets(session: Session): Promise<void> {
  const list = (await session.ask('targets', null, {})).reverse();
  if (session.has('json')) session.json(list);
  else for (const { name, version } of list) printTarget(session, name, version);
}

export async function targetVersion(session: Session): Promise<void> {
  const list = await session.ask('targets', null, {});
  for (const name of session.args) {
    const found = list.find((target) => target.name === name);
    if (found === undefined) {
      session.fail(`device-mapper: target-version ioctl on ${name}  failed: Invalid argument`);
    }
    printTarget(session, found.name, found.version);
  }
}

export async function version(session: Session): Promise<void> {
  for (const line of session.io.versionLines()) session.print(`${line}\n`);
}
