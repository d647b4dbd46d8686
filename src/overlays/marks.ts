// Stores know their origin: the mark that `snapshot create` writes beside a store's header is compared before the store goes
// on, and says after a clean end which content of the origin the store belongs to.
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { promisify } from 'node:util';
import type { BlockDevice } from '../block/block-device.ts';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import type { ControlHost, JournalSink } from '../control/core/host.ts';
import { idOf, newId, ORIGIN_PREFIX } from '../control/core/records.ts';
import { EngineDevice } from '../devices/engine-device.ts';
import type { DiskIdentity } from '../devices/identity.ts';
import { writeAll } from '../files/replace-file.ts';
import { MappedDevice } from '../mapper/mapped-device.ts';
import type { Table } from '../table/table.ts';
import { splitArguments, type TableEntry } from '../table/text.ts';
import {
  decodeMark,
  encodeMark,
  MARK_BYTE_OFFSET,
  MAX_MARK_KEY_BYTE_LENGTH,
  type StoreMark,
} from '../targets/snapshot/mark.ts';
import { snapshotOf } from '../targets/snapshot/report.ts';
import { overlaysOnDevice } from './users.ts';

const fdatasync = promisify(fs.fdatasync);

/** What marks need of the control plane. */
export interface MarkContext {
  readonly host: ControlHost;
  readonly journal: JournalSink | null;
}

// Origins

/** The identity of an open device, one of dmkit's own included. */
export function identityOfDevice(host: ControlHost, device: BlockDevice): DiskIdentity {
  if (device instanceof MappedDevice) return { kind: 'mapped', id: idOf(device), name: device.dmName };
  return host.devices?.identity(device) ?? { kind: 'program', name: device.name };
}

/** Everything of an identity that has to be equal, in a text that fits a mark. */
export function identityKey(identity: DiskIdentity): string {
  const key = fullKey(identity);
  if (Buffer.byteLength(key) <= MAX_MARK_KEY_BYTE_LENGTH) return key;
  return `sha256 ${createHash('sha256').update(key).digest('hex')}`;
}

function fullKey(identity: DiskIdentity): string {
  switch (identity.kind) {
    case 'file':
      return `${identity.inode} ${identity.birth ?? '-'}`;
    case 'block':
      return identity.mark === null ? identity.number : `${identity.mark.type} ${identity.mark.value}`;
    case 'nbd':
      return identity.exportName === '' ? identity.uri : identity.exportName;
    case 'mapped':
      return identity.id;
    case 'program':
      return identity.name;
  }
}

function labelOf(identity: DiskIdentity): string {
  if (identity.kind === 'nbd') return identity.uri;
  return identity.kind === 'file' || identity.kind === 'block' ? identity.path : identity.name;
}

/** The origin's part of a mark. */
export function originFacts(host: ControlHost, origin: BlockDevice): StoreMark['origin'] {
  const identity = identityOfDevice(host, origin);
  const { sectorCount } = origin;
  return { kind: identity.kind, key: identityKey(identity), label: labelOf(identity), sectorCount };
}

/** The journal's counter of an origin that has no time of modification. */
function counterKey({ kind, key }: StoreMark['origin']): string {
  return `${ORIGIN_PREFIX}${kind}:${key}`;
}

/** By what the origin's content is known: a file's mtime, else a counter of the times it was open for writing here. */
function originVersion(context: MarkContext, origin: BlockDevice): string {
  if (origin instanceof EngineDevice) {
    const stat = fs.fstatSync(origin.descriptor, { bigint: true });
    if (stat.isFile()) return String(stat.mtimeNs);
  }
  return String(context.journal?.values.get(counterKey(originFacts(context.host, origin))) ?? 0);
}

/**
 * Notes that a disk without a time of modification may have been written.
 *
 * @returns the keys of the journal that change; none where no store that was kept depends on it
 */
export function written(context: MarkContext, origin: BlockDevice): [string, number][] {
  const key = counterKey(originFacts(context.host, origin));
  const known = context.journal?.values.get(key);
  return typeof known === 'number' ? [[key, known + 1]] : [];
}

// Marks on their stores

/** The descriptor of a store that can have a mark: a file or block device of this machine. */
function descriptorOf(cow: BlockDevice): number | null {
  return cow instanceof EngineDevice && !cow.direct ? cow.descriptor : null;
}

export function readMark(cow: BlockDevice): StoreMark | null | 'damaged' {
  const fd = descriptorOf(cow);
  return fd === null ? null : readMarkAt(fd);
}

export function readMarkAt(fd: number): StoreMark | null | 'damaged' {
  const sector = new Uint8Array(SECTOR_SIZE);
  const length = fs.readSync(fd, sector, 0, SECTOR_SIZE, 0);
  return length < SECTOR_SIZE ? null : decodeMark(sector);
}

/** Durable when it is done. The loop goes on meanwhile: a busy disk takes its time. */
async function writeMark(cow: BlockDevice, mark: StoreMark): Promise<void> {
  const fd = descriptorOf(cow);
  if (fd === null || cow.readOnly) return;
  writeAll(fd, encodeMark(mark), MARK_BYTE_OFFSET);
  await fdatasync(fd);
}

export function newMark(origin: StoreMark['origin']): StoreMark {
  return { storeId: newId() + newId(), origin, originVersion: null };
}

// Checks

const INSIST = 'give --force to go on with it all the same';

/**
 * Compares a store's mark with the origin that it is to go on over.
 *
 * @returns sentences for the caller
 * @throws DmError ESTALE for the store of another origin, or of another content of this one
 */
function checkMark(context: MarkContext, origin: BlockDevice, cow: BlockDevice, force: boolean): string[] {
  const mark = readMark(cow);
  if (mark === null) return [];
  const refuse = (text: string): string[] => {
    if (!force) throw new DmError(Errno.ESTALE, `${text}; ${INSIST}`);
    return [text];
  };
  if (mark === 'damaged') return refuse(`${cow.name}: its mark, which names its origin, is damaged`);
  const facts = originFacts(context.host, origin);
  if (mark.origin.kind !== facts.kind || mark.origin.key !== facts.key) {
    const same = mark.origin.label === facts.label;
    return refuse(
      same
        ? `${cow.name} belongs to another ${facts.label}: a file that was there before the present one`
        : `${cow.name} belongs to ${mark.origin.label}, not to ${facts.label}`,
    );
  }
  if (mark.originVersion === null) {
    return [
      `${cow.name} was not detached cleanly: changes of ${facts.label} since then, if there are any, can not be seen`,
    ];
  }
  if (mark.originVersion !== originVersion(context, origin)) {
    return refuse(`${facts.label} was changed since ${cow.name} was detached from it`);
  }
  return [];
}

export interface MarkChecks {
  force?: boolean;
  onNotice?: ((text: string) => void) | undefined;
  /** The store was made by this very change. */
  isNew?: (cow: string) => boolean;
}

/**
 * Load options under which each snapshot line's store is compared with its origin before it is used.
 *
 * @param entries of the table: those with `snapshot` in them at least
 */
export function checkingMarks(
  context: MarkContext,
  entries: readonly TableEntry[],
  checks: MarkChecks,
): { verify?: (argument: string, device: BlockDevice) => void } {
  const originOfCow = new Map<string, string>();
  for (const { type, params } of entries) {
    if (type !== 'snapshot' && type !== 'snapshot-merge') continue;
    const [origin, cow] = splitArguments(params);
    if (origin !== undefined && cow !== undefined) originOfCow.set(cow, origin);
  }
  if (originOfCow.size === 0) return {};
  const opened = new Map<string, BlockDevice>();
  return {
    verify: (argument, device) => {
      opened.set(argument, device);
      const origin = opened.get(originOfCow.get(argument) ?? '');
      // A store that a live line has is attached: the table only changes hands.
      if (origin === undefined || checks.isNew?.(argument) || isAttached(context.host, device)) return;
      for (const text of checkMark(context, origin, device, checks.force ?? false)) checks.onNotice?.(text);
    },
  };
}

function isAttached(host: ControlHost, cow: BlockDevice): boolean {
  return overlaysOnDevice(host, cow).length > 0;
}

// Attach and detach

/** The stores of a table's snapshot lines, with their origins. */
function storesOf(table: Table | null): { origin: BlockDevice; cow: BlockDevice }[] {
  const stores: { origin: BlockDevice; cow: BlockDevice }[] = [];
  for (const target of table?.targets ?? []) {
    const snapshot = snapshotOf(target);
    if (snapshot !== null) stores.push({ origin: snapshot.origin.device, cow: snapshot.cow });
  }
  return stores;
}

/**
 * The stores of a table go into use: from now on a crash leaves them without a version of their origin.
 *
 * @returns undoes it; null where nothing has to be written
 */
export function attaching(
  context: MarkContext,
  table: Table,
): { attach(): Promise<void>; undo(): Promise<void> } | null {
  const stores: { cow: BlockDevice; before: StoreMark; after: StoreMark }[] = [];
  for (const { origin, cow } of storesOf(table)) {
    const before = readMark(cow);
    if (before === null || before === 'damaged') continue;
    // A caller that insisted gives the store to another origin.
    const facts = originFacts(context.host, origin);
    if (before.originVersion === null && facts.key === before.origin.key && facts.kind === before.origin.kind) continue;
    if (isAttached(context.host, cow)) continue;
    stores.push({ cow, before, after: { ...before, origin: facts, originVersion: null } });
  }
  if (stores.length === 0) return null;
  return {
    attach: async () => {
      for (const { cow, after } of stores) await writeMark(cow, after);
    },
    undo: async () => {
      for (const { cow, before } of stores) await writeMark(cow, before);
    },
  };
}

/** A store that is about to go out of use, kept open until its mark is written. */
export interface LeavingStore {
  readonly cow: BlockDevice;
  readonly origin: BlockDevice;
  readonly mark: StoreMark;
  /** Writes the version of the origin; to be called when the table is gone. Closes the store. */
  detach(): Promise<void>;
  /** Closes it as it is. */
  release(): void;
}

/** Keeps the marked stores of `table` open, but for those that `next` or another device goes on with. */
export function leavingStores(context: MarkContext, device: MappedDevice, next: Table | null = null): LeavingStore[] {
  const { host } = context;
  const { devices } = host;
  if (devices === undefined) return [];
  const going = new Set(storesOf(next).map(({ cow }) => cow));
  const leaving: LeavingStore[] = [];
  for (const { origin, cow } of storesOf(device.table)) {
    if (going.has(cow) || overlaysOnDevice(host, cow).some((one) => one !== device)) continue;
    const mark = readMark(cow);
    if (mark === null || mark === 'damaged') continue;
    const held = [cow, origin]
      .filter((one) => devices.isOpen(one))
      .map((one) => ({ device: devices.openAgain(one, one.readOnly), readOnly: one.readOnly }));
    const release = (): void => {
      for (const one of held.splice(0)) devices.close(one.device, one.readOnly);
    };
    const detach = async (): Promise<void> => {
      try {
        await writeMark(cow, { ...mark, originVersion: originVersion(context, origin) });
      } finally {
        release();
      }
    };
    leaving.push({ cow, origin, mark, detach, release });
  }
  return leaving;
}

/** The journal's keys for a counter that a store which was kept depends on from now on. */
export function counted(context: MarkContext, origin: BlockDevice): [string, number][] {
  if (origin instanceof EngineDevice && fs.fstatSync(origin.descriptor).isFile()) return [];
  const key = counterKey(originFacts(context.host, origin));
  return context.journal?.values.has(key) ? [] : [[key, 0]];
}
