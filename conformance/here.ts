// dmkit's side: the steps of a case through the library, with answers in the same words as the kernel's.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceMapper } from '../src/api/device-mapper.ts';
import type { Disk } from '../src/api/disk.ts';
import { RangeRequest } from '../src/block/zeroout.ts';
import { DmError, errnoName, TableError } from '../src/index.ts';
import { parseTable } from '../src/table/text.ts';
import {
  type Case,
  type ControlStep,
  type CreateStep,
  fullSteps,
  type IoStep,
  MAX_CONTENT_SECTOR_COUNT,
  type MessageStep,
  type Outcome,
  type PokeStep,
  type QueryStep,
  retryBlockSize,
  type Step,
} from './case.ts';
import { type Contents, Disks } from './disks.ts';
import { noise, shortHash } from './noise.ts';

/** How long `until` waits: image files may lie on a slow disk, where each run of a merge waits for it three times. */
const UNTIL_MILLISECONDS = 60_000;

export interface HereOptions {
  /** Of disks that do not hold what their line says: they come from the other side. */
  contents?: Contents;
  /** The disks are image files. */
  files?: boolean;
}

/** Runs a case. @throws Error where dmkit fails in a way that no answer stands for */
export async function runHere(one: Case, options: HereOptions = {}): Promise<Outcome> {
  const files = options.files || one.disks.some((disk) => disk.isFile);
  const folder = files ? mkdtempSync(join(tmpdir(), 'dmkit-conformance-')) : null;
  try {
    return await runIn(one, options.contents ?? {}, folder);
  } finally {
    if (folder !== null) rmSync(folder, { recursive: true, force: true });
  }
}

async function runIn(one: Case, contents: Contents, folder: string | null): Promise<Outcome> {
  const run = new Run(one, contents, folder);
  const answers: string[] = [];
  const states: Contents[] = [];
  const steps = fullSteps(one);
  try {
    for (const step of steps) {
      if (step.verb === 'handover') states.push(run.state());
      answers.push(await run.perform(step));
    }
  } finally {
    await run.end();
  }
  const disks = Object.fromEntries(Object.entries(run.state()).map(([name, bytes]) => [name, shortHash(bytes)]));
  return { answers, disks, states };
}

/** Where a failure came from, for `create`, which is three calls. */
class StageError extends Error {
  readonly stage: string;

  constructor(stage: string, cause: unknown) {
    super(stage, { cause });
    this.stage = stage;
  }
}

class Run {
  readonly #one: Case;
  readonly #dm = new DeviceMapper();
  readonly #disks: Disks;
  #started: Promise<string> | null = null;

  constructor(one: Case, contents: Contents, folder: string | null) {
    this.#one = one;
    this.#disks = new Disks(this.#dm, one, contents, folder);
    // The kernel knows nothing of the marks that dmkit keeps in stores: the bytes of both sides must be the same here.
    this.#dm.mapper.onLeaving = null;
    this.#dm.mapper.onGoingLive = null;
  }

  /** What the disks hold now. */
  state(): Contents {
    return this.#disks.state();
  }

  async end(): Promise<void> {
    for (const device of this.#dm.mapper.list()) if (device.suspended) device.clear();
    await this.#removeAll();
    await this.#dm.close();
  }

  async perform(step: Step): Promise<string> {
    try {
      return await this.#answer(step);
    } catch (error) {
      return this.#renumber(errorText(error));
    }
  }

  async #answer(step: Step): Promise<string> {
    if ('sectorCount' in step) return this.#io(step);
    switch (step.verb) {
      case 'flush':
        return this.#withDisk(step.on, async (disk) => {
          await disk.flush();
          return 'ok';
        });
      case 'poke':
        return this.#withDisk(step.on, (disk) => poke(disk, step));
      case 'contents':
        return this.#withDisk(step.on, (disk) => readContents(disk, retryBlockSize(this.#one)));
      case 'until':
        return this.#until(step.on, step.text);
      case 'finish':
        return (await this.#started) ?? 'ok';
      case 'remove-all':
        return (await this.#removeAll()) === 0 ? 'ok' : 'some were left';
      case 'handover':
        return 'ok';
      case 'tables':
      case 'statuses':
        return this.#allLines(step.verb === 'tables' ? 'table' : 'info');
      default:
        return this.#control(step);
    }
  }

  async #control(step: Step): Promise<string> {
    if (!('on' in step)) throw new Error(`${step.verb} is no step on a device`);
    const { mapper } = this.#dm;
    switch (step.verb) {
      case 'create':
        return this.#create(step as CreateStep);
      case 'load':
        mapper.load(mapper.get(step.on), parseTable(this.#resolve(step as CreateStep)), step as CreateStep);
        return 'ok';
      case 'resume':
        return this.#resume(step as ControlStep);
      case 'suspend':
        await this.#dm.suspend(step.on, step as { noflush: boolean });
        return 'ok';
      case 'clear':
        mapper.get(step.on).clear();
        return 'ok';
      case 'remove':
        await this.#remove(step.on);
        return 'ok';
      case 'message':
        return this.#message(step as MessageStep);
      default:
        return this.#query(step as QueryStep);
    }
  }

  /** From the top down, each when the one before is gone. @returns how many are left */
  async #removeAll(): Promise<number> {
    const { mapper } = this.#dm;
    for (;;) {
      const unused = mapper.list().find((device) => device.openCount === 0);
      if (unused === undefined) return mapper.list().length;
      await this.#remove(unused.dmName);
    }
  }

  async #resume({ on, noflush }: ControlStep): Promise<string> {
    const { table, inactiveTable } = this.#dm.mapper.get(on);
    try {
      await this.#dm.resume(on, { noflush });
      return 'ok';
    } catch (error) {
      // Without a table there is no target to give a reason.
      const isReason = error instanceof DmError && !(error instanceof TableError);
      if (!isReason || (table === null && inactiveTable === null)) throw error;
      return `${error.code}: ${error.message}`;
    }
  }

  async #remove(name: string): Promise<void> {
    const { mapper } = this.#dm;
    await new Promise<void>((resolve) => mapper.remove(mapper.get(name), {}, resolve));
  }

  /** As dmsetup does: create, load, resume, and nothing is left when one of them fails. */
  async #create(step: CreateStep): Promise<string> {
    const { mapper } = this.#dm;
    const entries = step.table === null ? null : parseTable(this.#resolve(step));
    let stage = 'create';
    const device = attempt(stage, () => mapper.create(step.on));
    if (entries === null || entries.length === 0) return 'ok';
    try {
      stage = 'reload';
      mapper.load(device, entries, step);
      stage = 'resume';
      await this.#dm.resume(step.on);
      return 'ok';
    } catch (error) {
      mapper.remove(device);
      throw new StageError(stage, error);
    }
  }

  #resolve(step: CreateStep): string {
    const text = (step.table ?? '').replace(/\b253:/g, `${this.#dm.mapper.major}:`);
    return text.replace(/@([a-z][a-z0-9]*)/g, (word, name) => this.#argument(word, name));
  }

  #argument(word: string, name: string): string {
    return this.#disks.has(name) ? this.#disks.argument(name) : word;
  }

  #message({ on, sector, text }: MessageStep): string {
    const resolved = text.replace(/@([a-z][a-z0-9]*)/g, (word, name) => this.#argument(word, name));
    return this.#dm.mapper.get(on).message(Number(sector), resolved) ?? 'ok';
  }

  #query(step: QueryStep): string {
    const device = this.#dm.mapper.get(step.on);
    const table = step.inactive ? device.inactiveTable : device.table;
    if (step.verb === 'info') {
      const flags = [device.table ? 'L' : '-', device.inactiveTable ? 'I' : '-', device.suspended ? 's' : '-'];
      flags.push(device.readOnly ? 'r' : 'w');
      return `${flags.join('')}:${device.openCount}:${device.table?.targets.length ?? 0}:${device.eventNumber}`;
    }
    if (step.verb === 'deps') {
      return this.#renumber(
        [...(table?.devices ?? [])]
          .reverse()
          .map((lower) => lower.name)
          .join(' '),
      );
    }
    return this.#renumber(device.lines(step.verb === 'table' ? 'table' : 'info', step.inactive).join('\n'));
  }

  async #until(on: string, text: string): Promise<string> {
    const device = this.#dm.mapper.get(on);
    const end = performance.now() + UNTIL_MILLISECONDS;
    for (;;) {
      const status = this.#renumber(device.lines('info').join('\n'));
      if (status.includes(text) || performance.now() > end) return status;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  #allLines(type: 'table' | 'info'): string {
    const lines = this.#dm.mapper.list().flatMap((device) => {
      const own = device.lines(type);
      return (own.length === 0 ? [''] : own).map((line) => `${device.dmName}: ${line}`);
    });
    return this.#renumber(lines.join('\n'));
  }

  /** Our major number is any that this machine has free; the guest's is 253. */
  #renumber(text: string): string {
    const numbered = text.replace(new RegExp(`\\b${this.#dm.mapper.major}:(?=[0-9])`, 'g'), '253:');
    return this.#disks.rename(numbered);
  }

  async #io(step: IoStep): Promise<string> {
    const work = this.#withDisk(step.on, (disk) => this.#request(disk, step)).catch(errorText);
    if (!step.started) return work;
    this.#started = work;
    return 'started';
  }

  async #withDisk(on: string, use: (disk: Disk) => Promise<string>): Promise<string> {
    const { mapper } = this.#dm;
    const isDisk = this.#disks.has(on);
    if (!isDisk && (!mapper.has(on) || mapper.get(on).table === null)) return 'no device';
    const disk = await this.#dm.open(isDisk ? this.#disks.argument(on) : `/dev/mapper/${on}`);
    try {
      return await use(disk);
    } finally {
      disk.close();
    }
  }

  async #request(disk: Disk, step: IoStep): Promise<string> {
    const { sector, sectorCount } = step;
    switch (step.verb) {
      case 'read':
        return shortHash(await disk.read(sector, sectorCount));
      case 'write':
        await disk.write(sector, noise(step.from, sectorCount), { fua: step.fua });
        return 'ok';
      case 'discard':
        await disk.discard(sector, sectorCount);
        return 'ok';
      case 'write-zeroes':
        await disk.writeZeroes(sector, sectorCount);
        return 'ok';
      case 'zero-out':
        return new Promise((resolve) => {
          const done = (errno: number) => resolve(errno === 0 ? 'ok' : errnoName(errno));
          new RangeRequest(this.#dm.loop).zeroOut(disk.device, sector, sectorCount, { noUnmap: true }, done);
        });
    }
  }
}

async function poke(disk: Disk, { byteOffset, hex }: PokeStep): Promise<string> {
  const bytes = Buffer.from(hex, 'hex');
  const unit = disk.device.limits.logicalBlockSize;
  const start = Math.floor(byteOffset / unit) * unit;
  const end = Math.ceil((byteOffset + bytes.byteLength) / unit) * unit;
  const around = await disk.read(start / 512, (end - start) / 512);
  around.set(bytes, byteOffset - start);
  await disk.write(start / 512, around);
  return 'ok';
}

function attempt<Result>(stage: string, work: () => Result): Result {
  try {
    return work();
  } catch (error) {
    throw new StageError(stage, error);
  }
}

function errorText(error: unknown): string {
  if (error instanceof StageError) {
    const cause = error.cause;
    if (cause instanceof DmError) return `${cause.code} at ${error.stage}${reasonOf(cause)}`;
    throw cause;
  }
  if (!(error instanceof DmError)) throw error;
  const line = /^Invalid format on line ([0-9]+)/.exec(error.message)?.[1];
  return line === undefined ? `${error.code}${reasonOf(error)}` : `bad format on line ${line}`;
}

/** What the kernel would have logged: of a table's refusals alone. */
function reasonOf(error: DmError): string {
  if (error instanceof TableError) return `: ${error.reason}`;
  return error.message === 'populate_table: no targets specified' ? `: ${error.message}` : '';
}

/** All of a device, up to a bound; where that fails, block by block, with zeros for those that cannot be read. */
async function readContents(disk: Disk, blockSize: number): Promise<string> {
  const sectorCount = Math.min(disk.sectorCount, MAX_CONTENT_SECTOR_COUNT);
  let bytes: Uint8Array;
  try {
    bytes = await disk.read(0, sectorCount);
  } catch {
    bytes = await readBlocks(disk, sectorCount, blockSize / 512);
  }
  return `${bytes.byteLength / 512} ${shortHash(bytes)}`;
}

async function readBlocks(disk: Disk, sectorCount: number, step: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(Math.ceil(sectorCount / step) * step * 512);
  for (let sector = 0; sector < sectorCount; sector += step) {
    const count = Math.min(step, sectorCount - sector);
    try {
      bytes.set(await disk.read(sector, count), sector * 512);
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
    }
  }
  return bytes;
}
