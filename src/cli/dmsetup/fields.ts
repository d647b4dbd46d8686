// The fields of `info -c` and `splitname`.
import type { Dependency, DeviceStatus } from '../../control/types.ts';
import { CommandFailed } from './io.ts';
import type { Field } from './report.ts';
import type { Session } from './session.ts';

/** A device with what the fields ask of it. */
export interface InfoRow {
  session: Session;
  status: DeviceStatus;
  /** Below it. */
  deps: Dependency[];
  /** Mapped devices on top of it. */
  users: DeviceStatus[];
  all: DeviceStatus[];
}

/** `dm-3`; null for a device without a node, or nothing of this host's. */
export function blockName(
  session: Session,
  all: readonly DeviceStatus[],
  major: number | undefined,
  minor: number | undefined,
): string | null {
  if (major === undefined || minor === undefined) return null;
  const own = all.find((status) => status.major === major && status.minor === minor);
  if (own !== undefined) return own.readAhead === null ? null : `dm-${minor}`;
  return session.io.blockDeviceName(major, minor);
}

function blockNameOrFail(row: InfoRow, major: number | undefined, minor: number | undefined, path: string): string {
  const name = blockName(row.session, row.all, major, minor);
  if (name !== null) return name;
  if (major === undefined) return path;
  row.session.io.stderr(`Could not resolve block device name for ${major}:${minor}.\n`);
  throw new CommandFailed();
}

/** `L--w`, as the field `attr` shows it. */
function attributes(status: DeviceStatus): string {
  return (
    (status.live ? 'L' : '-') +
    (status.inactive ? 'I' : '-') +
    (status.suspended ? 's' : '-') +
    (status.readOnly ? 'r' : 'w')
  );
}

function tablesLoaded({ live, inactive }: DeviceStatus): string {
  if (live) return inactive ? 'Both' : 'Live';
  return inactive ? 'Inactive' : 'None';
}

function ownName({ all, session }: InfoRow, { major, minor }: Dependency): string[] {
  const own = all.find((status) => status.major === major && status.minor === minor);
  return own === undefined ? [] : [session.names.show(own.name)];
}

function readAhead({ status, session }: InfoRow): number {
  if (status.readAhead !== null) return status.readAhead;
  session.io.stderr(`/dev/mapper/${session.names.show(status.name)}: open failed: No such file or directory\n`);
  return 0;
}

type Spec<Row> = [
  id: string,
  heading: string,
  width: number,
  kind: 'text' | 'number',
  help: string,
  value: (row: Row) => string | number,
];

function section<Row>(name: string, specs: Spec<Row>[]): Field<Row>[] {
  return specs.map(([id, heading, width, kind, help, value]) => ({
    id,
    heading,
    width,
    kind,
    help,
    section: name,
    value,
  }));
}

/** The parts of an LVM name: VG-LV-LAYER, where `--` is a hyphen of the part itself. */
export function splitLvmName(name: string): string[] {
  const parts = [''];
  for (let at = 0; at < name.length; at++) {
    if (name[at] !== '-' || parts.length === 3) parts[parts.length - 1] += name[at];
    else if (name[at + 1] === '-') {
      parts[parts.length - 1] += '-';
      at++;
    } else if (at + 1 < name.length) parts.push('');
    else parts[parts.length - 1] += '-';
  }
  return parts;
}

/** What `splitname` shows. */
export interface SplitRow {
  subsystem: string;
  parts: string[];
}

export const SPLIT_FIELDS: readonly Field<SplitRow>[] = section<SplitRow>('splitname', [
  ['subsystem', 'Subsys', 6, 'text', 'who made the device', (row) => row.subsystem],
  ['vg_name', 'VG', 4, 'text', 'volume group', (row) => row.parts[0] ?? ''],
  ['lv_name', 'LV', 4, 'text', 'logical volume', (row) => row.parts[1] ?? ''],
  ['lv_layer', 'LVLayer', 7, 'text', 'layer of the logical volume', (row) => row.parts[2] ?? ''],
]);

function subsystemOf(status: DeviceStatus): string {
  return status.uuid.startsWith('LVM-') ? 'LVM' : '';
}

function lvmPart(index: number): (row: InfoRow) => string {
  return ({ status }) => (subsystemOf(status) === '' ? '' : (splitLvmName(status.name)[index] ?? ''));
}

const join = (words: readonly (string | number)[]): string => words.join(',');

export const INFO_FIELDS: readonly Field<InfoRow>[] = [
  ...section<InfoRow>('name', [
    ['name', 'Name', 16, 'text', 'name', ({ session, status }) => session.names.show(status.name)],
    [
      'mangled_name',
      'MangledName',
      16,
      'text',
      'name as it is stored',
      ({ session, status }) => session.names.mangled(status.name),
    ],
    [
      'unmangled_name',
      'UnmangledName',
      16,
      'text',
      'name as it was meant',
      ({ session, status }) => session.names.unmangled(status.name),
    ],
    ['uuid', 'UUID', 32, 'text', 'uuid, if there is one', ({ session, status }) => session.names.show(status.uuid)],
    [
      'mangled_uuid',
      'MangledUUID',
      32,
      'text',
      'uuid as it is stored',
      ({ session, status }) => session.names.mangled(status.uuid),
    ],
    [
      'unmangled_uuid',
      'UnmangledUUID',
      32,
      'text',
      'uuid as it was meant',
      ({ session, status }) => session.names.unmangled(status.uuid),
    ],
    ['read_ahead', 'RAhead', 6, 'number', 'read-ahead in sectors', readAhead],
  ]),
  ...section<InfoRow>('info', [
    [
      'blkdevname',
      'BlkDevName',
      16,
      'text',
      'name of the block device',
      (row) => blockNameOrFail(row, row.status.major, row.status.minor, ''),
    ],
    ['attr', 'Stat', 4, 'text', 'L live, I inactive, s suspended, r or w', ({ status }) => attributes(status)],
    ['tables_loaded', 'Tables', 6, 'text', 'which slots have a table', ({ status }) => tablesLoaded(status)],
    [
      'suspended',
      'Suspended',
      9,
      'text',
      'Suspended or Active',
      ({ status }) => (status.suspended ? 'Suspended' : 'Active'),
    ],
    [
      'readonly',
      'Read-only',
      9,
      'text',
      'Read-only or Writeable',
      ({ status }) => (status.readOnly ? 'Read-only' : 'Writeable'),
    ],
    ['devno', 'DevNo', 5, 'text', 'MAJOR:MINOR', ({ status }) => `${status.major}:${status.minor}`],
    ['major', 'Maj', 3, 'number', 'major number', ({ status }) => status.major],
    ['minor', 'Min', 3, 'number', 'minor number', ({ status }) => status.minor],
    ['open', 'Open', 4, 'number', 'users', ({ status }) => status.openCount],
    ['segments', 'Targ', 4, 'number', 'lines of the table', ({ status }) => status.targetCount],
    ['events', 'Event', 6, 'number', 'event number', ({ status }) => status.eventNumber],
  ]),
  ...section<InfoRow>('deps', [
    ['device_count', '#Devs', 5, 'number', 'devices below', ({ deps }) => deps.length],
    [
      'devs_used',
      'DevNamesUsed',
      16,
      'text',
      'mapped devices below',
      (row) => join(row.deps.flatMap((dep) => ownName(row, dep))),
    ],
    [
      'devnos_used',
      'DevNosUsed',
      16,
      'text',
      'devices below, by number',
      ({ deps }) => join(deps.map((dep) => dep.name)),
    ],
    [
      'blkdevs_used',
      'BlkDevNamesUsed',
      16,
      'text',
      'block devices below',
      (row) => join(row.deps.map((dep) => blockNameOrFail(row, dep.major, dep.minor, dep.name))),
    ],
    ['device_ref_count', '#Refs', 5, 'number', 'mapped devices on top', ({ users }) => users.length],
    [
      'names_using_dev',
      'RefNames',
      8,
      'text',
      'their names',
      ({ users, session }) => join(users.map((user) => session.names.show(user.name))),
    ],
    [
      'devnos_using_dev',
      'RefDevNos',
      9,
      'text',
      'their numbers',
      ({ users }) => join(users.map(({ major, minor }) => `${major}:${minor}`)),
    ],
  ]),
  ...section<InfoRow>('splitname', [
    ['subsystem', 'Subsys', 6, 'text', 'who made the device, by its uuid', ({ status }) => subsystemOf(status)],
    ['vg_name', 'VG', 4, 'text', 'volume group', lvmPart(0)],
    ['lv_name', 'LV', 4, 'text', 'logical volume', lvmPart(1)],
    ['lv_layer', 'LVLayer', 7, 'text', 'layer of the logical volume', lvmPart(2)],
  ]),
];

export const DEFAULT_INFO_FIELDS = 'name,major,minor,attr,open,segments,events,uuid';
