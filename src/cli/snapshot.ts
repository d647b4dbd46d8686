// What the words of dmkit snapshot do.
import { once } from 'node:events';
import { Errno } from '../block/errno.ts';
import { DmError } from '../block/errors.ts';
import { SECTOR_SIZE } from '../block/sector.ts';
import { ClientControl } from '../client/connect.ts';
import {
  type ChangedExtent,
  type CreateSnapshotOptions,
  DaemonClient,
  type DroppedSnapshot,
  type SnapshotPlan,
  type SnapshotStatus,
  type StoreKind,
} from '../client/index.ts';
import { bytesText } from './copy-progress.ts';
import { quoted } from './exec.ts';
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
  process.stdout.write(`${text}\n`);
}

function printJson(value: unknown): void {
  print(JSON.stringify(value, null, 2));
}

/** The commands that do what a plan says. */
function commandsOf(plan: SnapshotPlan): string[] {
  const { cow, cowByteLength, makesCow, growsCow, originDevice, suspends, overlay } = plan;
  const create = ({ name, table }: { name: string; table: string }): string =>
    `dmkit create ${quoted(name)} --table ${quoted(table)}`;
  return [
    ...(makesCow || growsCow ? [`truncate -s ${cowByteLength} ${quoted(cow)}`] : []),
    ...(originDevice === null ? [] : [create(originDevice)]),
    ...suspends.map((name) => `dmkit suspend ${quoted(name)}`),
    create(overlay),
    ...suspends.map((name) => `dmkit resume ${quoted(name)}`),
  ];
}

function printCreated(plan: SnapshotPlan): void {
  const { cow, cowByteLength, makesCow, growsCow, originDevice, suspends, overlay } = plan;
  if (makesCow) print(`${cow}: made, sparse, ${bytesText(cowByteLength)}`);
  else print(`${cow}: goes on${growsCow ? `, with ${bytesText(cowByteLength)} now` : ''}`);
  if (originDevice !== null) print(`${originDevice.name}: ${originDevice.table}`);
  if (suspends.length > 0) print(`${suspends.join(', ')}: suspended for the moment in which the overlay began`);
  print(`${overlay.name}: ${overlay.table}`);
}

export async function createOverlay(origin: string, name: string, options: CreateCommandOptions): Promise<void> {
  const { cow, cowFolder, size, chunk, store, lazyCommit, originName, dryRun, json } = options;
  const wanted: CreateSnapshotOptions = { origin, name, store };
  if (cow !== undefined) wanted.cow = cow;
  if (cowFolder !== undefined) wanted.cowFolder = cowFolder;
  if (size !== undefined) wanted.cowByteLength = parseSize(size, 'size');
  if (chunk !== undefined) wanted.chunkSectorCount = parseSize(chunk, 'chunk') / SECTOR_SIZE;
  if (lazyCommit) wanted.lazyCommit = true;
  if (originName !== undefined) wanted.originName = originName;
  await withClient(async ({ snapshots }) => {
    // An origin that was suspended must not stay so.
    const ignore = (): void => {};
    process.on('SIGINT', ignore);
    try {
      const plan = await (dryRun ? snapshots.plan(wanted) : snapshots.create(wanted));
      if (json) printJson({ ...plan, done: dryRun !== true, commands: commandsOf(plan) });
      else if (dryRun) for (const line of commandsOf(plan)) print(line);
      else printCreated(plan);
    } finally {
      process.off('SIGINT', ignore);
    }
  });
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
    name,
    originName === null ? origin : `/dev/mapper/${originName}`,
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
      yield* client.snapshots.changes(name!);
    } finally {
      await client.close();
    }
    return;
  }
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

  async line(text: string): Promise<void> {
    this.#lines.push(text);
    if (this.#lines.length >= LINE_COUNT) await this.flush();
  }

  async flush(): Promise<void> {
    if (this.#lines.length === 0) return;
    const text = `${this.#isFirst ? '' : this.#separator}${this.#lines.join(this.#separator)}`;
    this.#lines = [];
    this.#isFirst = false;
    if (!process.stdout.write(text)) await once(process.stdout, 'drain');
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
    await writer.line(json ? JSON.stringify(extent) : `${extent.sector} ${extent.sectorCount}`);
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

/** @returns the exit code */
export async function mergeOverlay(name: string, options: MergeCommandOptions): Promise<number> {
  const { deleteCow = false, json = false } = options;
  const controller = new AbortController();
  const stop = (): void => controller.abort();
  process.once('SIGINT', stop);
  const watch = await watchMerge(name, json);
  try {
    const dropped = await withClient(({ snapshots }) =>
      snapshots.merge(name, { deleteCow, signal: controller.signal, onProgress: watch.show }),
    );
    watch.stop();
    if (json) print(JSON.stringify({ event: 'merged', ...dropped }));
    else print(`${name}: merged into its origin\n${storeText(dropped, 'kept, and empty')}`);
    return 0;
  } catch (error) {
    watch.stop();
    if (!(error instanceof DmError) || error.errno !== Errno.EINTR) throw error;
    process.stderr.write(`dmkit: ${error.message}\n`);
    return EXIT_INTERRUPTED;
  } finally {
    process.off('SIGINT', stop);
  }
}

export async function dropOverlay(name: string, options: { deleteCow?: boolean; json?: boolean }): Promise<void> {
  const { deleteCow = false, json } = options;
  const dropped = await withClient(({ snapshots }) => snapshots.drop(name, { deleteCow }));
  if (json) printJson(dropped);
  else print(`${name}: gone\n${storeText(dropped, 'kept')}`);
}
