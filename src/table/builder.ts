// Lines turned into live targets, one after another, in one go or in steps (drivers/md/dm-table.c).
// What a table needs from above (types by name, devices by name) comes in through the interfaces of block.
import type { BlockDevice } from '../block/block-device.ts';
import { MAX_TARGET_COUNT } from '../block/bounds.ts';
import { Errno, errnoName } from '../block/errno.ts';
import { DmError, TableError } from '../block/errors.ts';
import { MAX_SECTOR_COUNT } from '../block/sector.ts';
import {
  type AnyTarget,
  type AnyTargetType,
  Target,
  TargetError,
  type TargetRegistry,
  type TargetServices,
  type TargetSetup,
} from '../block/target.ts';
import { TableDevices, type TableDevicesOptions } from './devices.ts';
import { LongText } from './long-text.ts';
import { buildSectorIndex } from './sector-index.ts';
import { beginsStep, runSteps, type Steps } from './steps.ts';
import { Table } from './table.ts';
import { checkTextSteps, splitArguments, type TableEntry, type TableInput, TableReader } from './text.ts';

export interface TableOptions extends TableDevicesOptions {
  registry: TargetRegistry;
  readOnly?: boolean;
  /** A target raised an event. */
  onEvent?: () => void;
  /** A target's own work begins or has ended: a suspend waits for it. */
  onWork?: (begins: boolean) => void;
  /** For targets that need them. */
  services?: TargetServices | undefined;
}

/** Where the entries of a table come from, one after another. */
export interface TableSource {
  readonly entryCount: number;
  /** The next one; undefined for a line of text that holds none. Not called after the last entry. */
  next(): TableEntry | undefined;
}

/** What all lines of one type share. */
interface TypeUse {
  readonly setup: TargetSetup;
  /** The type has a part in a suspend, a resume or the table's end. */
  readonly isHooked: boolean;
}

function isHooked(type: AnyTargetType): boolean {
  const { presuspend, presuspendUndo, postsuspend, preresume, resume, syncObstacle, destruct } = type;
  const hooks = [presuspend, presuspendUndo, postsuspend, preresume, resume, syncObstacle, destruct];
  return hooks.some((hook) => hook !== undefined);
}

/** A table under construction: line by line, and undone as a whole. Builds one table. */
export class TableBuilder {
  readonly #targets: AnyTarget[] = [];
  readonly #hookedTargets: AnyTarget[] = [];
  readonly #devices: TableDevices;
  readonly #options: TableOptions;
  readonly #typeUses = new Map<AnyTargetType, TypeUse>();
  /** Null once a line needs to be asked for each flush. */
  #flushDevices: Set<BlockDevice> | null = new Set();
  #immutableType: AnyTargetType | undefined;

  constructor(options: TableOptions) {
    this.#options = options;
    this.#devices = new TableDevices(options);
  }

  /** What is open for it by now. */
  get devices(): readonly BlockDevice[] {
    return this.#devices.list();
  }

  /**
   * Builds the table of `source`. Where it is refused, or given up between two steps, every line that was built is undone
   * and every device closed.
   *
   * @throws TableError for the first line that is refused; DmError EINVAL for no line or too many
   */
  *build(source: TableSource): Steps<Table> {
    const { entryCount } = source;
    checkEntryCount(entryCount);
    const lastSectors = new Float64Array(entryCount);
    let table: Table | null = null;
    try {
      for (let index = 0, built = 0; built < entryCount; index++) {
        if (beginsStep(index)) yield;
        const entry = source.next();
        if (entry === undefined) continue;
        this.#add(entry);
        lastSectors[built++] = entry.sector + entry.sectorCount - 1;
      }
      table = this.#finish(lastSectors);
    } finally {
      if (table === null) this.#undo();
    }
    return table;
  }

  #add(entry: TableEntry): void {
    const type = this.#check(entry);
    const target = new Target(type, entry.sector, entry.sectorCount) as AnyTarget;
    const use = this.#typeUses.get(type) ?? this.#firstUse(type);
    try {
      target.context = type.construct(target, splitArguments(entry.params), use.setup);
    } catch (error) {
      if (!(error instanceof TargetError)) throw error;
      throw this.#refuse(`${type.name}: ${error.text} (-${errnoName(error.errno)})`, error.errno, error.cause);
    }
    this.#targets.push(target);
    if (use.isHooked) this.#hookedTargets.push(target);
    this.#addFlushDevices(target);
  }

  #firstUse(type: AnyTargetType): TypeUse {
    const { readOnly = false, services } = this.#options;
    const setup: TargetSetup = {
      readOnly,
      getDevice: (argument, wantsReadOnly = false) => this.#devices.get(argument, readOnly || wantsReadOnly),
      getOwnDevice: (argument, orReadOnly) => this.#devices.getOwn(argument, readOnly && orReadOnly),
      raiseEvent: () => this.#options.onEvent?.(),
      hold: () => this.#devices.hold(),
      release: () => this.#devices.release(),
      beginWork: () => this.#options.onWork?.(true),
      endWork: () => this.#options.onWork?.(false),
      get services() {
        if (services === undefined) throw new Error(`${type.name}: this mapper was made without a reactor for targets`);
        return services;
      },
    };
    const use = { setup, isHooked: isHooked(type) };
    this.#typeUses.set(type, use);
    return use;
  }

  #addFlushDevices(target: AnyTarget): void {
    const devices = this.#flushDevices;
    if (target.flushBioCount === 0 || devices === null) return;
    if (target.flushBypassesMap) target.type.iterateDevices?.(target, (device) => devices.add(device));
    else this.#flushDevices = null;
  }

  #finish(lastSectors: Float64Array): Table {
    return new Table({
      targets: this.#targets,
      hookedTargets: this.#hookedTargets,
      flushDevices: this.#flushDevices === null ? null : [...this.#flushDevices],
      index: buildSectorIndex(lastSectors),
      devices: this.#devices,
      readOnly: this.#options.readOnly ?? false,
      isStateless: [...this.#typeUses.keys()].every((type) => type.stateless === true),
    });
  }

  #undo(): void {
    for (const target of this.#hookedTargets) target.type.destruct?.(target);
    this.#devices.closeAll(() => {});
  }

  /** The checks that need no constructor, in the kernel's order (dm_table_add_target). */
  #check(entry: TableEntry): AnyTargetType {
    const first = this.#targets[0];
    if (first?.type.singleton) throw this.#refuse(`target type ${first.type.name} must appear alone in table`);
    if (entry.sectorCount === 0) throw this.#refuse('zero-length target');
    if (!(entry.sector <= MAX_SECTOR_COUNT) || entry.sectorCount > MAX_SECTOR_COUNT - entry.sector) {
      throw this.#refuse('too large device');
    }
    const type = this.#options.registry.find(entry.type);
    if (type === undefined) throw this.#refuse(`${entry.type}: unknown target type`);
    this.#checkCompany(type, first);
    const previous = this.#targets[this.#targets.length - 1];
    const expected = previous === undefined ? 0 : previous.begin + previous.sectorCount;
    // The kernel has the same words for a gap, an overlap and a first line that does not start at 0.
    if (entry.sector !== expected) throw this.#refuse(`${type.name}: Gap in table (-EINVAL)`);
    return type;
  }

  /** Which types go together. */
  #checkCompany(type: AnyTargetType, first: AnyTarget | undefined): void {
    if (type.singleton && first !== undefined) {
      throw this.#refuse(`target type ${type.name} must appear alone in table`);
    }
    if (type.alwaysWriteable && this.#options.readOnly) {
      throw this.#refuse(`target type ${type.name} may not be included in a read-only table`);
    }
    const immutable = this.#immutableType;
    if (immutable !== undefined ? immutable !== type : type.immutable && first !== undefined) {
      const name = (immutable ?? type).name;
      throw this.#refuse(`immutable target type ${name} cannot be mixed with other target types`);
    }
    if (type.immutable) this.#immutableType = type;
  }

  #refuse(reason: string, errno: number = Errno.EINVAL, cause?: unknown): TableError {
    const error = new TableError(errno, reason, this.#targets.length);
    if (cause !== undefined) error.cause = cause;
    return error;
  }
}

function checkEntryCount(entryCount: number): void {
  if (entryCount === 0) throw new DmError(Errno.EINVAL, 'populate_table: no targets specified');
  if (entryCount <= MAX_TARGET_COUNT) return;
  throw new DmError(Errno.EINVAL, `a table has at most ${MAX_TARGET_COUNT} lines, this one has ${entryCount}`);
}

/** The entries of a list. */
function sourceOf(entries: readonly TableEntry[]): TableSource {
  let at = 0;
  return { entryCount: entries.length, next: () => entries[at++] };
}

/**
 * The source of a table given either way. Text is read twice: once to refuse what cannot be read, and again, an entry at a
 * time, while it is built. A list of a million entries between the two would cost more than that: the garbage collector
 * stops the thread for it again and again.
 *
 * @throws DmError as parseTable does
 */
export function* sourceSteps(table: TableInput): Steps<TableSource> {
  if (typeof table !== 'string' && !(table instanceof LongText)) return sourceOf(table);
  const entryCount = yield* checkTextSteps(table);
  const reader = new TableReader(table);
  return { entryCount, next: () => reader.next() };
}

/**
 * Makes a live table of `entries`, with the kernel's checks in the kernel's order.
 *
 * @throws TableError for the first line that is refused; every earlier line is undone and every device closed
 * @throws DmError EINVAL for no line or too many
 */
export function buildTable(entries: readonly TableEntry[], options: TableOptions): Table {
  return runSteps(new TableBuilder(options).build(sourceOf(entries)));
}
