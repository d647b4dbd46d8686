// A table: lines turned into live targets, and the way from a sector to its target (drivers/md/dm-table.c).
// What a table needs from above (types by name, devices by name) comes in through the interfaces of block.
import type { BlockDevice } from '../block/block-device.ts';
import { MAX_TARGET_COUNT } from '../block/bounds.ts';
import type { DeviceResolver } from '../block/device-resolver.ts';
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
} from '../block/target.ts';
import { formatTableLine, splitArguments, type TableEntry } from './text.ts';

/** Keys in a node of the index. */
const INDEX_FANOUT = 8;

export interface TableOptions {
  registry: TargetRegistry;
  resolver: DeviceResolver;
  readOnly?: boolean;
  /** Throws where a device must not be used by this table (it would close a cycle). */
  checkDevice?: (device: BlockDevice) => void;
  /** A target raised an event. */
  onEvent?: () => void;
  /** A target's own work begins or has ended: a suspend waits for it. */
  onWork?: (begins: boolean) => void;
  /** For targets that need them. */
  services?: TargetServices | undefined;
}

/** A live table. Made by {@link buildTable}, ended by {@link Table.destroy}. */
export class Table {
  readonly targets: readonly AnyTarget[];
  readonly readOnly: boolean;
  readonly sectorCount: number;
  /** In the order of first use, each once. */
  readonly devices: readonly BlockDevice[];
  /** The devices that a flush must reach, where that can be said without asking each target; null where it cannot. */
  readonly flushDevices: readonly BlockDevice[] | null;
  readonly #devices: TableDevices;
  readonly #index: readonly Float64Array[];
  #recent = 0;

  constructor(targets: readonly AnyTarget[], devices: TableDevices, options: TableOptions) {
    this.targets = targets;
    this.#devices = devices;
    this.devices = devices.opened.map(({ device }) => device);
    this.readOnly = options.readOnly ?? false;
    const last = targets[targets.length - 1];
    this.sectorCount = last === undefined ? 0 : last.begin + last.sectorCount;
    this.#index = buildIndex(targets);
    this.flushDevices = flushDevicesOf(targets);
  }

  /** The target that owns `sector`; undefined past the end. */
  find(sector: number): AnyTarget | undefined {
    // Requests cluster: the target of the last one is the first guess.
    const recent = this.targets[this.#recent]!;
    if (sector >= recent.begin && sector < recent.begin + recent.sectorCount) return recent;
    if (!(sector < this.sectorCount)) return undefined;
    let at = 0;
    for (let level = this.#index.length - 1; level >= 0; level--) {
      const keys = this.#index[level]!;
      at *= INDEX_FANOUT;
      // Ends inside the node: the last key of the node above was not below the sector.
      while (keys[at]! < sector) at++;
    }
    this.#recent = at;
    return this.targets[at];
  }

  /** Lines as `dmsetup table` or `dmsetup status` prints them, without a newline. */
  lines(type: 'table' | 'info'): string[] {
    return this.targets.map((target) =>
      formatTableLine(target.begin, target.sectorCount, target.type.name, target.type.status?.(target, type) ?? ''),
    );
  }

  /**
   * Undoes every constructor and closes the devices. Calls `done` once they are closed: later than this call where a target
   * still has requests of its own under way.
   */
  destroy(done: () => void = () => {}): void {
    for (const target of this.targets) target.type.destruct?.(target);
    this.#devices.closeAll(done);
  }
}

/**
 * The way from a sector to its target, a tree without pointers: level 0 has the last sector of each target, ascending,
 * and each level above the last key of every node of {@link INDEX_FANOUT} keys below it. A node's keys lie together, so
 * that a search in a million targets touches seven cache lines.
 */
function buildIndex(targets: readonly AnyTarget[]): Float64Array[] {
  const levels = [Float64Array.from(targets, (target) => target.begin + target.sectorCount - 1)];
  for (let keys = levels[0]!; keys.length > INDEX_FANOUT; levels.push(keys)) {
    const below = keys;
    const nodeCount = Math.ceil(below.length / INDEX_FANOUT);
    keys = new Float64Array(nodeCount);
    for (let node = 0; node < nodeCount; node++) {
      keys[node] = below[Math.min((node + 1) * INDEX_FANOUT, below.length) - 1]!;
    }
  }
  return levels;
}

function flushDevicesOf(targets: readonly AnyTarget[]): BlockDevice[] | null {
  const devices = new Set<BlockDevice>();
  for (const target of targets) {
    if (target.flushBioCount === 0) continue;
    if (!target.flushBypassesMap) return null;
    target.type.iterateDevices?.(target, (device) => devices.add(device));
  }
  return [...devices];
}

/** A device and how it is open. */
interface OpenDevice {
  readonly device: BlockDevice;
  readOnly: boolean;
}

/** The devices of a table under construction: each opened once, all closed again when a line is refused. */
class TableDevices {
  readonly opened: OpenDevice[] = [];
  readonly #byArgument = new Map<string, OpenDevice>();
  #holdCount = 0;
  /** Called when they are closed; null as long as the table uses them. */
  #whenClosed: (() => void) | null = null;
  readonly #options: TableOptions;

  constructor(options: TableOptions) {
    this.#options = options;
  }

  get(argument: string, readOnly: boolean): BlockDevice {
    // A table of a million lines names the same few devices over and over.
    const known = this.#byArgument.get(argument);
    if (known !== undefined && (readOnly || !known.readOnly)) return known.device;
    const opened = this.#open(argument, readOnly);
    this.#byArgument.set(argument, opened);
    return opened.device;
  }

  #open(argument: string, readOnly: boolean): OpenDevice {
    const { resolver, checkDevice } = this.#options;
    const device = resolver.open(argument, readOnly);
    const known = this.opened.find((other) => other.device === device);
    if (known !== undefined) {
      // One user for the table: of the two ways it is open the one that allows more stays.
      resolver.close(device, known.readOnly || readOnly);
      known.readOnly &&= readOnly;
      return known;
    }
    try {
      checkDevice?.(device);
    } catch (error) {
      resolver.close(device, readOnly);
      throw error;
    }
    const opened = { device, readOnly };
    this.opened.push(opened);
    return opened;
  }

  hold(): void {
    this.#holdCount++;
  }

  release(): void {
    if (--this.#holdCount === 0 && this.#whenClosed !== null) this.#close(this.#whenClosed);
  }

  /** Nobody needs them any more, but who holds them. */
  closeAll(closed: () => void): void {
    this.#whenClosed = closed;
    if (this.#holdCount === 0) this.#close(closed);
  }

  #close(closed: () => void): void {
    this.#whenClosed = null;
    for (const { device, readOnly } of this.opened) this.#options.resolver.close(device, readOnly);
    closed();
  }
}

/** A table under construction: line by line, and undone as a whole. */
class TableBuilder {
  readonly targets: AnyTarget[] = [];
  readonly #devices: TableDevices;
  readonly #options: TableOptions;
  #immutableType: AnyTargetType | undefined;

  constructor(options: TableOptions) {
    this.#options = options;
    this.#devices = new TableDevices(options);
  }

  add(entry: TableEntry): void {
    const type = this.#check(entry);
    const target = new Target(type, entry.sector, entry.sectorCount) as AnyTarget;
    const { readOnly = false, services } = this.#options;
    try {
      target.context = type.construct(target, splitArguments(entry.params), {
        readOnly,
        getDevice: (argument, wantsReadOnly = false) => this.#devices.get(argument, readOnly || wantsReadOnly),
        raiseEvent: () => this.#options.onEvent?.(),
        hold: () => this.#devices.hold(),
        release: () => this.#devices.release(),
        beginWork: () => this.#options.onWork?.(true),
        endWork: () => this.#options.onWork?.(false),
        get services() {
          if (services === undefined)
            throw new Error(`${type.name}: this mapper was made without a reactor for targets`);
          return services;
        },
      });
    } catch (error) {
      if (!(error instanceof TargetError)) throw error;
      throw this.#refuse(`${type.name}: ${error.text} (-${errnoName(error.errno)})`, error.errno, error.cause);
    }
    this.targets.push(target);
  }

  finish(): Table {
    return new Table(this.targets, this.#devices, this.#options);
  }

  undo(): void {
    for (const target of this.targets) target.type.destruct?.(target);
    this.#devices.closeAll(() => {});
  }

  /** The checks that need no constructor, in the kernel's order (dm_table_add_target). */
  #check(entry: TableEntry): AnyTargetType {
    const first = this.targets[0];
    if (first?.type.singleton) throw this.#refuse(`target type ${first.type.name} must appear alone in table`);
    if (entry.sectorCount === 0) throw this.#refuse('zero-length target');
    if (!(entry.sector <= MAX_SECTOR_COUNT) || entry.sectorCount > MAX_SECTOR_COUNT - entry.sector) {
      throw this.#refuse('too large device');
    }
    const type = this.#options.registry.find(entry.type);
    if (type === undefined) throw this.#refuse(`${entry.type}: unknown target type`);
    this.#checkCompany(type, first);
    const previous = this.targets[this.targets.length - 1];
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
    const error = new TableError(errno, reason, this.targets.length);
    if (cause !== undefined) error.cause = cause;
    return error;
  }
}

/**
 * Makes a live table of `entries`, with the kernel's checks in the kernel's order.
 *
 * @throws TableError for the first line that is refused; every earlier line is undone and every device closed
 * @throws DmError EINVAL for no line or too many
 */
export function buildTable(entries: readonly TableEntry[], options: TableOptions): Table {
  if (entries.length === 0) throw new DmError(Errno.EINVAL, 'populate_table: no targets specified');
  if (entries.length > MAX_TARGET_COUNT) {
    throw new DmError(Errno.EINVAL, `a table has at most ${MAX_TARGET_COUNT} lines, this one has ${entries.length}`);
  }
  const builder = new TableBuilder(options);
  try {
    for (const entry of entries) builder.add(entry);
  } catch (error) {
    builder.undo();
    throw error;
  }
  return builder.finish();
}
