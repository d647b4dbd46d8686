// What the words of dmkit snapshot do.

import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { rawName } from '../block/file-name.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { ClientControl } from '../client/connect.ts';
import {
  type ChangedExtent,
  DaemonClient,
  type DroppedSnapshot,
  type PlannedDevice,
  type SnapshotPlan,
  type SnapshotStatus,
  type StoreKind,
} from '../client/index.ts';
import type { OverlayArgs } from '../control/requests.ts';
import { workingFolder } from '../files/working-folder.ts';
import { bytesText } from './copy-progress.ts';
import { keptName, keptNames, keptOrigin, newName, shownName } from './device-names.ts';
import { quoted } from './exec.ts';
import { printed } from './output.ts';
import { watchMerge } from './snapshot-progress.ts';
import { tellLost } from './words.ts';

const EXIT_INTERRUPTED = 130;
/** Lines that are printed at once. */
const LINE_COUNT = 4096;

export interface CreateCommandOptions {
  cow?: string;
  cowFolder?: string;
  size?: string;
  chunk?: string;
  store: StoreKind;
  lazyCommit?: boolean;
  originName?: string;
  force?: boolean;
  /** Origins and names by turns. */
  and?: string[];
  dryRun?: boolean;
  json?: boolean;
}

export interface DiffCommandOptions {
  cow?: string;
  json?: boolean;
}

export interface MergeCommandOptions {
  deleteCow?: boolean;
  json?: boolean;
}

const UNITS: Readonly<Record<string, number>> = { s: SECTOR_SIZE, K: 1024, M: 1024 ** 2, G: 1024 ** 3, T: 1024 ** 4 };

/** Bytes, a whole number of sectors. @throws DmError EINVAL */
function parseSize(text: string, option: string): number {
  const match = /^(\d+)([sKMGT])$/.exec(text);
  const byteLength = match === null ? Number.NaN : Number(match[1]) * UNITS[match[2]!]!;
  if (Number.isSafeInteger(byteLength) && byteLength > 0) return byteLength;
  throw new DmError(Errno.EINVAL, `--${option} ${text}: a size with its unit is needed, such as 64K or 8s (s K M G T)`);
}

async function withClient<Result>(work: (client: DaemonClient) => Promise<Result>): Promise<Result> {
  const client = new DaemonClient(new ClientControl({ onLost: tellLost }));
  try {
    return await work(client);
  } finally {
    await client.close();
  }
}

function print(text: string): void {
  process.stdout.write(rawName(`${text}\n`));
}

function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}

/** The commands that do the same by hand. */
function commandsOf(plans: readonly SnapshotPlan[]): string[] {
  const create = ({ name, table }: PlannedDevice): string =>
    `dmkit create ${quoted(shownName(name))} --table ${quoted(table)}`;
  const suspends = [...new Set(plans.flatMap((plan) => plan.suspends))];
  return [
    ...plans.flatMap(({ cow, cowByteLength, makesCow, growsCow }) =>
      makesCow || growsCow ? [`truncate -s ${cowByteLength} ${quoted(cow)}`] : [],
    ),
    ...new Set(plans.flatMap(({ originDevice }) => (originDevice === null ? [] : [create(originDevice)]))),
    ...suspends.map((name) => `dmkit suspend ${quoted(shownName(name))}`),
    ...plans.map(({ overlay }) => create(overlay)),
    ...suspends.map((name) => `dmkit resume ${quoted(shownName(name))}`),
  ];
}

function printCreated(plan: SnapshotPlan): void {
  const { cow, cowByteLength, makesCow, growsCow, originDevice, suspends, overlay } = plan;
  if (makesCow) print(`${cow}: made, sparse, ${bytesText(cowByteLength)}`);
  else print(`${cow}: goes on${growsCow ? `, with ${bytesText(cowByteLength)} now` : ''}`);
  if (originDevice !== null) print(`${shownName(originDevice.name)}: ${originDevice.table}`);
  if (suspends.length > 0)
    print(`${suspends.map(shownName).join(', ')}: suspended for the moment in which the overlay began`);
  print(`${shownName(overlay.name)}: ${overlay.table}`);
}

/** The overlays that a command line asks for. @throws DmError EINVAL */
export function createArgs(origin: string, names: readonly string[], options: CreateCommandOptions): OverlayArgs[] {
  const { cow, cowFolder, size, chunk, store, lazyCommit, originName, force, and = [] } = options;
  if (and.length % 2 !== 0)
    throw new DmError(Errno.EINVAL, `--and takes pairs: ORIGIN NAME; ${and.at(-1)} has no name`);
  const pairs = names.map((name) => [origin, name] as const);
  for (let at = 0; at < and.length; at += 2) pairs.push([and[at]!, and[at + 1]!]);
  if (pairs.length > 1 && cow !== undefined) {
    throw new DmError(Errno.EINVAL, '--cow names one store: make these overlays one by one, or leave it out');
  }
  return pairs.map(([one, name]) => ({
    origin: one,
    name: newName(name),
    store,
    folder: workingFolder(),
    ...(cow === undefined ? {} : { cow }),
    ...(cowFolder === undefined ? {} : { cowFolder }),
    ...(size === undefined ? {} : { cowByteLength: parseSize(size, 'size') }),
    ...(chunk === undefined ? {} : { chunkSectorCount: parseSize(chunk, 'chunk') / SECTOR_SIZE }),
    ...(lazyCommit ? { lazyCommit } : {}),
    ...(originName === undefined ? {} : { originName: newName(originName) }),
    ...(force ? { force } : {}),
  }));
}

export async function createOverlays(
  origin: string,
  names: readonly string[],
  options: CreateCommandOptions,
): Promise<void> {
  const { dryRun, json } = options;
  const wanted = createArgs(origin, names, options).map(({ folder, ...rest }) => ({ ...rest, baseFolder: folder }));
  const plans = await withClient(async (client) => {
    for (const one of wanted) one.origin = await keptOrigin(client, one.origin);
    return dryRun ? client.snapshots.planAll(wanted) : client.snapshots.createAll(wanted);
  });
  for (const text of plans.flatMap(({ notices }) => notices)) process.stderr.write(rawName(`dmkit: ${text}\n`));
  if (json) {
    const told = plans.map((plan) => ({ ...plan, done: dryRun !== true, commands: commandsOf([plan]) }));
    printJson(told.length === 1 ? told[0] : told);
  } else if (dryRun) for (const line of commandsOf(plans)) print(line);
  else for (const plan of plans) printCreated(plan);
}

// List

const HEADINGS = ['NAME', 'ORIGIN', 'CHUNK', 'USED', 'TOTAL', 'USED%', 'STATE'];

function percentOf({ usedChunkCount, totalChunkCount }: SnapshotStatus): number {
  return totalChunkCount === 0 ? 0 : (usedChunkCount * 100) / totalChunkCount;
}

function rowOf(status: SnapshotStatus): string[] {
  const { name, origin, originName, chunkSectorCount, usedChunkCount, totalChunkCount, condition, suspended } = status;
  const known = chunkSectorCount > 0;
  return [
    shownName(name),
    originName === null ? origin : `/dev/mapper/${shownName(originName)}`,
    known ? bytesText(chunkSectorCount * SECTOR_SIZE).replace(' ', '') : '-',
    known ? String(usedChunkCount) : '-',
    known ? String(totalChunkCount) : '-',
    known ? percentOf(status).toFixed(1) : '-',
    suspended ? `${condition}, suspended` : condition,
  ];
}

export async function listOverlays(options: { json?: boolean }): Promise<void> {
  const all = await withClient(({ snapshots }) => snapshots.list());
  if (options.json) {
    printJson(all.map((status) => ({ ...status, percent: Number(percentOf(status).toFixed(3)) })));
    return;
  }
  if (all.length === 0) {
    print('No overlays found');
    return;
  }
  const rows = [HEADINGS, ...all.map(rowOf)];
  const widths = HEADINGS.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const isNumber = (column: number): boolean => column > 1 && column < HEADINGS.length - 1;
  for (const row of rows) {
    const cells = row.map((cell, i) => (isNumber(i) ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)));
    print(cells.join('  ').trimEnd());
  }
}

// Diff

async function* changesOf(name: string | undefined, cow: string | undefined): AsyncGenerator<ChangedExtent> {
  if ((name === undefined) === (cow === undefined)) {
    throw new DmError(Errno.EINVAL, 'an overlay is needed, or --cow and the store of one');
  }
  if (cow === undefined) {
    const client = new DaemonClient(new ClientControl({ onLost: tellLost }));
    try {
      yield* client.snapshots.changes(await keptName(client, name!));
    } finally {
      await client.close();
    }
    return;
  }
  (await import('./leave.ts')).guardEnd();
  const { DeviceMapper } = await import('../api/device-mapper.ts');
  const { changedExtentsOfStore } = await import('../api/store-changes.ts');
  const dm = new DeviceMapper();
  try {
    yield* changedExtentsOfStore(dm, cow);
  } finally {
    await dm.close();
  }
}

/** Prints pieces, many at a time, and waits for a reader that is slow. */
class Writer {
  readonly #separator: string;
  #lines: string[] = [];
  #isFirst = true;

  constructor(separator: string) {
    this.#separator = separator;
  }

  /** @returns false where the reader has gone */
  async line(text: string): Promise<boolean> {
    this.#lines.push(text);
    return this.#lines.length < LINE_COUNT || (await this.flush());
  }

  async flush(): Promise<boolean> {
    if (this.#lines.length === 0) return true;
    const text = `${this.#isFirst ? '' : this.#separator}${this.#lines.join(this.#separator)}`;
    this.#lines = [];
    this.#isFirst = false;
    return printed(text);
  }
}

export async function diffOverlay(name: string | undefined, options: DiffCommandOptions): Promise<void> {
  const { cow, json = false } = options;
  const writer = new Writer(json ? ',\n    ' : '\n');
  let [extentCount, changedSectorCount] = [0, 0];
  for await (const extent of changesOf(name, cow)) {
    // Nothing is printed of a comparison that fails at its beginning.
    if (extentCount === 0) process.stdout.write(json ? '{\n  "extents": [\n    ' : '# sector count\n');
    extentCount++;
    changedSectorCount += extent.sectorCount;
    if (!(await writer.line(json ? JSON.stringify(extent) : `${extent.sector} ${extent.sectorCount}`))) return;
  }
  await writer.flush();
  if (json) {
    const counts = `"extentCount": ${extentCount},\n  "changedSectorCount": ${changedSectorCount}`;
    print(extentCount === 0 ? `{\n  "extents": [],\n  ${counts}\n}` : `\n  ],\n  ${counts}\n}`);
    return;
  }
  const summary = `${extentCount} extent${extentCount === 1 ? '' : 's'}, ${changedSectorCount} sectors, ${bytesText(changedSectorCount * SECTOR_SIZE)}`;
  print(extentCount === 0 ? '# nothing differs' : `\n# ${summary}`);
}

// Merge and drop

function storeText({ cow, deleted }: DroppedSnapshot, kept: string): string {
  return `${cow}: ${deleted ? 'deleted' : kept}`;
}

function tellStale({ name, stale }: DroppedSnapshot, when: string): void {
  for (const path of stale)
    process.stderr.write(rawName(`dmkit: ${shownName(name)}: the kept store ${path} ${when}\n`));
}

/** @returns the exit code */
export async function mergeOverlay(name: string, options: MergeCommandOptions): Promise<number> {
  const { deleteCow = false, json = false } = options;
  const controller = new AbortController();
  const stop = (): void => controller.abort();
  process.once('SIGINT', stop);
  const watch = await watchMerge(name, json);
  try {
    const dropped = await withClient(async (client) =>
      client.snapshots.merge(await keptName(client, name), {
        deleteCow,
        signal: controller.signal,
        onProgress: watch.show,
        onNotice: (text) => void process.stderr.write(`dmkit: ${text}\n`),
      }),
    );
    watch.stop();
    if (json) print(JSON.stringify({ event: 'merged', ...dropped }));
    else print(`${name}: merged into its origin\n${storeText(dropped, 'kept, and empty')}`);
    tellStale(dropped, 'belongs to the origin as it was before: it can not be used any more');
    return 0;
  } catch (error) {
    watch.stop();
    if (!(error instanceof DmError) || error.errno !== Errno.EINTR) throw error;
    process.stderr.write(rawName(`dmkit: ${error.message}\n`));
    return EXIT_INTERRUPTED;
  } finally {
    process.off('SIGINT', stop);
  }
}

export async function dropOverlays(
  names: readonly string[],
  options: { deleteCow?: boolean; json?: boolean },
): Promise<void> {
  const { deleteCow = false, json } = options;
  const all = await withClient(async (client) =>
    client.snapshots.dropAll(await keptNames(client, names), { deleteCow }),
  );
  if (json) printJson(all.length === 1 ? all[0] : all);
  else for (const dropped of all) print(`${shownName(dropped.name)}: gone\n${storeText(dropped, 'kept')}`);
  for (const dropped of all) tellStale(dropped, 'can not be used any more after the next write to its origin');
}
