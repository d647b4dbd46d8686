// The journal of a daemon: opened at its start, when the devices of the daemon before it become lost ones, and what that one
// left half done is cleared away.
import { createHash } from 'node:crypto';
import { readFileSync, renameSync, rmSync, statSync } from 'node:fs';
import { Errno, errnoFromException } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { deleteSame } from '../overlays/drop.ts';
import { clearFiles, clearFirstNames, shorten } from '../overlays/store-file.ts';
import type { JournalSink, Json } from './core/host.ts';
import {
  DEVICE_PREFIX,
  type DeviceRecord,
  INTENT_PREFIX,
  type IntentRecord,
  type KeptStore,
  LOST_PREFIX,
  MERGE_PREFIX,
  type MergeRecord,
  STORE_PREFIX,
  UNLINK_PREFIX,
} from './core/records.ts';
import { type JournalV1, readJournalV1 } from './journal-v1.ts';
import { type Damage, RecordFile, readRecords } from './record-file.ts';
import type { LostRecord } from './recovery.ts';

const V1_ID_LENGTH = 16;

export interface JournalFiles {
  readonly journal: string;
  /** Of version 0.1, which kept lost devices in a file of their own. */
  readonly lostJournal: string;
}

export interface OpenedJournal {
  readonly journal: Journal;
  /** Sentences about records that are damaged. */
  readonly damage: string[];
}

export class Journal implements JournalSink {
  readonly #file: RecordFile;
  /** Keys that the next commit takes away. */
  readonly #forgotten = new Set<string>();

  constructor(file: RecordFile) {
    this.#file = file;
  }

  get values(): ReadonlyMap<string, Json> {
    return this.#file.values;
  }

  /** Durable when it resolves, unless that is not asked for. */
  async commit(changes: ReadonlyMap<string, Json>, { durable = true }: { durable?: boolean } = {}): Promise<void> {
    const forgotten = [...this.#forgotten];
    if (forgotten.length === 0) return this.#file.commit(changes, { durable });
    const all = new Map<string, Json>();
    for (const key of forgotten) all.set(key, null);
    for (const [key, value] of changes) all.set(key, value);
    await this.#file.commit(all, { durable });
    for (const key of forgotten) this.#forgotten.delete(key);
  }

  forget(key: string): void {
    if (this.#file.values.has(key)) this.#forgotten.add(key);
  }

  /** No lost device, no merge, no kept store: nothing that a later daemon would need. */
  get isEmpty(): boolean {
    for (const key of this.#file.values.keys()) if (!this.#forgotten.has(key)) return false;
    return true;
  }

  /** For a shutdown. A full disk must not keep a daemon: where nothing else stands in the file, it goes as a whole. */
  async forgetDevices(): Promise<void> {
    const merging = new Set<string>();
    for (const [key, value] of this.#file.values) {
      if (key.startsWith(MERGE_PREFIX)) merging.add((value as unknown as MergeRecord).deviceId);
    }
    const changes = new Map<string, Json>();
    for (const key of this.#file.values.keys()) {
      if (this.#forgotten.has(key)) changes.set(key, null);
      if (key.startsWith(DEVICE_PREFIX) && !merging.has(key.slice(DEVICE_PREFIX.length))) changes.set(key, null);
    }
    if (changes.size === this.#file.values.size) {
      this.#file.remove();
      return;
    }
    await this.commit(changes);
  }

  close(): void {
    this.#file.close();
  }

  remove(): void {
    this.#file.remove();
  }
}

/** A file of version 0.1; null where there is none, or one of another version. */
function readOld(path: string): JournalV1 | null {
  try {
    return readFileSync(path).includes('"format":1,') ? readJournalV1(path) : null;
  } catch (error) {
    if (errnoFromException(error) === Errno.ENOENT) return null;
    throw error;
  }
}

/** @throws DmError for a journal of a newer version, a full disk … */
export function openJournal(files: JournalFiles): OpenedJournal {
  const damage: string[] = [];
  // A crash in the middle of this leaves the old file under its other name, and it is read again.
  const aside = `${files.journal}.0.1`;
  if (readOld(files.journal) !== null) renameSync(files.journal, aside);
  const oldPaths = [files.lostJournal, aside].filter((path) => readOld(path) !== null);
  const { file, state } = RecordFile.open(files.journal);
  damage.push(...sentencesOf(files.journal, state.damage));
  const changes = new Map<string, Json>();
  for (const path of oldPaths) {
    const old = readOld(path)!;
    damage.push(...sentencesOf(path, old.damage));
    importV1(old, changes);
  }
  const redo: (() => void)[] = [];
  for (const [key, value] of file.values) atStart(key, value, changes, redo);
  for (const step of redo) step();
  if (changes.size > 0) file.commitNow(changes);
  for (const path of oldPaths) rmSync(path, { force: true });
  return { journal: new Journal(file), damage };
}

function sentencesOf(path: string, damage: readonly Damage[]): string[] {
  return damage.map(({ start, end, names }) => {
    const of = names.length === 0 ? '' : `, of ${names.join(', ')}`;
    return `${path}: bytes ${start} to ${end} are damaged${of}: what they said is lost`;
  });
}

/** What the records of a daemon that is gone mean for the next one. */
function atStart(key: string, value: Json, changes: Map<string, Json>, redo: (() => void)[]): void {
  if (key.startsWith(DEVICE_PREFIX)) {
    changes.set(key, null);
    const record: LostRecord = { device: value as unknown as DeviceRecord, error: null };
    changes.set(LOST_PREFIX + key.slice(DEVICE_PREFIX.length), record as unknown as Json);
  } else if (key.startsWith(INTENT_PREFIX)) {
    const { files, grown = [], isDone } = value as unknown as IntentRecord;
    redo.push(() => tryTo(() => (isDone ? clearFirstNames(files) : clearFiles(files))));
    for (const file of grown) redo.push(() => tryTo(() => shorten(file)));
    changes.set(key, null);
  } else if (key.startsWith(UNLINK_PREFIX)) {
    redo.push(() => tryTo(() => deleteSame(value as never)));
    changes.set(key, null);
  } else if (key.startsWith(STORE_PREFIX) && isMissing((value as unknown as KeptStore).path)) {
    changes.set(key, null);
  }
}

/** A file that can't be deleted is left: no device depends on it. */
function tryTo(work: () => void): void {
  try {
    work();
  } catch (error) {
    if (errnoFromException(error) === 0 && !(error instanceof DmError)) throw error;
  }
}

function isMissing(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) === undefined;
}

function importV1(state: JournalV1, changes: Map<string, Json>): void {
  for (const device of state.devices) {
    // The same each time: after a kill in the middle the old file is read once more.
    const id = createHash('sha256').update(JSON.stringify(device)).digest('hex').slice(0, V1_ID_LENGTH);
    const table = (one: (typeof device)['live']) =>
      one === null ? null : { readOnly: one.readOnly, text: [one.lines.map(lineText).join('')], lower: [] };
    const record = {
      id,
      name: device.name,
      uuid: device.uuid,
      minor: device.minor,
      suspended: device.suspended,
      suspension: null,
      deferredRemove: false,
      live: table(device.live),
      inactive: table(device.inactive),
      ...(state.major === null ? {} : { major: state.major }),
    };
    changes.set(LOST_PREFIX + id, { device: record, error: null } as unknown as Json);
  }
}

function lineText(line: { sector: number; sectorCount: number; type: string; params: string }): string {
  return `${line.sector} ${line.sectorCount} ${line.type} ${line.params}\n`;
}

/** The names of lost devices, for a client that finds no daemon; empty where there are none, or none can be read. */
export function lostNames(files: JournalFiles): string[] {
  const names = new Set<string>();
  for (const path of [files.lostJournal, files.journal]) {
    for (const { name } of readOld(path)?.devices ?? []) names.add(name);
  }
  if (names.size > 0) return [...names].sort();
  for (const [key, value] of readRecords(files.journal)?.values ?? []) {
    if (key.startsWith(DEVICE_PREFIX)) names.add((value as unknown as DeviceRecord).name);
    else if (key.startsWith(LOST_PREFIX)) names.add((value as unknown as LostRecord).device.name);
  }
  return [...names].sort();
}
